"""Inputs of KnownCostSampler: numbers known for every candidate, which lead the search where they tell something and cost little where they do not."""

import math
import pickle
import random
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import optuna
import pytest

from archsearch import load_space
from archsearch.errors import UserError
from archsearch.metrics import Array
from archsearch.samplers import InBandSampler, KnownCostSampler, make_sampler
from archsearch.samplers.inputs import JoinedInputs
from archsearch.space import Band, Bounds

Params = dict[str, Any]
TABLE: list[Params] = [{"a": a, "b": b, "c": c} for a in "uvwxyz" for b in "uvwxyz" for c in "uvwxyz"]
# A score that the parameters tell nothing of.
SCORES = {"".join(row.values()): random.Random(f"{row}").gauss(0, 1) for row in TABLE}
BEST = max(SCORES, key=lambda name: SCORES[name])


class Given:
    """Numbers by candidate, which counts for how many it was called."""

    def __init__(self, values: Any = None, names: tuple[str, ...] = ("hint",), estimates: Sequence[str] = ()) -> None:
        self.values, self.names, self.estimates, self.called = values, names, frozenset(estimates), 0

    def __call__(self, candidates: Sequence[Params]) -> Array:
        self.called += len(candidates)
        return np.array([[self.values["".join(row.values())]] for row in candidates])


def search(
    trials: int, inputs: Any, seed: int = 0, direction: Literal["maximize", "minimize"] = "maximize"
) -> list[str]:
    """The names of what was tried."""
    sampler = KnownCostSampler({}, TABLE, seed, inputs=inputs)
    study = optuna.create_study(direction=direction, sampler=sampler)
    for _ in range(trials):
        trial = study.ask()
        name = "".join(trial.suggest_categorical(key, list("uvwxyz")) for key in "abc")
        study.tell(trial, SCORES[name] * (1 if direction == "maximize" else -1))
    return ["".join(trial.params.values()) for trial in study.trials]


def test_an_estimate_finds_the_best_at_once_and_is_computed_once_for_each_candidate() -> None:
    """Any increasing function of the objective in its own direction does; five trials of 216."""
    exact = Given({name: math.exp(score) for name, score in SCORES.items()}, estimates=["hint"])
    assert BEST in search(5, exact)
    assert exact.called == len(TABLE)
    assert BEST in search(5, Given({name: -score for name, score in SCORES.items()}, estimates=["hint"]), 0, "minimize")


def test_an_input_of_which_nothing_is_believed_is_learned() -> None:
    for sign in (1, -1):
        assert BEST in search(12, Given({name: sign * score for name, score in SCORES.items()}))
    assert BEST not in search(12, None)


def test_a_reversed_estimate_is_unlearned() -> None:
    assert BEST in search(20, Given({name: -score for name, score in SCORES.items()}, estimates=["hint"]))


def test_what_is_not_known_counts_as_average() -> None:
    some = {name: score if index % 3 else math.nan for index, (name, score) in enumerate(SCORES.items())}
    best = max((name for name in some if not math.isnan(some[name])), key=lambda name: SCORES[name])
    assert best in search(6, Given(some, estimates=["hint"]))
    nothing = search(8, Given(dict.fromkeys(SCORES, math.nan)))
    assert nothing == search(8, Given(dict.fromkeys(SCORES, 7.0)))  # a constant tells nothing either
    assert nothing == search(8, None)


def test_joined_inputs_stand_side_by_side() -> None:
    first, second = Given(SCORES, ("one",), ["one"]), Given(dict.fromkeys(SCORES, 0.5), ("two",))
    both = JoinedInputs([first, second])
    assert both.names == ("one", "two")
    assert both.estimates == {"one"}
    assert both(TABLE[:2]).tolist() == [[SCORES["uuu"], 0.5], [SCORES["uuv"], 0.5]]
    assert BEST in search(5, both)


def test_a_sampler_with_inputs_can_be_pickled_and_goes_on_the_same() -> None:
    study = optuna.create_study(direction="maximize")
    sampler = KnownCostSampler({}, TABLE, 0, inputs=Given(SCORES, estimates=["hint"]))
    before = sampler.propose(study, 0)
    assert pickle.loads(pickle.dumps(sampler)).propose(study, 0) == before


def test_inputs_go_with_constraints_and_batches() -> None:
    sampler = KnownCostSampler({}, TABLE, 0, inputs=Given(SCORES, estimates=["hint"]))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for _ in range(12):
        trial = study.ask()
        name = "".join(trial.suggest_categorical(key, list("uvwxyz")) for key in "abc")
        trial.set_constraint("first", 1.0 if name[0] == "u" else -1.0)
        study.tell(trial, SCORES[name])
    batch = ["".join(params.values()) for params in sampler.propose_many(study, 12, 5)]
    assert len(set(batch)) == 5
    assert sum(SCORES[name] for name in batch) / 5 > 1


class Wrong(Given):
    """Returns what it is told to."""

    def __call__(self, candidates: Sequence[Params]) -> Any:
        if isinstance(self.values, Exception):
            raise self.values
        return self.values


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (np.zeros(216), r"inputs returned numbers of shape \(216,\); .* the shape \(216, 1\): 216 candidates by hint"),
        (np.zeros((216, 2)), r"inputs returned numbers of shape \(216, 2\)"),
        ([["much"]] * 216, r"inputs returned \[\['much'\].*; it must return numbers of shape \(216, 1\)"),
        (KeyError("a"), "inputs raised KeyError: 'a'"),
    ],
)
def test_wrong_inputs_are_one_sentence(values: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        search(1, Wrong(values))
    assert "\n" not in str(caught.value)


def test_inputs_that_cannot_be_used_are_one_sentence() -> None:
    with pytest.raises(UserError, match="inputs need candidates or a pool"):
        KnownCostSampler({}, inputs=Given(SCORES))
    with pytest.raises(UserError, match="inputs have a name twice: hint, hint"):
        search(1, Given(SCORES, ("hint", "hint")))


def test_a_run_is_led_by_scores_of_its_architectures() -> None:
    """The first proposal has a large score: here, few parameters; all are inside the band."""
    space, band = load_space("hybrid"), Band.around(4_500_000_000, 0.05)

    def sampler(**options: Any) -> InBandSampler:
        return make_sampler("known-cost", space, Bounds(macs=band), 0, objectives=("proxy_score",), **options)

    study = optuna.create_study(direction="maximize")
    plain = sampler().propose_many(study, 0, 3)
    led = sampler(scores={"small": lambda arch: -float(arch.cost().params)}).propose_many(study, 0, 3)
    assert led[0].arch.cost().params < min(one.arch.cost().params for one in plain)
    assert all(band.contains(one.arch.cost().macs) for one in led)
