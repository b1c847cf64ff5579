"""The paths of a graph with the highest scores whose cost lies in a box, exactly: a table of partial sums from each end, joined at one step.

As for counting, but a row is one partial path, and of those with equal costs only the best `number` are kept: no others can be among the best of all.
"""

import heapq
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np

from archsearch.space.budget.graph import END, Integers, Node
from archsearch.space.budget.keyed_graph import Box, KeyedGraph, Path, fitting_rows
from archsearch.space.budget.meet_in_the_middle import TooLargeError
from archsearch.space.budget.prices import ScoredArrow, price_of_second
from archsearch.space.budget.ranges import RangeTable

_NO_SCORE = -(2**62)  # below every score, and so with any score added
_ANY_SCORE = -(2**61)
_FIRST_SCANS = 2

Total = TypeVar("Total", int, Integers)


class _Block(NamedTuple):
    """Where the rows that one arrow adds to a node's table begin: every option after every row of `near`, `known` rows."""

    start: int
    near: Node
    known: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """Partial paths between one end and a node, in ascending order of their keys, of equal keys the best first; `origins`: their places in the blocks."""

    keys: Integers
    scores: Integers
    origins: Integers
    blocks: list[_Block]

    def origin(self, row: int) -> tuple[Node, int, int]:
        """The node before, the option that leads from it, and the row before."""
        place = int(self.origins[row])
        block = next(block for block in reversed(self.blocks) if block.start <= place)
        return (block.near, *divmod(place - block.start, block.known))


_Table = dict[Node, _Rows]


class _Highest:
    """The highest of scores (n,) in slices; their places among the distinct ones take half the memory."""

    def __init__(self, scores: Integers) -> None:
        distinct, ranks = np.unique(scores, return_inverse=True)
        self.most = int(distinct[-1])
        self._distinct = np.append(distinct, _NO_SCORE)
        self._ranks = RangeTable(ranks.astype(np.int32), np.maximum, -1)

    def over(self, start: Integers, stop: Integers) -> Integers:
        """Of each of the slices [start, stop); _NO_SCORE for an empty one."""
        found: Integers = self._distinct[self._ranks.over(start, stop)]
        return found


class _Join(NamedTuple):
    """A row of each table and the option between them."""

    near: Node
    left: int
    far: Node
    right: int
    option: int


class BestPaths:
    """The tables, and `find`. Raises TooLargeError for a table of more than `most_rows`.

    With two bounded quantities the rows that fit the first are looked through for the second, as long as their bounds are high enough.
    """

    def __init__(
        self, graph: KeyedGraph, steps: list[list[ScoredArrow]], box: Box, number: int, most_rows: int
    ) -> None:
        self.graph, self.box, self.number, self._most_rows = graph, box, number, most_rows
        one = _Rows(keys=np.zeros(1, np.int64), scores=np.zeros(1, np.int64), origins=np.zeros(1, np.int64), blocks=[])
        self.left: list[_Table] = [{graph.start: one}]
        self.right: list[_Table] = [{END: one}]  # from the last step back
        before, after = graph.ranges(is_forward=True), graph.ranges(is_forward=False)
        while len(self.left) + len(self.right) < len(steps) + 1:
            ahead, behind = len(self.left) - 1, len(steps) - len(self.right)
            forward, backward = steps[ahead], [_turned(arrow) for arrow in steps[behind]]
            if _count_rows(self.left[-1], forward) <= _count_rows(self.right[-1], backward):
                self.left.append(self._extend(self.left[-1], forward, after[ahead + 1]))
            else:
                self.right.append(self._extend(self.right[-1], backward, before[behind]))
        self._middle = steps[len(self.left) - 1]
        self._price, self._paid = price_of_second(steps, box, graph.bits)
        # Every score is this one plus a multiple of `_step`, 0 for one score alone.
        self._base = sum(int(arrows[0].scores[0]) for arrows in steps)
        own = [
            np.gcd.reduce(np.concatenate([arrow.scores for arrow in arrows]) - arrows[0].scores[0]) for arrows in steps
        ]
        self._step = math.gcd(*map(int, own))
        self._kept: list[tuple[int, int, _Join]] = []  # a heap: score, minus the number of those found before, path
        self._num_found = 0
        self._known: set[_Join] = set()

    def _extend(self, table: _Table, arrows: list[ScoredArrow], rest: Mapping[Node, tuple[int, int]]) -> _Table:
        """The table after one more step; `rest`: least and most cost of the remaining path from each node."""
        if _count_rows(table, arrows) > self._most_rows:
            raise TooLargeError
        incoming: dict[Node, list[ScoredArrow]] = {}
        for arrow in arrows:
            if arrow.near in table and arrow.far in rest:
                incoming.setdefault(arrow.far, []).append(arrow)
        rows = {far: self._reach(table, found, rest[far]) for far, found in incoming.items()}
        return {far: found for far, found in rows.items() if len(found.keys)}

    def _reach(self, table: _Table, arrows: list[ScoredArrow], rest: tuple[int, int]) -> _Rows:
        """The rows of the node that these arrows lead to."""
        blocks: list[_Block] = []
        parts: list[tuple[Integers, Integers, Integers]] = []
        start = 0
        for near, _, option_keys, option_scores in arrows:
            known = table[near]
            keys = np.add.outer(option_keys, known.keys).ravel()
            total = keys >> self.graph.bits
            places = np.flatnonzero((total + rest[0] <= self.box.high[0]) & (total + rest[1] >= self.box.low[0]))
            scores = np.add.outer(option_scores, known.scores).ravel()[places]
            parts.append((keys[places], scores, places + start))
            blocks.append(_Block(start, near, len(known.keys)))
            start += len(keys)
        keys, scores, origins = map(np.concatenate, zip(*parts, strict=True))
        del parts
        return self._keep(keys, scores, origins, blocks)

    def _keep(self, keys: Integers, scores: Integers, origins: Integers, blocks: list[_Block]) -> _Rows:
        """The best `number` rows of each key."""
        order = np.lexsort((-scores, keys))
        keys = keys[order]
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        rank = np.arange(len(keys)) - np.repeat(starts, np.diff(starts, append=len(keys)))
        kept = np.flatnonzero(rank < self.number)
        order = order[kept]
        return _Rows(keys=keys[kept], scores=scores[order], origins=origins[order], blocks=blocks)

    def find(self) -> list[tuple[int, Path]]:
        """The scores and paths of the best, the highest first; of equal scores at the end of the list those found first."""
        joins = sorted(self._joins(), key=lambda join: -join[0])
        # With a price many bounds are equal: some paths of each join are found first, since a high floor spares looking through rows.
        for most in (_FIRST_SCANS, None) if self._price else (None,):
            for bound, arrow, option in joins:
                if bound <= self._floor:
                    break
                self._search(arrow, option, most)
        return [(score, self._path(join)) for score, _, join in sorted(self._kept, reverse=True)]

    @property
    def _floor(self) -> int:
        """What a score must exceed to be kept."""
        return self._kept[0][0] if len(self._kept) == self.number else _ANY_SCORE

    def _joins(self) -> Iterator[tuple[int, ScoredArrow, int]]:
        """Every option of the middle step, with a bound on its paths' scores."""
        for arrow in self._middle:
            if arrow.near in self.left[-1] and arrow.far in self.right[-1]:
                right = self.right[-1][arrow.far]
                ends = self._highest[arrow.near].most + int(self._priced(right.keys, right.scores).max())
                for option, score in enumerate(self._priced(arrow.keys, arrow.scores).tolist()):
                    yield self._bound(ends + score), arrow, option

    def _search(self, arrow: ScoredArrow, option: int, most: int | None) -> None:
        """Keep the best paths through one option: its row of the right table with the highest bound first, of `most` rows."""
        left, right, highest = self.left[-1][arrow.near], self.right[-1][arrow.far], self._highest[arrow.near]
        sums, scores = right.keys + arrow.keys[option], right.scores + arrow.scores[option]
        priced = self._priced(sums, scores)
        rows = np.flatnonzero(self._bound(priced + highest.most) > self._floor)
        start, stop = fitting_rows(left.keys, sums[rows], self.box, self.graph.bits)
        bounds = self._bound(priced[rows] + highest.over(start, stop))
        if self._price:
            bounds = np.minimum(bounds, scores[rows] + self._unpriced[arrow.near].over(start, stop))
        for place in np.argsort(-bounds, kind="stable")[:most]:
            if bounds[place] <= self._floor:
                break
            row = int(rows[place])
            found = self._fitting(left, int(start[place]), int(stop[place]), int(sums[row]))
            self._keep_joins(arrow, option, row, found, left.scores[found] + scores[row])

    @cached_property
    def _highest(self) -> dict[Node, _Highest]:
        return {node: _Highest(self._priced(left.keys, left.scores)) for node, left in self.left[-1].items()}

    @cached_property
    def _unpriced(self) -> dict[Node, _Highest]:
        return {node: _Highest(left.scores) for node, left in self.left[-1].items()}

    def _priced(self, keys: Integers, scores: Integers) -> Integers:
        """The scores less the price of the second quantity."""
        return scores - self._price * (keys & ((1 << self.graph.bits) - 1)) if self._price else scores

    def _bound(self, priced: Total) -> Total:
        """The highest score that paths inside with these priced scores can have: at most the price of the band's end more, and one that sums can be."""
        bound = priced + self._paid
        return bound - (bound - self._base) % self._step if self._step else bound

    def _fitting(self, left: _Rows, start: int, stop: int, total: int) -> Integers:
        """The rows of a slice of the left table that fit the second quantity too."""
        places = np.arange(start, stop)
        if len(self.box.low) == 1:
            return places
        mask = (1 << self.graph.bits) - 1
        second = (left.keys[start:stop] & mask) + (total & mask)
        return places[(second >= self.box.low[1]) & (second <= self.box.high[1])]

    def _keep_joins(self, arrow: ScoredArrow, option: int, right: int, lefts: Integers, scores: Integers) -> None:
        """Keep those of these paths that are among the best so far."""
        better = np.flatnonzero(scores > self._floor)
        for place in better[np.argsort(-scores[better], kind="stable")][: self.number].tolist():
            if scores[place] <= self._floor:
                break
            join = _Join(arrow.near, int(lefts[place]), arrow.far, right, option)
            if join in self._known:
                continue
            self._known.add(join)
            heapq.heappush(self._kept, (int(scores[place]), -self._num_found, join))
            self._num_found += 1
            if len(self._kept) > self.number:
                heapq.heappop(self._kept)

    def _path(self, join: _Join) -> Path:
        """The whole path of a join."""
        path: Path = []
        node, row = join.near, join.left
        for table in self.left[:0:-1]:
            near, option, row = table[node].origin(row)
            path.append((near, node, option))
            node = near
        path = [*path[::-1], (join.near, join.far, join.option)]
        node, row = join.far, join.right
        for table in self.right[:0:-1]:
            far, option, row = table[node].origin(row)
            path.append((node, far, option))
            node = far
        return path


def _turned(arrow: ScoredArrow) -> ScoredArrow:
    """The arrow the other way round."""
    return arrow._replace(near=arrow.far, far=arrow.near)


def _count_rows(table: _Table, arrows: list[ScoredArrow]) -> int:
    """Number of sums to form when a step is added to a table."""
    return sum(len(table[arrow.near].keys) * len(arrow.keys) for arrow in arrows if arrow.near in table)
