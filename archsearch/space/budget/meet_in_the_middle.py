"""Counts and draws the paths of a graph whose cost lies in a box, by meeting in the middle: a table of partial sums from each end, joined at one step."""

import random
from collections.abc import Iterable, Mapping
from functools import cached_property

import numpy as np

from archsearch.space.budget.graph import END, Integers, Node
from archsearch.space.budget.keyed_graph import (
    Box,
    Edge,
    KeyedGraph,
    Keys,
    Path,
    Weights,
    draw_index,
    fitting_rows,
)
from archsearch.space.budget.ranges import RangeTable
from archsearch.space.budget.wavelet import WaveletMatrix

_MOST_PATHS = 2**62
_MOST_JOINS = 50_000_000  # look-ups, some seconds' work; the default space's exact count takes a third. With two quantities each costs four times as much.
_SPLITS_KEPT = 50_000  # cached; a hundred bytes each


class TooLargeError(Exception):
    """A table would have more rows, or joining the two would take more steps, than allowed."""


class MeetInTheMiddle:
    """The tables of a graph from both ends to its step `middle`, only with sums that can still end in the box.

    Of a weighted graph paths count, and are drawn, as the products of their options' weights.

    By default `middle` is the step with the smallest tables. Raises TooLargeError for a table of more than `most_rows`, and where joining
    the two would take more than _MOST_JOINS look-ups.
    """

    def __init__(self, graph: KeyedGraph, box: Box, most_rows: int, middle: int | None = None) -> None:
        self.graph, self.box, self._most_rows = graph, box, most_rows
        self._dtype = np.int64 if graph.num_paths < _MOST_PATHS and not graph.is_weighted else np.float64
        count = len(graph.steps)
        one = Keys(np.zeros(1, np.int64), np.ones(1, self._dtype))
        self.left: list[dict[Node, Keys]] = [{graph.start: one}]
        self.right: list[dict[Node, Keys]] = [{END: one}]  # from the last step back
        before, after = graph.ranges(is_forward=True), graph.ranges(is_forward=False)
        while len(self.left) + len(self.right) < count + 1:
            ahead, behind = len(self.left) - 1, count - len(self.right)
            if middle is None:
                rows = [
                    self._count_rows(self.left[-1], ahead, is_forward=True),
                    self._count_rows(self.right[-1], behind, is_forward=False),
                ]
                is_left = rows[0] <= rows[1]
            else:
                is_left = ahead < middle
            if is_left:
                self.left.append(self._extend(self.left[-1], ahead, after[ahead + 1], is_forward=True))
            else:
                self.right.append(self._extend(self.right[-1], behind, before[behind], is_forward=False))
        self.middle = len(self.left) - 1
        joins = sum(len(edge) * len(self.right[-1][far]) for far, edges in self._edges_to.items() for _, edge in edges)
        if joins > _MOST_JOINS // len(box.low) ** 2:
            raise TooLargeError
        self._splits: dict[tuple[int, Node, int], tuple[Weights, Integers, list[tuple[Node, Edge]]]] = {}

    @property
    def is_exact(self) -> bool:
        """Whether paths are counted in whole numbers."""
        return self._dtype == np.int64

    def _count_rows(self, table: dict[Node, Keys], number: int, *, is_forward: bool) -> int:
        """Number of sums to form when a step is added to a table."""
        arrows = self.graph.arrows(number, is_forward=is_forward)
        return sum(len(table[near]) * len(edge) for near, _, edge in arrows if near in table)

    def _extend(
        self, table: dict[Node, Keys], number: int, rest: Mapping[Node, tuple[int, int]], *, is_forward: bool
    ) -> dict[Node, Keys]:
        """The table after one more step; `rest`: least and most cost of the remaining path from each node."""
        if self._count_rows(table, number, is_forward=is_forward) > self._most_rows:
            raise TooLargeError
        parts: dict[Node, list[tuple[Integers, Weights]]] = {}
        for near, far, edge in self.graph.arrows(number, is_forward=is_forward):
            if near in table and far in rest:
                known = table[near]
                keys = np.add.outer(edge.keys, known.keys).ravel()
                weights = np.multiply.outer(edge.weights, known.weights).ravel()
                total = keys >> self.graph.bits
                fits = (total + rest[far][0] <= self.box.high[0]) & (total + rest[far][1] >= self.box.low[0])
                parts.setdefault(far, []).append((keys[fits], weights[fits]))
        joined = {node: map(np.concatenate, zip(*found, strict=True)) for node, found in parts.items()}
        return {node: Keys(keys, weights) for node, (keys, weights) in joined.items() if len(keys)}

    # Counting: for every row of the right table and every edge that leads to it, the rows of the left table that complete the path inside the box.

    @cached_property
    def _edges_to(self) -> dict[Node, list[tuple[Node, Edge]]]:
        """Edges of the middle step between the tables."""
        found: dict[Node, list[tuple[Node, Edge]]] = {}
        for near, far, edge in self.graph.steps[self.middle]:
            if near in self.left[-1] and far in self.right[-1]:
                found.setdefault(far, []).append((near, edge))
        return found

    def _completions(self, near: Node, sums: Integers) -> Weights:
        """For each of these sums the number of paths from the start to `near` with which it lies inside the box."""
        left = self.left[-1][near]
        start, stop = fitting_rows(left.keys, sums, self.box, self.graph.bits)
        if self.graph.is_weighted:
            return self._range_sums[near].over(start, stop)
        if len(self.box.low) == 1:
            completions: Weights = left.before[stop] - left.before[start]
            return completions
        second = sums & ((1 << self.graph.bits) - 1)
        wavelet = self._wavelets[near]
        too_low = wavelet.below(start, stop, self.box.low[1] - second)
        inside: Weights = wavelet.below(start, stop, self.box.high[1] + 1 - second) - too_low
        return inside

    @cached_property
    def _range_sums(self) -> dict[Node, RangeTable]:
        assert len(self.box.low) == 1, "weighted paths are counted by one quantity"
        return {node: RangeTable(left.weights, np.add, 0.0) for node, left in self.left[-1].items()}

    @cached_property
    def _wavelets(self) -> dict[Node, WaveletMatrix]:
        mask = (1 << self.graph.bits) - 1
        return {node: WaveletMatrix(left.keys & mask, left.weights) for node, left in self.left[-1].items()}

    @cached_property
    def _paths_per_row(self) -> dict[Node, Weights]:
        """For each row of the right table the number of paths from the start that lead to it inside the box."""
        found = {node: np.zeros(len(keys), self._dtype) for node, keys in self.right[-1].items()}
        for far, edges in self._edges_to.items():
            for near, edge in edges:
                for key, weight in zip(edge.keys.tolist(), edge.weights.tolist(), strict=True):
                    found[far] += weight * self._completions(near, self.right[-1][far].keys + key)
        return found

    @cached_property
    def count(self) -> int:
        """Number of paths inside the box; exact where `is_exact`."""
        total = 0
        for node, ways in self._paths_per_row.items():
            weights = self.right[-1][node].weights
            if self.graph.num_paths < _MOST_PATHS:
                total += int(ways @ weights)
            elif self.is_exact:
                total += sum(map(int.__mul__, ways.tolist(), weights.tolist()))
            else:
                total += int(float(ways @ weights))
        return total

    def edge_paths(self) -> Iterable[tuple[Node, Node, Edge, Weights]]:
        """For each edge of the middle step, the number of paths inside the box through each of its rows."""
        for far, edges in self._edges_to.items():
            right = self.right[-1][far]
            for near, edge in edges:
                ways = [float(self._completions(near, right.keys + key) @ right.weights) for key in edge.keys.tolist()]
                yield near, far, edge, edge.weights * np.array(ways)

    def nearest(self, total: int, *, is_below: bool) -> Path | None:
        """The path with the sum, of one quantity, that is nearest to `total` from below or from above, `total` included; None when there is none."""
        best: tuple[int, Node, Node, Edge, int, int] | None = None
        for far, edges in self._edges_to.items():
            rights = self.right[-1][far].keys
            for near, edge in edges:
                lefts = self.left[-1][near].keys
                for row, key in enumerate(edge.keys.tolist()):
                    places = lefts.searchsorted(total - key - rights, side="right" if is_below else "left") - is_below
                    fits = np.flatnonzero((places >= 0) & (places < len(lefts)))
                    if not len(fits):
                        continue
                    gaps = np.abs(total - key - rights[fits] - lefts[places[fits]])
                    least = int(gaps.argmin())
                    if best is None or gaps[least] < best[0]:
                        best = (int(gaps[least]), near, far, edge, row, int(rights[fits[least]]))
        if best is None:
            return None
        gap, near, far, edge, row, right = best
        left = total - int(edge.keys[row]) - right + (-gap if is_below else gap)
        rng = random.Random(0)
        crossing = (near, far, int(edge.members(row)[0]))
        return [*self._path_from_start(near, left, rng), crossing, *self._path_to_end(far, right, rng)]

    # Drawing: a row of the right table, an edge and a row of the left table that complete it, then the path behind each of the two rows.

    @cached_property
    def _rows_before(self) -> tuple[list[Node], Integers, Weights]:
        """Nodes of the right table, the place of each one's first row in a list of all rows, and the cumulative number of paths inside the box."""
        nodes = list(self._paths_per_row)
        starts = np.cumsum([0, *(len(self._paths_per_row[node]) for node in nodes)])
        parts = [self._paths_per_row[node] * self.right[-1][node].weights.astype(self._dtype) for node in nodes]
        return nodes, starts, np.cumsum(np.concatenate(parts)) if parts else np.zeros(0)

    def draw(self, rng: random.Random) -> Path:
        """A path inside the box, all of them equally likely; there is at least one."""
        nodes, starts, before = self._rows_before
        place = draw_index(before, rng)
        which = int(starts.searchsorted(place, side="right")) - 1
        far, key = nodes[which], int(self.right[-1][nodes[which]].keys[place - starts[which]])
        edges = self._edges_to[far]
        ways = [edge.weights * self._completions(near, edge.keys + key) for near, edge in edges]
        near, edge, crossing = _locate_row(edges, draw_index(_concatenate(ways).cumsum(), rng))
        left_key = self._draw_left_key(near, key + int(edge.keys[crossing]), rng)
        option = edge.draw_member(crossing, rng)
        return [*self._path_from_start(near, left_key, rng), (near, far, option), *self._path_to_end(far, key, rng)]

    def _draw_left_key(self, near: Node, total: int, rng: random.Random) -> int:
        """A sum of the left table with which `total` lies inside the box, drawn in proportion to its paths."""
        left = self.left[-1][near]
        start, stop = (int(ends[0]) for ends in fitting_rows(left.keys, np.array([total]), self.box, self.graph.bits))
        fits = np.arange(start, stop)
        if len(self.box.low) > 1:
            mask = (1 << self.graph.bits) - 1
            second = (left.keys[start:stop] & mask) + (total & mask)
            fits = fits[(second >= self.box.low[1]) & (second <= self.box.high[1])]
        return int(left.keys[fits][draw_index(np.cumsum(left.weights[fits]), rng)])

    def _path_from_start(self, node: Node, key: int, rng: random.Random) -> Path:
        """A random path from the start to the node with the sum `key`."""
        path: Path = []
        for number in reversed(range(self.middle)):
            near, option, key = self._split_sum(node, key, self.left[number], number, rng, is_forward=True)
            path.append((near, node, option))
            node = near
        return path[::-1]

    def _path_to_end(self, node: Node, key: int, rng: random.Random) -> Path:
        """A random path from the node to END with the sum `key`."""
        path: Path = []
        for number in range(self.middle + 1, len(self.graph.steps)):
            table = self.right[len(self.graph.steps) - number - 1]
            far, option, key = self._split_sum(node, key, table, number, rng, is_forward=False)
            path.append((node, far, option))
            node = far
        return path

    def _split_sum(
        self, node: Node, key: int, table: dict[Node, Keys], number: int, rng: random.Random, *, is_forward: bool
    ) -> tuple[Node, int, int]:
        """One step back from a row of `node`, drawn in proportion to the paths: the node before, the option of step `number`, and the sum before."""
        known = (number, node, key)
        if known not in self._splits:
            leading = self.graph.leading_to[is_forward][number].get(node, [])
            edges = [(near, edge) for near, edge in leading if near in table]
            ways = _concatenate([edge.weights * table[near].find(key - edge.keys) for near, edge in edges])
            places = np.flatnonzero(ways)
            if len(self._splits) >= _SPLITS_KEPT:
                self._splits.clear()
            self._splits[known] = (ways[places].cumsum(), places, edges)
        before, places, edges = self._splits[known]
        near, edge, row = _locate_row(edges, int(places[draw_index(before, rng)]))
        return near, edge.draw_member(row, rng), key - int(edge.keys[row])


def _concatenate(parts: list[Weights]) -> Weights:
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def _locate_row(edges: list[tuple[Node, Edge]], place: int) -> tuple[Node, Edge, int]:
    """The edge and row at a place in the list of all edges' rows."""
    for near, edge in edges:
        if place < len(edge):
            return near, edge, place
        place -= len(edge)
    raise AssertionError("a place beyond all edges")
