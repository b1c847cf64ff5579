"""The pool of a space inside a band, for the known-cost sampler: exact draws, moves that stay inside, identity by arch_id."""

import math
import random
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from archsearch.blocks.cost import Cost
from archsearch.space.arch import Arch
from archsearch.space.budget import Band, Params, draw, mutate, propose
from archsearch.space.plan import LayerPlan, StagePlan
from archsearch.space.space import Space

_MOST_REMEMBERED = 100_000
_TRIES = 4
# Of a draw: a stock that stays makes an ask three times as fast, as its architectures are known.
_FRESH = 0.1


class SpacePool:
    """Architectures of `space` inside `band`, as parameter dictionaries."""

    def __init__(self, space: Space, band: Band, seed: int = 0) -> None:
        self._space, self._band, self._seed = space, band, seed
        self._stock: list[Params] = []
        self._distributions = {name: CategoricalDistribution(choices) for name, choices in space.parameters().items()}
        self._archs: dict[Hashable, Arch] = {}
        self._costs: dict[Hashable, Cost] = {}

    @property
    def distributions(self) -> Mapping[str, BaseDistribution]:
        """Every name of the space with two choices or more."""
        return self._distributions

    def draw(self, number: int, rng: random.Random) -> list[Params]:
        """Uniform over the band's architectures: most of them from a stock drawn once, a few fresh ones by `rng`."""
        if len(self._stock) < number:
            self._stock = self._drawn(number, random.Random(self._seed))
        return self._stock[:number] + self._drawn(math.ceil(_FRESH * number), rng)

    def _drawn(self, number: int, rng: random.Random) -> list[Params]:
        return [self._keep(*draw(self._space, self._band, rng)) for _ in range(number)]

    def mutate(self, params: Params, rng: random.Random) -> Params | None:
        """One parameter changed, with what hangs on it; None when a few such changes all leave the band."""
        return self._inside(lambda: mutate(self._space, params, rng))

    def cross(self, first: Params, second: Params, rng: random.Random) -> Params | None:
        """Each stage from one of the two; None when a few such children all leave the band."""
        stages = sorted({_stage(name) for name in (*first, *second)})

        def child() -> tuple[Params, Arch]:
            chosen = {stage: rng.choice((first, second)) for stage in stages}
            mixed = {
                name: value
                for source in (first, second)
                for name, value in source.items()
                if chosen[_stage(name)] is source
            }
            return propose(self._space, mixed, rng)

        return self._inside(child)

    def _inside(self, move: Callable[[], tuple[Params, Arch]]) -> Params | None:
        """The first of a few moves that stays in the band. Repairing those that leave it took three times as long for each candidate."""
        for _ in range(_TRIES):
            params, arch = move()
            if self._band.contains(self._cost(params, arch).macs):
                return self._keep(params, arch)
        return None

    def key(self, params: Mapping[str, Any]) -> Hashable | None:
        """The arch_id; None for parameters that are no architecture of this space: a paper's model, a trial still being asked."""
        arch = self._archs.get(_items(params)) or self._made(params)
        return arch.arch_id if arch else None

    def arch(self, params: Mapping[str, Any]) -> Arch:
        """The architecture of whole parameters."""
        found = self._archs.get(_items(params)) or self._made(params)
        assert found is not None, "parameters of this pool are whole"
        return found

    def cost(self, params: Mapping[str, Any]) -> Cost:
        """The exact cost of whole parameters."""
        return self._cost(params, self.arch(params))

    def _cost(self, params: Mapping[str, Any], arch: Arch) -> Cost:
        """Worked out once, for the band and for the objectives."""
        items = _items(params)
        if items not in self._costs:
            if len(self._costs) >= _MOST_REMEMBERED:
                self._costs.clear()
            self._costs[items] = arch.cost()
        return self._costs[items]

    def _made(self, params: Mapping[str, Any]) -> Arch | None:
        used, arch = propose(self._space, dict(params), random.Random(0))
        if used != params:
            return None
        self._keep(used, arch)
        return arch

    def _keep(self, params: Params, arch: Arch) -> Params:
        if len(self._archs) >= _MOST_REMEMBERED:
            self._archs.clear()
        self._archs[_items(params)] = arch
        return params


def _items(params: Mapping[str, Any]) -> Hashable:
    return tuple(sorted(params.items()))


def _stage(name: str) -> str:
    """`stages.2` of `stages.2.hilo.window`; the stem goes with the first stage."""
    parts = name.split(".")
    return "stages.1" if parts[0] == "stem" else ".".join(parts[:2])


# The user attribute of a fixed trial that says what `described` gives.
DESCRIBED = "described"


def described(arch: Arch, space: Space) -> Params:
    """An architecture of another origin in the names of `space`, as far as these go: what a model can learn from a paper's network.

    Values need not be among the space's choices.
    """
    plan = space.plan
    if len(arch.stages) != len(plan.stages):
        return {}
    said: Params = {}
    for stage, given in zip(plan.stages, arch.stages, strict=True):
        prefix = f"stages.{stage.number}"
        said |= {f"{prefix}.width": given.width, f"{prefix}.depth": given.depth, f"{prefix}.block": given.block}
        said |= {stage.entry_name: given.entry.kind}
        for layer in (given.entry, *given.blocks):
            said |= _fields(layer, _plan_of(stage, layer.kind))
    names = space.parameters()
    return {name: value for name, value in said.items() if name in names}


def _plan_of(stage: StagePlan, kind: str) -> LayerPlan | None:
    return stage.entries.get(kind) or stage.blocks.get(kind)


def _fields(layer: object, plan: LayerPlan | None) -> Params:
    return {} if plan is None else {name: getattr(layer, field) for field, name in plan.names.items()}


def known_costs(
    pool: SpacePool, objectives: tuple[str, ...], images_per_s: Callable[[Arch], float | None] | None, batch_size: int
) -> dict[int, Callable[[Params], float]]:
    """The objectives that need no measurement: exact costs, and speed where a calibration foresees it (`images_per_s`)."""
    functions: dict[str, Callable[[Params], float]] = {
        "params": lambda params: float(pool.cost(params).params),
        "macs": lambda params: float(pool.cost(params).macs),
    }
    if images_per_s is not None:

        def speed(params: Params) -> float:
            foreseen = images_per_s(pool.arch(params))
            return float("nan") if foreseen is None else foreseen

        functions["throughput_img_s"] = speed
        functions["latency_ms"] = lambda params: 1000 * batch_size / speed(params)
    return {index: functions[name] for index, name in enumerate(objectives) if name in functions}
