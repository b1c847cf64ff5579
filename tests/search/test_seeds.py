"""Further seeds for the front, and which members of it may be dominated within the noise."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from support.runs import make_config, run
from support.stub_evaluators import arch_id, fraction, noted

from archsearch.report.noise import Noise, unresolved
from archsearch.results import read_trials

OBJECTIVES = ("proxy_score", "throughput_img_s", "params")


def test_the_front_is_trained_with_more_seeds_once_and_the_first_score_stays(tmp_path: Path) -> None:
    log = tmp_path / "log"
    config = make_config(log)
    first = run(tmp_path / "run", config, 4)
    assert first.seeds == []
    front = sorted(int(trial) for trial, rank in read_trials(tmp_path / "run")[["trial", "front"]].values if rank == 0)
    listener = run(tmp_path / "run", config, 4, num_seeds=3)
    assert [trial for trial, *_ in listener.seeds] == [*front, *front]
    assert [(place, total) for _, place, total, _ in listener.seeds] == [
        (i, 2 * len(front)) for i in range(1, 2 * len(front) + 1)
    ]
    for row in read_trials(tmp_path / "run").to_dict("records"):
        arch = json.loads(row["arch"])
        assert row["proxy_score"] == fraction(arch, "proxy")
        if row["trial"] in front:
            scores = [
                row["proxy_score"],
                *(row["proxy_score"] + 0.02 * (fraction(arch, f"seed@{k}") - 0.5) for k in (1, 2)),
            ]
            assert json.loads(row["proxy_seed_scores"]) == scores
            assert row["proxy_seeds"] == 3
            assert row["proxy_score_mean"] == pytest.approx(statistics.mean(scores))
            assert row["proxy_score_sd"] == pytest.approx(statistics.stdev(scores))
        else:
            assert math.isnan(row["proxy_seeds"])
            assert not any(
                words[:2] == ["start", arch_id(arch)] and words[2].startswith("seed") for words in noted(log)
            )
    before = len(noted(log))
    assert run(tmp_path / "run", config, 4, num_seeds=3).seeds == []
    assert len(noted(log)) == before
    more = run(tmp_path / "run", config, 4, num_seeds=4)
    assert [trial for trial, *_ in more.seeds] == front


def row(trial: int, score: float, img_s: float, params: int, **changes: Any) -> dict[str, Any]:
    named = {"trial": trial, "proxy_score": score, "throughput_img_s": img_s, "params": params}
    noise = {
        "proxy_score_se": 0.01,
        "throughput_iqr": 0.01,
        "proxy_seeds": None,
        "proxy_score_sd": None,
        "reused_from": None,
    }
    return {**noise, **named, **changes}


def test_members_that_may_be_dominated_within_the_noise() -> None:
    best = row(0, 0.80, 10.0, 30)
    tied = row(1, 0.79, 12.0, 20)  # within 2 x 0.014 of the best, and better in the rest
    far = row(2, 0.70, 14.0, 25)
    assert unresolved([best, tied, far], [best, tied, far], OBJECTIVES, Noise()) == {0: [1]}
    # A speed within the spread is no advantage; 5 % is.
    slower = row(3, 0.81, 11.9, 19)
    assert unresolved([tied], [tied, slower], OBJECTIVES, Noise()) == {1: [3]}
    clearly_slower = row(3, 0.81, 11.4, 19)
    assert unresolved([tied], [tied, clearly_slower], OBJECTIVES, Noise()) == {}
    # Exact figures have no noise: one parameter more is worse.
    heavier = row(3, 0.90, 13.0, 21)
    assert unresolved([tied], [tied, heavier], OBJECTIVES, Noise()) == {}


def test_the_noise_of_training_is_pooled_over_repeated_trials_and_widens_ties() -> None:
    scores = {0: [0.80, 0.84, 0.76], 1: [0.60, 0.62]}
    rows = [
        row(trial, values[0], 10.0, 10, proxy_seeds=len(values), proxy_score_sd=statistics.stdev(values))
        for trial, values in scores.items()
    ]
    noise = Noise.from_rows([*rows, row(2, 0.5, 10.0, 10)])
    assert noise.training_sd == pytest.approx(math.sqrt((0.04**2 + 0.04**2 + 2 * 0.01**2) / 3))
    other = row(3, 0.74, 10.0, 10)
    assert not Noise().is_tie(rows[0], other)
    assert noise.is_tie(rows[0], other)
    assert Noise.from_rows([row(2, 0.5, 10.0, 10)]).training_sd is None
