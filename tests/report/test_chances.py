"""The chance of each trial to be on the front: against a closed form, against draws, and in the report."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from support.report_runs import trial, write_run

from archsearch.cli import main
from archsearch.metrics import is_dominated
from archsearch.results import FrontChances, training_variance

OBJECTIVES = ("proxy_score", "throughput_img_s", "params")


def several(number: int, scores: list[float], img_s: float, params: int) -> dict[str, Any]:
    """A trial that was trained with several seeds."""
    seeds = {"proxy_seeds": len(scores), "proxy_score_mean": np.mean(scores), "proxy_score_sd": np.std(scores, ddof=1)}
    return trial(number, scores[0], img_s, params, **seeds)


def test_the_chance_against_one_rival_has_a_closed_form() -> None:
    rows = [trial(0, 0.70, 20.0, 10), trial(1, 0.69, 19.0, 10)]
    first, second = FrontChances(rows, OBJECTIVES).chances()
    assert first == pytest.approx(1.0), "nothing is as fast"
    assert second == pytest.approx(0.5 * math.erfc(0.01 / (0.01 * math.sqrt(2)) / math.sqrt(2)), rel=1e-6)


def test_chances_are_the_shares_of_draws() -> None:
    rng = np.random.default_rng(0)
    rows = [
        several(
            number,
            rng.normal(0.6 + 0.02 * (number % 3), 0.02, 1 + number % 4).tolist(),
            10.0 + number,
            100 + number // 2,
        )
        if number % 4
        else trial(number, rng.normal(0.6, 0.03), 10.0 + number, 100 + number // 3)
        for number in range(14)
    ]
    chances = FrontChances(rows, OBJECTIVES).chances()
    means = np.array([row["proxy_score_mean"] or row["proxy_score"] for row in rows])
    errors = np.sqrt(training_variance(rows) / np.array([row["proxy_seeds"] or 1 for row in rows]))
    costs = np.array([[-row["throughput_img_s"], row["params"]] for row in rows])
    draws = 4000
    scores = rng.normal(means, errors, (draws, len(rows)))
    on_front = np.mean([~is_dominated(np.column_stack((-score, costs))) for score in scores], axis=0)
    assert chances.min() < 0.2 < np.median(chances) <= chances.max() <= 1 + 1e-9
    assert chances == pytest.approx(on_front, abs=4 * 0.5 / math.sqrt(draws))


def test_the_variance_is_that_between_seeds_once_there_are_enough() -> None:
    assert training_variance([trial(0, 0.5, 1.0, 1), trial(1, 0.6, 1.0, 1)]) == pytest.approx(0.01**2)
    rng = np.random.default_rng(1)
    rows = [several(number, rng.normal(0.5, 0.03, 30).tolist(), 1.0, 1) for number in range(20)]
    assert training_variance(rows) == pytest.approx(0.03**2, rel=0.15)
    assert training_variance([trial(0, 0.5, 1.0, 1, proxy_score_se=None)]) == 0.0


def test_without_noise_one_more_training_changes_nothing() -> None:
    rows = [trial(number, 0.5 + number / 10, 20.0 - number, 10, proxy_score_se=None) for number in range(3)]
    front = FrontChances(rows, OBJECTIVES)
    assert front.chances() == pytest.approx([1, 1, 1])
    assert front.gains() == pytest.approx([0, 0, 0])


def test_a_training_is_worth_what_a_choice_with_it_has_more_in_draws() -> None:
    """A trial and its only rival: the better mean of the two after one more training, over draws of that, less the better one now."""
    rows = [several(0, [0.70, 0.72], 20.0, 10), trial(1, 0.69, 19.0, 10)]
    variance = training_variance(rows)
    rng, means, trainings = np.random.default_rng(0), np.array([0.71, 0.69]), np.array([2, 1])
    truth = rng.normal(means, np.sqrt(variance / trainings), (400_000, 2))
    for place, gain in enumerate(FrontChances(rows, OBJECTIVES).gains()):
        further = truth[:, place] + rng.normal(0, math.sqrt(variance), len(truth))
        after = (trainings[place] * means[place] + further) / (trainings[place] + 1)
        chosen = np.maximum(after, means[1 - place])
        assert gain * math.sqrt(variance) == pytest.approx(np.mean(chosen) - means.max(), abs=1e-4)


def test_the_report_gives_chances_and_names_who_is_as_likely_beside_the_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each is a little slower, larger and better than the one before; 3 is a little worse than 0, its only rival. 4 is far better and slow, 5 far worse.
    rows = [trial(0, 0.700, 20.0, 100), trial(1, 0.7001, 19.0, 101), trial(2, 0.7002, 18.0, 102)]
    rows += [trial(3, 0.6999, 19.9, 103), trial(4, 0.80, 10.0, 99), trial(5, 0.5, 17.0, 100)]
    write_run(tmp_path, rows)
    monkeypatch.chdir(tmp_path)
    document = json.loads(CliRunner().invoke(main, ["report", "--json"]).stdout)
    chances = {row["trial"]: round(row["front_chance"], 2) for row in document["front"]}
    assert chances == {0: 1.0, 1: 0.5, 2: pytest.approx(1 / 3, abs=0.01), 4: 1.0}
    assert [row["trial"] for row in document["near_front"]] == [3]
    text = " ".join(CliRunner().invoke(main, ["report"]).stdout.split())
    assert "on front" in text
    assert " 50% " in text
    assert "Beside the front, but no less likely to be on it than its least likely member: trials 3 (50%)." in text
