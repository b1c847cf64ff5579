"""A sampler that models only what is not known beforehand: expected hypervolume improvement, with known objectives from functions."""

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
from archsearch.samplers.acquisition import Acquisition, farthest, front_of
from archsearch.samplers.base import PlannedSampler
from archsearch.samplers.candidates import Candidates, Costs, breed
from archsearch.samplers.encoding import Encoder
from archsearch.samplers.gaussian_process import Hyperparameters
from archsearch.samplers.learned_pool import LearnedPool
from archsearch.samplers.observations import PLAN, asked_params, described, read, signs
from archsearch.samplers.pool import Params, Pool, TablePool
from archsearch.samplers.rerank import SHORTLIST, SecondLook
from archsearch.samplers.surrogate import Surrogate

# Values of an unknown objective before it is modelled; until then candidates are spread.
START = 4
DRAWN = 600
BRED = 240
# Of a finite table, up to so many rows are all looked at.
_WHOLE_TABLE = 2000
_MORE_DRAWS = 4
# Local search: rounds, best candidates in each, and neighbours of each.
_ROUNDS = 2
_CLIMBERS = 8
_STEPS = 6
# Times that another process may have been faster with the same proposal.
_COLLISIONS = 8


class KnownCostSampler(PlannedSampler):
    """Bayesian optimisation where some objectives are known functions of the parameters, for any Optuna study.

    `known` maps an objective's index to its function of the whole parameter dictionary, in the objective's own units and direction. `candidates`
    are the only parameter dictionaries proposed; `pool` is the same for spaces too large to list; with neither, the space is learned from the study.
    Nothing is proposed twice, nor anything of which a known objective is nan, or whose `pool.key` is in `already()`. Once all candidates have been
    proposed `study.optimize` stops and `ask` raises UserError. Trials stopped early (PRUNED) with the user attribute `learning_curve` =
    {"<steps>": score} inform objective `curve_of` (default: the first unknown one). `describe` gives the parameters, as far as they go, of complete
    trials that are no candidates. `features` gives numbers too dear to be worked out for every candidate: the best few are judged a second time
    with them, by models of the trials whose user attribute `features` has the same names. All state lies in the study: equal studies and seeds
    give equal proposals.
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
        describe: Callable[[FrozenTrial], Params] = described,
        features: Callable[[Params], Mapping[str, float]] | None = None,
    ) -> None:
        """See the class. Raises UserError for both candidates and a pool, or an empty table."""
        if candidates is not None and pool is not None:
            raise UserError("KnownCostSampler: got both candidates and pool; give one of them")
        self._pool = TablePool(candidates) if candidates is not None else pool
        self._seed = random.SystemRandom().getrandbits(32) if seed is None else seed
        self._costs, self._curve_of, self._already, self._describe = Costs(known), curve_of, already, describe
        self._fits: dict[Hashable, Hyperparameters] = {}
        self._second_look = None if features is None else SecondLook(features)
        self._plans: dict[tuple[int, int, int], Params] = {}
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    def propose(self, study: Study, number: int, fixed: Mapping[str, Any] | None = None) -> Params | None:
        """What `ask` would give trial `number`, which need not be stored yet, in agreement with `fixed`.

        None when nothing new is left or found; without candidates or a pool also while the study has too few trials to learn its space from.
        """
        with self._lock:
            plan = self._proposal(study, number, fixed or {})
        return None if plan is None else dict(plan)

    def _nothing(self, fixed: Mapping[str, Any]) -> str:
        which = f" with {dict(fixed)}" if fixed else ""
        if isinstance(self._pool, TablePool):
            return f"KnownCostSampler: all {len(self._pool)} candidates{which} have been proposed"
        return f"KnownCostSampler: found nothing new to propose{which}"

    def _proposal(self, study: Study, number: int, fixed: Mapping[str, Any]) -> Params | None:
        self._check(study)
        pool = self._pool if self._pool is not None else LearnedPool(study, number, self._seed)
        unknown = self._unknown(study)
        curve_of = self._curve_of if self._curve_of is not None else min(unknown, default=None)
        evidence = read(study, pool, self._costs, curve_of, number, self._describe)
        rng = self._rng(number)
        encoder = Encoder(pool.distributions)
        fixed = {name: value for name, value in fixed.items() if name in pool.distributions}
        candidates = Candidates(
            pool, encoder, self._costs, signs(study), evidence.seen | frozenset(self._already()), fixed
        )
        parents = [row.params for row in front_of(evidence.of(TrialState.COMPLETE)) if pool.key(row.params) is not None]
        _gather(pool, candidates, parents, rng, has_fixed=bool(fixed))
        if not len(candidates):
            return None
        known = list(self._costs.known)
        measured = {index: evidence.measured(index, known) for index in unknown}
        if any(len(rows) < START for rows in measured.values()):
            return candidates.params[farthest(encoder, evidence.rows, candidates, known, rng)]
        pending = evidence.of(TrialState.RUNNING)
        models = {
            index: Surrogate(encoder, rows, pending, index, known, self._fits) for index, rows in measured.items()
        }
        scores = _climb(Acquisition(models, known, evidence, candidates), pool, candidates, rng)
        if self._second_look is None:
            return candidates.params[int(np.argmax(scores))]
        order = np.argsort(-scores, kind="stable")[:SHORTLIST]
        best = [candidates.params[index] for index in order]
        return self._second_look.choose(
            best, candidates.costs[order], pool=pool, study=study, evidence=evidence, unknown=unknown, known=known
        )

    def _rng(self, number: int) -> random.Random:
        return random.Random(f"{self._seed}/{number}")

    def _unknown(self, study: Study) -> list[int]:
        return [index for index in range(len(study.directions)) if index not in self._costs.known]

    def _check(self, study: Study) -> None:
        number = len(study.directions)
        for word, index in [*(("known", index) for index in self._costs.known), ("curve_of", self._curve_of)]:
            if index is not None and not 0 <= index < number:
                raise UserError(
                    f"KnownCostSampler: {word} names objective {index}, but the study has {number}, counted from 0"
                )

    # Optuna's interface: one plan a trial, every name answered from it.

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The plan's value of this name; the first question of a trial makes the plan. Names that it lacks are drawn at random."""
        with self._lock:
            place = _place(study, trial)
            if place not in self._plans:
                self._plans[place] = self._plan(study, trial)
            plan = self._plans[place]
        if param_name in plan and _allows(param_distribution, plan[param_name]):
            return plan[param_name]
        if isinstance(self._pool, TablePool) and param_name in self._pool.distributions:
            raise UserError(
                f"KnownCostSampler: the candidates have {param_name}={plan.get(param_name, 'nowhere')!r}, "
                f"which is asked for as {param_distribution}"
            )
        seed = random.Random(f"{self._seed}/{trial.number}/{param_name}").getrandbits(32)
        return RandomSampler(seed=seed).sample_independent(study, trial, param_name, param_distribution)

    def _plan(self, study: Study, trial: FrozenTrial) -> Params:
        """The proposal, stored with the trial; empty when all names are to be drawn at random."""
        if PLAN in trial.system_attrs:
            return dict(trial.system_attrs[PLAN])
        fixed = asked_params(trial)
        plan = self.propose(study, trial.number, fixed)
        for _ in range(_COLLISIONS):
            if plan is None:
                return self._without_plan(study, trial, fixed)
            study._storage.set_trial_system_attr(trial._trial_id, PLAN, plan)
            if not _is_taken(study, trial.number, plan):
                break
            plan = self.propose(study, trial.number, fixed)
        return plan or {}

    def _without_plan(self, study: Study, trial: FrozenTrial, fixed: Mapping[str, Any]) -> Params:
        if self._pool is None:
            return LearnedPool(study, trial.number, self._seed).explore(self._rng(trial.number))
        if study._thread_local.in_optimize_loop:
            study.stop()
            raise TrialPruned(self._nothing(fixed))
        raise UserError(self._nothing(fixed))

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Forget the plan; end `study.optimize` with the last candidate of a table."""
        with self._lock:
            self._plans.pop(_place(study, trial), None)
        pool = self._pool
        if not isinstance(pool, TablePool) or not study._thread_local.in_optimize_loop:
            return
        trials = study.get_trials(deepcopy=False)
        if len(trials) >= len(pool) and len({pool.key(asked_params(other)) for other in trials} - {None}) == len(pool):
            study.stop()


def _place(study: Study, trial: FrozenTrial) -> tuple[int, int, int]:
    """A key of one trial among all that one sampler object may be asked for."""
    return id(study._storage), study._study_id, trial.number


def _allows(distribution: BaseDistribution, value: Any) -> bool:
    """True for a value that the distribution holds."""
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except ValueError:  # a category that it does not know, or text for a number
        return False


def _is_taken(study: Study, number: int, plan: Params) -> bool:
    """True when another process gave the same to an earlier trial meanwhile: the one with the lower number keeps it."""
    return any(
        other.number < number and other.state == TrialState.RUNNING and other.system_attrs.get(PLAN) == plan
        for other in study.get_trials(deepcopy=False)
    )


def _gather(pool: Pool, candidates: Candidates, parents: list[Params], rng: random.Random, *, has_fixed: bool) -> None:
    """Draws of the pool and relatives of the front; all of a table when it is small, or when too few are left or allowed to be met by chance."""
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
    """Scores (N,) of the candidates, after some rounds of adding the best ones' neighbours."""
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
