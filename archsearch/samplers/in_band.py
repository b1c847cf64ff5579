"""Samplers that never leave the MACs band and avoid repeats: Optuna's own, behind one wrapper that proposes whole architectures."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from archsearch.blocks.base import Scalar
from archsearch.errors import UserError
from archsearch.samplers.base import PlannedSampler
from archsearch.space.arch import Arch
from archsearch.space.budget import Band, Params, draw, in_band, mutate, repair
from archsearch.space.space import Space

_STEPS = 18
# Draws in a band of N architectures until one that nobody has tried has shown itself, if there is one: it is missed with a chance of
# exp(-_SURE) / N. In larger bands there is always one.
_SURE = 3.0
_MOST_SEARCHED = 3_000


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A whole in-band architecture with the parameters that give it; `system_attrs` is what the base sampler wants kept with the trial."""

    params: Params
    arch: Arch
    system_attrs: Mapping[str, Any] = field(default_factory=dict)


class InBandSampler(PlannedSampler):
    """Asks a base sampler for every name of an architecture, brings the answer into the band, and turns repeats into neighbours.

    `base` makes the base sampler from a seed: a fresh one each trial, seeded by `seed` and the trial's number, so that a run
    that was interrupted goes on as if it had not been. All state a base sampler has otherwise lies in the study.
    """

    def __init__(
        self,
        base: Callable[[int], BaseSampler],
        space: Space,
        band: Band,
        seed: int,
        already: Callable[[], AbstractSet[str]] = frozenset,
    ) -> None:
        self._base, self._space, self._band, self._seed, self._already = base, space, band, seed, already
        self._distributions = {name: CategoricalDistribution(choices) for name, choices in space.parameters().items()}
        self._always: dict[str, BaseDistribution] = {name: self._distributions[name] for name in always_asked(space)}
        self._plans: dict[int, Proposal] = {}

    def propose(self, study: Study, number: int) -> Proposal | None:
        """The proposal for trial `number`, which need not be stored yet; None when all of the band have been met. Raises UserError when it holds none."""
        trial = create_trial(state=TrialState.RUNNING)
        trial.number = number
        rng = random.Random(f"{self._seed}/{number}")
        base = self._base(rng.getrandbits(32))
        relative = base.sample_relative(study, trial, self._always)
        asked: Params = {}

        def pick(name: str, choices: Sequence[Scalar]) -> Scalar:
            chosen = (
                relative[name]
                if name in relative
                else base.sample_independent(study, trial, name, self._distributions[name])
            )
            asked[name] = chosen
            return asked[name]

        if relative:
            self._space.sample(pick)
            found = repair(self._space, self._band, asked, rng)
        else:
            # It has nothing to say yet, or never has: a uniform draw, where name by name would favour what has few fields.
            found = draw(self._space, self._band, rng)
        unseen = self._unseen(*found, rng)
        return unseen and Proposal(params=unseen[0], arch=unseen[1], system_attrs=trial.system_attrs)

    def distributions(self, params: Params) -> dict[str, BaseDistribution]:
        """Optuna's distributions of these parameters."""
        return {name: self._distributions[name] for name in params}

    def _unseen(self, params: Params, arch: Arch, rng: random.Random) -> tuple[Params, Arch] | None:
        """The same, or an in-band architecture nobody has tried: a relative, else any other; None when there is none."""
        seen = self._already()
        for _ in range(_STEPS):
            if arch.arch_id not in seen:
                return params, arch
            # Each step starts from the last one: a walk away from what is known.
            moved, _ = mutate(self._space, params, rng)
            params, arch = repair(self._space, self._band, moved, rng)
        for _ in range(self._enough_draws()):
            params, arch = draw(self._space, self._band, rng)
            if arch.arch_id not in seen:
                return params, arch
        return None

    def _enough_draws(self) -> int:
        number = min(in_band(self._space, self._band).count, _MOST_SEARCHED)
        return math.ceil(number * (math.log(number) + _SURE))

    # The rest is Optuna's interface, for `study.ask` and `study.optimize`: one plan a trial, every name answered from it.

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The plan's value of this name; the first question of a trial makes the plan."""
        plan = self._plans.get(trial.number)
        if plan is None:
            plan = self.propose(study, trial.number)
            if plan is None:
                raise UserError(f"{self._space.source}: all architectures with {self._band} have been proposed")
            self._plans[trial.number] = plan
            for key, value in plan.system_attrs.items():
                study._storage.set_trial_system_attr(trial._trial_id, key, value)  # as Optuna's own samplers do
        assert param_name in plan.params, f"{param_name} is not a name that this architecture asks for"
        return plan.params[param_name]

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Forget the plan; none of the base samplers does anything here without constraints."""
        self._plans.pop(trial.number, None)


def always_asked(space: Space) -> list[str]:
    """Names that every architecture of the space asks for, whichever kinds are chosen.

    A name depends on which kind one parameter takes. Rounds that between them take every choice of every parameter meet
    each such kind, and any other in its place, so a name asked in all of them does not depend on one.
    """
    names = set(space.parameters())
    for turn in range(max((len(choices) for choices in space.parameters().values()), default=0)):
        asked: set[str] = set()

        def pick(name: str, choices: Sequence[Scalar], turn: int = turn, asked: set[str] = asked) -> Scalar:
            asked.add(name)
            return choices[turn % len(choices)]

        space.sample(pick)
        names &= asked
    return [name for name in space.parameters() if name in names]
