"""Training-free scores in a run: columns and, on request, a first rung that stops candidates only where the score predicts the trained one."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.runs import FIXED, make_config, make_rung_config, run
from support.stub_evaluators import arch_id, measure, noted

from archsearch import results
from archsearch.errors import UserError
from archsearch.report import build_report, make_console, report_parts, show
from archsearch.search import Curve, RungScore
from archsearch.search.early_stopping import with_free_rung
from archsearch.search.rungs import check_free_rung

TWO = ("proxy_score", "throughput_img_s")
NUMBER = 26


def curve(trial: int, *scores: float) -> Curve:
    return Curve(trial=trial, costs=(0.0,), scores=tuple(RungScore(value=value) for value in scores))


def test_a_free_score_is_brought_to_the_scale_of_the_first_trained_one() -> None:
    trained = [0.2, 0.3, 0.1, 0.5, 0.4, 0.6, 0.8, 0.7]
    curves = [curve(trial, score) for trial, score in enumerate(trained)]
    values = {trial: 1000.0 + 10 * trial for trial in range(10)}
    waiting, unknown = curve(8), curve(99, 0.3)
    found = with_free_rung([*curves, waiting, unknown], values)
    assert [one.trial for one in found] == [*range(8), 8]
    line = np.polynomial.Polynomial.fit(list(values.values())[:8], trained, 1)
    expected = [line(values[one.trial]) for one in found]
    assert [one.scores[0].value for one in found] == pytest.approx(expected)
    left = np.array(trained) - expected[:8]
    assert [one.scores[0].standard_error for one in found] == pytest.approx([np.sqrt(np.sum(left**2) / 6)] * 9)
    assert [one.scores[1].value for one in found[:-1]] == trained
    assert len(found[-1].scores) == 1
    assert with_free_rung([*curves[:7], waiting], values) == [], "seven trials are too few"
    assert with_free_rung(curves, dict.fromkeys(range(8), 1.0)) == [], (
        "a score that is the same for all predicts nothing"
    )
    assert with_free_rung(curves, {trial: -float(trial) for trial in range(8)}) == [], "lower must not be better"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zico", "naswot"])
def test_a_free_rung_stops_before_training_by_a_predictive_score_and_not_by_noise(tmp_path: Path, name: str) -> None:
    settings = {"training_free": True, "free_rung": name}
    run(tmp_path / "run", make_rung_config(tmp_path / "log", objectives=TWO, settings=settings), NUMBER)
    frame = results.read_trials(tmp_path / "run")
    early = frame[(frame["state"] == "stopped") & (frame["rung"] == 0)]
    # Of 26; at two deviations chance alone stops one now and then.
    assert len(early) >= 5 if name == "zico" else len(early) <= 2
    trained = {words[1] for words in noted(tmp_path / "log") if words[0] == "start" and words[2].startswith("proxy")}
    for row in early.to_dict("records"):
        arch = json.loads(row["arch"])
        assert arch_id(arch) not in trained
        assert row["reason"].startswith(f"before training, {name} on the scale of the first rung's scores: ")
        assert row[f"free_{name}"] == measure("free", arch)[f"free_{name}"]
    assert not early["is_fixed"].any()
    show(make_console(), *report_parts(build_report(tmp_path / "run")))
    again = run(tmp_path / "run", make_rung_config(tmp_path / "log", objectives=TWO, settings=settings), NUMBER)
    assert again.started == []


def test_free_scores_without_a_rung_are_columns_of_every_trial(tmp_path: Path) -> None:
    run(tmp_path / "run", make_config(tmp_path / "log", settings={"training_free": True}, sampler="random"), 2)
    frame = results.read_trials(tmp_path / "run")
    assert len(frame) == 2 + len(FIXED)
    for row in frame.to_dict("records"):
        assert row["state"] == "complete"
        assert row["free_zico"] == measure("free", json.loads(row["arch"]))["free_zico"]


def test_a_name_that_is_no_training_free_score_is_refused() -> None:
    with pytest.raises(UserError, match="--free-rung: unknown training-free score 'ziko', did you mean 'zico'"):
        check_free_rung("ziko")
