"""A sampler that takes known objectives from functions and models only the others, by expected hypervolume improvement."""

import contextlib
import random
import threading
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
from optuna import Study, TrialPruned
from optuna.distributions import BaseDistribution
from optuna.samplers import PartialFixedSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from archsearch.errors import UserError, did_you_mean
from archsearch.metrics import Array
from archsearch.samplers.acquisition import Acquisition, pareto_front
from archsearch.samplers.base import ProposingSampler
from archsearch.samplers.candidates import Candidates, Costs, Rows, WholeTable, breed
from archsearch.samplers.encoding import Encoder
from archsearch.samplers.feasibility import Feasibility, read_constraints
from archsearch.samplers.gaussian_process import Hyperparameters
from archsearch.samplers.inputs import BELIEVED_SLOPE, InputEncoder, Inputs, KnownInputs
from archsearch.samplers.learned_pool import LearnedPool
from archsearch.samplers.observations import (
    FIXED,
    PROPOSAL,
    Observations,
    Read,
    asked_params,
    own_params,
    read_observations,
    signs,
)
from archsearch.samplers.pool import Params, Pool, TablePool, shorten
from archsearch.samplers.start import NO_SLOPES, first_candidates
from archsearch.samplers.surrogate import Surrogate

# Values of an unknown objective before it is modelled; until then candidates are spread out.
START = 4
DRAWN = 600  # candidates of a proposal that are drawn
BRED = 240  # candidates that are mutants or crossovers of the front's
WHOLE_TABLE = 20_000  # a finite table of up to so many rows is searched completely
_MORE_DRAWS = 4
_EXPLORING = 0.5  # share of the trials that show what is still open in a learned space
_EXPLORED = 16  # candidates that such a trial is chosen from
# Local search: rounds, best candidates in each, and neighbours of each.
_ROUNDS = 2
_CLIMBERS = 8
_STEPS = 6
_COLLISIONS = 8  # attempts when other processes store the same proposal first


class KnownCostSampler(ProposingSampler):
    """Bayesian optimisation where some objectives are known functions of the parameters, for any Optuna study.

    A candidate is proposed once, and not at all when a known objective is nan or its `pool.key` is in `already()`. Once all candidates have been proposed
    `study.optimize` stops and `ask` raises UserError. All state lies in the study: equal studies and seeds give equal proposals. Constraints that trials set
    (`Trial.set_constraint`) are modelled too, and candidates that probably break one are avoided.

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
        ordered: names whose numbers are quantities (True) or codes without an order (False). By default integers and ranges are ordered, and for
            categories whose choices are numbers the trials decide.
        inputs: numbers for every candidate, of which the models learn how the unknown objectives depend on them; with candidates or a pool only.
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
        ordered: Mapping[str, bool] | None = None,
        inputs: Inputs | None = None,
    ) -> None:
        """See the class. Raises UserError for both candidates and a pool, an empty table, and values of another kind."""
        if candidates is not None and pool is not None:
            raise UserError("KnownCostSampler: got both candidates and pool; give one of them")
        if inputs is not None and candidates is None and pool is None:
            raise UserError("KnownCostSampler: inputs need candidates or a pool; give one of them")
        self._pool = TablePool(candidates) if candidates is not None else pool
        self._seed = random.SystemRandom().getrandbits(32) if seed is None else seed
        self._costs = Costs(known, guessed=self._pool is None)
        self._curve_of, self._already, self._describe = curve_of, already, describe
        self._ordered = _check_named_flags(ordered or {})
        self._tables: dict[tuple[int, ...], WholeTable] = {}
        self._fits: dict[Hashable, Hyperparameters] = {}
        self._read: dict[int, dict[int, Read]] = {}
        self._encoder: Encoder | None = None
        self._inputs = inputs
        self._known_inputs: KnownInputs | None = None
        self._proposals: dict[tuple[int, int, int], Params] = {}
        self._warned: set[tuple[int, int]] = set()  # studies whose learned space is used up
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_read", "_encoder")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock, self._read, self._encoder = threading.RLock(), {}, None

    def propose(self, study: Study, number: int, fixed: Mapping[str, Any] | None = None) -> Params | None:
        """The parameters for trial `number`, which need not be stored yet, with these names `fixed`.

        None when nothing new is left or found. Without candidates or a pool it may be a part, which shows more of the study's space, and is None before the
        first trial.
        """
        return next(iter(self.propose_many(study, number, 1, fixed)), None)

    def propose_many(
        self, study: Study, number: int, count: int, fixed: Mapping[str, Any] | None = None
    ) -> list[Params]:
        """The parameters for up to `count` trials from `number` on, none of which need be stored yet: distinct, and all from one fit.

        Running trials count with what is known of them (user attributes `measured` and `learning_curve`), else as the models predict them, and so do those of
        the batch that are chosen already. Fewer when no more is left or found. Without candidates or a pool one that shows more of the space comes alone.
        """
        with self._lock:
            return [dict(params) for params in self._choose(study, number, count, fixed or {})]

    def _curve_of_or_first(self, study: Study) -> int | None:
        if self._curve_of is not None:
            return self._curve_of
        return min((index for index in range(len(study.directions)) if index not in self._costs.known), default=None)

    def _explain_exhausted(self, fixed: Mapping[str, Any]) -> str:
        which = f" with {dict(fixed)}" if fixed else ""
        if not isinstance(self._pool, TablePool):
            return f"KnownCostSampler: found nothing new to propose{which}"
        unlike = any(table.num_left_out for table in self._tables.values())
        reason = ", or have a known objective that is not finite" if unlike else ""
        return f"KnownCostSampler: all {len(self._pool)} candidates{which} have been proposed{reason}"

    def _choose(self, study: Study, number: int, count: int, fixed: Mapping[str, Any]) -> list[Params]:
        self._check(study)
        pool = self._pool if self._pool is not None else LearnedPool(study, number, self._seed, fixed)
        self._check_ordered(pool)
        curve_of = self._curve_of_or_first(study)
        cache = None if self._pool is None else self._read.setdefault(study._study_id, {})
        observations = read_observations(study, pool, self._costs, curve_of, number, self._describe, cache)
        if isinstance(pool, LearnedPool):
            self._check_known(study, pool)
        rng = self._rng(number)
        encoder = self._encoder = self._encoder_for(pool)
        self._costs.lacking.clear()
        explores = isinstance(pool, LearnedPool) and (not pool.is_ready or rng.random() < _EXPLORING)
        if explores and (found := self._explore(study, pool, encoder, observations, rng)):
            return [found]
        feasibility = self._feasibility(study, encoder, observations)
        candidates = self._gather(study, pool, encoder, observations, feasibility, rng, fixed)
        if self._costs.lacking and (not candidates.params or rng.random() < _EXPLORING):
            return [rng.choice(list(self._costs.lacking.values()))]
        if candidates.params:
            numbers = range(number, number + count)
            return self._best(study, pool, encoder, observations, feasibility, candidates, rng, numbers)
        found = self._explore(study, pool, encoder, observations, rng)
        return [] if found is None else [found]

    def _feasibility(self, study: Study, encoder: Encoder, observations: Observations) -> Feasibility | None:
        """The models of the study's constraints; None where no trial has set one."""
        values = read_constraints(study)
        if not values:
            return None
        width = len(study.directions)
        return Feasibility(values, observations, encoder, list(self._costs.known), width=width, fits=self._fits)

    def _encoder_for(self, pool: Pool) -> Encoder:
        """The last one, with the rows that it knows, while the pool's names are the same."""
        last = self._encoder
        return last if last and last.distributions == pool.distributions else self._make_encoder(pool)

    def _make_encoder(self, pool: Pool) -> Encoder:
        if self._inputs is None:
            return Encoder(pool.distributions, self._ordered)
        if self._known_inputs is None:
            self._known_inputs = KnownInputs(self._inputs, pool, _reference(pool, self._seed))
        return InputEncoder(pool.distributions, self._ordered, self._known_inputs)

    def _slopes(self, study: Study, objective: int) -> Array:
        """Of the inputs, as they are believed to be for this objective, minimised."""
        if self._known_inputs is None:
            return NO_SLOPES
        sign = signs(study)[objective] if objective == self._curve_of_or_first(study) else 0
        return sign * BELIEVED_SLOPE * self._known_inputs.is_estimate

    def _best(
        self,
        study: Study,
        pool: Pool,
        encoder: Encoder,
        observations: Observations,
        feasibility: Feasibility | None,
        candidates: Candidates | Rows,
        rng: random.Random,
        numbers: range,
    ) -> list[Params]:
        """Candidates of the largest expected hypervolume improvement for trials of these numbers, each once those before it are believed; before there is a
        model, ones far from all trials.
        """
        known = list(self._costs.known)
        unknown = [index for index in range(len(study.directions)) if index not in known]
        measured = {index: observations.measured(index, known) for index in unknown}
        if any(len(rows) < START for rows in measured.values()):
            if feasibility:
                every = Rows(params=candidates.params, encoded=candidates.encoded, costs=candidates.costs)
                candidates = every.at(feasibility.likely(candidates.encoded, candidates.costs))
            slopes = np.sum([self._slopes(study, index) for index in unknown], axis=0)
            return first_candidates(candidates, observations, encoder, known, rng, len(numbers), slopes)
        pending = observations.pending(known)
        models = {
            index: Surrogate(encoder, rows, pending, index, known, self._fits, self._slopes(study, index))
            for index, rows in measured.items()
        }
        acquisition = Acquisition(models, known, observations, candidates, feasibility)
        scores, is_optimistic = _climb(acquisition, pool, candidates, rng)
        chosen = [int(np.argmax(scores))]
        while len(chosen) < min(len(numbers), len(scores)):
            acquisition.believe(chosen[-1])
            scores[chosen[-1]] = -np.inf
            place = acquisition.best(scores, is_optimistic=is_optimistic)
            if not is_optimistic and scores[place] == 0:
                is_optimistic, scores = True, np.where(np.isneginf(scores), scores, np.inf)
                place = acquisition.best(scores, is_optimistic=True)
            chosen.append(place)
        return [candidates.params[place] for place in chosen]

    def _gather(
        self,
        study: Study,
        pool: Pool,
        encoder: Encoder,
        observations: Observations,
        feasibility: Feasibility | None,
        rng: random.Random,
        fixed: Mapping[str, Any],
    ) -> Candidates | Rows:
        """All rows left of a table that is small; else draws of the pool, and mutants and crossovers of the front."""
        directions, seen = signs(study), observations.seen | frozenset(self._already())
        fixed = {name: value for name, value in fixed.items() if name in pool.distributions}
        if isinstance(pool, TablePool) and len(pool) <= WHOLE_TABLE:
            if directions not in self._tables:
                self._tables[directions] = WholeTable(pool, encoder, self._costs, directions)
            return self._tables[directions].pick(seen, fixed)
        candidates = Candidates(pool, encoder, self._costs, directions, seen, fixed)
        if isinstance(pool, TablePool) and fixed:
            agreeing = [row for row in pool.rows if fixed.items() <= row.items()]
            candidates.add(rng.sample(agreeing, min(len(agreeing), WHOLE_TABLE)))
            return candidates
        complete = observations.in_state(TrialState.COMPLETE)
        front = pareto_front([row for row in complete if not feasibility or feasibility.keeps(row)])
        parents = [row.params for row in front if pool.key(row.params) is not None]
        candidates.add(pool.draw(DRAWN, rng))
        candidates.add(breed(pool, parents, BRED, rng))
        for _ in range(_MORE_DRAWS):
            if not len(candidates):
                candidates.add(pool.draw(DRAWN, rng))
        if not len(candidates):
            candidates.add(_list_all(pool))
        return candidates

    def _explore(
        self, study: Study, pool: Pool, encoder: Encoder, observations: Observations, rng: random.Random
    ) -> Params | None:
        """What shows more of a learned space, perhaps a part of a candidate; None when it has nothing open, and for other pools."""
        if not isinstance(pool, LearnedPool):
            return None
        parts = [part for _ in range(_EXPLORED) if (part := pool.explore(rng))]
        wholes = [pool.complete(part, rng) for part in parts]
        candidates = Candidates(
            pool, encoder, self._costs, signs(study), observations.seen | frozenset(self._already()), {}
        )
        candidates.add(wholes)
        if len(candidates):
            return first_candidates(candidates, observations, encoder, list(self._costs.known), rng, 1)[0]
        return next((part for part, whole in zip(parts, wholes, strict=True) if whole is None), None)

    def _rng(self, number: int) -> random.Random:
        return random.Random(f"{self._seed}/{number}")

    def _check_known(self, study: Study, pool: LearnedPool) -> None:
        """The known functions must have all they need in the last complete trial; a candidate of a learned space may lack a name."""
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        params = complete[-1].params if complete else {}
        if (key := pool.key(params)) is not None:
            self._costs.require(key, params, signs(study))

    def _check_ordered(self, pool: Pool) -> None:
        """Names that a table or pool has not got are mistakes; a study may show them later."""
        for name in self._ordered.keys() - pool.distributions.keys() if self._pool is not None else ():
            hint = did_you_mean(name, list(pool.distributions))
            raise UserError(f"KnownCostSampler: ordered has {name!r}, which no candidate has{hint}")

    def _check(self, study: Study) -> None:
        number = len(study.directions)
        for word, index in [*(("known", index) for index in self._costs.known), ("curve_of", self._curve_of)]:
            if index is not None and not (isinstance(index, int) and 0 <= index < number):
                raise UserError(
                    f"KnownCostSampler: {word} names objective {index!r}, but the study has {number}, counted from 0"
                )

    # Optuna's interface: one proposal for each trial, from which every name is answered.

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The proposal's value of this name; the first name of a trial makes the proposal. Names that it lacks are drawn at random."""
        with self._lock:
            key = _trial_key(study, trial)
            proposal = self._proposals.get(key, dict(trial.system_attrs.get(PROPOSAL, {})))
            has_left = any(proposal.get(name, value) != value for name, value in trial.params.items())
            if has_left or (key not in self._proposals and not proposal):
                proposal = self._make_proposal(study, trial)
            self._proposals[key] = proposal
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

    def _make_proposal(self, study: Study, trial: FrozenTrial) -> Params:
        """A proposal with the values that the trial has already, stored with it; empty when all names are drawn at random."""
        fixed = {**_fixed_outside(study), **trial.system_attrs.get(FIXED, {}), **trial.params}
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
            return self._repeat(study, trial, fixed)
        if study._thread_local.in_optimize_loop:
            study.stop()
            raise TrialPruned(self._explain_exhausted(fixed))
        raise UserError(self._explain_exhausted(fixed))

    def _repeat(self, study: Study, trial: FrozenTrial, fixed: Mapping[str, Any]) -> Params:
        """A candidate again, with a warning, when a learned space has none left; empty while it has not shown any."""
        pool = LearnedPool(study, trial.number, self._seed, fixed)
        candidates = Candidates(pool, Encoder(pool.distributions), self._costs, signs(study), self._already(), {})
        rng = self._rng(trial.number)
        drawn = pool.draw(DRAWN, rng)
        candidates.add(drawn)
        place = _trial_key(study, trial)[:2]
        if drawn and pool.distributions and place not in self._warned:
            self._warned.add(place)
            every = pool.list_all(WHOLE_TABLE)
            found = (
                "found nothing new to propose" if every is None else f"all {len(every)} candidates have been proposed"
            )
            which = f" with {dict(fixed)}" if fixed else ""
            warnings.warn(
                f"KnownCostSampler: {found}{which}, or have a known objective that is not finite; from here on trials repeat",
                stacklevel=2,
            )
        return rng.choice(candidates.params) if len(candidates) else {}

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


def _check_named_flags(ordered: Any) -> dict[str, bool]:
    if isinstance(ordered, Mapping) and all(
        isinstance(name, str) and isinstance(value, bool) for name, value in ordered.items()
    ):
        return dict(ordered)
    raise UserError(f"KnownCostSampler: ordered is {shorten(ordered)}; give True or False by name of a parameter")


def _trial_key(study: Study, trial: FrozenTrial) -> tuple[int, int, int]:
    """Identifies a trial among those of all studies that use the sampler."""
    return id(study._storage), study._study_id, trial.number


def _fixed_outside(study: Study) -> Params:
    """The values that Optuna's PartialFixedSampler around this one gives to names that it never asks this one for."""
    fixed: Params = {}
    sampler = study.sampler
    while isinstance(sampler, PartialFixedSampler):
        fixed, sampler = {**sampler._fixed_params, **fixed}, sampler._base_sampler
    return fixed


def _reference(pool: Pool, seed: int) -> Sequence[Params]:
    """Candidates over which inputs are standardised, the same in every process."""
    return pool.draw(WHOLE_TABLE if isinstance(pool, TablePool) else DRAWN, random.Random(seed))


def _list_all(pool: Pool) -> Sequence[Params]:
    """All candidates of a pool that can list them, when draws find nothing new."""
    if isinstance(pool, TablePool):
        return pool.rows
    return (pool.list_all(WHOLE_TABLE) or []) if isinstance(pool, LearnedPool) else []


def _climb(
    acquisition: Acquisition, pool: Pool, candidates: Candidates | Rows, rng: random.Random
) -> tuple[Array, bool]:
    """Scores (N,) of the candidates, after some rounds in which mutants of the best are added to those that are not whole; and whether they are optimistic."""
    every = slice(0, len(candidates.params))
    scores = acquisition(every)
    is_optimistic = not scores.any()
    if is_optimistic:
        scores = acquisition(every, is_optimistic=True)
    if isinstance(candidates, Rows):
        return scores, is_optimistic
    for _ in range(_ROUNDS):
        best = np.argsort(-scores, kind="stable")[:_CLIMBERS]
        parents = [candidates.params[index] for index in best for _ in range(_STEPS)]
        new = candidates.add(pool.mutate(params, rng) for params in parents)
        scores = np.concatenate((scores, acquisition(new, is_optimistic=is_optimistic)))
    return scores, is_optimistic
