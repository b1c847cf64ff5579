"""Architectures inside a MACs band: drawing them, moving a proposal into the band, and the ends of a space's range."""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, NamedTuple

from archsearch.arch import Arch, Stage, assemble
from archsearch.blocks.base import Layer, Scalar, Shape
from archsearch.errors import UserError
from archsearch.plan import NO_POSITIONS, Choices, LayerPlan, StagePlan
from archsearch.space import Space
from archsearch.units import format_count

Params = dict[str, Scalar]
MAX_DRAWS = 20_000
_DRAWS_BEFORE_RANGE = 500
_MOVES = 60
_NEIGHBOURS = 8


@dataclass(frozen=True)
class Band:
    """The MACs a candidate may have, both ends included."""

    low: int
    high: int

    @classmethod
    def around(cls, budget_macs: int, tolerance: float) -> "Band":
        """budget +- tolerance (a fraction)."""
        return cls(round(budget_macs * (1 - tolerance)), round(budget_macs * (1 + tolerance)))

    def contains(self, macs: int) -> bool:
        """True inside the band."""
        return self.low <= macs <= self.high

    def distance(self, macs: int) -> int:
        """MACs missing to the nearer end; 0 inside."""
        return max(self.low - macs, macs - self.high, 0)

    def __str__(self) -> str:
        return f"{format_count(self.low)} to {format_count(self.high)} MACs"


def propose(space: Space, params: Params, rng: random.Random) -> tuple[Params, Arch]:
    """The architecture of `params`, with what they leave open drawn at random; returns the parameters really used."""
    used: Params = {}

    def pick(name: str, choices: Iterable[Scalar]) -> Scalar:
        allowed = list(choices)
        used[name] = params[name] if params.get(name) in allowed else rng.choice(allowed)
        return used[name]

    return used, space.sample(pick)


def draw(space: Space, band: Band, rng: random.Random, limit: int = MAX_DRAWS) -> tuple[Params, Arch]:
    """A uniform draw of parameter sets, repeated until one lies in the band.

    Raises UserError naming the space's cheapest and dearest architecture when the band lies outside, or after `limit` draws without a hit.
    """
    for count in range(limit):
        params, arch = propose(space, {}, rng)
        if band.contains(arch.cost().macs):
            return params, arch
        if count == _DRAWS_BEFORE_RANGE or space.is_single:
            check_feasible(space, band)
    raise UserError(
        f"{space.source}: none of {limit} random architectures has {band}; {_range_sentence(space)}; widen --tolerance or change the space"
    )


def repair(space: Space, band: Band, params: Params, rng: random.Random) -> tuple[Params, Arch]:
    """An in-band architecture near the proposal: itself when inside, else a few one-parameter moves towards the band, else a fresh draw."""
    used, arch = propose(space, params, rng)
    gap = band.distance(arch.cost().macs)
    for _ in range(_MOVES):
        if gap == 0:
            return used, arch
        for _ in range(_NEIGHBOURS):
            moved, neighbour = mutate(space, used, rng)
            new_gap = band.distance(neighbour.cost().macs)
            if new_gap < gap:
                used, arch, gap = moved, neighbour, new_gap
                break
    return (used, arch) if gap == 0 else draw(space, band, rng)


def mutate(space: Space, params: Params, rng: random.Random) -> tuple[Params, Arch]:
    """Change one parameter to another of its choices."""
    names = [name for name in space.parameters() if name in params]
    if not names:
        return propose(space, params, rng)
    name = rng.choice(names)
    others = [value for value in space.parameters()[name] if value != params[name]]
    return propose(space, {**params, name: rng.choice(others)}, rng)


def check_feasible(space: Space, band: Band) -> None:
    """Raise UserError when the whole space lies outside the band."""
    cheapest, dearest = extremes(space)
    if cheapest.cost().macs > band.high or dearest.cost().macs < band.low:
        raise UserError(f"{space.source}: no architecture has {band}; {_range_sentence(space)}")


def _range_sentence(space: Space) -> str:
    cheapest, dearest = extremes(space)
    words = [f"{format_count(arch.cost().macs)} ({arch.describe()})" for arch in (cheapest, dearest)]
    return f"the cheapest architecture of the space has {words[0]}, the dearest {words[1]}"


def extremes(space: Space) -> tuple[Arch, Arch]:
    """The cheapest and the dearest architecture of a space by MACs, exactly: a shortest and a longest path over (stage, map)."""
    return _extreme(space, 1), _extreme(space, -1)


# What a stage hands on: the shape of its map with its tokens, and the layer that made these.
_State = tuple[Shape, Layer | None]


def _extreme(space: Space, sign: int) -> Arch:
    """The architecture with the least sign * MACs. State after a stage: the shape of its map and who made the tokens beside it."""
    best: dict[_State, tuple[int, Params]] = {(Shape(3, space.plan.image_size, space.plan.image_size), None): (0, {})}
    for stage in space.plan.stages:
        reached: dict[_State, tuple[int, Params]] = {}
        inside = _InsideCosts(stage, sign, is_last=stage is space.plan.stages[-1])
        for state, (total, params) in best.items():
            for entered, cost, entry_params in _entries(stage, *state):
                for end, (more, inside_params) in inside.best(entered).items():
                    candidate = total + sign * cost + more
                    if end not in reached or candidate < reached[end][0]:
                        reached[end] = (candidate, {**params, **entry_params, **inside_params})
        best = reached
    head = space.plan.head.make(
        {name: values[0] for name, values in space.plan.head.choices.items()}, num_classes=space.plan.num_classes
    )
    ends = [(shape if head.takes_tokens else shape.plain, found) for (shape, _), found in best.items()]
    totals = ((total + sign * head.cost(shape).macs, params) for shape, (total, params) in ends)
    _, params = min(totals, key=lambda end: end[0])
    return assemble(space.plan, lambda name, choices: params.get(name, choices[0]))


class _Entered(NamedTuple):
    """After a stage's entry: the shape, who made the tokens that came along, and whose tokens were left behind though the entry could bring them."""

    shape: Shape
    brought: Layer | None
    left: Layer | None


def _entries(stage: StagePlan, shape: Shape, maker: Layer | None) -> Iterable[tuple[_Entered, int, Params]]:
    """Every entry layer of the stage, its MACs and parameters; one that can bring tokens stands twice, with and without them."""
    for kind, width in product(stage.entry, stage.width):
        plan = stage.entries[str(kind)]
        for names, values in _settings([plan]):
            layer = plan.make(values[0], width=width)
            params = {stage.entry_name: kind, f"stages.{stage.number}.width": width, **names}
            can_bring = maker is not None and layer.takes_tokens
            for brought in (False, True) if can_bring else (False,):
                given = shape if brought else shape.plain
                entered = _Entered(
                    layer.out(given), maker if brought else None, maker if can_bring and not brought else None
                )
                yield entered, layer.cost(given).macs, params


class _InsideCosts:
    """The extreme choices of positions, block, depth and fields of a stage after its entry, remembered."""

    def __init__(self, stage: StagePlan, sign: int, *, is_last: bool) -> None:
        self.stage, self.sign, self.is_last = stage, sign, is_last
        self.known: dict[_Entered, dict[_State, tuple[int, Params]]] = {}

    def best(self, entered: _Entered) -> dict[_State, tuple[int, Params]]:
        """sign * MACs and parameters of the extreme for every state in which the stage can end."""
        if entered not in self.known:
            ends: dict[_State, tuple[int, Params]] = {}
            for end, cost, params in self._options(entered):
                if end not in ends or cost < ends[end][0]:
                    ends[end] = (cost, params)
            self.known[entered] = ends
        return self.known[entered]

    def _options(self, entered: _Entered) -> Iterable[tuple[_State, int, Params]]:
        entry = _Bringing(width=entered.shape.channels)
        for positions, position_params in self._positions():
            for block in self.stage.block:
                plans = [self.stage.blocks[kind] for kind in str(block).split("/")]
                for names, values in _settings(plans):
                    layers = tuple(plan.make(value) for plan, value in zip(plans, values, strict=True))
                    stage = Stage(entry=entry, blocks=layers, depth=1, positions=positions)  # type: ignore[arg-type]  # a stage's plans make blocks
                    if stage.takes_along(entered.brought) != bool(entered.brought) or stage.takes_along(entered.left):
                        continue
                    params = {f"stages.{self.stage.number}.block": block, **position_params, **names}
                    yield from self._depths(stage, entered, params)

    def _positions(self) -> Iterable[tuple[Layer | None, Params]]:
        """Every setting of the stage's positions."""
        name = f"stages.{self.stage.number}.positions"
        for kind in self.stage.positions:
            if kind == NO_POSITIONS:
                yield None, {name: kind}
                continue
            plan = self.stage.position_plans[str(kind)]
            for names, values in _settings([plan]):
                yield plan.make(values[0]), {name: kind, **names}

    def _depths(self, stage: Stage, entered: _Entered, params: Params) -> Iterable[tuple[_State, int, Params]]:
        """The stage at each of its depths: its walk at depth 1, and as many blocks more."""
        shape, macs, maker = entered.shape, 0, entered.brought
        _, *inside = stage.order(maker, is_first=False, is_last=True)  # the entry has been paid
        once = [layer for _, _, layer in inside if layer not in stage.blocks]
        for layer in once:
            macs += layer.cost(shape).macs
            shape = layer.out(shape)
        costs = [block.cost(shape).macs for block in stage.blocks]
        for depth in map(int, self.stage.depth):
            end = None if self.is_last else stage.blocks[(depth - 1) % len(costs)].stage_end()
            total = macs + sum(costs[index % len(costs)] for index in range(depth))
            total += end.cost(shape).macs if end else 0
            state = (shape, maker or stage.opening)
            yield state, self.sign * total, {**params, f"stages.{self.stage.number}.depth": depth}


@dataclass(frozen=True, kw_only=True)
class _Bringing(Layer):
    """Stands for an entry that has already been paid."""

    takes_tokens: ClassVar[bool] = True
    width: int


def _settings(plans: list[LayerPlan]) -> Iterable[tuple[Params, list[Params]]]:
    """Every setting of the plans' fields, shared names moved together: by dotted name, and by field for each plan."""
    choices: dict[str, Choices] = {name: plan.choices[field] for plan in plans for field, name in plan.names.items()}
    for values in product(*choices.values()):
        names = dict(zip(choices, values, strict=True))
        yield names, [{field: names[name] for field, name in plan.names.items()} for plan in plans]
