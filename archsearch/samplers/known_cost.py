"""A sampler that takes known objectives from functions and models only the others, by expected hypervolume improvement."""

import contextlib
import random
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
from optuna import Study, TrialPruned
from optuna.distributions import BaseDistribution
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial, TrialState

from archsearch.errors import UserError
from archsearch.metrics import Array
from archsearch.samplers.acquisition import Acquisition, farthest, pareto_front
from archsearch.samplers.base import ProposingSampler
from archsearch.samplers.candidates import Candidates, Costs, breed
from archsearch.samplers.encoding import Encoder
from archsearch.samplers.gaussian_process import Hyperparameters
from archsearch.samplers.learned_pool import LearnedPool
from archsearch.samplers.observations import PROPOSAL, asked_params, own_params, read_observations, signs
from archsearch.samplers.pool import Params, Pool, TablePool
from archsearch.samplers.rerank import SHORTLIST, Reranker
from archsearch.samplers.surrogate import Surrogate

# Values of an unknown objective before it is modelled; until then candidates are spread out.
START = 4
DRAWN = 600  # candidates of a proposal that are drawn
BRED = 240  # candidates that are mutants or crossovers of the front's
_WHOLE_TABLE = 2000  # a finite table of up to so many rows is searched completely
_MORE_DRAWS = 4
# Local search: rounds, best candidates in each, and neighbours of each.
_ROUNDS = 2
_CLIMBERS = 8
_STEPS = 6
_COLLISIONS = 8  # attempts when other processes store the same proposal first


class KnownCostSampler(ProposingSampler):
    """Bayesian optimisation where some objectives are known functions of the parameters, for any Optuna study.

    A candidate is proposed once, and not at all when a known objective is nan or its `pool.key` is in `already()`. Once all candidates have been proposed
    `study.optimize` stops and `ask` raises UserError. All state lies in the study: equal studies and seeds give equal proposals.

        sampler = KnownCostSampler({1: lambda params: params["depth"] * params["width"] ** 2}, seed=0)
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)

    Args:
        known: functions of the complete parameter dictionary by index of the objective, in the objective's own units and direction.
        candidates: the only parameter dictionaries to propose; with neither these nor a pool the space is learned from the study.
        seed: of all random draws; by default a random one.
        pool: the candidates of a space too large to list.
        curve_of: the objective (default: the first unknown one) that trials stopped early (PRUNED) inform by their user attribute `learning_curve`,
            {"<steps>": score}.
        already: keys of candidates that are not proposed.
        describe: the parameters, as far as it has any, of a complete trial that is no candidate.
        features: numbers too expensive to compute for every candidate: the best few are re-ranked with them, by models of the trials whose user attribute
            `features` has the same names.
    """

    def __init__(
        self,
        known: Mapping[int, Callable[[Params], float]],
        candidates: Iterable[Mapping[str, Any]] | None = None,
        seed: int | None = None,
        *,
        pool: Pool | None = None,
        curve_of: int | None = None,
        already: Callable[[], AbstractSet[Hashable]] = frozenset,
        describe: Callable[[FrozenTrial], Params] = own_params,
        features: Callable[[Params], Mapping[str, float]] | None = None,
    ) -> None:
        """See the class. Raises UserError for both candidates and a pool, or an empty table."""
        if candidates is not None and pool is not None:
            raise UserError("KnownCostSampler: got both candidates and pool; give one of them")
        self._pool = TablePool(candidates) if candidates is not None else pool
        self._seed = random.SystemRandom().getrandbits(32) if seed is None else seed
        self._costs, self._curve_of, self._already, self._describe = Costs(known), curve_of, already, describe
        self._fits: dict[Hashable, Hyperparameters] = {}
        self._reranker = None if features is None else Reranker(features)
        self._proposals: dict[tuple[int, int, int], Params] = {}
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    def propose(self, study: Study, number: int, fixed: Mapping[str, Any] | None = None) -> Params | None:
        """The parameters for trial `number`, which need not be stored yet, with these names `fixed`.

        None when nothing new is left or found; without candidates or a pool also while the study has too few trials to learn its space from.
        """
        with self._lock:
            proposal = self._choose(study, number, fixed or {})
        return None if proposal is None else dict(proposal)

    def _explain_exhausted(self, fixed: Mapping[str, Any]) -> str:
        which = f" with {dict(fixed)}" if fixed else ""
        if isinstance(self._pool, TablePool):
            return f"KnownCostSampler: all {len(self._pool)} candidates{which} have been proposed"
        return f"KnownCostSampler: found nothing new to propose{which}"

    def _choose(self, study: Study, number: int, fixed: Mapping[str, Any]) -> Params | None:
        self._check(study)
        pool = self._pool if self._pool is not None else LearnedPool(study, number, self._seed)
        unknown = [index for index in range(len(study.directions)) if index not in self._costs.known]
        curve_of = self._curve_of if self._curve_of is not None else min(unknown, default=None)
        observations = read_observations(study, pool, self._costs, curve_of, number, self._describe)
        rng = self._rng(number)
        encoder = Encoder(pool.distributions)
        fixed = {name: value for name, value in fixed.items() if name in pool.distributions}
        candidates = Candidates(
            pool, encoder, self._costs, signs(study), observations.seen | frozenset(self._already()), fixed
        )
        parents = [
            row.params
            for row in pareto_front(observations.in_state(TrialState.COMPLETE))
            if pool.key(row.params) is not None
        ]
        _gather(pool, candidates, parents, rng, has_fixed=bool(fixed))
        if not len(candidates):
            return None
        known = list(self._costs.known)
        measured = {index: observations.measured(index, known) for index in unknown}
        if any(len(rows) < START for rows in measured.values()):
            return candidates.params[farthest(encoder, observations.rows, candidates, known, rng)]
        pending = observations.in_state(TrialState.RUNNING)
        models = {
            index: Surrogate(encoder, rows, pending, index, known, self._fits) for index, rows in measured.items()
        }
        scores = _climb(Acquisition(models, known, observations, candidates), pool, candidates, rng)
        if self._reranker is None:
            return candidates.params[int(np.argmax(scores))]
        order = np.argsort(-scores, kind="stable")[:SHORTLIST]
        best = [candidates.params[index] for index in order]
        return self._reranker.choose(
            best,
            candidates.costs[order],
            pool=pool,
            study=study,
            observations=observations,
            unknown=unknown,
            known=known,
        )

    def _rng(self, number: int) -> random.Random:
        return random.Random(f"{self._seed}/{number}")

    def _check(self, study: Study) -> None:
        number = len(study.directions)
        for word, index in [*(("known", index) for index in self._costs.known), ("curve_of", self._curve_of)]:
            if index is not None and not 0 <= index < number:
                raise UserError(
                    f"KnownCostSampler: {word} names objective {index}, but the study has {number}, counted from 0"
                )

    # Optuna's interface: one proposal for each trial, from which every name is answered.

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The proposal's value of this name; the first name of a trial makes the proposal. Names that it lacks are drawn at random."""
        with self._lock:
            key = _trial_key(study, trial)
            if key not in self._proposals:
                self._proposals[key] = self._stored_proposal(study, trial)
            proposal = self._proposals[key]
        if param_name in proposal:
            with contextlib.suppress(ValueError):  # a category that the distribution lacks, or text for a number
                if param_distribution._contains(param_distribution.to_internal_repr(proposal[param_name])):
                    return proposal[param_name]
        if isinstance(self._pool, TablePool) and param_name in self._pool.distributions:
            raise UserError(
                f"KnownCostSampler: the candidates have {param_name}={proposal.get(param_name, 'nowhere')!r}, "
                f"which is asked for as {param_distribution}"
            )
        seed = random.Random(f"{self._seed}/{trial.number}/{param_name}").getrandbits(32)
        return RandomSampler(seed=seed).sample_independent(study, trial, param_name, param_distribution)

    def _stored_proposal(self, study: Study, trial: FrozenTrial) -> Params:
        """The trial's proposal, stored with it; empty when all names are drawn at random."""
        if PROPOSAL in trial.system_attrs:
            return dict(trial.system_attrs[PROPOSAL])
        fixed = asked_params(trial)
        proposal = self.propose(study, trial.number, fixed)
        for _ in range(_COLLISIONS):
            if proposal is None:
                return self._without_proposal(study, trial, fixed)
            study._storage.set_trial_system_attr(trial._trial_id, PROPOSAL, proposal)
            # Another process may have stored the same one for a running trial with a lower number, which keeps it.
            lower = (other for other in study.get_trials(deepcopy=False) if other.number < trial.number)
            running = (other for other in lower if other.state == TrialState.RUNNING)
            if all(other.system_attrs.get(PROPOSAL) != proposal for other in running):
                break
            proposal = self.propose(study, trial.number, fixed)
        return proposal or {}

    def _without_proposal(self, study: Study, trial: FrozenTrial, fixed: Mapping[str, Any]) -> Params:
        if self._pool is None:
            return LearnedPool(study, trial.number, self._seed).explore(self._rng(trial.number))
        if study._thread_local.in_optimize_loop:
            study.stop()
            raise TrialPruned(self._explain_exhausted(fixed))
        raise UserError(self._explain_exhausted(fixed))

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Drop the proposal; stop `study.optimize` after the last candidate of a table."""
        with self._lock:
            self._proposals.pop(_trial_key(study, trial), None)
        pool = self._pool
        if not isinstance(pool, TablePool) or not study._thread_local.in_optimize_loop:
            return
        trials = study.get_trials(deepcopy=False)
        if len(trials) >= len(pool) and len({pool.key(asked_params(other)) for other in trials} - {None}) == len(pool):
            study.stop()


def _trial_key(study: Study, trial: FrozenTrial) -> tuple[int, int, int]:
    """Identifies a trial among those of all studies that use the sampler."""
    return id(study._storage), study._study_id, trial.number


def _gather(pool: Pool, candidates: Candidates, parents: list[Params], rng: random.Random, *, has_fixed: bool) -> None:
    """Add draws of the pool, and mutants and crossovers of the parents; the whole of a table that is small, or of which draws find nothing new or allowed."""
    if isinstance(pool, TablePool) and (has_fixed or len(pool) <= _WHOLE_TABLE):
        candidates.add(pool.rows)
        return
    candidates.add(pool.draw(DRAWN, rng))
    candidates.add(breed(pool, parents, BRED, rng))
    for _ in range(_MORE_DRAWS):
        if not len(candidates):
            candidates.add(pool.draw(DRAWN, rng))
    if not len(candidates) and isinstance(pool, TablePool):
        candidates.add(pool.rows)


def _climb(acquisition: Acquisition, pool: Pool, candidates: Candidates, rng: random.Random) -> Array:
    """Scores (N,) of the candidates, after some rounds in which mutants of the best are added."""
    scores = acquisition(slice(0, len(candidates)))
    is_optimistic = not scores.any()
    if is_optimistic:
        scores = acquisition(slice(0, len(candidates)), is_optimistic=True)
    for _ in range(_ROUNDS):
        best = np.argsort(-scores, kind="stable")[:_CLIMBERS]
        parents = [candidates.params[index] for index in best for _ in range(_STEPS)]
        new = candidates.add(pool.mutate(params, rng) for params in parents)
        scores = np.concatenate((scores, acquisition(new, is_optimistic=is_optimistic)))
    return scores
