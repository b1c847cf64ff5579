"""Architectures inside a MACs band: drawing them, moving a proposal into the band, and the ends of a space's range."""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

from archsearch.arch import Arch, assemble
from archsearch.blocks.base import Scalar, Shape
from archsearch.errors import UserError
from archsearch.grammar import Choices, LayerPlan, StagePlan
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


def _extreme(space: Space, sign: int) -> Arch:
    """The architecture with the least sign * MACs. State after a stage: the shape of its map."""
    best: dict[Shape, tuple[int, Params]] = {Shape(3, space.plan.image_size, space.plan.image_size): (0, {})}
    for stage in space.plan.stages:
        reached: dict[Shape, tuple[int, Params]] = {}
        blocks = _BlockCosts(stage, sign, is_last=stage is space.plan.stages[-1])
        for shape, (total, params) in best.items():
            for out, cost, entry_params in _entries(stage, shape):
                block_cost, block_params = blocks.best(out)
                candidate = total + sign * cost + block_cost
                if out not in reached or candidate < reached[out][0]:
                    reached[out] = (candidate, {**params, **entry_params, **block_params})
        best = reached
    head = space.plan.head.make(
        {name: values[0] for name, values in space.plan.head.choices.items()}, num_classes=space.plan.num_classes
    )
    _, params = min((total + sign * head.cost(shape).macs, params) for shape, (total, params) in best.items())
    return assemble(space.plan, lambda name, choices: params.get(name, choices[0]))


def _entries(stage: StagePlan, shape: Shape) -> Iterable[tuple[Shape, int, Params]]:
    """Every entry layer of the stage at an input shape: output shape, MACs, parameters."""
    for kind, width in product(stage.entry, stage.width):
        plan = stage.entries[str(kind)]
        for names, values in _settings([plan]):
            layer = plan.make(values[0], width=width)
            yield (
                layer.out(shape),
                layer.cost(shape).macs,
                {stage.entry_name: kind, f"stages.{stage.number}.width": width, **names},
            )


class _BlockCosts:
    """The extreme choice of block, depth and fields of a stage for a map, remembered by shape."""

    def __init__(self, stage: StagePlan, sign: int, *, is_last: bool) -> None:
        self.stage, self.sign, self.is_last = stage, sign, is_last
        self.known: dict[Shape, tuple[int, Params]] = {}

    def best(self, shape: Shape) -> tuple[int, Params]:
        """sign * MACs and parameters of the extreme."""
        if shape not in self.known:
            self.known[shape] = min(self._options(shape), key=lambda option: option[0])
        return self.known[shape]

    def _options(self, shape: Shape) -> Iterable[tuple[int, Params]]:
        prefix = f"stages.{self.stage.number}"
        for block in self.stage.block:
            plans = [self.stage.blocks[kind] for kind in str(block).split("/")]
            for names, values in _settings(plans):
                layers = [plan.make(value) for plan, value in zip(plans, values, strict=True)]
                costs = [layer.cost(shape).macs for layer in layers]
                extra = next((layer for layer in (getattr(item, "after_first")() for item in layers) if layer), None)  # noqa: B009  # Block's, not Layer's
                for depth in map(int, self.stage.depth):
                    end = None if self.is_last else getattr(layers[(depth - 1) % len(layers)], "stage_end")()  # noqa: B009  # as above
                    macs = sum(costs[index % len(costs)] for index in range(depth))
                    macs += sum(layer.cost(shape).macs for layer in (extra, end) if layer)
                    yield self.sign * macs, {f"{prefix}.block": block, f"{prefix}.depth": depth, **names}


def _settings(plans: list[LayerPlan]) -> Iterable[tuple[Params, list[Params]]]:
    """Every setting of the plans' fields, shared names moved together: by dotted name, and by field for each plan."""
    choices: dict[str, Choices] = {name: plan.choices[field] for plan in plans for field, name in plan.names.items()}
    for values in product(*choices.values()):
        names = dict(zip(choices, values, strict=True))
        yield names, [{field: names[name] for field, name in plan.names.items()} for plan in plans]
