"""What `workers/base.py` promises, kept by every kind of workers, whatever the evaluations do."""

import math
import multiprocessing
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.faults import BIG
from support.runs import ROOT, is_running, wait_until
from support.stub_evaluators import noted

from archsearch.search import Job, Pool, ProcessWorker, RayWorkers, Workers
from archsearch.search.engine.workers.base import KILLED, Event
from archsearch.search.engine.workers.process import wait_for_processes

Make = Callable[..., Workers]
ACT = "support.faults:act"
PHASES = ("count", "throughput", "proxy")


def make_process(folder: Path, evaluator: str = ACT) -> Workers:
    return ProcessWorker(folder / "worker.log", evaluator)


def make_pool(folder: Path, evaluator: str = ACT) -> Workers:
    members = [ProcessWorker(folder / "worker.log", evaluator, name=name) for name in ("cpu 0", "cpu 1")]
    return Pool(members, wait_for_processes)


def make_ray(folder: Path, evaluator: str = ACT) -> Workers:
    workers = RayWorkers(os.environ["RAY_ADDRESS"], evaluator, limit=2)
    wait_for_all(workers)
    return workers


def wait_for_all(workers: Workers) -> None:
    """Actors that died are replaced only while events are read."""
    if isinstance(workers, RayWorkers):
        wait_until(lambda: workers.events(0.1) == [] and workers.capacity == 2)


KINDS: dict[str, Make] = {"process": make_process, "pool": make_pool, "ray": make_ray}


# Ray leaves pipes of its processes to the garbage collector.
QUIET = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore:unclosed:ResourceWarning")


@pytest.fixture(scope="module", params=["process", "pool", pytest.param("ray", marks=QUIET)])
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """With --whole also Ray, on a cluster with cores for two pairs of workers at once."""
    if request.param != "ray":
        yield request.param
        return
    if not request.config.getoption("--whole"):
        pytest.skip("a cluster takes long to start, and an actor that died to replace; --whole runs it")
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.chdir(folder)  # Ray's processes import from the driver's folder first
        patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        cluster.add_node(num_cpus=4)
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield "ray"
        cluster.shutdown()  # type: ignore[no-untyped-call]  # Ray has no types here


@pytest.fixture(scope="module")
def kept_workers(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """The same workers for all faults, one after the other: each must leave them as good as new. At the end no process is left."""
    folder = tmp_path_factory.mktemp(kind)
    found = KINDS[kind](folder)
    yield found
    found.close()
    assert multiprocessing.active_children() == []


@pytest.fixture
def workers(kept_workers: Workers) -> Workers:
    wait_for_all(kept_workers)
    return kept_workers


class Jobs:
    """Submits jobs of trials that count up, and keeps a log of what they did."""

    def __init__(self, folder: Path) -> None:
        self.log, self._number = folder / "log", 0

    def next(self, trial: int | None = None, **settings: Any) -> Job:
        self._number += trial is None
        return Job(
            trial=self._number if trial is None else trial,
            arch={"name": "x"},
            settings={"log": str(self.log), **settings},
            done={},
        )

    def pids(self) -> list[int]:
        """The processes that the jobs began in, in order."""
        return [int(words[1]) for words in noted(self.log) if words[0] == "begin"]


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path)


def read(workers: Workers, *trials: int, seconds: float = 30) -> dict[int, list[Event]]:
    """The events of these trials until the last one of each has come, by trial; those of others are an error."""
    found: dict[int, list[Event]] = {trial: [] for trial in trials}
    deadline = time.monotonic() + seconds
    while not all(events and is_last(events[-1]) for events in found.values()):
        assert time.monotonic() < deadline, f"no end after {seconds} s: {found}"
        for event in workers.events(0.1):
            found[event["trial"]].append(event)
    return found


def is_last(event: Event) -> bool:
    return event["event"] in ("done", "failed")


def carry_out(workers: Workers, job: Job) -> list[Event]:
    """All events of a job: one last event, at the end, and none of the job afterwards."""
    workers.submit(job)
    events = read(workers, job.trial)[job.trial]
    assert workers.events(0) == []
    assert [is_last(event) for event in events] == [False] * (len(events) - 1) + [True]
    return events


def group(leader: int) -> list[int]:
    """The processes of a worker: itself and those that its evaluation started."""
    stats = [path.parent for path in Path("/proc").glob("[0-9]*/stat")]
    return [pid for pid in (int(path.name) for path in stats) if is_running(pid) and pgid(pid) == leader]


def pgid(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def assert_well(workers: Workers, jobs: Jobs) -> None:
    """As many evaluations as there are workers go well at once, so also where something has gone wrong before."""
    wait_for_all(workers)
    submitted = [jobs.next() for _ in range(workers.capacity)]
    for job in submitted:
        workers.submit(job)
    for events in read(workers, *(job.trial for job in submitted)).values():
        assert [event["event"] for event in events] == ["progress", "phase"] * 3 + ["done"]


def test_events_of_a_job_come_in_order_with_their_values(workers: Workers, jobs: Jobs) -> None:
    events = carry_out(workers, jobs.next(phase_s=0.01))
    assert [event.get("phase") for event in events] == [phase for phase in PHASES for _ in range(2)] + [None]
    assert [event["event"] for event in events] == ["progress", "phase"] * 3 + ["done"]
    measured = {event["phase"]: event["values"] for event in events if event["event"] == "phase"}
    assert measured["count"]["macs_fvcore"] == 1
    assert 0 <= measured["proxy"]["proxy_score"] < 1
    assert measured["throughput"]["conditions"] == {"threads": 1}
    assert all(values["seconds"] >= 0.01 for values in measured.values())
    assert all(type(event["trial"]) is int for event in events)


def test_as_many_jobs_are_under_way_as_the_capacity_says(workers: Workers, jobs: Jobs) -> None:
    submitted = [jobs.next(act="hang") for _ in range(workers.capacity)]
    for job in submitted:
        workers.submit(job)
    wait_until(lambda: len(jobs.pids()) == workers.capacity)
    assert len(set(jobs.pids())) == workers.capacity
    for job in submitted:
        workers.end(job.trial, "enough")
    ended = read(workers, *(job.trial for job in submitted))
    assert {events[-1]["reason"] for events in ended.values()} == {"enough"}
    assert_well(workers, jobs)


def test_a_trial_has_one_job_after_the_other(workers: Workers, jobs: Jobs) -> None:
    """As its stages do; a phase that was measured before is not measured again."""
    first = carry_out(workers, jobs.next(7, phases=["count"]))
    second = carry_out(workers, jobs.next(7, phases=["throughput", "proxy"]))
    skipped = Job(trial=7, arch={"name": "x"}, settings={"log": str(jobs.log)}, done={phase: {} for phase in PHASES})
    third = carry_out(workers, skipped)
    phases = [[event["phase"] for event in events if event["event"] == "phase"] for events in (first, second, third)]
    assert phases == [["count"], ["throughput", "proxy"], []]


# What an evaluation may do, and the reason that its trial fails for; a name of a module, a line, may be in between.
FAULTS = {
    "killed": rf"{KILLED}.*SIGKILL.*",
    "terminated": rf"{KILLED}.*SIGHUP.*",
    "die_beside_a_child": rf"{KILLED}.*SIGKILL.*",
    "segfault": r".*crashed.*SIGSEGV.*",
    "exit_code": r".*ended by itself with exit code 3.*",
    "system_exit": r"SystemExit: enough .*",
    "interrupt": r"KeyboardInterrupt.*",
    "unexpected": r"ZeroDivisionError: no such quotient .*",
    "own_error": r"the data are not images",
    "unknown_column": r"ValueError: phase proxy measured proxy_scor, which is no column .*",
    "device_lost": r"ValueError: throughput: stages.1 at batch 128, 224 px: it failed .*",
    "out_of_memory": r"MemoryError.*",
    "device_out_of_memory": r"RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 .*",
    "close_pipes": r".*broke off its connection.*",
    "close_pipes_and_end": r".*ended by itself with exit code 1.*",
    "garbage": r".*broke off its connection.*",
    "not_json": r"TypeError: .*set is not JSON serializable.*",
    "not_a_column": r"ArrowInvalid: .*",
}
# An actor evaluates in a thread of its process, which Ray watches: how it died is in Ray's words, and the driver has it done once more.
DEATHS = dict.fromkeys(("killed", "segfault", "exit_code"), rf"{KILLED}: .*")
# These act on the main thread, or on the descriptors of a process of ours; Ray's has its own, and a child that has them hides its death.
NOT_ON_RAY = {"terminated", "die_beside_a_child", "close_pipes", "close_pipes_and_end", "garbage"}
# In the gate: all but one that is waited for long in one process; of several, what ends a process in three ways and what does not.
IN_GATE = {"process": FAULTS.keys() - {"garbage"}, "pool": {"killed", "segfault", "device_lost", "own_error"}}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_its_own_job_alone(
    request: pytest.FixtureRequest, kind: str, workers: Workers, jobs: Jobs, fault: str
) -> None:
    if fault not in IN_GATE.get(kind, ()) and not request.config.getoption("--whole"):
        pytest.skip("--whole runs it")
    if kind == "ray" and fault in NOT_ON_RAY:
        pytest.skip("of workers in processes of ours")
    beside = jobs.next(phase_s=0.1) if workers.capacity > 1 else None
    if beside is not None:
        workers.submit(beside)
    job = jobs.next(act=fault)
    workers.submit(job)
    found = read(workers, *(each.trial for each in (beside, job) if each))
    if beside is not None:
        assert [event["event"] for event in found[beside.trial]] == ["progress", "phase"] * 3 + ["done"]
    *counted, failed = found[job.trial]
    if kind != "ray" or fault not in DEATHS:  # what an actor has not sent when it dies, a millisecond later, is lost
        assert [event["values"]["macs_fvcore"] for event in counted] == [1], "what was measured before is kept"
    assert failed["event"] == "failed"
    reasons = FAULTS | DEATHS if kind == "ray" else FAULTS
    assert re.fullmatch(reasons[fault], failed["reason"]), failed["reason"]
    assert workers.events(0) == []
    assert_well(workers, jobs)


def test_what_is_odd_and_no_fault(workers: Workers, jobs: Jobs) -> None:
    """Events of megabytes, as much printed, and a score that is no number: whether that fails a trial, the driver decides."""
    (event,) = carry_out(workers, jobs.next(act="big_event"))[1:-1]
    assert event["text"] == "x" * BIG
    (event,) = carry_out(workers, jobs.next(act="not_a_number"))[1:-1]
    assert math.isnan(event["values"]["proxy_score"])
    for act in ("print_much", "nothing"):
        assert [event["event"] for event in carry_out(workers, jobs.next(act=act))] == ["phase", "done"]


def test_no_event_of_a_job_follows_its_last_one(workers: Workers, jobs: Jobs) -> None:
    """Not even where a thread of it works on."""
    carry_out(workers, jobs.next(act="talk_on"))
    time.sleep(0.05)
    assert workers.events(0) == []
    assert_well(workers, jobs)
    time.sleep(0.4)


def test_a_job_of_megabytes_is_evaluated(workers: Workers, jobs: Jobs) -> None:
    assert carry_out(workers, jobs.next(text="x" * BIG))[-1]["event"] == "done"


@pytest.mark.parametrize("act", ["hang", "chatter", "start_program"])
def test_a_job_is_ended_in_the_middle(workers: Workers, jobs: Jobs, act: str) -> None:
    job = jobs.next(act=act)
    workers.submit(job)
    wait_until(jobs.pids)
    (pid,) = jobs.pids()
    workers.end(job.trial, "no progress for 10 min")
    workers.end(job.trial, "a second time")
    events = read(workers, job.trial)[job.trial]
    assert {**events[-1], "worker": ""} == {
        "event": "failed",
        "trial": job.trial,
        "reason": "no progress for 10 min",
        "worker": "",
    }
    assert [is_last(event) for event in events].count(True) == 1
    assert_well(workers, jobs)
    wait_until(lambda: not group(pid))


def test_a_job_is_ended_before_it_has_started(workers: Workers, jobs: Jobs) -> None:
    """Some at once, some while they wait for a worker or its process is still starting."""
    submitted = [jobs.next(act="hang") for _ in range(workers.capacity)]
    for job in submitted:
        workers.submit(job)
        workers.end(job.trial, "not wanted")
    found = read(workers, *(job.trial for job in submitted))
    assert [events[-1]["reason"] for events in found.values()] == ["not wanted"] * len(submitted)
    assert_well(workers, jobs)


def test_what_is_not_under_way_cannot_be_ended(workers: Workers, jobs: Jobs) -> None:
    job = jobs.next()
    carry_out(workers, job)
    workers.end(job.trial, "too late")
    workers.end(10**6, "unknown")
    assert workers.events(0) == []
    assert_well(workers, jobs)


def test_a_job_that_has_ended_but_was_not_read_has_ended_well(workers: Workers, jobs: Jobs) -> None:
    job = jobs.next()
    workers.submit(job)
    wait_until(lambda: len(noted(jobs.log)) == 7)
    time.sleep(0.2)
    workers.end(job.trial, "too late")
    assert [event["event"] for event in read(workers, job.trial)[job.trial]][-2:] == ["phase", "done"]


def test_a_job_that_was_done_when_its_process_was_killed_is_done(workers: Workers, jobs: Jobs) -> None:
    job = jobs.next()
    workers.submit(job)
    wait_until(lambda: len(noted(jobs.log)) == 7)
    time.sleep(0.2)
    os.kill(jobs.pids()[0], signal.SIGKILL)
    time.sleep(0.2)
    assert [event["event"] for event in read(workers, job.trial)[job.trial]] == ["progress", "phase"] * 3 + ["done"]
    # Ray notices an idle actor's death at its next job, which the driver has done once more.
    if not isinstance(workers, RayWorkers):
        assert_well(workers, jobs)


def test_a_worker_that_died_idle_costs_nothing(workers: Workers, jobs: Jobs) -> None:
    if isinstance(workers, RayWorkers):
        pytest.skip("Ray notices it at the next job, which the driver has done once more")
    assert_well(workers, jobs)
    for pid in set(jobs.pids()):
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.2)
    assert_well(workers, jobs)


def test_an_evaluation_that_cannot_be_imported_fails_every_job(kind: str, jobs: Jobs, tmp_path: Path) -> None:
    workers = KINDS[kind](tmp_path, "support.no_such_module:evaluate")
    try:
        for _ in range(2):
            (failed,) = carry_out(workers, jobs.next())
            assert "No module named 'support.no_such_module'" in failed["reason"]
    finally:
        workers.close()


def test_close_stops_at_once_in_the_middle_and_a_second_time_does_nothing(
    kind: str, jobs: Jobs, tmp_path: Path
) -> None:
    workers = KINDS[kind](tmp_path)
    for _ in range(workers.capacity):
        workers.submit(jobs.next(act="start_program"))
    wait_until(lambda: len(jobs.pids()) == workers.capacity)
    pids = jobs.pids()
    assert all(map(is_running, pids))
    workers.close()
    workers.close()
    workers.end(1, "too late")
    assert workers.events(0) == []
    wait_until(lambda: not any(map(group, pids)))
