"""Runs for tests: a configuration of the default space, a recording listener, and a driver in its own process."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from archsearch.results import Row
from archsearch.search import Driver, Job, Pool, ProcessWorker, RunConfig, State, Tally, Workers, open_run
from archsearch.search.earlier_runs import read_donors
from archsearch.search.engine.driver import Predictor
from archsearch.search.engine.workers.base import Emit, Event
from archsearch.search.engine.workers.process import wait_for_processes
from archsearch.space import Arch, load_space, paper

Document = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
BUDGET = 4_500_000_000
FIXED = ("van_b2", "davit_tiny")


def one_stage(keys: str) -> str:
    """The text of a space of one stage with these keys, for images of 224 pixels."""
    return f"""
image_size = 224
num_classes = 10
[stem]
kind = "patch"
patch = {{ kernel = 4, pad = false }}
[[stages]]
{keys}
[head]
kind = "pool"
pool = {{ norm = "before" }}
"""


def make_config(log: Path, *, settings: Mapping[str, Any] | None = None, **changes: Any) -> RunConfig:
    """The default space at 4.5G +- 5 %, evaluated by a stub that writes to `log`."""
    space = load_space("hybrid")
    conditions = {
        "device": "cpu",
        "dtype": "float32",
        "mode": "eager",
        "batch_size": 1,
        "image_size": 224,
        "proxy_id": "stub",
    }
    values: dict[str, Any] = {
        "name": "test",
        "space_name": "hybrid",
        "space_text": space.text,
        "budget_macs": BUDGET,
        "tolerance": 0.05,
        "settings": {
            **conditions,
            "proxy": {"recipe": {"steps": 400, "batch_size": 32}},
            "log": str(log),
            **(settings or {}),
        },
        "sampler": "random",
        "papers": FIXED,
    }
    return RunConfig(**{**values, **changes})


def make_rung_config(log: Path, *, settings: Mapping[str, Any] | None = None, **changes: Any) -> RunConfig:
    """`make_config` with rungs of 25, 100 and 400 steps."""
    lower = [{"steps": steps, "source": {"kind": "stub"}, "proxy_id": f"stub@{steps}"} for steps in (25, 100)]
    proxy = {"recipe": {"steps": 400, "batch_size": 32}, "rungs": lower}
    return make_config(log, settings={"proxy": proxy, **(settings or {})}, **{"rungs": (1, 4, 16), **changes})


@dataclass
class RecordingListener:
    """A listener that keeps every call."""

    started: list[Row] = field(default_factory=list)
    events: list[Mapping[str, Any]] = field(default_factory=list)
    finished_rows: list[Row] = field(default_factory=list)
    tallies: list[Tally] = field(default_factory=list)
    again: list[tuple[int, int, int, str | None]] = field(default_factory=list)
    remeasured: list[tuple[int, int, int, str | None]] = field(default_factory=list)
    seeds: list[tuple[int, int, int, str | None]] = field(default_factory=list)
    state: str = ""

    def trial_started(self, row: Row, tally: Tally) -> None:
        self.started.append(row)

    def progress(self, event: Mapping[str, Any]) -> None:
        self.events.append(event)

    def trial_finished(self, row: Row, tally: Tally) -> None:
        self.finished_rows.append(row)
        self.tallies.append(tally)

    def remeasure_started(self, row: Row, place: int, total: int) -> None:
        self.started.append(row)

    def remeasure_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        self.remeasured.append((row["trial"], place, total, reason))

    def again_started(self, row: Row, place: int, total: int) -> None:
        self.started.append(row)

    def again_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        self.again.append((row["trial"], place, total, reason))

    def seed_started(self, row: Row, place: int, total: int) -> None:
        self.started.append(row)

    def seed_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        self.seeds.append((row["trial"], place, total, reason))

    def finished(self, state: State, tally: Tally) -> None:
        self.state = state
        self.tallies.append(tally)


class InProcessWorker:
    """A worker that evaluates in this process, at once: for tests of what the driver makes of the results, without seconds for a process."""

    def __init__(self, evaluator: Callable[[Document, Document, Document, Emit], None]) -> None:
        self._evaluator = evaluator
        self._events: list[Event] = []

    def submit(self, job: Job) -> None:
        def emit(event: Event) -> None:
            if event["event"] == "phase":
                event["values"] = {**event["values"], "seconds": 0.0}
            self._events.append({**json.loads(json.dumps(event)), "trial": job.trial})

        self._evaluator(job.arch, job.settings, job.done, emit)
        self._events.append({"event": "done", "trial": job.trial})

    @property
    def capacity(self) -> int:
        return 1

    def end(self, trial: int, reason: str) -> None:
        raise AssertionError("an evaluation here has ended when `submit` returns")

    def events(self, timeout: float) -> list[Event]:
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        pass


def make_pool(folder: Path, number: int = 3, evaluator: str = "evaluate") -> Pool[ProcessWorker]:
    """Worker processes `cpu 0`, `cpu 1` and so on, with a stub."""
    members = [
        ProcessWorker(folder / "worker.log", f"support.stub_evaluators:{evaluator}", name=f"cpu {place}")
        for place in range(number)
    ]
    return Pool(members, wait_for_processes)


def run(
    folder: Path,
    config: RunConfig,
    trials: int,
    *,
    evaluator: str = "evaluate",
    fixed: Mapping[str, Arch] | None = None,
    timeout: float | None = None,
    storage_url: str | None = None,
    recheck: bool = False,
    here: Mapping[str, Any] | None = None,
    remeasure: bool = False,
    num_seeds: int = 1,
    predictor: Predictor | None = None,
    listener: RecordingListener | None = None,
    worker: Workers | None = None,
    stall_s: float | None = None,
    earlier: Sequence[Path] = (),
) -> RecordingListener:
    """A whole run in this process, its evaluations in a real worker unless another is given; `here` are the conditions of the machine that it says to be on."""
    listener = listener or RecordingListener()
    donors = read_donors(earlier, config, folder)
    with open_run(folder, config, storage_url, donors=donors) as store:
        if here is not None:
            store.measure_here(here, remeasure=remeasure)
        worker = worker or ProcessWorker(folder / "worker.log", f"support.stub_evaluators:{evaluator}")
        driver = Driver(
            config,
            store,
            worker,
            listener,
            fixed=fixed,
            command=["test"],
            recheck=recheck,
            remeasure=remeasure,
            num_seeds=num_seeds,
            predictor=predictor,
            stall_s=stall_s,
        )
        driver.run(trials, timeout)
    return listener


def start(folder: Path, log: Path, trials: int, phase_s: float, *words: str) -> "subprocess.Popen[str]":
    """A whole run in its own process and process group, as a shell would start it; `words` are drive.py's."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    program = str(ROOT / "tests" / "support" / "drive.py")
    arguments = [sys.executable, program, str(folder), str(log), str(trials), str(phase_s), *words]
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until `condition()` holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"did not happen within {seconds} s"
        time.sleep(0.01)


def fixed_archs() -> dict[str, Arch]:
    """The fixed trials of `make_config`."""
    return {name: paper(name) for name in FIXED}
