"""Dominance, fronts, hypervolume, Kendall's tau and bootstrap intervals over plain numpy arrays.

Every objective is minimised here (negate what is maximised). Written by hand, so that the package needs neither moocore nor botorch, which
brings gpytorch along; the tests compare fronts and hypervolumes with moocore's, and Kendall's tau with a count over all pairs.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Figures = Sequence[float] | Array

TIE_SE = 2.0  # scores closer than this many standard errors of their difference are called a tie
_RESAMPLES = 2000
_CONFIDENCE = 0.95


def dominates(first: Array, second: Array) -> NDArray[np.bool_]:
    """Where `first` is nowhere worse and somewhere better than `second`: of two rows (M,) one truth, of a row and a table (N, M) one for each of its rows."""
    return np.asarray(np.all(first <= second, axis=-1) & np.any(first < second, axis=-1))


def is_dominated(values: Array) -> NDArray[np.bool_]:
    """Whether another row of `values` (N, M) dominates each row; in n log n up to three objectives, and for any number without an (N, N) array."""
    rows, places = _distinct(values)
    # What a row dominates that is dominated itself, another one dominates: those left are compared with each other alone.
    left = _undominated_by_few(rows) if len(rows) > _SOME else np.arange(len(rows))
    front, others = _make_front(rows[left])
    dominated = np.ones(len(rows), dtype=bool)
    for index, row in zip(left.tolist(), others, strict=True):
        dominated[index] = front.covers(row)
        if not dominated[index]:
            front.add(row)
    return np.asarray(dominated[places])


_SOME, _FEW = 256, 32


def _undominated_by_few(rows: Array) -> NDArray[np.int64]:
    """The places of different rows that a few good ones do not dominate: of many rows array operations so leave out most."""
    some = np.arange(0, len(rows), len(rows) // _SOME + 1)
    front = some[~is_dominated(rows[some])]
    num_worse = [np.count_nonzero(np.all(rows[place] <= rows[some], axis=1)) for place in front]
    left, columns = np.arange(len(rows)), rows.T.copy()
    for place in front[np.argsort(num_worse)[: -_FEW - 1 : -1]]:
        is_left = ~np.all(columns >= rows[place][:, None], axis=0) | (left == place)
        left, columns = left[is_left], columns[:, is_left]
    return left


def _distinct(values: Array) -> tuple[Array, NDArray[np.int64]]:
    """The different rows in the order of their first number, then their second, and so on; and where each row of `values` is among them."""
    order = np.lexsort(values.T[::-1])  # numpy.unique with an axis takes ten times as long
    ordered = values[order]
    is_new = np.ones(len(values), dtype=bool)
    is_new[1:] = np.any(ordered[1:] != ordered[:-1], axis=1)
    places = np.empty(len(values), dtype=np.int64)
    places[order] = np.cumsum(is_new) - 1
    return ordered[is_new], places


def front_ranks(values: Array) -> NDArray[np.int64]:
    """Front index of each row of `values` (N, M): 0 for the Pareto front, 1 for the front once that is taken away, and so on.

    Efficient non-dominated sort (Zhang, Tian, Cheng and Jin, 2015): rows in the order of their first objective go to the first front that
    has none that dominates them, found by bisection.
    """
    rows, places = _distinct(values)
    front, others = _make_front(rows)
    if isinstance(front, _Stairs):
        return np.asarray(_ranks_by_stairs(others)[places])
    fronts: list[_Later] = []
    ranks = np.zeros(len(rows), dtype=np.int64)
    for index, row in enumerate(others):
        rank = bisect_left(fronts, True, key=lambda front: not front.covers(row))
        if rank == len(fronts):
            fronts.append(_Later())
        fronts[rank].add(row)
        ranks[index] = rank
    return np.asarray(ranks[places])


def _ranks_by_stairs(pairs: Iterable[Sequence[float]]) -> NDArray[np.int64]:
    """The front of each pair, where only those before it may dominate it; `covers` is written out, which halves the time of many rows."""
    fronts: list[_Stairs] = []
    ranks: list[int] = []
    for pair in pairs:
        x, y = pair
        low, high = 0, len(fronts)
        while low < high:
            middle = (low + high) // 2
            stairs = fronts[middle]
            place = bisect_right(stairs.first, x)
            if place and stairs.second[place - 1] <= y:
                low = middle + 1
            else:
                high = middle
        if low == len(fronts):
            fronts.append(_Stairs())
        fronts[low].add(pair)
        ranks.append(low)
    return np.array(ranks, dtype=np.int64)


def _make_front(rows: Array) -> "tuple[_Stairs | _Later, Iterable[Any]]":
    """An empty front for rows in the order of `_distinct`, and their other objectives: a row is dominated by those before it that are no worse there."""
    if rows.shape[1] > _STAIRS_WIDTH:
        return _Later(), rows[:, 1:]
    return _Stairs(), np.pad(rows[:, 1:], ((0, 0), (0, _STAIRS_WIDTH - rows.shape[1]))).tolist()


_STAIRS_WIDTH = 3


class _Stairs:
    """Pairs, of which only those that no other one covers are kept: the first numbers rise, the second ones fall."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.second: list[float] = []

    def covers(self, pair: Sequence[float]) -> bool:
        """Whether a pair is nowhere worse than this one."""
        place = bisect_right(self.first, pair[0])
        return place > 0 and self.second[place - 1] <= pair[1]

    def add(self, pair: Sequence[float]) -> None:
        """Add a pair that none covers."""
        start, stop = self.span(pair)
        self.first[start:stop], self.second[start:stop] = [pair[0]], [pair[1]]

    def span(self, pair: Sequence[float]) -> tuple[int, int]:
        """The places of the pairs that this one covers."""
        start = stop = bisect_left(self.first, pair[0])
        while stop < len(self.second) and self.second[stop] >= pair[1]:
            stop += 1
        return start, stop


class _Later:
    """Rows of any length, compared with all at once."""

    def __init__(self) -> None:
        self._columns: Array | None = None  # of some rows more than there are yet
        self._number = 0

    def covers(self, row: Array) -> bool:
        """Whether a row is nowhere worse than this one."""
        if self._columns is None:
            return False
        return bool(np.all(self._columns[:, : self._number] <= row[:, None], axis=0).any())

    def add(self, row: Array) -> None:
        """Add a row."""
        if self._columns is None or self._number == self._columns.shape[1]:
            room = np.empty((len(row), self._number + 8))
            self._columns = room if self._columns is None else np.hstack((self._columns, room))
        self._columns[:, self._number] = row
        self._number += 1


def hypervolume(values: Array, reference: Array) -> float:
    """Volume dominated by `values` (N, M) and bounded by `reference` (M,).

    Up to three objectives in n log n, by a sweep along the last one; more of them by slicing on the last, meant for fronts of a few hundred points.
    """
    inside, _ = _distinct(values[np.all(values < reference, axis=1)])
    if len(inside) == 0:
        return 0.0
    inside = inside[np.argsort(inside[:, -1], kind="stable")]
    depths = np.diff(np.append(inside[:, -1], reference[-1]))
    if inside.shape[1] <= _STAIRS_WIDTH:
        padding = _STAIRS_WIDTH - inside.shape[1]
        areas = _areas(np.hstack((np.zeros((len(inside), padding)), inside)), np.append(np.ones(padding), reference))
        return math.fsum(depths * areas)
    slices = (inside[: index + 1, :-1] for index in np.flatnonzero(depths))
    volumes = [hypervolume(rows[~is_dominated(rows)], reference[:-1]) for rows in slices]
    return math.fsum(depths[depths > 0] * volumes)


def _areas(rows: Array, reference: Array) -> Array:
    """The area that the first n rows (N, 3) dominate in their first two objectives, for n from 1 to N."""
    stairs, areas, area = _Stairs(), [], 0.0
    wide, high = float(reference[0]), float(reference[1])
    for x, y, _ in rows.tolist():
        if not stairs.covers((x, y)):
            start, stop = stairs.span((x, y))
            ends = [x, *stairs.first[start:stop], stairs.first[stop] if stop < len(stairs.first) else wide]
            tops = [stairs.second[start - 1] if start else high, *stairs.second[start:stop]]
            area += math.fsum(
                (right - left) * (top - y) for left, right, top in zip(ends, ends[1:], tops, strict=False)
            )
            stairs.add((x, y))
        areas.append(area)
    return np.array(areas)


def kendall_tau(first: Figures, second: Figures) -> float:
    """Kendall's tau-b of two series of equal length, from -1 to 1; nan where one of them has no two different values.

    (concordant - discordant) / sqrt((pairs - ties in first) * (pairs - ties in second)); Kendall, Biometrika 33 (1945).
    """
    # Every pair counts twice, (i, j) and (j, i): that doubles all three sums, and is quicker than leaving half of the matrix out. For 10, 30 and 100 things
    # this takes 11, 17 and 70 microseconds, scipy.stats.kendalltau 430 each, and an interval takes 2000 of them; beyond 150 things SciPy's n log n wins.
    signs_first, signs_second = (np.sign(np.subtract.outer(side, side)) for side in (first, second))
    scale = float(np.sqrt(np.count_nonzero(signs_first) * np.count_nonzero(signs_second)))
    return float(np.vdot(signs_first, signs_second)) / scale if scale else float("nan")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A statistic with the ends of its 95 % bootstrap interval; nan where it is not defined."""

    value: float
    low: float
    high: float


def estimate(
    statistic: Callable[..., float], *series: Figures, seed: int = 0, clusters: Sequence[Hashable] | None = None
) -> Estimate:
    """The statistic of series of equal length, and its percentile interval over resamples with replacement (Efron 1979).

    A resample takes the same positions of every series (paired), and equal seeds take equal resamples. With `clusters`, the label of each position, whole
    clusters are drawn instead of positions: what they have in common is no independent evidence.
    """
    # scipy.stats.bootstrap(paired=True, method="percentile") gives the same interval but for its last digit, in about the same time, and
    # nan where the statistic of one resample is nan, as Kendall's tau of a resample of one thing is.
    arrays = [np.asarray(one, dtype=np.float64) for one in series]
    resamples = _resamples(len(arrays[0]), seed, clusters)
    found = np.array([statistic(*(array[resample] for array in arrays)) for resample in resamples])
    tail, value = (1 - _CONFIDENCE) / 2, statistic(*arrays)
    defined = found[np.isfinite(found)]  # a resample of one thing alone has no order
    low, high = np.quantile(defined, [tail, 1 - tail]) if len(defined) else (value, value)
    return Estimate(value=value, low=float(low), high=float(high))


def _resamples(count: int, seed: int, clusters: Sequence[Hashable] | None) -> Iterable[NDArray[np.int64]]:
    """Positions of each resample."""
    rng = np.random.default_rng(seed)
    if clusters is None:
        return rng.integers(0, count, (_RESAMPLES, count))
    places: dict[Hashable, list[int]] = {}
    for place, label in enumerate(clusters):
        places.setdefault(label, []).append(place)
    members = [np.array(one) for one in places.values()]
    drawn = rng.integers(0, len(members), (_RESAMPLES, len(members)))
    return (np.concatenate([members[number] for number in row]) for row in drawn)


def binomial_standard_error(share: float, number: int) -> float:
    """Of a share of so many independent answers; nan for none."""
    return math.sqrt(share * (1 - share) / number) if number else math.nan
