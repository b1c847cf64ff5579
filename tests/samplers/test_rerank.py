"""Features that are too expensive for all candidates: computed for the best few, and used once enough trials have them."""

import random
from typing import Any

import optuna
import pytest

from archsearch.samplers import FEATURES, KnownCostSampler

# The score does not depend on the parameters but on a hidden number alone, which is the feature.
TABLE: list[dict[str, Any]] = [{"name": f"n{index}", "cost": index % 7} for index in range(60)]
HIDDEN = {row["name"]: random.Random(row["name"]).random() for row in TABLE}


def search(trials: int, features: Any, *, has_features: bool = True, seed: int = 0) -> optuna.Study:
    sampler = KnownCostSampler(
        known={1: lambda params: float(params["cost"])}, candidates=TABLE, seed=seed, features=features
    )
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for _ in range(trials):
        trial = study.ask()
        name = trial.suggest_categorical("name", [str(row["name"]) for row in TABLE])
        cost = trial.suggest_categorical("cost", list(range(7)))
        if has_features:
            trial.set_user_attr(FEATURES, {"hint": HIDDEN[name]})
        study.tell(trial, [HIDDEN[name], float(cost)])
    return study


def names(study: optuna.Study) -> list[str]:
    return [trial.params["name"] for trial in study.trials]


def test_features_are_computed_for_a_few_candidates_once_each_and_not_before_trials_have_some() -> None:
    asked: list[str] = []

    def features(params: dict[str, Any]) -> dict[str, float]:
        asked.append(params["name"])
        return {"hint": HIDDEN[params["name"]]}

    plain = search(14, None)
    assert names(search(14, features, has_features=False)) == names(plain)
    assert asked == []
    reranked = search(14, features)
    assert names(reranked)[:8] == names(plain)[:8]
    assert len(asked) == len(set(asked)) > 0
    assert len(asked) <= 6 * 6


@pytest.mark.slow
def test_informative_features_lead_to_better_scores() -> None:
    """Mean of the scores after the first eight, over seeds: with the hint well above without."""

    def mean(features: Any) -> float:
        scores = [trial.values[0] for seed in range(12) for trial in search(24, features, seed=seed).trials[8:]]
        return float(sum(scores) / len(scores))

    assert mean(lambda params: {"hint": HIDDEN[params["name"]]}) > mean(None) + 0.05
