"""The architectures of a space in a band, counted exactly and drawn uniformly; one that several parameter sets give counts once."""

import random
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from archsearch.errors import UserError
from archsearch.space.arch import Arch
from archsearch.space.budget.band import COLUMNS, Band, Quantity, explain_out_of_range
from archsearch.space.budget.best import BestPaths
from archsearch.space.budget.graph import Integers, Options, Params, space_graph
from archsearch.space.budget.keyed_graph import Box, Edge, KeyedGraph, Path
from archsearch.space.budget.maker import cached_maker
from archsearch.space.budget.meet_in_the_middle import MeetInTheMiddle, TooLargeError
from archsearch.space.budget.paths import find_path, path_cost, redraw_stage
from archsearch.space.budget.prices import ScoredArrow
from archsearch.space.budget.scores import Score, Scored, every_path, score_options
from archsearch.space.budget.tilt import OptionWeights, Tilted, balance, option_weights
from archsearch.space.space import Space

# Most sums in a table, by the number of bounded quantities: few for drawing, so that set-up is quick; for counting as many as fit into memory (24 bytes each
# while they are sorted). With two quantities a sum takes forty times as long.
FEW_ROWS = 200_000
MOST_ROWS = {0: 12_000_000, 1: 12_000_000, 2: 400_000}
# Resolution of the tables for drawing: at this one a draw in twenty falls outside the band and is repeated.
_UNITS_A_STEP = 20
_TRIES = 10_000
_HIGHEST = 2**60
_TRIALS_OF_ESTIMATE = 2_000
_MOST_ROWS_OF_BEST = 12_000_000
# Quantiles: most architectures that are listed one by one, and else the number of draws.
_MOST_LISTED = 2_000_000
_DRAWN = 10_000


class InBand:
    """The distinct architectures of a space whose MACs, and parameters where `params_band` is given, lie inside, both ends included.

    Distinct: architectures with the same `arch_id` count once. Raises UserError when there is none. For the default space set-up takes 0.2 s, a draw
    0.3 ms, and the first use of `count` a few seconds.
    """

    def __init__(self, space: Space, band: Band | None, params_band: Band | None = None) -> None:
        self.space, self.band, self.params_band = space, band, params_band
        bounds: list[tuple[Quantity, Band | None]] = [("macs", band), ("params", params_band)]
        self._bounds = [(COLUMNS[quantity], bound) for quantity, bound in bounds if bound is not None]
        self._graph = space_graph(space)
        self._units = [1] * len(self._bounds)
        self._tilt: tuple[Score, Tilted] | None = None  # the last one
        try:
            self._tables = self._make_tables(self._units, FEW_ROWS)  # for drawing: exact for a small space
        except TooLargeError:  # else with costs rounded to units that are small beside the band
            self._tables, self._units = self._make_fitting_tables(self._units_for_drawing)
        if not self._tables.count or self._draw_path() is None:
            raise UserError(self._explain_empty())

    @property
    def _units_for_drawing(self) -> list[int]:
        """Units that are small beside the band."""
        parts = _UNITS_A_STEP * len(self._graph.steps)
        return [max(1, (bound.high - bound.low) // parts) for _, bound in self._bounds]

    def _make_fitting_tables(
        self, units: list[int], middle: int | None = None, *, is_wide: bool = True
    ) -> tuple[MeetInTheMiddle, list[int]]:
        """Tables in these units, or in those for drawing and their multiples by a power of 2, in which they fit into memory; with the units."""
        while True:
            try:
                return self._make_tables(units, MOST_ROWS[len(self._bounds)], middle, is_wide=is_wide), units
            except TooLargeError:
                units = [max(2 * unit, least) for unit, least in zip(units, self._units_for_drawing, strict=True)]

    def _make_tables(
        self,
        units: list[int],
        most_rows: int,
        middle: int | None = None,
        *,
        is_wide: bool = True,
        weights: OptionWeights | None = None,
    ) -> MeetInTheMiddle:
        """The tables in these units; `is_wide` widens the box by the largest rounding error of a path."""
        return MeetInTheMiddle(self._keyed_graph(units, weights), self._box(units, is_wide), most_rows, middle)

    def _box(self, units: list[int], is_wide: bool) -> Box:
        """The band in these units."""
        slack = [len(self._graph.steps) * unit // 2 + 1 if unit > 1 and is_wide else 0 for unit in units]
        box = [
            (max(0, -(-(bound.low - more) // unit)), max(-1, (bound.high + more) // unit))
            for (_, bound), unit, more in zip(self._bounds, units, slack, strict=True)
        ] or [(0, 0)]
        return Box(*map(tuple, zip(*box, strict=True)))

    def _keyed_graph(self, units: list[int], weights: OptionWeights | None = None) -> KeyedGraph:
        """The graph with its costs in these units as keys, and with weights of its options."""
        costs = [list(step.values()) for step in self._graph.steps]
        most = [
            np.max([options.costs.max(axis=0) for ends in step for options in ends.values()], axis=0) for step in costs
        ]
        totals = [sum(int(step[column]) for step in most) for column, _ in self._bounds]
        bits = [(total // unit + len(costs)).bit_length() for total, unit in zip(totals, units, strict=True)]
        if sum(bits) > 60:
            raise TooLargeError
        shift = bits[1] if len(bits) > 1 else 0
        weighted: OptionWeights = weights or [{}] * len(self._graph.steps)
        return KeyedGraph(
            start=self._graph.start,
            steps=[
                [
                    (node, end, Edge(self._option_keys(options, units, shift), own.get((node, end))))
                    for node, ends in step.items()
                    for end, options in ends.items()
                ]
                for step, own in zip(self._graph.steps, weighted, strict=True)
            ],
            bits=shift,
            is_weighted=weights is not None,
        )

    def _option_keys(self, options: Options, units: list[int], shift: int) -> Integers:
        """Each option's key."""
        keys = np.zeros(len(options), np.int64)
        for (column, _), unit in zip(self._bounds, units, strict=True):
            keys = (keys << shift) + (options.costs[:, column] + unit // 2) // unit
        return keys

    @cached_property
    def _counted(self) -> tuple[int, bool]:
        """The number of architectures, and whether it is exact."""
        tables = self._tables
        if any(unit > 1 for unit in self._units):
            try:
                tables = self._make_tables([1] * len(self._bounds), MOST_ROWS[len(self._bounds)])
            except TooLargeError:
                rng = random.Random(0)
                inside = sum(self._is_inside(self._tables.draw(rng)) for _ in range(_TRIALS_OF_ESTIMATE))
                return tables.count * inside // _TRIALS_OF_ESTIMATE, False
        return tables.count, tables.is_exact

    @property
    def count(self) -> int:
        """Distinct architectures in the band: exact where `is_exact`, else estimated from a sample to about a percent."""
        return self._counted[0]

    @property
    def is_exact(self) -> bool:
        """Whether `count` is exact; false for spaces whose tables would not fit into memory."""
        return self._counted[1]

    def draw(self, rng: random.Random, tilt: Score | None = None) -> tuple[Params, Arch]:
        """One of the architectures and parameters that give it: all equally likely, or in proportion to exp(the sum of `tilt` over the layers).

        The tables of the last tilt are kept, so pass the same function again. Raises UserError for a tilt whose sums span more than 600.
        """
        path = self._draw_path(rng, None if tilt is None else self._tilted(tilt))
        if path is None:
            raise UserError(self._explain_empty() if tilt is None else self._explain_steep())
        return self._build(path)

    def draw_many(self, number: int, rng: random.Random, tilt: Score | None = None) -> list[tuple[Params, Arch]]:
        """Independent draws; the first of a longer list are those of a shorter one."""
        return [self.draw(rng, tilt) for _ in range(number)]

    def best(self, score: Score, k: int = 1) -> list[Scored]:
        """The `k` architectures with the highest sum of `score` over their layers, exactly, the highest first; fewer where the band has fewer.

        Equal sums are in the order of their arch_id; where more architectures tie for the last places than there are, the same ones are given every time.
        The least are those of the negative score. For the default space it takes some seconds. Raises UserError for a space whose tables do not fit into
        memory, and for scores that are not finite.
        """
        if k < 1:
            raise UserError(f"k is {k}; whole numbers from 1 are allowed")
        scores, units = score_options(self.space, score), [1] * len(self._bounds)
        try:
            graph = self._keyed_graph(units)
            arrows = [
                [
                    ScoredArrow(*ends, self._option_keys(step[ends[0]][ends[1]], units, graph.bits), own)
                    for ends, own in known.items()
                ]
                for step, known in zip(self._graph.steps, scores.steps, strict=True)
            ]
            found = BestPaths(graph, arrows, self._box(units, False), k, _MOST_ROWS_OF_BEST).find()
        except TooLargeError:
            raise UserError(
                f"{self.space.source}: too many architectures to find the best exactly; fix some parameters (`Space.fixed`)"
            ) from None
        built = sorted(
            ((total, *self._build(path)) for total, path in found), key=lambda one: (-one[0], one[2].arch_id)
        )
        return [Scored(sum(map(score, arch.layers())), params, arch) for _, params, arch in built]

    def quantiles(self, score: Score, shares: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)) -> list[float]:
        """For each share the least score that at least this share of the architectures do not exceed.

        Exact for spaces of up to 2 million architectures in and outside the band, else from 10,000 uniform draws, the same every time: then the share of
        a quantile has a standard error of up to .005. The ends are those of `best`.
        """
        for share in shares:
            if not 0 < share < 1:
                raise UserError(f"share {share}: between 0 and 1 are allowed, without the two; `best` finds the ends")
        scores = score_options(self.space, score)
        if self._tables.graph.num_paths <= _MOST_LISTED:
            sums = every_path(self._graph, scores)
            totals = sums[self._are_inside(sums[:, :2]), 2]
        else:
            rng = random.Random(0)
            paths = (self._draw_path(rng) for _ in range(_DRAWN))
            totals = np.array([scores.of(path) for path in paths if path is not None])
        return [float(total) * scores.unit for total in np.quantile(totals, shares, method="inverted_cdf")]

    def near(self, params: Params, rng: random.Random) -> tuple[Params, Arch] | None:
        """An architecture of the band that differs from this one in one stage or in the head; None when there is none.

        The stage is drawn uniformly, then its new form uniformly among those that keep the whole in the band; the stages after it keep their parameters.
        """
        path = find_path(self._graph, params)
        assert path is not None, "parameters that are not those of an architecture of this space"
        places = list(range(0, len(path), 2))
        rng.shuffle(places)
        for place in places:
            found = redraw_stage(self._graph, params, path, place, self._are_inside, rng)
            if found:
                return self._build(found)
        return None

    def shares(self) -> list[dict[str, float]]:
        """For each stage the share of the architectures in the band with each block; accurate to about a thousandth for a large space."""
        found: list[dict[str, float]] = []
        for number in range(len(self.space.plan.stages)):
            step = self._graph.steps[2 * number + 1]
            shares = dict.fromkeys(map(str, self.space.plan.stages[number].block), 0.0)
            tables, _ = self._make_fitting_tables(self._units, 2 * number + 1, is_wide=False)
            for near, far, edge, paths in tables.edge_paths():
                for row, mass in enumerate(paths):
                    members = edge.members(row)
                    for option in members:
                        shares[step[near][far].blocks[option]] += mass / len(members)
            total = sum(shares.values())
            found.append({block: mass / total if total else 0.0 for block, mass in shares.items()})
        return found

    def _draw_path(self, rng: random.Random | None = None, tilted: Tilted | None = None) -> Path | None:
        """The first drawn path whose exact cost is inside; None after many attempts."""
        rng = rng or random.Random(0)
        tables, keeps = (tilted.tables, tilted.keeps) if tilted else (self._tables, None)
        for _ in range(_TRIES):
            path = tables.draw(rng)
            cost = path_cost(self._graph, path)
            if self._are_inside(cost) and (keeps is None or keeps(int(cost[1]), rng)):
                return path
        return None

    def _tilted(self, tilt: Score) -> Tilted:
        """What draws with this tilt, kept for the next draw; from exact tables where of those in larger units too few draws are inside."""
        if self._tilt and self._tilt[0] is tilt:
            return self._tilt[1]
        scores = score_options(self.space, tilt)
        is_both = len(self._bounds) > 1  # then the tables know the first alone
        wide, params_band = (InBand(self.space, self.band), self.params_band) if is_both else (self, None)
        for units in (wide._units, [1] * len(wide._units)):
            with suppress(TooLargeError):

                def weigh(price: float, units: list[int] = units) -> MeetInTheMiddle:
                    weights = option_weights(self._graph, scores, price)
                    return wide._make_tables(units, MOST_ROWS[1], weights=weights)

                tilted = balance(weigh, self._graph, params_band)
                if self._draw_path(tilted=tilted) is not None:
                    self._tilt = (tilt, tilted)
                    return tilted
        raise UserError(self._explain_steep())

    def _explain_steep(self) -> str:
        """The error sentence for a tilt whose draws are hardly ever inside."""
        bands = " and ".join(str(bound) for _, bound in self._bounds)
        return f"{self.space.source}: of {_TRIES} draws with this tilt none had {bands}; multiply the tilt by a smaller number"

    def _is_inside(self, path: Path) -> bool:
        """Whether the exact cost of the path is inside."""
        return bool(self._are_inside(path_cost(self._graph, path)))

    def _are_inside(self, costs: Integers) -> NDArray[np.bool_]:
        """Which exact costs (..., 2) are inside."""
        fits = np.ones(costs.shape[:-1], bool)
        for column, bound in self._bounds:
            fits &= (costs[..., column] >= bound.low) & (costs[..., column] <= bound.high)
        return fits

    def _build(self, path: Path) -> tuple[Params, Arch]:
        """Parameters and architecture of a path."""
        params: Params = {}
        for step, (node, end, option) in zip(self._graph.steps, path, strict=True):
            params.update(step[node][end].params[option])
        return params, cached_maker(self.space).make(params)

    def _explain_empty(self) -> str:
        """The error sentence for an empty band, with the nearest architectures outside it where one quantity is bounded."""
        outside = explain_out_of_range(self.space, self.band, self.params_band)
        if outside is not None:
            return outside
        bands = " and ".join(str(bound) for _, bound in self._bounds)
        return f"{self.space.source}: no architecture has {bands}{self._describe_nearest() if len(self._bounds) == 1 else ''}"

    def _describe_nearest(self) -> str:
        """`; the nearest below has ..., the nearest above ...`, or nothing where the tables do not fit into memory."""
        column, bound = self._bounds[0]
        words = []
        for name, total in (("below", bound.low - 1), ("above", bound.high + 1)):
            ends = (0, total) if name == "below" else (total, _HIGHEST)
            try:
                tables = MeetInTheMiddle(self._keyed_graph([1]), Box((ends[0],), (ends[1],)), MOST_ROWS[1])
                path = tables.nearest(total, is_below=name == "below")
            except TooLargeError:
                return ""
            assert path is not None, "the band lies inside the range"
            number = int(path_cost(self._graph, path)[column])
            words.append(f"the nearest {name} has {number} {bound.unit} ({self._build(path)[1].describe()})")
        return f"; {', '.join(words)}"
