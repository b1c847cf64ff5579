"""The engine with real worker processes: order, failures, reuse, interrupts, files, full disks."""

import json
import multiprocessing
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.runs import FIXED, RecordingListener, fixed_archs, is_running, make_config, run, start, wait_until
from support.stub_evaluators import fraction, noted

from archsearch import results
from archsearch.errors import RunError, UserError
from archsearch.report import build_report, report_parts
from archsearch.search import Driver, Job, ProcessWorker, load_run, open_run


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def test_a_run_from_fixed_trials_to_files(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log", sampler="tpe")
    listener = run(tmp_path / "run", config, 3)
    frame = results.read_trials(tmp_path / "run")
    assert frame["trial"].tolist() == [0, 1, 2, 3, 4]
    assert frame["paper"].tolist()[:2] == list(FIXED)
    assert frame["is_fixed"].tolist() == [True, True, False, False, False]
    assert (frame["state"] == "complete").all()
    assert frame["macs"].tolist()[:2] == [arch.cost().macs for arch in fixed_archs().values()]
    band = config.bounds.macs
    assert band is not None
    assert frame.loc[~frame["is_fixed"], "macs"].between(band.low, band.high).all()
    for row in frame.itertuples():
        assert row.proxy_score == fraction(json.loads(str(row.arch)), "proxy")
        assert row.conditions == '{"threads": 1}'
    front = results.read_front(tmp_path / "run")
    assert set(front.loc[front["front_name"] == "objectives", "trial"]) == set(frame.loc[frame["front"] == 0, "trial"])
    assert (
        [row["trial"] for row in listener.started]
        == [row["trial"] for row in listener.finished_rows]
        == [0, 1, 2, 3, 4]
    )
    assert [tally.ended for tally in listener.tallies] == [1, 2, 3, 4, 5, 5]
    assert {(tally.total, tally.failed) for tally in listener.tallies} == {(5, 0)}
    assert listener.state == "complete"
    assert {event["event"] for event in listener.events} == {"progress", "phase"}


def test_the_manifest_says_what_was_run(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log")
    run(tmp_path / "run", config, 1)
    manifest = results.read_manifest(tmp_path / "run")
    assert {
        key: manifest[key] for key in ("name", "command", "budget_macs", "tolerance", "band", "sampler", "seed")
    } == {
        "name": "test",
        "command": ["test"],
        "budget_macs": 4_500_000_000,
        "tolerance": 0.05,
        "band": [4_275_000_000, 4_725_000_000],
        "sampler": "random",
        "seed": 0,
    }
    assert (manifest["state"], manifest["trials"], manifest["papers"]) == ("complete", 1, list(FIXED))
    assert manifest["space"] == {"name": "hybrid", "sha256": config.space_sha256}
    assert manifest["settings"]["proxy"] == {"recipe": {"steps": 400, "batch_size": 32}}
    assert (manifest["proxy_id"], manifest["conditions"]) == ("stub", {"threads": 1})
    assert {"archsearch", "torch", "optuna", "python"} <= manifest["versions"].keys()
    assert manifest["created_at"] <= manifest["updated_at"]
    assert (tmp_path / "run" / "space.toml").read_text() == config.space_text


def test_continuing_with_more_trials_measures_only_those(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log")
    run(tmp_path / "run", config, 1)
    first = results.read_trials(tmp_path / "run")
    listener = run(tmp_path / "run", config, 3)
    frame = results.read_trials(tmp_path / "run")
    assert [row["trial"] for row in listener.started] == [3, 4]
    assert listener.tallies[0].ended == 4
    assert frame.drop(columns="front").head(3).equals(first.drop(columns="front"))
    assert len(noted(tmp_path / "log")) == 5 * 6
    assert run(tmp_path / "run", config, 2).started == []
    assert len(results.read_trials(tmp_path / "run")) == 5


def test_damaged_files_are_written_again(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log")
    run(tmp_path / "run", config, 1)
    before = results.read_trials(tmp_path / "run")
    (tmp_path / "run" / "trials.parquet").write_bytes(b"PAR1")
    (tmp_path / "run" / "front.parquet").unlink()
    (tmp_path / "run" / "manifest.json").write_text("{")
    run(tmp_path / "run", config, 1)
    assert results.read_trials(tmp_path / "run").equals(before)
    assert len(results.read_front(tmp_path / "run"))
    assert results.read_manifest(tmp_path / "run")["state"] == "complete"


def test_what_was_measured_is_reused(tmp_path: Path) -> None:
    arch = fixed_archs()["van_b2"]
    listener = run(tmp_path / "run", make_config(tmp_path / "log"), 0, fixed={"one": arch, "two": arch})
    one, two = listener.finished_rows
    assert (one["reused_from"], two["reused_from"]) == (None, 0)
    assert (two["proxy_score"], two["throughput_img_s"]) == (one["proxy_score"], one["throughput_img_s"])
    assert (two["state"], two["front"], two["seconds_total"]) == ("complete", 0, 0.0)
    assert len(noted(tmp_path / "log")) == 6
    assert results.read_front(tmp_path / "run")["trial"].unique().tolist() == [0]


REASONS = {
    "killed": r"the worker process was killed \(signal 9, SIGKILL\), probably because the machine ran out of memory",
    "segfault": r"the worker process crashed \(signal 11, SIGSEGV\); worker.log may say more",
    "exit_code": r"the worker process ended by itself with exit code 3; worker.log may say more",
    "system_exit": r"SystemExit: enough \(stub_evaluators.py, line \d+, in _system_exit\)",
    "interrupt": r"KeyboardInterrupt: +\(stub_evaluators.py, line \d+, in _interrupt\)",
    "unexpected": r"ZeroDivisionError: no such quotient \(stub_evaluators.py, line \d+, in _unexpected\)",
    "own_error": r"the data are not images",
    "unknown_column": r"ValueError: phase proxy measured proxy_scor, which is no column .*",
    "nothing": r"the evaluation gave no proxy_score",
    "not_a_number": r"proxy_score is nan",
}


def test_a_failing_evaluation_costs_one_trial(tmp_path: Path) -> None:
    # A killed worker is tried again.
    behaviours = [word for behaviour in REASONS for word in (behaviour, "well")][: 2 * len(REASONS) - 1]
    trials = len(behaviours) - len(FIXED)
    settings = {"behaviours": ["killed", *behaviours]}
    run(tmp_path / "run", make_config(tmp_path / "log", settings=settings), trials, evaluator="misbehave")
    frame = results.read_trials(tmp_path / "run")
    failed = frame[frame["state"] == "failed"]
    assert failed["trial"].tolist() == list(range(0, len(frame), 2))
    for reason, pattern in zip(failed["reason"], REASONS.values(), strict=True):
        assert isinstance(reason, str)
        assert re.fullmatch(pattern, reason), reason
    assert failed["macs_fvcore"].tolist() == [1] * len(REASONS), "the phase before the failure is kept"
    assert failed["front"].isna().all()
    log = (tmp_path / "run" / "worker.log").read_text()
    assert "Segmentation fault" in log
    assert "Traceback" in log


def test_a_worker_killed_from_outside_is_tried_once_more(tmp_path: Path) -> None:
    settings = {"behaviours": ["killed", "well", "terminated", "killed", "well"]}
    config = make_config(tmp_path / "log", settings=settings)
    listener = run(tmp_path / "run", config, 1, evaluator="misbehave")
    rows = results.read_rows(tmp_path / "run")
    assert [row["state"] for row in rows] == ["complete", "failed", "complete"]
    assert rows[1]["reason"].startswith("the worker process was killed (signal ")
    assert [event["phase"] for event in listener.events].count("tried again") == 2
    # A paper's model that failed so is measured by the same command, once.
    again = [run(tmp_path / "run", config, 1, evaluator="misbehave") for _ in range(2)]
    assert [[row["paper"] for row in each.started] for each in again] == [[FIXED[1]], []]
    assert results.read_rows(tmp_path / "run")[3]["state"] == "complete"
    assert (again[0].tallies[-1].ended, again[0].tallies[-1].total) == (4, 4)


def test_after_a_cuda_error_the_next_trial_is_in_another_process(tmp_path: Path) -> None:
    """Every call of the process would fail from then on: the error ends it, also where another one was raised from it, and costs one trial."""
    config = make_config(tmp_path / "log", settings={"behaviours": ["well", "device_lost", "well"]})
    listener = run(tmp_path / "run", config, 1, evaluator="misbehave")
    rows = results.read_rows(tmp_path / "run")
    assert [row["state"] for row in rows] == ["complete", "failed", "complete"]
    assert str(rows[1]["reason"]).startswith("ValueError: throughput: stages.1 at batch 128, 224 px: it failed (")
    assert "tried again" not in [event["phase"] for event in listener.events]
    pids = [words[3] for words in noted(tmp_path / "log") if words[:1] == ["start"]]
    assert len(pids) == 6
    assert len(set(pids[:3])) == len(set(pids[3:])) == 1
    assert pids[0] != pids[3]


@pytest.mark.slow
def test_a_trial_that_kills_the_driver_is_tried_twice(tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    for _ in range(2):
        driver = start(folder, log, 1, 0.0, "kill_driver")
        driver.communicate(timeout=60)
        assert driver.returncode == -signal.SIGKILL
    driver = start(folder, log, 1, 0.0, "kill_driver")
    assert driver.communicate(timeout=60)[0] == "complete\n"
    rows = results.read_rows(folder)
    assert [row["state"] for row in rows] == ["failed", "complete", "complete"]
    assert rows[0]["reason"] == "the run was killed 2 times while it was evaluated; it is not tried again"
    assert [words[0] for words in noted(log)].count("kill") == 2


@pytest.mark.slow
def test_interrupted_starts_do_not_count_against_a_trial(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log", settings={"phase_s": 0.05})
    fixed = {"van_b2": fixed_archs()["van_b2"]}
    for _ in range(4):
        with open_run(tmp_path / "run", config) as store:
            worker = ProcessWorker(tmp_path / "run" / "worker.log", "support.stub_evaluators:evaluate")
            assert Driver(config, store, worker, _Interrupting(1), fixed=fixed, command=[]).run(0) == "interrupted"
    assert run(tmp_path / "run", config, 0, fixed=fixed).finished_rows[0]["state"] == "complete"


def test_when_every_trial_fails_the_run_does(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log", settings={"behaviours": ["own_error"] * 3})
    with pytest.raises(RunError, match=r"all 3 trials failed; the first because: the data are not images"):
        run(tmp_path / "run", config, 1, evaluator="misbehave")
    manifest = results.read_manifest(tmp_path / "run")
    assert manifest["state"] == "failed"
    assert "the data are not images" in manifest["reason"]
    assert len(results.read_trials(tmp_path / "run")) == 3


def test_an_evaluation_that_cannot_be_loaded_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"the evaluation cannot be loaded: AttributeError: .*no_such_thing"):
        run(tmp_path / "run", make_config(tmp_path / "log"), 0, evaluator="no_such_thing")


def test_no_new_trial_after_the_timeout(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log", settings={"phase_s": 0.1})
    listener = run(tmp_path / "run", config, 100, timeout=0.5)
    assert 1 <= len(listener.finished_rows) <= 3
    manifest = results.read_manifest(tmp_path / "run")
    assert listener.state == manifest["state"] == "timeout"
    assert manifest["missing"] == {"trials": 102 - len(listener.finished_rows), "anew": 0, "again": 0, "seeds": 0}


def test_a_run_that_has_all_its_trials_when_its_time_is_over_is_complete(tmp_path: Path) -> None:
    listener = run(
        tmp_path / "run", make_config(tmp_path / "log"), 0, timeout=1e-9, fixed={"van_b2": fixed_archs()["van_b2"]}
    )
    assert listener.state == "complete"
    assert not any(results.read_manifest(tmp_path / "run")["missing"].values())


class _Interrupting(RecordingListener):
    """Presses Ctrl-C at the n-th event of the run."""

    def __init__(self, at: int, times: int = 1) -> None:
        super().__init__()
        self._at, self._times = at, times

    def progress(self, event: Any) -> None:
        super().progress(event)
        if len(self.events) == self._at:
            for _ in range(self._times):
                os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("at", [1, 4, 6])
def test_ctrl_c_at_any_event_loses_nothing(tmp_path: Path, at: int) -> None:
    config = make_config(tmp_path / "log", settings={"phase_s": 0.01})
    listener = _Interrupting(at)
    fixed = {"van_b2": fixed_archs()["van_b2"]}
    before = signal.getsignal(signal.SIGINT)
    with open_run(tmp_path / "run", config) as store:
        worker = ProcessWorker(tmp_path / "run" / "worker.log", "support.stub_evaluators:evaluate")
        assert Driver(config, store, worker, listener, fixed=fixed, command=[]).run(1) == "interrupted"
        stored = set(store.phases(0))
    assert signal.getsignal(signal.SIGINT) is before
    assert stored >= {event["phase"] for event in listener.events if event["event"] == "phase"}
    assert results.read_manifest(tmp_path / "run")["state"] == "interrupted"
    assert run(tmp_path / "run", config, 0, fixed=fixed).state == "complete"
    starts = [words[2] for words in noted(tmp_path / "log") if words[0] == "start"]
    assert all(starts.count(phase) == 1 for phase in stored)
    assert (results.read_trials(tmp_path / "run")["state"] == "complete").all()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_a_job_schedulers_sigterm_stop_driver_and_worker(tmp_path: Path, number: signal.Signals) -> None:
    driver = start(tmp_path / "run", tmp_path / "log", 50, 0.1)
    wait_until(lambda: len(noted(tmp_path / "log")) >= 8, seconds=120)
    workers = {int(words[3]) for words in noted(tmp_path / "log") if words[0] == "start"}
    for worker in workers if number is signal.SIGTERM else ():  # a scheduler sends it to every process of a job
        os.kill(worker, number)
    os.killpg(driver.pid, number)
    output, _ = driver.communicate(timeout=20)
    assert (driver.returncode, output) == (0, "interrupted\n")
    assert not any(is_running(int(words[3])) for words in noted(tmp_path / "log") if words[0] == "start")
    assert results.read_trials(tmp_path / "run")["state"].tolist() == ["complete", "running"]
    assert results.read_manifest(tmp_path / "run")["state"] == "interrupted"


def test_an_error_of_the_driver_itself_is_a_failed_run_with_its_reason(tmp_path: Path) -> None:
    class Broken(RecordingListener):
        def trial_finished(self, row: Any, tally: Any) -> None:
            raise ZeroDivisionError("no such quotient")

    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "run", make_config(tmp_path / "log"), 1, listener=Broken())
    manifest = results.read_manifest(tmp_path / "run")
    assert (manifest["state"], manifest["reason"]) == ("failed", "no such quotient")
    assert manifest["missing"]["trials"] == 2


def test_a_killed_driver_leaves_a_run_that_is_said_to_be_killed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    driver = start(folder, tmp_path / "log", 50, 0.1)
    wait_until(lambda: len(noted(tmp_path / "log")) >= 8, seconds=120)
    assert load_run(folder).state == build_report(folder)["state"] == "running"
    driver.kill()
    driver.communicate(timeout=20)
    document = build_report(folder)
    assert load_run(folder).state == document["state"] == "killed"
    assert document["missing"]["trials"] == 52 - document["trials"]["complete"]
    shown = " ".join(str(part) for part in report_parts(document) if isinstance(part, str))
    assert "killed" in shown
    assert "go on with: test" in shown


def test_a_full_disk_stops_the_run_and_keeps_what_it_measured(tmp_path: Path) -> None:
    config = make_config(tmp_path / "log")
    run(tmp_path / "run", config, 2)
    whole = results.read_trials(tmp_path / "run")

    class Filling(RecordingListener):
        def trial_started(self, row: Any, tally: Any) -> None:
            super().trial_started(row, tally)
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, old[1]))

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with open_run(tmp_path / "run", config) as store:
            worker = ProcessWorker(tmp_path / "run" / "worker.log", "support.stub_evaluators:evaluate")
            with pytest.raises(UserError, match=r"everything measured .* is kept.* make room"):
                Driver(config, store, worker, Filling(), command=[]).run(5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert results.read_trials(tmp_path / "run").equals(whole)
    run(tmp_path / "run", config, 5)
    frame = results.read_trials(tmp_path / "run")
    assert len(frame) == 7
    assert (frame["state"] == "complete").all()


# The worker by itself


def last_event(worker: ProcessWorker) -> dict[str, Any]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for event in worker.events(0.1):
            if event["event"] in ("done", "failed"):
                return event
    raise AssertionError("no end after 20 s")


def make_job(log: Path, trial: int = 0, **settings: Any) -> Job:
    return Job(trial=trial, arch={"name": "x"}, settings={"log": str(log), **settings}, done={})


def test_a_worker_outlives_its_jobs_and_phases_done_are_skipped(tmp_path: Path) -> None:
    worker = ProcessWorker(tmp_path / "worker.log", "support.stub_evaluators:evaluate")
    pids = set()
    for trial in range(3):
        worker.submit(make_job(tmp_path / "log", trial))
        assert last_event(worker) == {"event": "done", "trial": trial}
        pids.add(worker.pid)
    worker.submit(Job(trial=3, arch={}, settings={"log": str(tmp_path / "log")}, done={"count": {}, "throughput": {}}))
    last_event(worker)
    worker.close()
    worker.close()
    assert len(pids) == 1
    assert [words[2] for words in noted(tmp_path / "log")][-2:] == ["proxy", "proxy"]


def test_a_worker_that_died_idle_costs_nothing(tmp_path: Path) -> None:
    worker = ProcessWorker(tmp_path / "worker.log", "support.stub_evaluators:evaluate")
    worker.submit(make_job(tmp_path / "log"))
    last_event(worker)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    time.sleep(0.2)
    worker.submit(make_job(tmp_path / "log", 1))
    assert last_event(worker) == {"event": "done", "trial": 1}
    worker.close()


def test_close_stops_an_evaluation_at_once(tmp_path: Path) -> None:
    worker = ProcessWorker(tmp_path / "worker.log", "support.stub_evaluators:evaluate")
    worker.submit(make_job(tmp_path / "log", phase_s=60.0))
    wait_until(lambda: noted(tmp_path / "log"))
    begin = time.monotonic()
    worker.close()
    assert time.monotonic() - begin < 1


def test_a_driver_in_a_thread_needs_no_signals(tmp_path: Path) -> None:
    listeners: list[RecordingListener] = []
    thread = threading.Thread(target=lambda: listeners.append(run(tmp_path / "run", make_config(tmp_path / "log"), 0)))
    thread.start()
    thread.join()
    assert listeners[0].state == "complete"
