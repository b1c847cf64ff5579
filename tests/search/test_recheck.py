"""The front measured again at the end of a run, and throughput predicted before building; with real worker processes."""

import io
import itertools
import json
import math
import os
import random
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.runs import RecordingListener, fixed_archs, is_running, make_config, run, start, wait_until
from support.stub_evaluators import fraction, measure, noted, written

from archsearch import results
from archsearch.cli.live import LiveListener, PlainListener
from archsearch.metrics import kendall_tau
from archsearch.search import Tally, TimeLeft
from archsearch.space import Arch


class Oracle:
    """Predicts what the stub will measure, a tenth too high; None for half of the architectures."""

    def __init__(self) -> None:
        self.source = {"file": "here.parquet", "kendall_tau": 0.95, "mape": 0.1}

    def predict(self, arch: Arch) -> float | None:
        document = arch.to_dict()
        return 1.1 * float(measure("throughput", document)["throughput_img_s"]) if _is_known(document) else None


def _is_known(document: dict[str, Any]) -> bool:
    return fraction(document, "known") < 0.5


def timed_again(log: Path) -> list[str]:
    """Architectures whose second timing ended, in order."""
    return [words[1] for words in noted(log) if words[0] == "end" and words[2] == "again"]


def test_the_front_is_timed_again_and_keeps_its_first_figures(tmp_path: Path) -> None:
    config, log = make_config(tmp_path / "log"), tmp_path / "log"
    listener = run(tmp_path / "run", config, 8, recheck=True, predictor=Oracle())
    frame = results.read_trials(tmp_path / "run")
    front = frame[frame["front"] == 0]
    assert len(front) >= 3
    assert sorted(timed_again(log)) == sorted(map(written, front["arch"]))
    order = front["trial"].tolist()
    random.Random(config.seed).shuffle(order)
    assert listener.again == [(trial, place, len(front), None) for place, trial in enumerate(order, 1)]
    assert order != sorted(order)
    for row in front.itertuples():
        arch = json.loads(str(row.arch))
        first, second = measure("throughput", arch), measure("again", arch)
        assert row.throughput_img_s == first["throughput_img_s"]
        assert row.throughput_ratio == first["throughput_ratio"]
        assert row.throughput_again_img_s == second["throughput_again_img_s"]
        assert row.throughput_change == second["throughput_again_ratio"] / first["throughput_ratio"] - 1
        assert json.loads(str(row.conditions)) == {"threads": 1, "again": {"threads": 1, "date": "later"}}
    assert frame.loc[frame["front"] != 0, "throughput_again_img_s"].isna().all()
    predicted = ~frame["is_fixed"] & frame["arch"].map(lambda text: _is_known(json.loads(text)))
    expected = (1.1 * frame["throughput_img_s"]).where(predicted)
    assert predicted.any()
    assert frame["throughput_predicted_img_s"].equals(expected)
    manifest = results.read_manifest(tmp_path / "run")
    assert (manifest["calibration"], manifest["conditions"]) == (Oracle().source, {"threads": 1})


@pytest.mark.slow
def test_with_more_trials_only_new_members_are_timed_again(tmp_path: Path) -> None:
    config, log = make_config(tmp_path / "log"), tmp_path / "log"
    fronts = []
    for trials in (1, 4, 8):
        run(tmp_path / "run", config, trials, recheck=True)
        frame = results.read_trials(tmp_path / "run")
        fronts.append(set(map(written, frame.loc[frame["front"] == 0, "arch"])))
        assert set(Counter(timed_again(log)).values()) == {1}
        assert set(timed_again(log)) == set().union(*fronts)
        assert set(map(written, frame.loc[frame["throughput_again_img_s"].notna(), "arch"])) == set().union(*fronts)
    assert fronts[0] != fronts[2]
    unchanged = run(tmp_path / "run", config, 8, recheck=True)
    assert (unchanged.started, unchanged.again) == ([], [])
    assert results.read_trials(tmp_path / "run").equals(frame)


@pytest.mark.slow
def test_a_front_without_speed_is_not_timed_again_and_nothing_is_unless_asked(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log", objectives=("proxy_score", "params"))
    assert run(tmp_path / "exact", config, 1, recheck=True).again == []
    assert run(tmp_path / "unasked", make_config(tmp_path / "log"), 1).again == []
    assert timed_again(tmp_path / "log") == []


@pytest.mark.slow
def test_a_timeout_still_has_the_front_timed_again(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log", settings={"phase_s": 0.1})
    listener = run(tmp_path / "run", config, 100, timeout=0.3, recheck=True)
    assert listener.state == "timeout"
    assert len(listener.again) == listener.tallies[-1].front_size > 0


@pytest.mark.slow
def test_time_is_kept_for_the_front_and_what_does_not_fit_is_missing(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log", settings={"phase_s": 0.2})
    fixed = {"van_b2": fixed_archs()["van_b2"]}
    listener = run(tmp_path / "run", config, 100, timeout=4.0, recheck=True, num_seeds=2, fixed=fixed)
    front = listener.tallies[-1].front_size
    assert (len(listener.again), len(listener.seeds)) == (front, front)
    assert listener.state == "timeout"
    trials = len(listener.finished_rows) - 1
    assert run(tmp_path / "run", config, trials, timeout=0.1, num_seeds=20, fixed=fixed).state == "timeout"
    missing = results.read_manifest(tmp_path / "run")["missing"]
    assert (missing["trials"], missing["again"]) == (0, 0)
    assert missing["seeds"] >= 17 * front


@pytest.mark.slow
def test_a_member_that_cannot_be_timed_again_stays_on_the_front_and_is_tried_again(tmp_path: Path) -> None:
    behaviours = ["well"] * len(fixed_archs()) + ["killed", "killed", "own_error"]
    config = make_config(tmp_path / "log", settings={"behaviours": behaviours}, objectives=("throughput_img_s", "macs"))
    listener = run(tmp_path / "run", config, 0, recheck=True, evaluator="misbehave")
    frame = results.read_trials(tmp_path / "run")
    assert (frame["state"] == "complete").all()
    reasons = [reason or "" for *_, reason in listener.again]
    assert "the worker process was killed" in reasons[0]
    assert all("the data are not images" in reason for reason in reasons[1:])
    assert frame["throughput_again_img_s"].isna().all()
    assert run(tmp_path / "run", config, 0, recheck=True, evaluator="misbehave").again == [
        (*member, None) for *member, _ in listener.again
    ]


class _Interrupting(RecordingListener):
    """Presses Ctrl-C when the first member has been timed again and the second is being timed."""

    def progress(self, event: Any) -> None:
        super().progress(event)
        if self.again and event["phase"] == "again":
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
def test_ctrl_c_while_the_front_is_timed_again_keeps_what_was(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log", settings={"phase_s": 0.05})
    listener = run(tmp_path / "run", config, 3, recheck=True, listener=_Interrupting())
    assert (listener.state, len(listener.again)) == ("interrupted", 1)
    assert results.read_manifest(tmp_path / "run")["state"] == "interrupted"
    (_, _, total, _), *_ = listener.again
    kept = int(results.read_trials(tmp_path / "run")["throughput_again_img_s"].notna().sum())
    more = run(tmp_path / "run", config, 3, recheck=True)
    assert more.state == "complete"
    assert [place for _, place, _, _ in more.again] == list(range(kept + 1, total + 1))
    assert max(Counter(timed_again(tmp_path / "log")).values()) == 1


@pytest.mark.slow
def test_kill_9_while_the_front_is_timed_again_loses_only_the_timing_in_progress(tmp_path: Path) -> None:
    folder, log, phase_s = tmp_path / "run", tmp_path / "log", 0.15
    for kills in (1, 2):
        driver = start(folder, log, 4, phase_s, "recheck")
        wait_until(lambda: len(timed_again(log)) >= kills)  # noqa: B023  # waited for at once
        driver.kill()
        driver.communicate(timeout=20)
        wait_until(lambda: not is_running(int(next(words[3] for words in reversed(noted(log)) if words[0] == "start"))))
    output, _ = start(folder, log, 4, phase_s, "recheck").communicate(timeout=60)
    assert output == "complete\n"
    frame = results.read_trials(folder)
    front = frame[frame["front"] == 0]
    assert front["throughput_again_ratio"].notna().all()
    assert set(timed_again(log)) == set(map(written, front["arch"]))
    assert len(timed_again(log)) - len(front) <= 2, "a kill costs at most the timing in progress"
    others = Counter((words[1], words[2]) for words in noted(log) if words[0] == "end" and words[2] != "again")
    assert set(others.values()) == {1}


# The display


def test_the_display_shows_the_prediction_and_the_progress_of_the_second_timing(tmp_path: Path) -> None:
    row: results.Row = {
        "trial": 7,
        "paper": None,
        "architecture": "lka 64x3",
        "macs": 4_600_000_000,
        "params": 28_000_000,
    }
    row |= {"state": "complete", "is_fixed": False, "reused_from": None, "proxy_score": 0.75, "seconds_throughput": 2.0}
    row |= {"throughput_img_s": 20.0, "throughput_predicted_img_s": 21.5, "throughput_change": None}
    timed = {**row, "throughput_again_img_s": 19.0, "throughput_change": -0.05}
    tally = Tally(ended=1, failed=0, total=1, front_size=3)
    clock = TimeLeft(make_config(tmp_path / "log"), rechecks=True)
    panel = LiveListener("results/one", "hybrid", clock)
    log = Console(file=io.StringIO(), width=80, record=True, markup=False)
    panel.trial_started(row, tally)
    log.print(panel.render())
    assert "trial 7, 4.60G MACs, predicted 21.5 img/s, lka 64x3" in log.export_text()
    panel.trial_finished(row, tally)
    panel.again_started(row, 3, 6)
    panel.progress({"event": "progress", "phase": "again", "text": "warming up"})
    log.print(panel.render())
    shown = log.export_text()
    assert "measuring the front again 3/6: trial 7, 4.60G MACs, lka 64x3" in shown
    assert "timing the full model again, warming up" in shown
    assert "20.0 img/s (predicted 21.5)" in shown
    panel.again_finished(timed, 3, 6, None)
    log.print(panel.render())
    assert "trial 7, 20.0 img/s, now 19.0, -5.0% against the reference: lka 64x3" in log.export_text()
    PlainListener(log, clock).again_finished(row, 4, 6, "out of memory")
    assert "[front again 4/6] trial 7 could not be measured again (out of memory): lka 64x3" in log.export_text()


# Agreement of two orders


def test_tau_of_the_textbooks_example_and_by_counting_pairs() -> None:
    assert kendall_tau([12, 2, 1, 12, 2], [1, 4, 7, 1, 0]) == pytest.approx(-0.4714045207910316)  # SciPy's manual
    rng = random.Random(0)
    first, second = ([rng.random() for _ in range(30)] for _ in range(2))
    pairs = list(itertools.combinations(range(30), 2))
    same = sum((first[i] < first[j]) == (second[i] < second[j]) for i, j in pairs)
    assert kendall_tau(first, second) == pytest.approx(2 * same / len(pairs) - 1)
    assert kendall_tau([1, 2, 3], [4, 5, 9]) == 1
    assert math.isnan(kendall_tau([1.0], [2.0]))
    assert math.isnan(kendall_tau([1, 1], [2, 3]))
