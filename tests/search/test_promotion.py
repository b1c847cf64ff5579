"""Rungs in a run: which trials are stopped, what is stored and counted, and that an interruption changes no decision."""

import json
import os
import signal
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from support.runs import FIXED, RecordingListener, make_rung_config, run, start, wait_until
from support.settings import settings_for
from support.stub_evaluators import arch_id, fraction, measure, noted

from archsearch import results
from archsearch.errors import UserError
from archsearch.proxy import check_rungs
from archsearch.proxy.training.recipe import rung_steps
from archsearch.search import Driver, ProcessWorker, RunConfig, open_run
from archsearch.search.engine.manifest import training_document
from archsearch.search.rungs import rungs_of

NUMBER = 9
TWO = ("proxy_score", "throughput_img_s")
# The outcome of a trial and its training.
OUTCOME = ["trial", "arch_id", "state", "reason", "rung", "rung_score", "learning_curve", "proxy_score", "train_images"]


def without_seconds(frame: Any) -> list[list[Any]]:
    """Rows of OUTCOME; the learning curve without how long it took."""
    rows: list[list[Any]] = frame[OUTCOME].astype(object).where(frame[OUTCOME].notna(), None).to_numpy().tolist()
    place = OUTCOME.index("learning_curve")
    for row in rows:
        row[place] = [{**point, "seconds": None} for point in json.loads(row[place])]
    return rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few candidates in three rungs, in one go."""
    root = tmp_path_factory.mktemp("whole")
    run(root / "run", make_rung_config(root / "log", objectives=TWO), NUMBER)
    return root


def test_hopeless_candidates_are_stopped_and_counted_as_ended(whole: Path) -> None:
    frame = results.read_trials(whole / "run")
    assert len(frame) == NUMBER + len(FIXED)
    stopped, complete = frame[frame["state"] == "stopped"], frame[frame["state"] == "complete"]
    assert len(stopped) >= 3
    assert len(stopped) + len(complete) == len(frame)
    assert complete["is_fixed"].sum() == len(FIXED), "fixed trials always go on"
    assert stopped[["proxy_score", "front"]].isna().all().all()
    assert stopped["rung"].isin([1, 2]).all()
    assert (complete["rung"] == 3).all()
    assert not set(results.read_front(whole / "run")["trial"]) & set(stopped["trial"])
    trained = Counter((words[1], words[2]) for words in noted(whole / "log") if words[0] == "end")
    assert set(trained.values()) == {1}
    for row in frame.to_dict("records"):
        lower = ["proxy@25", "proxy@100", "proxy"]
        arch, last = json.loads(row["arch"]), lower[min(row["rung"], 2) - 1]
        assert [phase for phase in lower if (arch_id(arch), phase) in trained] == lower[: row["rung"]]
        assert row["rung_score"] == measure(last, arch)["proxy_score"]
        assert row["rung_proxy_id"] == f"stub@{last.removeprefix('proxy@')}"
        curve = json.loads(row["learning_curve"])
        assert [point["steps"] for point in curve] == [25, 100, 400][: row["rung"]]
        assert [point["score"] for point in curve] == [
            measure(phase, arch)["proxy_score"] for phase in lower[: row["rung"]]
        ]
        assert row["train_images"] == 32 * curve[-1]["steps"]


def test_a_candidate_is_stopped_by_a_trial_that_is_better_in_everything(whole: Path) -> None:
    rows = {row["trial"]: row for row in results.read_trials(whole / "run").to_dict("records")}
    for row in rows.values():
        if row["state"] == "stopped" and "trial" in row["reason"]:
            by = rows[int(row["reason"].partition(": trial ")[2].split()[0])]
            assert by["throughput_img_s"] >= row["throughput_img_s"]
            assert fraction(json.loads(by["arch"]), "proxy") > fraction(json.loads(row["arch"]), "proxy")
    # Nothing that would have been on the front is lost: the stub's scores grow alike, and so forecast well.
    full = [(fraction(json.loads(row["arch"]), "proxy"), row["throughput_img_s"]) for row in rows.values()]
    best = {
        trial
        for trial, (score, speed) in zip(rows, full, strict=True)
        if not any(a >= score and b >= speed and (a, b) != (score, speed) for a, b in full)
    }
    assert {trial for trial in best if rows[trial]["state"] == "stopped"} == set()


def test_images_are_counted_by_what_was_trained(whole: Path) -> None:
    ends = Counter(words[2] for words in noted(whole / "log") if words[0] == "end")
    spent = 32 * (25 * ends["proxy@25"] + 75 * ends["proxy@100"] + 300 * ends["proxy"])  # each goes on from the last
    training = results.read_manifest(whole / "run")["training"]
    assert training["rungs"] == [25, 100, 400]
    assert training["images_spent"] == spent
    assert training["images_not_spent"] == (NUMBER + len(FIXED)) * 32 * 400 - spent
    assert training["trials"] == NUMBER + len(FIXED)


def test_to_optuna_a_stopped_trial_is_pruned_and_every_trained_one_has_its_learning_curve(whole: Path) -> None:
    study = optuna.load_study(study_name="test", storage=f"sqlite:///{whole / 'run' / 'study.db'}")
    frame = results.read_trials(whole / "run")
    states = {"complete": optuna.trial.TrialState.COMPLETE, "stopped": optuna.trial.TrialState.PRUNED}
    for trial, row in zip(study.trials, frame.to_dict("records"), strict=True):
        assert trial.state == states[row["state"]]
        assert trial.intermediate_values == {}
        points = json.loads(row["learning_curve"])
        assert trial.user_attrs["learning_curve"] == {str(point["steps"]): point["score"] for point in points}


class _Interrupting(RecordingListener):
    """Presses Ctrl-C when the n-th phase of that name begins."""

    def __init__(self, phase: str, number: int) -> None:
        super().__init__()
        self._phase, self._left = phase, number

    def progress(self, event: Any) -> None:
        super().progress(event)
        self._left -= event["event"] == "progress" and event["phase"] == self._phase
        if self._left == 0:
            self._left = -1
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "number"), [("proxy@25", 5), ("proxy@100", 3), ("proxy", 2)])
def test_a_run_that_was_interrupted_in_a_rung_decides_as_if_it_had_not(
    whole: Path, tmp_path: Path, phase: str, number: int
) -> None:
    config = make_rung_config(tmp_path / "log", objectives=TWO, settings={"phase_s": 0.005})
    run(tmp_path / "run", config, NUMBER, listener=_Interrupting(phase, number))
    assert results.read_manifest(tmp_path / "run")["state"] == "interrupted"
    run(tmp_path / "run", config, NUMBER)
    one, other = results.read_trials(whole / "run"), results.read_trials(tmp_path / "run")
    assert without_seconds(one) == without_seconds(other)
    starts = Counter((words[1], words[2]) for words in noted(tmp_path / "log") if words[0] == "start")
    assert sorted(starts.values())[-2:] in ([1, 1], [1, 2]), "only the training that was interrupted is repeated"


def test_an_architecture_that_was_stopped_is_not_trained_again_unless_it_is_fixed(tmp_path: Path) -> None:
    config = make_rung_config(tmp_path / "log", papers=())
    with open_run(tmp_path / "run", config) as store:
        asked = store.propose()
        assert asked is not None
        first = store.start(asked)["trial"]
        for phase in ("count", "throughput", "proxy@25"):
            store.record_phase(first, phase, measure(phase, asked.arch.to_dict()))
        store.finish(first, "after 25 of 400 training steps: it cannot matter", is_stopped=True)
        twin = store.start(asked)
        assert (twin["reused_from"], twin["state"], twin["train_images"]) == (0, "running", 0)
        worker = ProcessWorker(tmp_path / "run" / "worker.log", "support.stub_evaluators:evaluate")
        Driver(config, store, worker, RecordingListener(), fixed={"same": asked.arch}, command=[]).run(0)
        rows = store.rows()
    assert [row["state"] for row in rows] == ["stopped", "stopped", "complete"]
    assert rows[1]["reason"] == rows[0]["reason"]
    assert (rows[1]["seconds_total"], rows[1]["rung"], rows[2]["reused_from"]) == (0.0, 1, None)
    assert [words[2] for words in noted(tmp_path / "log") if words[0] == "end"][-3:] == [
        "proxy@25",
        "proxy@100",
        "proxy",
    ]


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [("nothing", "the evaluation gave no score after 25 training steps"), ("own_error", "the data are not images")],
)
def test_a_rung_without_a_score_fails_the_trial(tmp_path: Path, behaviour: str, reason: str) -> None:
    config = make_rung_config(tmp_path / "log", settings={"behaviours": [behaviour]}, papers=())
    run(tmp_path / "run", config, 2, evaluator="misbehave")
    frame = results.read_trials(tmp_path / "run")
    assert frame[["state", "reason"]].fillna("").to_numpy().tolist() == [["failed", reason], ["complete", ""]]


def has_begun(log: Path, before: int, phase: str) -> bool:
    return any((words[0], words[2]) == ("start", phase) for words in noted(log)[before:])


@pytest.mark.slow
def test_a_driver_killed_in_a_rung_continues_as_if_it_had_not(tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    run(tmp_path / "whole", make_rung_config(tmp_path / "other"), 6)
    for phase in ("proxy@100", "proxy"):
        before = len(noted(log))
        driver = start(folder, log, 6, 0.05, "rungs")
        wait_until(partial(has_begun, log, before, phase))
        driver.kill()
        driver.communicate(timeout=20)
    output, _ = start(folder, log, 6, 0.05, "rungs").communicate(timeout=60)
    assert output == "complete\n"
    one, other = results.read_trials(tmp_path / "whole"), results.read_trials(folder)
    assert without_seconds(one) == without_seconds(other)


# Which trainings there are


@pytest.mark.parametrize(
    ("full", "lengths", "steps"),
    [(400, (1, 4, 16), [25, 100]), (200, (1, 4), [50]), (10, (1, 100), [1]), (2, (1, 2, 3, 4), [1]), (1, (1, 4), [])],
)
def test_rungs_are_parts_of_a_training(full: int, lengths: tuple[int, ...], steps: list[int]) -> None:
    assert rung_steps(full, lengths) == steps


@pytest.mark.parametrize("lengths", [(), (0, 1), (4, 1), (1, 1), (-1, 4)])
def test_lengths_that_are_no_rungs_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"--rungs: got .*; write positive whole numbers that increase, such as 1,4,16"):
        check_rungs(lengths)


def test_a_rungs_score_has_a_proxy_id_of_its_own_and_the_full_one_that_of_a_run_without() -> None:
    with_rungs, without, short = (
        settings_for(steps=steps, rungs=rungs) for steps, rungs in ((16, (1, 4)), (16, ()), (4, ()))
    )
    lower, full = rungs_of(with_rungs)
    assert full.proxy_id == without["proxy_id"]
    assert len({lower.proxy_id, full.proxy_id, short["proxy_id"]}) == 3
    assert "/4of16steps/" in str(lower.proxy_id)
    assert (lower.phase, lower.steps, full.phase) == ("proxy@4", 4, "proxy")


def test_configurations_from_before_there_were_rungs_have_none(tmp_path: Path) -> None:
    config = make_rung_config(tmp_path / "log", rungs=())
    document = config.to_dict()
    del document["rungs"], document["fix"]
    assert RunConfig.from_dict(document) == config
    with_rungs = make_rung_config(tmp_path / "log")
    assert RunConfig.from_dict(document).differences(with_rungs) == ["rungs was None, now 1,4,16"]
    assert with_rungs.differences(make_rung_config(tmp_path / "log", rungs=(1, 4))) == ["rungs was 1,4,16, now 1,4"]


def test_spent_and_saved_training_against_hand_computed_figures(tmp_path: Path) -> None:
    config = make_rung_config(tmp_path / "log")

    def row(state: str, *curve: tuple[int, float], **changes: Any) -> dict[str, Any]:
        points = [{"steps": steps, "seconds": seconds} for steps, seconds in curve]
        images = 32 * curve[-1][0]
        return {
            "state": state,
            "reused_from": None,
            "learning_curve": json.dumps(points),
            "rung": len(curve),
            "train_images": images,
            **changes,
        }

    rows = [
        row("complete", (25, 1.0), (100, 4.0), (400, 16.0)),
        row("stopped", (25, 2.0)),
        row("failed", (25, 1.0), (100, 4.0)),
        row("stopped", (25, 2.0), reused_from=1, train_images=0),
        {"state": "failed", "reused_from": None, "learning_curve": None, "train_images": None},
    ]
    training = training_document(config, rows)
    assert training is not None
    assert training["images_spent"] == 32 * (400 + 25 + 100)
    assert training["images_not_spent"] == 32 * (400 - 25)
    assert (training["seconds_spent"], training["seconds_not_spent"]) == (28.0, 32.0 - 2.0)
    assert (training["trials"], training["stopped"]) == (3, 1)
