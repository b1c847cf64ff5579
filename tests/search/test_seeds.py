"""Further seeds for the front, and which members of it may be dominated within the noise."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import optuna
import pytest
from support.runs import InProcessWorker, make_config, run
from support.stub_evaluators import arch_id, fraction, noted

from archsearch.report.noise import Measured, Noise, unresolved
from archsearch.results import read_manifest, read_rows, read_trials
from archsearch.samplers import STANDARD_ERRORS
from archsearch.search import open_run
from archsearch.search.study.seen import as_seen
from archsearch.space import paper

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


# Parameters grow from left to right. pvt_tiny and van_b1 are nearly as large and as good as each other, the others far from them.
CLOSE = {"van_b0": 0.50, "pvt_tiny": 0.700, "van_b1": 0.699, "davit_tiny": 0.90}
SEED_ERRORS = (0.004, -0.011, 0.007, -0.002, 0.012, -0.008, 0.001, -0.005)


class Trainings:
    """An evaluator of the models of CLOSE; `seeds`: the names of those trained with further seeds, in order. One in `broken` cannot be."""

    def __init__(self, *broken: str) -> None:
        self.seeds: list[str] = []
        self._broken = broken
        self._names = {arch_id(paper(name).to_dict()): name for name in CLOSE}

    def __call__(self, arch: Any, settings: Any, done: Any, emit: Any) -> None:
        name = self._names[arch_id(arch)]
        for phase in settings.get("phases", ("count", "proxy")):
            score = {"proxy_score": CLOSE[name], "proxy_score_se": 0.01}
            values: dict[str, float] = {"macs_fvcore": 1} if phase == "count" else score
            if phase.startswith("seed@"):
                if name in self._broken:
                    continue
                self.seeds.append(name)
                values["proxy_score"] += SEED_ERRORS[(int(phase.removeprefix("seed@")) + len(name)) % len(SEED_ERRORS)]
            emit({"event": "phase", "phase": phase, "values": values})


def run_close(folder: Path, trainings: Trainings, **options: Any) -> list[dict[str, Any]]:
    """A run of these models alone; its rows by name."""
    config = make_config(folder / "log", objectives=("proxy_score", "params"), papers=tuple(CLOSE))
    fixed = {name: paper(name) for name in CLOSE}
    run(folder / "run", config, 0, fixed=fixed, worker=InProcessWorker(trainings), **options)
    return read_rows(folder / "run")


def test_further_trainings_go_where_the_order_is_close_and_nowhere_else(tmp_path: Path) -> None:
    trainings = Trainings()
    rows = run_close(tmp_path, trainings, num_seeds=3)
    names = [name for row, name in zip(rows, CLOSE, strict=True) if row["front"] == 0]
    assert names == ["van_b0", "pvt_tiny", "davit_tiny"]
    assert len(trainings.seeds) == 2 * len(names), "as many as two for each member of the front"
    assert set(trainings.seeds) == {"pvt_tiny", "van_b1"}, "a member and one that is nearly as good"
    assert [row["proxy_seeds"] for row in rows] == [
        None if name not in trainings.seeds else 1 + trainings.seeds.count(name) for name in CLOSE
    ]
    assert read_manifest(tmp_path / "run")["missing"]["seeds"] == 0
    # The same command has nothing left to do; one with more seeds has one more for each member.
    run_close(tmp_path, trainings, num_seeds=3)
    assert len(trainings.seeds) == 6
    run_close(tmp_path, trainings, num_seeds=4)
    assert len(trainings.seeds) == 9


def test_it_goes_on_as_it_would_have_gone_and_no_trial_takes_everything(tmp_path: Path) -> None:
    whole, parts = Trainings(), Trainings()
    for number in (2, 4):
        run_close(tmp_path / "parts", parts, num_seeds=number)
    run_close(tmp_path / "whole", whole, num_seeds=4)
    assert parts.seeds == whole.seeds
    assert max(map(whole.seeds.count, CLOSE)) < 3 * 4


def test_a_training_that_fails_is_left_to_the_next_command_and_the_others_are_done(tmp_path: Path) -> None:
    broken = Trainings("pvt_tiny")
    run_close(tmp_path, broken, num_seeds=3)
    assert len(broken.seeds) == 5
    assert "pvt_tiny" not in broken.seeds
    assert read_manifest(tmp_path / "run")["missing"]["seeds"] == 1
    mended = Trainings()
    run_close(tmp_path, mended, num_seeds=3)
    assert mended.seeds == ["pvt_tiny"]


def test_the_sampler_is_given_the_mean_over_seeds_and_its_standard_error(tmp_path: Path) -> None:
    run_close(tmp_path, Trainings(), num_seeds=3)
    config = make_config(tmp_path / "log", objectives=("proxy_score", "params"), papers=tuple(CLOSE))
    stored = optuna.load_study(study_name="test", storage=f"sqlite:///{tmp_path}/run/study.db").trials
    with open_run(tmp_path / "run", config) as store:
        rows = store.rows()
        seen = [as_seen(trial, row, config, None) for trial, row in zip(stored, rows, strict=True)]
    assert [trial.values[0] for trial in stored] == list(CLOSE.values())
    assert [trial.user_attrs[STANDARD_ERRORS] for trial in stored] == [{"0": 0.01}] * 4
    for trial, row in zip(seen, rows, strict=True):
        scores = json.loads(row["proxy_seed_scores"] or f"[{row['proxy_score']}]")
        assert trial.values == [pytest.approx(statistics.mean(scores)), row["params"]]
        assert trial.user_attrs[STANDARD_ERRORS] == {"0": pytest.approx(0.01 / math.sqrt(len(scores)))}


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
    assert unresolved([best, tied, far], Measured([best, tied, far], OBJECTIVES, Noise())) == {0: [1]}
    # A speed within the spread is no advantage; 5 % is.
    slower = row(3, 0.81, 11.9, 19)
    assert unresolved([tied], Measured([tied, slower], OBJECTIVES, Noise())) == {1: [3]}
    clearly_slower = row(3, 0.81, 11.4, 19)
    assert unresolved([tied], Measured([tied, clearly_slower], OBJECTIVES, Noise())) == {}
    # Exact figures have no noise: one parameter more is worse.
    heavier = row(3, 0.90, 13.0, 21)
    assert unresolved([tied], Measured([tied, heavier], OBJECTIVES, Noise())) == {}


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
