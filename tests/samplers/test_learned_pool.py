"""KnownCostSampler where the space is learned from the study: new values get in, nothing is repeated in silence, what is fixed from outside counts."""

import random
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler
from optuna.trial import Trial

from archsearch.errors import UserError
from archsearch.samplers import KnownCostSampler

Params = dict[str, Any]
Suggest = Callable[[Trial], Params]


def search(
    suggest: Suggest, known: Callable[[Params], float], trials: int, sampler: BaseSampler | None = None, seed: int = 0
) -> list[Params]:
    """The parameters of a study that maximises a score of all values and minimises the known function."""
    sampler = sampler or KnownCostSampler({1: known}, seed=seed)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for _ in range(trials):
        trial = study.ask()
        params = suggest(trial)
        study.tell(trial, [score(params), min(known(params), 1e9)])
    return [trial.params for trial in study.trials]


def score(params: Params) -> float:
    return sum(random.Random(f"{name}={value}").random() for name, value in params.items())


def repeats(found: list[Params]) -> int:
    counts = Counter(tuple(sorted(params.items())) for params in found)
    return sum(number - 1 for number in counts.values())


def layers(deepest: int) -> Suggest:
    def suggest(trial: Trial) -> Params:
        for layer in range(trial.suggest_int("depth", 1, deepest)):
            trial.suggest_int(f"width_{layer}", 8, 64)
        return trial.params

    return suggest


def size(params: Params) -> float:
    """Fails for a candidate that lacks a layer."""
    return float(sum(params[f"width_{layer}"] for layer in range(params["depth"])))


def test_every_value_of_a_deciding_number_is_tried() -> None:
    """More depths than the first trials show: each is tried, and few trials are spent on trying alone."""
    found = search(layers(10), size, 20)
    assert {params["depth"] for params in found} == set(range(1, 11))


@pytest.mark.slow
def test_a_value_that_brings_a_new_name_is_tried_although_a_known_function_needs_the_name() -> None:
    def suggest(trial: Trial) -> Params:
        if trial.suggest_int("k", 1, 20) > 18:
            trial.suggest_int("extra", 0, 1000)
        return trial.params

    def cost(params: Params) -> float:
        return float(params["k"] + (params["extra"] if params["k"] > 18 else 0))

    found = search(suggest, cost, 30)
    assert {19, 20} & {params["k"] for params in found}
    assert repeats(found) == 0


@pytest.mark.slow
def test_nested_numbers_are_tried_too() -> None:
    def suggest(trial: Trial) -> Params:
        block = trial.suggest_categorical("block", ["plain", "deep"])
        if block == "deep":
            for layer in range(trial.suggest_int("depth", 1, 6)):
                trial.suggest_int(f"width_{layer}", 8, 64)
        else:
            trial.suggest_int("width", 8, 512)
        return trial.params

    found = search(suggest, lambda params: size(params) if params["block"] == "deep" else params["width"], 50)
    assert {params.get("depth") for params in found} == {None, *range(1, 7)}


@pytest.mark.slow
def test_hundreds_of_choices_do_not_keep_the_search_random() -> None:
    choices = [f"c{index}" for index in range(300)]

    def suggest(trial: Trial) -> Params:
        trial.suggest_categorical("choice", choices)
        trial.suggest_float("x", 0, 1)
        return trial.params

    sampler = KnownCostSampler({}, seed=0)
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: (suggest(trial)["x"] - 0.77) ** 2, n_trials=25)
    late = [abs(trial.params["x"] - 0.77) for trial in study.trials[12:]]
    assert sorted(late)[len(late) // 2] < 0.1  # half of random ones are beyond 0.27
    assert len({trial.params["choice"] for trial in study.trials}) > 12


def test_a_name_fixed_by_a_wrapper_is_known_before_it_is_asked() -> None:
    def suggest(trial: Trial) -> Params:
        for name in ("a", "b", "c"):
            trial.suggest_int(name, 0, 5)
        return trial.params

    def cost(params: Params) -> float:
        return float(params["a"] * 36 + params["b"] * 6 + params["c"])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = PartialFixedSampler({"c": 3}, KnownCostSampler({1: cost}, seed=0))
    found = search(suggest, cost, 20, sampler)
    assert {params["c"] for params in found} == {3}
    assert repeats(found) == 0


class _Own(RandomSampler):
    """Someone's own wrapper, which answers one name by itself."""

    def __init__(self, base: BaseSampler) -> None:
        super().__init__(seed=0)
        self._base = base

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        if param_name == "b":
            return super().sample_independent(study, trial, param_name, param_distribution)
        return self._base.sample_independent(study, trial, param_name, param_distribution)


@pytest.mark.slow
def test_a_trial_that_leaves_its_proposal_gets_another() -> None:
    """The second name comes from elsewhere: the proposal is made anew, so that nothing is repeated while something is left."""

    def suggest(trial: Trial) -> Params:
        for name in ("a", "b", "c"):
            trial.suggest_int(name, 0, 9)
        return trial.params

    found = search(
        suggest, lambda params: float(params["c"]), 60, _Own(KnownCostSampler({1: lambda p: p["c"]}, seed=0))
    )
    assert repeats(found) == 0


def test_a_used_up_space_is_said_once() -> None:
    def suggest(trial: Trial) -> Params:
        trial.suggest_categorical("a", ["x", "y", "z"])
        trial.suggest_int("b", 1, 4)
        return trial.params

    def cost(params: Params) -> float:
        return float(params["b"]) if params["a"] != "z" else float("inf")

    with pytest.warns(UserWarning, match=r"all (8|12) candidates have been proposed, or have a known") as caught:
        found = search(suggest, cost, 16)
    assert len(caught) == 1
    tried = {(params["a"], params["b"]) for params in found}
    assert {(a, b) for a in "xy" for b in range(1, 5)} <= tried
    assert sum(params["a"] == "z" for params in found) <= 2  # before the study has shown its names


def test_a_known_function_that_fails_on_what_the_study_asked_for_is_named() -> None:
    def suggest(trial: Trial) -> Params:
        trial.suggest_int("a", 0, 9)
        return trial.params

    sampler = KnownCostSampler({1: lambda params: float(params["typo"])}, seed=0)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    with pytest.raises(UserError, match=r"known\[1\] raised KeyError: 'typo' for \{'a': \d\}"):
        study.optimize(lambda trial: (suggest(trial)["a"], 1.0), n_trials=9)
