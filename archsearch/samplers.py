"""Samplers that never leave the MACs band and avoid repeats: Optuna's own, behind one wrapper that proposes whole architectures."""

import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from archsearch.arch import Arch
from archsearch.blocks.base import Scalar
from archsearch.budget import Band, Params, draw, mutate, repair
from archsearch.errors import UserError
from archsearch.space import Space

# SEARCH.md's comparison used 20; Optuna's 50 would spend a whole ordinary run on its first generation.
_POPULATION = 20
_TRIES = 24
_DRAWS = 6
# A band thinner than one in this many is not searched any longer for the sake of one repeat.
_DRAW_LIMIT = 400


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A whole in-band architecture with the parameters that give it; `system_attrs` is what the base sampler wants kept with the trial."""

    params: Params
    arch: Arch
    system_attrs: Mapping[str, Any] = field(default_factory=dict)


class _Nsga2(NSGAIISampler):
    """NSGA-II that notes the generation on the trial in memory, so that it can propose before the trial is stored."""

    def get_trial_generation(self, study: Study, trial: FrozenTrial) -> int:
        key = self._get_generation_key()
        if key not in trial.system_attrs:
            complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            generations = [other.system_attrs[key] for other in complete if key in other.system_attrs]
            latest = max(generations, default=0)
            trial.system_attrs[key] = latest + (generations.count(latest) >= _POPULATION)
        return int(trial.system_attrs[key])


def _tpe(seed: int) -> BaseSampler:
    # Multivariate over the names every architecture has. The constant liar is for parallel drivers, and reads the storage for every name.
    return TPESampler(seed=seed, multivariate=True, constant_liar=False)


def _nsga2(seed: int) -> BaseSampler:
    return _Nsga2(seed=seed, population_size=_POPULATION)


def _random(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {"tpe": _tpe, "nsga2": _nsga2, "random": _random}


def make_sampler(
    name: str, space: Space, band: Band, seed: int, already: Callable[[], AbstractSet[str]]
) -> "InBandSampler":
    """The sampler of that name inside `band`; `already()` gives the arch_ids to avoid. Raises UserError for an unknown name."""
    if name not in SAMPLERS:
        raise UserError(f"--sampler: unknown sampler {name!r}; allowed: {', '.join(SAMPLERS)}")
    return InBandSampler(SAMPLERS[name], space, band, seed, already)


class InBandSampler(BaseSampler):
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

    def propose(self, study: Study, number: int) -> Proposal:
        """The proposal for trial `number`, which need not be stored yet. Raises UserError when the band is infeasible."""
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

        self._space.sample(pick)
        params, arch = self._unseen(*repair(self._space, self._band, asked, rng), rng)
        return Proposal(params=params, arch=arch, system_attrs=trial.system_attrs)

    def distributions(self, params: Params) -> dict[str, BaseDistribution]:
        """Optuna's distributions of these parameters."""
        return {name: self._distributions[name] for name in params}

    def _unseen(self, params: Params, arch: Arch, rng: random.Random) -> tuple[Params, Arch]:
        """The same, or an in-band relative nobody has tried; the same again when none is found."""
        seen = self._already()
        for attempt in range(_TRIES):
            if arch.arch_id not in seen:
                break
            if attempt < _TRIES - _DRAWS:
                # Each step starts from the last one: a walk away from what is known.
                moved, _ = mutate(self._space, params, rng)
                params, arch = repair(self._space, self._band, moved, rng)
            else:
                with contextlib.suppress(UserError):
                    params, arch = draw(self._space, self._band, rng, _DRAW_LIMIT)
        return params, arch

    # The rest is Optuna's interface, for `study.ask` and `study.optimize`: one plan a trial, every name answered from it.

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Nothing: a conditional space has no joint one, and the plan is made on the first independent question."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing, as above."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The plan's value of this name; the first question of a trial makes the plan."""
        plan = self._plans.get(trial.number)
        if plan is None:
            plan = self._plans[trial.number] = self.propose(study, trial.number)
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
