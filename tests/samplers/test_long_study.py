"""Studies of more trials than are modelled."""

import random
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import TrialState, create_trial

from archsearch.samplers import observations
from archsearch.samplers.candidates import Costs
from archsearch.samplers.pool import TablePool


def _study(number: int) -> optuna.Study:
    """Complete and stopped trials of two numbers."""
    rng = random.Random(0)
    study = optuna.create_study(directions=["maximize", "minimize"])
    for index in range(number):
        params = {"a": rng.randrange(50), "b": rng.randrange(50)}
        score, cost = params["a"] / 50 + rng.gauss(0, 0.02), float(params["a"] + params["b"])
        is_stopped = index % 3 == 0
        study.add_trial(
            create_trial(
                state=TrialState.PRUNED if is_stopped else TrialState.COMPLETE,
                params=params,
                distributions=SPACE,
                values=None if is_stopped else [score, cost],
                user_attrs={"learning_curve": {"1": score - 0.1}},
            )
        )
    return study


SPACE: dict[str, BaseDistribution] = {name: CategoricalDistribution(tuple(range(50))) for name in ("a", "b")}


def _read(study: optuna.Study, cache: Any = None) -> observations.Observations:
    pool = TablePool({"a": a, "b": b} for a in range(50) for b in range(50))
    costs = Costs({1: lambda params: float(params["a"] + params["b"])})
    return observations.read_observations(study, pool, costs, 0, len(study.trials), cache=cache)


def test_a_long_study_is_modelled_by_its_front_and_a_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most MOST_MODELLED trials, the whole front among them, the same whether they were read before or not; all candidates count as seen."""
    study = _study(400)
    whole = _read(study)
    assert len(whole.rows) == 400, "all, up to the limit"
    monkeypatch.setattr(observations, "MOST_MODELLED", 120)
    monkeypatch.setattr(observations, "MOST_FITTED", 30)
    cache: dict[int, observations.Read] = {}
    some = _read(study, cache)
    assert len(some.rows) == 120
    assert some.seen == whole.seen
    assert sum(row.is_fitted for row in some.rows) == 30
    assert [row.number for row in some.rows] == sorted({row.number for row in some.rows})
    front = {trial.number for trial in study.best_trials}
    assert front <= {row.number for row in some.rows}
    assert _read(study, cache) == some, "a trial that was read before gives the same"
    inferred = {row.number: (row.values, row.variances) for row in whole.rows}
    assert all((row.values, row.variances) == inferred[row.number] for row in some.rows)
    # What hyperparameters are fitted to stays the same for a while, so that they are not fitted anew for each trial.
    study.add_trial(_study(1).trials[0])
    fitted = [row.number for row in _read(study, cache).rows if row.is_fitted]
    assert fitted == [row.number for row in some.rows if row.is_fitted]
