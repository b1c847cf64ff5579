"""The architectures of a space inside bounds as a pool of the known-cost sampler: uniform draws, moves that stay inside, identity by arch_id."""

import math
import random
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

from optuna.distributions import CategoricalDistribution

from archsearch.blocks import Cost
from archsearch.samplers.pool import Row, items_key
from archsearch.space import Arch, Bounds, Params, Space, draw, mutate, propose

# The system attribute of a fixed trial with its `params_in_space`.
DESCRIBED = "archsearch:described"
_MOST_REMEMBERED = 100_000
_TRIES = 4
# Share of a draw that is new; the rest comes from a stock drawn once, which makes an ask three times as fast, since its architectures are cached.
_FRESH = 0.1


class SpacePool:
    """Architectures of `space` inside `bounds`, as parameter dictionaries."""

    def __init__(self, space: Space, bounds: Bounds, seed: int = 0) -> None:
        self._space, self._bounds, self._seed = space, bounds, seed
        self._stock: list[Params] = []
        self.distributions = {name: CategoricalDistribution(choices) for name, choices in space.parameters().items()}
        self._archs: dict[Hashable, Arch] = {}

    def draw(self, number: int, rng: random.Random) -> list[Params]:
        """Uniform over the architectures inside the bounds: `number` from a stock drawn once, and a few more by `rng`."""
        if len(self._stock) < number:
            self._stock = self._draw_fresh(number, random.Random(self._seed))
        return self._stock[:number] + self._draw_fresh(math.ceil(_FRESH * number), rng)

    def _draw_fresh(self, number: int, rng: random.Random) -> list[Params]:
        return [self._keep(*draw(self._space, self._bounds, rng)) for _ in range(number)]

    def mutate(self, params: Params, rng: random.Random) -> Params | None:
        """One parameter changed, with the names that depend on it; None when a few such changes all leave the bounds."""
        return self._first_inside(lambda: mutate(self._space, params, rng))

    def cross(self, first: Params, second: Params, rng: random.Random) -> Params | None:
        """Each stage from one of the two; None when a few such children all leave the bounds."""
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

        return self._first_inside(child)

    def _first_inside(self, move: Callable[[], tuple[Params, Arch]]) -> Params | None:
        """The first of a few moves that stays inside the bounds; repairing one that leaves it took three times as long for each candidate."""
        for _ in range(_TRIES):
            params, arch = move()
            if self._bounds.contains(arch.cost()):
                return self._keep(params, arch)
        return None

    def key(self, params: Mapping[str, Any]) -> Hashable | None:
        """The arch_id; None for parameters that are no architecture of this space: a paper's model, a trial still being asked."""
        arch = self._archs.get(items_key(params)) or self._rebuild(params)
        return arch.arch_id if arch else None

    def arch(self, params: Mapping[str, Any]) -> Arch:
        """The architecture of complete parameters."""
        found = self._archs.get(items_key(params)) or self._rebuild(params)
        assert found is not None, "parameters of this pool are complete"
        return found

    def cost(self, params: Mapping[str, Any]) -> Cost:
        """The exact cost of complete parameters."""
        return self.arch(params).cost()

    def _rebuild(self, params: Mapping[str, Any]) -> Arch | None:
        used, arch = propose(self._space, dict(params), random.Random(0))
        if used != params:
            return None
        self._keep(used, arch)
        return arch

    def _keep(self, params: Params, arch: Arch) -> Params:
        if len(self._archs) >= _MOST_REMEMBERED:
            self._archs.clear()
        row = Row(params)
        self._archs[row.key] = arch
        return row


def _stage(name: str) -> str:
    """`stages.2` of `stages.2.hilo.window`; the stem goes with the first stage."""
    parts = name.split(".")
    return "stages.1" if parts[0] == "stem" else ".".join(parts[:2])


def known_costs(
    pool: SpacePool, objectives: tuple[str, ...], images_per_s: Callable[[Arch], float | None] | None, batch_size: int
) -> dict[int, Callable[[Params], float]]:
    """The objectives that need no measurement, by index: exact costs, and throughput and latency where `images_per_s` predicts throughput.

    `images_per_s` returns None for an architecture that it cannot predict; the objectives are nan then.
    """
    functions: dict[str, Callable[[Params], float]] = {
        "params": partial(_count, pool, "params"),
        "macs": partial(_count, pool, "macs"),
    }
    if images_per_s is not None:
        functions["throughput_img_s"] = partial(_speed, pool, images_per_s)
        functions["latency_ms"] = partial(_latency, pool, images_per_s, batch_size)
    return {index: functions[name] for index, name in enumerate(objectives) if name in functions}


def _count(pool: SpacePool, what: str, params: Params) -> float:
    return float(getattr(pool.cost(params), what))


def _speed(pool: SpacePool, images_per_s: Callable[[Arch], float | None], params: Params) -> float:
    predicted = images_per_s(pool.arch(params))
    return math.nan if predicted is None else predicted


def _latency(pool: SpacePool, images_per_s: Callable[[Arch], float | None], batch_size: int, params: Params) -> float:
    return 1000 * batch_size / _speed(pool, images_per_s, params)
