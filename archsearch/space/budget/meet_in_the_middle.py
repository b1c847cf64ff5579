"""How many paths of a network have their cost in a box: two tables of partial sums, one from each end, that meet at one step in the middle."""

import random
from collections.abc import Iterable, Mapping
from functools import cached_property

import numpy as np

from archsearch.space.budget.graph import END, Integers, Node
from archsearch.space.budget.keyed_graph import Box, Edge, Keys, Network, Path, Weights
from archsearch.space.budget.wavelet import Dominance

_MOST_PATHS = 2**62
_JOINS_KEPT = 50_000  # of sums taken apart; a hundred bytes each


class TooLargeError(Exception):
    """A table would have more rows than allowed."""


class Meeting:
    """The two tables of a network that meet at its step `middle`, cut to sums that can still end in the box. Raises TooLargeError beyond `most_rows`."""

    def __init__(self, network: Network, box: Box, most_rows: int, middle: int | None = None) -> None:
        self.network, self.box, self._most_rows = network, box, most_rows
        self._dtype = np.int64 if network.num_paths < _MOST_PATHS else np.float64
        count = len(network.steps)
        one = Keys(np.zeros(1, np.int64), np.ones(1, self._dtype))
        self.left: list[dict[Node, Keys]] = [{network.start: one}]
        self.right: list[dict[Node, Keys]] = [{END: one}]  # from the last step back
        before, after = network.ranges(is_forward=True), network.ranges(is_forward=False)
        while len(self.left) + len(self.right) < count + 1:
            ahead, behind = len(self.left) - 1, count - len(self.right)
            if middle is None:
                rows = [
                    self._rows(self.left[-1], ahead, is_forward=True),
                    self._rows(self.right[-1], behind, is_forward=False),
                ]
                is_left = rows[0] <= rows[1]
            else:
                is_left = ahead < middle
            if is_left:
                self.left.append(self._extended(self.left[-1], ahead, after[ahead + 1], is_forward=True))
            else:
                self.right.append(self._extended(self.right[-1], behind, before[behind], is_forward=False))
        self.middle = len(self.left) - 1
        self._joins: dict[tuple[int, Node, int], tuple[Weights, Integers, list[tuple[Node, Edge]]]] = {}

    @property
    def is_exact(self) -> bool:
        """Whether paths are counted in whole numbers."""
        return self._dtype == np.int64

    def _rows(self, table: dict[Node, Keys], number: int, *, is_forward: bool) -> int:
        """Sums to be made when a table takes in a step."""
        arrows = self.network.arrows(number, is_forward=is_forward)
        return sum(len(table[near]) * len(edge) for near, _, edge in arrows if near in table)

    def _extended(
        self, table: dict[Node, Keys], number: int, rest: Mapping[Node, tuple[int, int]], *, is_forward: bool
    ) -> dict[Node, Keys]:
        """The table after one more step; `rest`: what is still to come from each node."""
        if self._rows(table, number, is_forward=is_forward) > self._most_rows:
            raise TooLargeError
        parts: dict[Node, list[tuple[Integers, Weights]]] = {}
        for near, far, edge in self.network.arrows(number, is_forward=is_forward):
            if near in table and far in rest:
                known = table[near]
                keys = np.add.outer(edge.keys, known.keys).ravel()
                weights = np.multiply.outer(edge.weights, known.weights).ravel()
                total = keys >> self.network.bits
                fits = (total + rest[far][0] <= self.box.high[0]) & (total + rest[far][1] >= self.box.low[0])
                parts.setdefault(far, []).append((keys[fits], weights[fits]))
        joined = {
            node: [np.concatenate(column) for column in zip(*found, strict=True)] for node, found in parts.items()
        }
        return {node: Keys(keys, weights) for node, (keys, weights) in joined.items() if len(keys)}

    # The middle: every row of the right table, every edge that leads to it, and the rows of the left table that complete them.

    @cached_property
    def _edges_to(self) -> dict[Node, list[tuple[Node, Edge]]]:
        """Edges of the middle step between the tables."""
        found: dict[Node, list[tuple[Node, Edge]]] = {}
        for near, far, edge in self.network.steps[self.middle]:
            if near in self.left[-1] and far in self.right[-1]:
                found.setdefault(far, []).append((near, edge))
        return found

    def _slices(self, left: Keys, sums: Integers) -> tuple[Integers, Integers]:
        """Rows of the left table that put these sums inside the box in the first quantity: from one row up to but not another."""
        bits = self.network.bits
        first = sums >> bits
        start = left.keys.searchsorted((self.box.low[0] - first) << bits)
        stop = left.keys.searchsorted((self.box.high[0] + 1 - first) << bits)
        return start, stop

    def _completions(self, near: Node, sums: Integers) -> Weights:
        """Paths from the start to a node that put each of these sums inside the box."""
        left = self.left[-1][near]
        start, stop = self._slices(left, sums)
        if len(self.box.low) == 1:
            completions: Weights = left.before[stop] - left.before[start]
            return completions
        second = sums & ((1 << self.network.bits) - 1)
        dominance = self._dominance[near]
        too_low = dominance.below(start, stop, self.box.low[1] - second)
        inside: Weights = dominance.below(start, stop, self.box.high[1] + 1 - second) - too_low
        return inside

    @cached_property
    def _dominance(self) -> dict[Node, Dominance]:
        mask = (1 << self.network.bits) - 1
        return {node: Dominance(left.keys & mask, left.weights) for node, left in self.left[-1].items()}

    @cached_property
    def _per_row(self) -> dict[Node, Weights]:
        """For each row of the right table: ways to come from the start to one of its paths inside the box."""
        found = {node: np.zeros(len(keys), self._dtype) for node, keys in self.right[-1].items()}
        for far, edges in self._edges_to.items():
            for near, edge in edges:
                for key, weight in zip(edge.keys.tolist(), edge.weights.tolist(), strict=True):
                    found[far] += weight * self._completions(near, self.right[-1][far].keys + key)
        return found

    @cached_property
    def count(self) -> int:
        """Paths inside the box; exact where `is_exact`."""
        total = 0
        for node, ways in self._per_row.items():
            weights = self.right[-1][node].weights
            if self.network.num_paths < _MOST_PATHS:
                total += int(ways @ weights)
            elif self.is_exact:
                total += sum(map(int.__mul__, ways.tolist(), weights.tolist()))
            else:
                total += int(float(ways @ weights))
        return total

    def masses(self) -> Iterable[tuple[Node, Node, Edge, Weights]]:
        """For each edge of the middle step, how many of the paths inside the box go over each of its rows."""
        for far, edges in self._edges_to.items():
            right = self.right[-1][far]
            for near, edge in edges:
                ways = [float(self._completions(near, right.keys + key) @ right.weights) for key in edge.keys.tolist()]
                yield near, far, edge, edge.weights * np.array(ways)

    def nearest(self, total: int, *, is_below: bool) -> Path | None:
        """A path whose sum, of one quantity, comes closest to `total` without passing it, from below or from above; None when there is none."""
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
        return [*self._back(near, left, rng), (near, far, int(edge.members(row)[0])), *self._forth(far, right, rng)]

    # Drawing: a row of the right table, the edge and the row of the left table that complete it, then both rows taken apart.

    @cached_property
    def _rows_before(self) -> tuple[list[Node], Integers, Weights]:
        """Nodes of the right table, their first rows when all are one list, and the paths inside the box up to and with each row."""
        nodes = list(self._per_row)
        starts = np.cumsum([0, *(len(self._per_row[node]) for node in nodes)])
        is_safe = self.network.num_paths < _MOST_PATHS
        parts = [
            self._per_row[node] * self.right[-1][node].weights.astype(np.int64 if is_safe else float) for node in nodes
        ]
        return nodes, starts, np.cumsum(np.concatenate(parts)) if parts else np.zeros(0)

    def draw(self, rng: random.Random) -> Path:
        """A path inside the box, all of them equally likely; there is at least one."""
        nodes, starts, before = self._rows_before
        place = _place(before, rng)
        which = int(starts.searchsorted(place, side="right")) - 1
        far, key = nodes[which], int(self.right[-1][nodes[which]].keys[place - starts[which]])
        near, edge, crossing = self._crossing(far, key, rng)
        more = int(edge.keys[crossing])
        left_key = self._left_key(near, key + more, rng)
        option = _member(edge, crossing, rng)
        return [*self._back(near, left_key, rng), (near, far, option), *self._forth(far, key, rng)]

    def _crossing(self, far: Node, key: int, rng: random.Random) -> tuple[Node, Edge, int]:
        """Over which row of which edge a row of the right table is reached, in proportion to the paths."""
        edges = self._edges_to[far]
        ways = [edge.weights * self._completions(near, edge.keys + key) for near, edge in edges]
        return _at(edges, _place(_joined(ways).cumsum(), rng))

    def _left_key(self, near: Node, total: int, rng: random.Random) -> int:
        """One of the left table's sums that put `total` inside the box, in proportion to its paths."""
        left = self.left[-1][near]
        start, stop = (int(ends[0]) for ends in self._slices(left, np.array([total])))
        fits = np.arange(start, stop)
        if len(self.box.low) > 1:
            mask = (1 << self.network.bits) - 1
            second = (left.keys[start:stop] & mask) + (total & mask)
            fits = fits[(second >= self.box.low[1]) & (second <= self.box.high[1])]
        return int(left.keys[fits][_place(np.cumsum(left.weights[fits]), rng)])

    def _back(self, node: Node, key: int, rng: random.Random) -> Path:
        """A path from the start to the node whose costs sum up to `key`."""
        path: Path = []
        for number in reversed(range(self.middle)):
            near, option, key = self._unjoin(node, key, self.left[number], number, rng, is_forward=True)
            path.append((near, node, option))
            node = near
        return path[::-1]

    def _forth(self, node: Node, key: int, rng: random.Random) -> Path:
        """A path from the node to END whose costs sum up to `key`."""
        path: Path = []
        for number in range(self.middle + 1, len(self.network.steps)):
            table = self.right[len(self.network.steps) - number - 1]
            far, option, key = self._unjoin(node, key, table, number, rng, is_forward=False)
            path.append((node, far, option))
            node = far
        return path

    def _unjoin(
        self, node: Node, key: int, table: dict[Node, Keys], number: int, rng: random.Random, *, is_forward: bool
    ) -> tuple[Node, int, int]:
        """One of the joins that gave a row of `node`: the nearer node, the option of step `number`, and the nearer row's key."""
        known = (number, node, key)
        if known not in self._joins:
            edges = [
                (near, edge)
                for near, edge in self.network.leading_to(number, node, is_forward=is_forward)
                if near in table
            ]
            ways = _joined([edge.weights * table[near].find(key - edge.keys) for near, edge in edges])
            places = np.flatnonzero(ways)
            if len(self._joins) >= _JOINS_KEPT:
                self._joins.clear()
            self._joins[known] = (ways[places].cumsum(), places, edges)
        before, places, edges = self._joins[known]
        near, edge, row = _at(edges, int(places[_place(before, rng)]))
        return near, _member(edge, row, rng), key - int(edge.keys[row])


def _joined(parts: list[Weights]) -> Weights:
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def _at(edges: list[tuple[Node, Edge]], place: int) -> tuple[Node, Edge, int]:
    """The row at a place when the rows of all edges are one list."""
    for near, edge in edges:
        if place < len(edge):
            return near, edge, place
        place -= len(edge)
    raise AssertionError("a place beyond all edges")


def _place(before: Weights, rng: random.Random) -> int:
    """An index in proportion to the steps of a cumulative sum."""
    total = before[-1]
    target = rng.randrange(int(total)) if before.dtype == np.int64 else rng.random() * float(total)
    return min(int(before.searchsorted(target, side="right")), len(before) - 1)


def _member(edge: Edge, row: int, rng: random.Random) -> int:
    members = edge.members(row)
    return int(members[rng.randrange(len(members))])
