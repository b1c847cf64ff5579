"""Makes architectures from parameters; a stage is made once for its parameters, since the architectures of a search share most of theirs."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from archsearch.blocks import Layer, Scalar
from archsearch.space.arch import Arch, Pick, assemble_head, assemble_stage, join
from archsearch.space.budget.graph import Params
from archsearch.space.plan import Choices, Plan
from archsearch.space.space import Space, layer_choices, stage_choices
from archsearch.space.stages import Stage

_MOST_KEPT = 2**14  # of each stage
T = TypeVar("T")


def cached_maker(space: Space) -> "ArchMaker":
    """The maker of a space."""
    if space not in _MAKERS:
        _MAKERS[space] = ArchMaker(space.plan)
    return _MAKERS[space]


class ArchMaker:
    """Puts architectures of a plan together. All its stages with equal parameters are one object, which makes their caches quick."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._stages = [_Part(stage_choices(stage), partial(assemble_stage, stage)) for stage in plan.stages]
        self._head = _Part[Layer](layer_choices(plan.head), partial(assemble_head, plan))

    def make(self, params: Params) -> Arch:
        """The architecture of complete parameters."""

        def fill(choices: Sequence[Scalar]) -> Scalar:
            raise AssertionError(f"the parameters lack a name with the choices {choices}")

        return self.complete(params, fill)[1]

    def complete(self, params: Params, fill: Callable[[Sequence[Scalar]], Scalar]) -> tuple[Params, Arch]:
        """The architecture of `params` with the parameters that were used: `fill(choices)` for names that are missing, or have none of their choices."""
        used: Params = {}
        stages: list[Stage] = []
        for part in self._stages:
            mine, stage = part.make(params, fill)
            used |= mine
            stages.append(stage)
        mine, head = self._head.make(params, fill)
        used |= mine
        return used, join(self._plan, tuple(stages), head, is_named=not used)


class _Part(Generic[T]):
    """A stage or the head, kept by the values of its own parameters."""

    def __init__(self, choices: dict[str, Choices], assemble: Callable[[Pick], T]) -> None:
        self._names = [name for name, values in choices.items() if len(values) > 1]
        self._assemble = assemble
        self._made: dict[Hashable, tuple[Params, T]] = {}

    def make(self, params: Params, fill: Callable[[Sequence[Scalar]], Scalar]) -> tuple[Params, T]:
        """The parameters that were used, not to be changed, and what they give."""
        found = self._made.get(self._key(params))
        if found is not None:
            return found
        used: Params = {}

        def choose(name: str, choices: Sequence[Scalar]) -> Scalar:
            if len(choices) == 1:
                return choices[0]
            if name not in used:
                used[name] = params[name] if params.get(name) in choices else fill(choices)
            return used[name]

        made = self._assemble(choose)
        if len(self._made) >= _MOST_KEPT:
            self._made.clear()
        return self._made.setdefault(self._key(used), (used, made))

    def _key(self, params: Params) -> Hashable:
        """The values with their types: 1, 1.0 and True are equal, but are not written alike."""
        values = tuple(map(params.get, self._names))
        return values, tuple(map(type, values))


_MAKERS: WeakKeyDictionary[Space, ArchMaker] = WeakKeyDictionary()
