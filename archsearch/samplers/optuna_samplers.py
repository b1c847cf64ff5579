"""Optuna's own samplers as a run uses them: a new one for each trial, from a seed, so that an interrupted run goes on as if it had not been."""

from collections.abc import Callable
from functools import partial
from typing import Any

import optuna
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

# Optuna's default of 50 would spend a whole ordinary run on the first generation; the comparison in README was made with 20.
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
                twin.add_trial(create_trial(values=other.values, params=params, distributions=search_space))
        asked = twin._storage.create_new_trial(twin._study_id)
        return super().sample_relative(twin, twin._storage.get_trial(asked), search_space)


def _seeded(kind: Callable[..., BaseSampler], seed: int, **options: Any) -> BaseSampler:
    return kind(seed=seed, **options)


# Partials, since a sampler can be pickled with them.
BASES: dict[str, Callable[[int], BaseSampler]] = {
    # Multivariate over the names that every architecture has. The constant liar is for parallel drivers, and reads the storage for every name.
    "tpe": partial(_seeded, TPESampler, multivariate=True, constant_liar=False),
    "nsga2": partial(_seeded, _Nsga2, population_size=POPULATION),
    "gp": partial(_seeded, _Gp),
    "random": partial(_seeded, RandomSampler),
}
