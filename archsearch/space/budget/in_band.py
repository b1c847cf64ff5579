"""The architectures of a space in a band, counted exactly and drawn uniformly, none of them twice under other parameters."""

import random
from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from archsearch.errors import UserError
from archsearch.space.arch import Arch
from archsearch.space.budget.band import COLUMNS, Band, Quantity, beyond_range
from archsearch.space.budget.graph import END, Graph, Integers, Node, Options, Params, graph_of
from archsearch.space.budget.keyed_graph import Box, Edge, Network, Path
from archsearch.space.budget.meet_in_the_middle import Meeting, TooLargeError
from archsearch.space.space import Space

# Sums a table may be made of: for drawing as many as are made in a blink, for counting as many as lie in memory (24 bytes each while they are sorted).
# Two quantities take forty times as long for each.
FEW_ROWS = 200_000
MOST_ROWS = {0: 12_000_000, 1: 12_000_000, 2: 400_000}
# How finely the tables for drawing see the band: one draw in twenty falls outside and is drawn again.
_UNITS_A_STEP = 20
_TRIES = 10_000
_HIGHEST = 2**60
_TRIALS_OF_ESTIMATE = 2_000


class InBand:
    """The distinct architectures of a space whose MACs, and parameters where `params_band` is given, lie inside, both ends included.

    Distinct: of those that share an `arch_id` only one counts. Raises UserError when there is none. Set-up takes 0.2 s for the default space, a draw
    0.3 ms; `count` takes a few seconds when it is first asked for.
    """

    def __init__(self, space: Space, band: Band | None, params_band: Band | None = None) -> None:
        self.space, self.band, self.params_band = space, band, params_band
        bounds: list[tuple[Quantity, Band | None]] = [("macs", band), ("params", params_band)]
        self._bounds = [(COLUMNS[quantity], bound) for quantity, bound in bounds if bound is not None]
        self._graph = graph_of(space)
        self._units = [1] * len(self._bounds)
        self._meeting = self._coarse_enough()
        if not self._meeting.count or self._first() is None:
            raise UserError(self._why_none())

    def _coarse_enough(self) -> Meeting:
        """Tables for drawing: exact where the space is small, else in units of which the band has many."""
        try:
            return self._meet(self._units, FEW_ROWS)
        except TooLargeError:
            steps = len(self._graph.steps)
            self._units = [max(1, (bound.high - bound.low) // (_UNITS_A_STEP * steps)) for _, bound in self._bounds]
            meeting, self._units = self._fitting(self._units)
            return meeting

    def _fitting(
        self, units: list[int], middle: int | None = None, *, is_wide: bool = True
    ) -> tuple[Meeting, list[int]]:
        """Tables in these units, or in the finest larger ones in which they fit into memory, and the units."""
        while True:
            try:
                return self._meet(units, MOST_ROWS[len(self._bounds)], middle, is_wide=is_wide), units
            except TooLargeError:
                units = [2 * unit for unit in units]

    def _meet(self, units: list[int], most_rows: int, middle: int | None = None, *, is_wide: bool = True) -> Meeting:
        """The tables in these units, for a box that is wide enough for what rounding each step moves, or not."""
        slack = [len(self._graph.steps) * unit // 2 + 1 if unit > 1 and is_wide else 0 for unit in units]
        box = [
            (max(0, -(-(bound.low - more) // unit)), max(-1, (bound.high + more) // unit))
            for (_, bound), unit, more in zip(self._bounds, units, slack, strict=True)
        ] or [(0, 0)]
        return Meeting(self._network(units), Box(*map(tuple, zip(*box, strict=True))), most_rows, middle)

    def _network(self, units: list[int]) -> Network:
        """The graph with its costs in these units as keys."""
        costs = [list(step.values()) for step in self._graph.steps]
        totals = [
            sum(
                max(int(options.costs[:, column].max()) for ends in step for options in ends.values()) for step in costs
            )
            for column, _ in self._bounds
        ]
        bits = [(total // unit + len(costs)).bit_length() for total, unit in zip(totals, units, strict=True)]
        if sum(bits) > 60:
            raise TooLargeError
        shift = bits[1] if len(bits) > 1 else 0
        return Network(
            start=self._graph.start,
            steps=[
                [
                    (node, end, Edge(self._keys(options, units, shift)))
                    for node, ends in step.items()
                    for end, options in ends.items()
                ]
                for step in self._graph.steps
            ],
            bits=shift,
        )

    def _keys(self, options: Options, units: list[int], shift: int) -> Integers:
        """Each option's key."""
        keys = np.zeros(len(options), np.int64)
        for (column, _), unit in zip(self._bounds, units, strict=True):
            keys = (keys << shift) + (options.costs[:, column] + unit // 2) // unit
        return keys

    @cached_property
    def _counted(self) -> tuple[int, bool]:
        """How many there are, and whether that is exact."""
        meeting = self._meeting
        if any(unit > 1 for unit in self._units):
            try:
                meeting = self._meet([1] * len(self._bounds), MOST_ROWS[len(self._bounds)])
            except TooLargeError:
                rng = random.Random(0)
                inside = sum(self._holds(self._meeting.draw(rng)) for _ in range(_TRIALS_OF_ESTIMATE))
                return meeting.count * inside // _TRIALS_OF_ESTIMATE, False
        return meeting.count, meeting.is_exact

    @property
    def count(self) -> int:
        """Distinct architectures in the band: exact where `is_exact`, else estimated from a sample to about a percent."""
        return self._counted[0]

    @property
    def is_exact(self) -> bool:
        """Whether `count` is exact; false for spaces whose tables would not fit into memory."""
        return self._counted[1]

    def draw(self, rng: random.Random) -> tuple[Params, Arch]:
        """One of the architectures, all equally likely, and parameters that give it."""
        path = self._first(rng)
        if path is None:
            raise UserError(self._why_none())
        return self._built(path)

    def draw_many(self, number: int, rng: random.Random) -> list[tuple[Params, Arch]]:
        """Independent draws; the first of a longer list are those of a shorter one."""
        return [self.draw(rng) for _ in range(number)]

    def near(self, params: Params, rng: random.Random) -> tuple[Params, Arch] | None:
        """One of the architectures that differ from this one in one stage, or its head, and lie in the band; None when there is none.

        The stage is drawn uniformly first, its new form uniformly among those with which the whole lies inside; the stages after it keep their parameters.
        """
        path = path_of(self._graph, params)
        assert path is not None, "parameters that are not those of an architecture of this space"
        places = list(range(0, len(path), 2))
        rng.shuffle(places)
        for place in places:
            found = redrawn(self._graph, params, path, place, self._fits, rng)
            if found:
                return self._built(found)
        return None

    def shares(self) -> list[dict[str, float]]:
        """For each stage, which share of the architectures in the band has which block; to about a thousandth where the space is large."""
        found: list[dict[str, float]] = []
        for number in range(len(self.space.plan.stages)):
            step, shares = (
                self._graph.steps[2 * number + 1],
                dict.fromkeys(map(str, self.space.plan.stages[number].block), 0.0),
            )
            meeting, _ = self._fitting(self._units, 2 * number + 1, is_wide=False)
            for near, far, edge, masses in meeting.masses():
                for row, mass in enumerate(masses):
                    members = edge.members(row)
                    for option in members:
                        shares[step[near][far].blocks[option]] += mass / len(members)
            total = sum(shares.values())
            found.append({block: mass / total if total else 0.0 for block, mass in shares.items()})
        return found

    def _first(self, rng: random.Random | None = None) -> Path | None:
        """The first drawn path whose exact cost is inside; none after many that are not."""
        rng = rng or random.Random(0)
        return next((path for path in (self._meeting.draw(rng) for _ in range(_TRIES)) if self._holds(path)), None)

    def _holds(self, path: Path) -> bool:
        """Whether the exact cost is inside."""
        return bool(self._fits(cost_of(self._graph, path)))

    def _fits(self, costs: Integers) -> NDArray[np.bool_]:
        """Which exact costs (..., 2) are inside."""
        fits = np.ones(costs.shape[:-1], bool)
        for column, bound in self._bounds:
            fits &= (costs[..., column] >= bound.low) & (costs[..., column] <= bound.high)
        return fits

    def _built(self, path: Path) -> tuple[Params, Arch]:
        """Parameters and architecture of a path."""
        params: Params = {}
        for step, (node, end, option) in zip(self._graph.steps, path, strict=True):
            params.update(step[node][end].params[option])
        return params, self.space.sample(lambda name, choices: params[name])

    def _why_none(self) -> str:
        """The sentence for bands without an architecture, with the nearest outside where one quantity is bounded."""
        outside = beyond_range(self.space, self.band, self.params_band)
        if outside is not None:
            return outside
        bands = " and ".join(str(bound) for _, bound in self._bounds)
        return f"{self.space.source}: no architecture has {bands}{self._nearest() if len(self._bounds) == 1 else ''}"

    def _nearest(self) -> str:
        """`; the nearest below has ..., the nearest above ...`, as far as the tables fit into memory."""
        column, bound = self._bounds[0]
        words = []
        for name, total in (("below", bound.low - 1), ("above", bound.high + 1)):
            ends = (0, total) if name == "below" else (total, _HIGHEST)
            try:
                path = Meeting(self._network([1]), Box((ends[0],), (ends[1],)), MOST_ROWS[1]).nearest(
                    total, is_below=name == "below"
                )
            except TooLargeError:
                return ""
            assert path is not None, "the band lies inside the range"
            number = int(cost_of(self._graph, path)[column])
            words.append(f"the nearest {name} has {number} {bound.unit} ({self._built(path)[1].describe()})")
        return f"; {', '.join(words)}"


Fits = Callable[[Integers], NDArray[np.bool_]]  # costs (..., 2) -> which of them are in the band


def path_of(graph: Graph, params: Params, node: Node | None = None, number: int = 0) -> Path | None:
    """The path of the architecture with these parameters, from a node before step `number` (the image) to END; None when it does not lead there."""
    if number == len(graph.steps):
        return []
    node = graph.start if node is None else node
    asked = frozenset((name, value) for name, value in params.items() if name in graph.names[number])
    for end, options in graph.steps[number].get(node, {}).items():
        option = options.index.get(asked)
        rest = None if option is None else path_of(graph, params, end, number + 1)
        if option is not None and rest is not None:
            return [(node, end, option), *rest]
    return None


def cost_of(graph: Graph, path: Path, number: int = 0) -> Integers:
    """MACs and parameters of a path from step `number` on."""
    costs = [graph.steps[number + index][node][end].costs[option] for index, (node, end, option) in enumerate(path)]
    return np.sum(costs, axis=0, dtype=np.int64) if costs else np.zeros(2, np.int64)


def redrawn(graph: Graph, params: Params, path: Path, place: int, fits: Fits, rng: random.Random) -> Path | None:
    """The path with the stage whose entry is step `place` (or the head) drawn anew; the later ones keep their parameters. None when it has no other form."""
    before, own = cost_of(graph, path[:place]), path[place : place + 2]
    found: list[tuple[Path, NDArray[np.int64]]] = []
    for pieces in _pieces(graph, path[place][0], place):
        rest = path_of(graph, params, pieces[-1][1], place + len(pieces))
        if rest is None:
            continue
        costs = before + cost_of(graph, rest, place + len(pieces)) + _sums([options for _, _, options in pieces])
        allowed = fits(costs)
        if [(node, end) for node, end, _ in pieces] == [(node, end) for node, end, _ in own]:
            allowed[tuple(option for _, _, option in own)] = False
        nodes = [(node, end, 0) for node, end, _ in pieces]
        found.append(([*nodes, *rest], np.argwhere(allowed)))
    total = sum(len(places) for _, places in found)
    if not total:
        return None
    chosen = rng.randrange(total)
    for pattern, places in found:
        if chosen < len(places):
            new = [(node, end, int(option)) for (node, end, _), option in zip(pattern, places[chosen], strict=False)]
            return [*path[:place], *new, *pattern[len(new) :]]
        chosen -= len(places)
    raise AssertionError("a place beyond all replacements")


def _pieces(graph: Graph, node: Node, place: int) -> Iterator[list[tuple[Node, Node, Options]]]:
    """Entry and inside of a stage by the nodes they go over; the head is one piece."""
    for middle, entries in graph.steps[place][node].items():
        if middle == END:
            yield [(node, END, entries)]
            continue
        for end, insides in graph.steps[place + 1].get(middle, {}).items():
            yield [(node, middle, entries), (middle, end, insides)]


def _sums(options: list[Options]) -> Integers:
    """Costs of all combinations, (n, 2) or (n, m, 2)."""
    costs = options[0].costs
    return costs if len(options) == 1 else costs[:, None] + options[1].costs
