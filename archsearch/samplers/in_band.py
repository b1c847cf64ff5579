"""Optuna's own samplers behind one wrapper that proposes whole architectures, inside the MACs band and without repeats."""

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

from archsearch.blocks import Scalar
from archsearch.errors import UserError
from archsearch.samplers.base import ProposingSampler, with_changed
from archsearch.space import Arch, Bounds, Params, Space, cached_in_band, draw, mutate, repair

_STEPS = 18
# In a band of N architectures N (log N + _SURE) draws miss a given one with a probability of exp(-_SURE) / N: then the band is taken to be used up. A band
# larger than _MOST_SEARCHED never is.
_SURE = 3.0
_MOST_SEARCHED = 3_000


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """An architecture inside the band with its parameters; `system_attrs` are those that the base sampler stores with the trial."""

    params: Params
    arch: Arch
    system_attrs: Mapping[str, Any] = field(default_factory=dict)


class InBandSampler(ProposingSampler):
    """Asks a base sampler for every parameter, moves the architecture into the band, and replaces one that `already()` has (arch_ids) by a neighbour.

    `base` makes the base sampler from a seed: a new one for each trial, seeded by `seed` and the trial's number, so that a run
    that was interrupted goes on as if it had not been. All other state of a base sampler lies in the study.
    """

    def __init__(
        self,
        base: Callable[[int], BaseSampler],
        space: Space,
        bounds: Bounds,
        seed: int,
        already: Callable[[], AbstractSet[str]] = frozenset,
    ) -> None:
        self._base, self._space, self._bounds, self._seed, self._already = base, space, bounds, seed, already
        self._distributions = {name: CategoricalDistribution(choices) for name, choices in space.parameters().items()}
        self._always: dict[str, BaseDistribution] = {name: self._distributions[name] for name in always_asked(space)}
        self._proposals: dict[int, Proposal] = {}

    def propose(self, study: Study, number: int) -> Proposal | None:
        """The proposal for trial `number`, which need not be stored yet; None when all architectures of the band have been proposed.

        Raises UserError when the band has none.
        """
        return next(iter(self.propose_many(study, number, 1)), None)

    def propose_many(self, study: Study, number: int, count: int) -> list[Proposal]:
        """Distinct proposals for `count` trials from `number` on, none of which need be stored yet; fewer when the band is used up."""
        return self._fill([], study, number, count)

    def _fill(self, proposals: list[Proposal], study: Study, number: int, count: int) -> list[Proposal]:
        """As many proposals, with further ones of the base sampler, to which those before are trials under way."""
        found = list(proposals)
        under_way = {number + place: self._running(number + place, one) for place, one in enumerate(found)}
        while len(found) < count:
            taken = {one.arch.arch_id for one in found}
            proposal = self._propose(_beside(study, under_way), number + len(found), taken)
            if proposal is None:
                break
            under_way[number + len(found)] = self._running(number + len(found), proposal)
            found.append(proposal)
        return found

    def _running(self, number: int, proposal: Proposal) -> FrozenTrial:
        """A trial of this number that runs with the proposal."""
        trial = create_trial(
            state=TrialState.RUNNING, params=proposal.params, distributions=self.distributions(proposal.params)
        )
        trial.number = number
        return trial

    def _propose(self, study: Study, number: int, taken: AbstractSet[str]) -> Proposal | None:
        trial = create_trial(state=TrialState.RUNNING)
        trial.number = number
        rng = random.Random(f"{self._seed}/{number}")
        base = self._base(rng.getrandbits(32))
        relative = base.sample_relative(study, trial, self._always)
        asked: Params = {}

        def pick(name: str, choices: Sequence[Scalar]) -> Scalar:
            if name in relative:
                asked[name] = relative[name]
            else:
                asked[name] = base.sample_independent(study, trial, name, self._distributions[name])
            return asked[name]

        if relative:
            self._space.sample(pick)
            found = repair(self._space, self._bounds, asked, rng)
        else:
            # The base sampler has no data yet, or is random: a uniform draw. Drawing name by name would favour blocks with few fields.
            found = draw(self._space, self._bounds, rng)
        unseen = self._unseen(*found, rng, taken)
        return unseen and Proposal(params=unseen[0], arch=unseen[1], system_attrs=trial.system_attrs)

    def distributions(self, params: Params) -> dict[str, BaseDistribution]:
        """Optuna's distribution of each of these parameters."""
        return {name: self._distributions[name] for name in params}

    def _unseen(
        self, params: Params, arch: Arch, rng: random.Random, taken: AbstractSet[str]
    ) -> tuple[Params, Arch] | None:
        """The same when it is new, else a new architecture of the band, near to it where possible; None when there is none."""
        already = self._already()
        seen = already | taken if taken else already
        for _ in range(_STEPS):
            if arch.arch_id not in seen:
                return params, arch
            # Each step starts from the last one: a walk away from what is known.
            moved, _ = mutate(self._space, params, rng)
            params, arch = repair(self._space, self._bounds, moved, rng)
        number = min(cached_in_band(self._space, self._bounds).count, _MOST_SEARCHED)
        for _ in range(math.ceil(number * (math.log(number) + _SURE))):
            params, arch = draw(self._space, self._bounds, rng)
            if arch.arch_id not in seen:
                return params, arch
        return None

    # Optuna's interface, for `study.ask` and `study.optimize`: one proposal for each trial, from which every name is answered.

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The proposal's value of this name; the first name of a trial makes the proposal."""
        proposal = self._proposals.get(trial.number)
        if proposal is None:
            proposal = self.propose(study, trial.number)
            if proposal is None:
                raise UserError(f"{self._space.source}: all architectures with {self._bounds} have been proposed")
            self._proposals[trial.number] = proposal
            for key, value in proposal.system_attrs.items():
                study._storage.set_trial_system_attr(trial._trial_id, key, value)  # as Optuna's own samplers do
        assert param_name in proposal.params, f"{param_name} is not a name that this architecture asks for"
        return proposal.params[param_name]

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Drop the proposal; without constraints no base sampler does anything here."""
        self._proposals.pop(trial.number, None)


def _beside(study: Study, under_way: Mapping[int, FrozenTrial]) -> Study:
    """The study with these trials too."""
    if not under_way:
        return study
    both = with_changed(study, under_way)
    # What is stored is read once for a batch.
    stored = study._get_trials(deepcopy=False, use_cache=True)
    both._thread_local.cached_all_trials = [*stored, *under_way.values()]
    return both


def always_asked(space: Space) -> list[str]:
    """Names that every architecture of the space has, whichever kinds are chosen.

    A name that not all have belongs to one kind of some parameter. Round k takes the k-th choice of every parameter, so the rounds together take
    each kind, and others in its place: a name asked for in all rounds depends on no kind.
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
