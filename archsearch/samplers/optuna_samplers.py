"""Optuna's own samplers as a run uses them: a new one for each trial, from a seed, so that an interrupted run goes on as if it had not been."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.samplers._tpe.sampler import _split_trials, default_gamma, default_gamma_multiobjective
from optuna.study._constrained_optimization import _CONSTRAINTS_KEY
from optuna.trial import FrozenTrial, TrialState, create_trial

# Optuna's default of 50 would spend a whole ordinary run on the first generation; the comparison on page search was made with 20.
POPULATION = 20


class _Nsga2(NSGAIISampler):
    """NSGA-II that keeps the generation in the trial object, so that it can propose before the trial is stored."""

    def get_trial_generation(self, study: Study, trial: FrozenTrial) -> int:
        key = self._get_generation_key()
        if key not in trial.system_attrs:
            complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            generations = [other.system_attrs[key] for other in complete if key in other.system_attrs]
            latest = max(generations, default=0)
            trial.system_attrs[key] = latest + (generations.count(latest) >= POPULATION)
        return int(trial.system_attrs[key])


class _Tpe(TPESampler):
    """TPE for one trial that takes those under way for bad ones (the constant liar).

    With `constant_liar=True` Optuna's would write to the trial that it samples for, which is not stored yet. It also divides the trials anew for every name.
    """

    def __init__(self, seed: int) -> None:
        # Multivariate over the names that every architecture has.
        super().__init__(seed=seed, multivariate=True, constant_liar=False)
        self._divided: tuple[list[FrozenTrial], list[FrozenTrial]] | None = None

    def _divide(self, study: Study, number: int) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
        """The good trials, and the others with those under way; always the same, since the sampler is for one trial."""
        if self._divided is None:
            states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
            trials = [
                other
                for other in study._get_trials(deepcopy=False, states=states, use_cache=True)
                if other.number != number
            ]
            gamma = default_gamma if len(study.directions) == 1 else default_gamma_multiobjective
            num_ended = sum(other.state.is_finished() for other in trials)
            self._divided = _split_trials(study, trials, gamma(num_ended))
        return self._divided

    def _sample(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        good, others = (
            self._build_parzen_estimator(study, search_space, trials, handle_below=is_good)
            for is_good, trials in zip((True, False), self._divide(study, trial.number), strict=True)
        )
        samples = good.sample(self._rng.rng, self._n_ei_candidates)
        best = self._compare(samples, self._compute_acquisition_func(samples, good, others))
        return {name: found.to_external_repr(best[name]) for name, found in search_space.items()}

    def _get_internal_repr(
        self, trials: list[FrozenTrial], search_space: dict[str, BaseDistribution], study: Study
    ) -> dict[str, NDArray[Any]]:
        """As Optuna's, which took a third of the time of an ask."""
        every = [trial.params for trial in trials]
        rows = [params for params in every if search_space.keys() <= params.keys()]
        return {
            name: np.asarray([found.to_internal_repr(params[name]) for params in rows])
            for name, found in search_space.items()
        }


class _Gp(GPSampler):
    """GPSampler over the names that every architecture has, run on a copy of the study in memory.

    Optuna's cannot read trials that lack a name (the papers' models have none), and writes to the trial that it samples for, which is not stored yet.
    """

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        twin = optuna.create_study(directions=study.directions)
        for other in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if search_space.keys() <= other.params.keys():
                params = {name: other.params[name] for name in search_space}
                kept = {key: value for key, value in other.system_attrs.items() if key.startswith(_CONSTRAINTS_KEY)}
                twin.add_trial(
                    create_trial(values=other.values, params=params, distributions=search_space, system_attrs=kept)
                )
        asked = twin._storage.create_new_trial(twin._study_id)
        return super().sample_relative(twin, twin._storage.get_trial(asked), search_space)


def _seeded(kind: Callable[..., BaseSampler], seed: int, **options: Any) -> BaseSampler:
    return kind(seed=seed, **options)


# Partials, since a sampler can be pickled with them.
BASES: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": _Tpe,
    "nsga2": partial(_seeded, _Nsga2, population_size=POPULATION),
    "gp": partial(_seeded, _Gp),
    "random": partial(_seeded, RandomSampler),
}
