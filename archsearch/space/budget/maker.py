"""Makes architectures from parameters; a stage is made once for its parameters, since the architectures of a search share most of theirs."""

import random
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Generic, TypeVar

from archsearch.blocks import Layer, Scalar
from archsearch.space.arch import Arch, Pick, assemble_head, assemble_stage, join
from archsearch.space.budget.graph import Params
from archsearch.space.plan import Choices, Plan
from archsearch.space.space import layer_choices, stage_choices
from archsearch.space.stages import Stage

_MOST_KEPT = 2**14  # of each stage
T = TypeVar("T")


class ArchMaker:
    """Completes parameters of a plan to architectures. All its stages with equal parameters are one object, which makes their caches quick."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._stages = [_Part(stage_choices(stage), partial(assemble_stage, stage)) for stage in plan.stages]
        self._head = _Part[Layer](layer_choices(plan.head), partial(assemble_head, plan))

    def complete(self, params: Params, rng: random.Random) -> tuple[Params, Arch]:
        """The architecture of `params` with the parameters that were used: names that are missing, or have none of their choices, are drawn."""
        used: Params = {}
        stages: list[Stage] = []
        for part in self._stages:
            mine, stage = part.make(params, rng)
            used |= mine
            stages.append(stage)
        mine, head = self._head.make(params, rng)
        used |= mine
        return used, join(self._plan, tuple(stages), head, is_named=not used)


class _Part(Generic[T]):
    """A stage or the head, kept by the values of its own parameters."""

    def __init__(self, choices: dict[str, Choices], assemble: Callable[[Pick], T]) -> None:
        self._names = [name for name, values in choices.items() if len(values) > 1]
        self._assemble = assemble
        self._made: dict[Hashable, tuple[Params, T]] = {}

    def make(self, params: Params, rng: random.Random) -> tuple[Params, T]:
        """The parameters that were used, not to be changed, and what they give."""
        found = self._made.get(self._key(params))
        if found is not None:
            return found
        used: Params = {}

        def choose(name: str, choices: Sequence[Scalar]) -> Scalar:
            if len(choices) == 1:
                return choices[0]
            if name not in used:
                used[name] = params[name] if params.get(name) in choices else rng.choice(choices)
            return used[name]

        made = self._assemble(choose)
        if len(self._made) >= _MOST_KEPT:
            self._made.clear()
        return self._made.setdefault(self._key(used), (used, made))

    def _key(self, params: Params) -> Hashable:
        """The values with their types: 1, 1.0 and True are equal, but are not written alike."""
        values = tuple(map(params.get, self._names))
        return values, tuple(map(type, values))
