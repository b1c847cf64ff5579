"""A run of many thousand trials: seconds to open it again, what a further trial costs the driver, its memory, and seconds of a report.

    python tests/benchmarks/scale.py [--trials 1000 10000] [--samplers random known-cost]

The study is filled by bulk inserts into Optuna's tables; then the run goes on with a stub that evaluates in no time.
"""

# ruff: noqa: E402  # the checkout comes first in the path, not an installed package

import argparse
import json
import os
import random
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from clock import Row, arguments, write
from optuna.distributions import CategoricalDistribution, distribution_to_json
from support.runs import BUDGET, RecordingListener, make_rung_config
from support.stub_evaluators import Document, Done, Emit, fraction

from archsearch.report import make_console, make_table, show
from archsearch.search import Driver, RunConfig, Tally, open_run
from archsearch.search.engine.workers.base import Event, Job
from archsearch.space import Arch, draw, load_space

NAME = "scale"
COLUMNS = (
    "trials",
    "sampler",
    "open s",
    "trial ms",
    "processor ms",
    "worst ms",
    "MiB",
    "report s",
    "report MiB",
    "front",
)
STEPS = (25, 100, 400)
DISTINCT = 2_000
START = datetime(2026, 1, 1, tzinfo=UTC)


# The stub, which runs in the worker's process.


def measure(phase: str, arch: Document) -> Document:
    """Speed against score with some noise; `phase` as the engine names it."""
    number = arch.get("name") or ""  # so that trials of one architecture differ
    slow = fraction(arch, f"slow{number}")
    if phase == "count":
        return {"macs_fvcore": BUDGET, "seconds": 0.7}
    if phase == "throughput":
        ratio = 0.2 + (1 - slow) ** 2 + 0.05 * fraction(arch, f"speed{number}")
        figures = {"throughput_img_s": 200 * ratio, "throughput_ratio": ratio, "latency_ms": 5 / ratio}
        spread = {"throughput_iqr": 0.01, "throughput_noisy": False, "throughput_drift": 0.002, "seconds": 7.1}
        return {**figures, **spread, "peak_memory_bytes": 10**9, "conditions": CONDITIONS}
    steps = int(phase.partition("@")[2] or STEPS[-1])
    final = 0.55 + 0.25 * slow**0.5 + 0.03 * (fraction(arch, f"score{number}") - 0.5)
    score = final - 5 / steps + (fraction(arch, phase) - 0.5) / steps
    return {"proxy_score": score, "proxy_score_se": 0.009, "proxy_train_loss": 1 - score, "seconds": 0.1 * steps}


def evaluate(arch: Document, settings: Document, done: Done, emit: Emit) -> None:
    """Every phase asked for, at once."""
    for phase in settings["phases"]:
        if phase not in done:
            emit({"event": "phase", "phase": phase, "values": measure(phase, arch)})


CONDITIONS: Document = {
    "device": "cpu",
    "device_name": "AMD EPYC 7763 64-Core Processor",
    "driver": None,
    "sm_clock_mhz": None,
    "throttle_bits": None,
    "cuda": None,
    "cudnn": None,
    "torch": "2.14.1+cpu",
    "torchvision": "0.29.1+cpu",
    "python": "3.11.9",
    "platform": "Linux-6.1.0-x86_64-with-glibc2.36",
    "host_cpu": "AMD EPYC 7763 64-Core Processor",
    "host_cores": 2,
    "threads": 2,
    "affinity": [0, 1],
    "tf32_matmul": False,
    "tf32_convolution": False,
    "cudnn_benchmark": False,
    "date": "2026-01-01T00:00:00+00:00",
    "reference": "davit_tiny",
    "blocks": 12,
}


class Inline:
    """A worker that evaluates at once, in the driver's process: no time but the driver's own is spent."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def submit(self, job: Job) -> None:
        """Evaluate it."""
        evaluate(job.arch, job.settings, job.done, lambda event: self._events.append({**event, "trial": job.trial}))
        self._events.append({"event": "done", "trial": job.trial})

    @property
    def capacity(self) -> int:
        """One."""
        return 1

    def end(self, trial: int, reason: str) -> None:
        """Nothing: a job has ended when `submit` returns."""

    def events(self, timeout: float) -> list[Event]:
        """All events."""
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Nothing to end."""


# Filling a study.


def make_config(folder: Path, sampler: str) -> RunConfig:
    """The default space with two rungs and the full training, without fixed trials."""
    return make_rung_config(Path("log"), sampler=sampler, papers=(), name=folder.name)


def fill(folder: Path, config: RunConfig, trials: int) -> None:
    """A run of so many ended trials: of 100 one failed, 59 were stopped at a rung, the others are complete; architectures repeat after DISTINCT."""
    with open_run(folder, config):
        pass
    space, rng = load_space("hybrid"), random.Random(0)
    texts = {
        name: distribution_to_json(CategoricalDistribution(choices)) for name, choices in space.parameters().items()
    }
    archs = [draw(space, config.bounds, rng) for _ in range(min(trials, DISTINCT))]
    tables: dict[str, list[tuple[Any, ...]]] = {statement: [] for statement in STATEMENTS}
    for number in range(trials):
        params, arch = archs[number % len(archs)]
        values = {name: (texts[name], list(space.parameters()[name]).index(value)) for name, value in params.items()}
        for statement, rows in trial_rows(number, arch, values).items():
            tables[statement] += rows
    with sqlite3.connect(folder / "study.db") as connection:
        for statement, rows in tables.items():
            connection.executemany(statement, rows)
    connection.close()


TRIALS = "INSERT INTO trials VALUES (?, ?, 1, ?, ?, ?)"
ATTRIBUTES = "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (?, ?, ?)"
PARAMS = "INSERT INTO trial_params (trial_id, param_name, distribution_json, param_value) VALUES (?, ?, ?, ?)"
VALUES = "INSERT INTO trial_values (trial_id, objective, value, value_type) VALUES (?, ?, ?, 'FINITE')"
STATEMENTS = (TRIALS, ATTRIBUTES, PARAMS, VALUES)


def trial_rows(number: int, arch: Arch, params: dict[str, tuple[str, int]]) -> dict[str, list[tuple[Any, ...]]]:
    """One trial in Optuna's tables, as the engine stores it; figures differ from trial to trial of an architecture."""
    document, cost, key = {**arch.to_dict(), "name": str(number)}, arch.cost(), number + 1
    start = START + timedelta(minutes=number)
    kind = number % 100
    state = "FAIL" if kind == 0 else "PRUNED" if kind < 60 else "COMPLETE"
    rungs = {"FAIL": 0, "PRUNED": 1 + kind % 2, "COMPLETE": 3}[state]
    phases = ["count", "throughput", *[f"proxy@{steps}" for steps in STEPS[:-1]], "proxy"][: 2 + rungs]
    figures = {phase: measure(phase, document) for phase in phases}
    candidate = {
        "arch_id": f"{number:012x}",
        "architecture": arch.describe(),
        "macs": cost.macs,
        "params": cost.params,
        "is_fixed": False,
        "paper": None,
        "in_band": True,
        "reused_from": None,
        "started_at": start.isoformat(timespec="milliseconds"),
        "archsearch_version": "0.1.0",
        "torch_version": "2.14.1",
        "python_version": "3.11.9",
        "throughput_predicted_img_s": None,
    }
    reason = {
        "FAIL": "throughput: out of memory on cpu",
        "PRUNED": "after 25 of 400 training steps: trial 12 is better",
    }
    scores = {f"{steps}": figures[phase]["proxy_score"] for steps, phase in zip(STEPS, phases[2:], strict=False)}
    speed = figures["throughput"]["throughput_img_s"]
    attrs = {
        "arch": document,
        "candidate": candidate,
        "learning_curve": scores,
        **{f"phase:{phase}": values for phase, values in figures.items()},
        **({"measured": {"1": speed, "2": cost.params}} if state == "PRUNED" else {}),
        "outcome": {"reason": reason.get(state), "finished_at": start.isoformat(timespec="milliseconds")},
    }
    day = start.replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")
    values = (figures["proxy"]["proxy_score"], speed, cost.params) if state == "COMPLETE" else ()
    return {
        TRIALS: [(key, number, state, day, day)],
        ATTRIBUTES: [(key, name, json.dumps(value)) for name, value in attrs.items()],
        PARAMS: [(key, name, *value) for name, value in params.items()],
        VALUES: [(key, place, value) for place, value in enumerate(values)],
    }


# Measuring, in a process of its own.


class Clock(RecordingListener):
    """Keeps when each trial ended, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[tuple[float, float]] = []

    def trial_started(self, row: Row, tally: Tally) -> None:
        """Nothing to note."""

    def progress(self, event: Any) -> None:
        """Nothing to note."""

    def trial_finished(self, row: Row, tally: Tally) -> None:
        """The time, and the processor time of the driver."""
        self.ends.append((time.perf_counter(), time.process_time()))
        self.front = tally.front_size


def go_on(folder: Path, sampler: str, new: int, timeout_s: float) -> Row:
    """Open the run and evaluate `new` further trials, or as many as end in the time."""
    config, clock = make_config(folder, sampler), Clock()
    start, used = time.perf_counter(), time.process_time()
    with open_run(folder, config) as store:
        opened, open_used = time.perf_counter(), time.process_time() - used
        driver = Driver(config, store, Inline(), clock, fixed={}, command=[])
        driver.run(len(store.rows()) + new, timeout_s)
    spans = [(1e3 * (after[0] - before[0]), 1e3 * (after[1] - before[1])) for before, after in pairwise(clock.ends)]
    wall, used_ms = zip(*spans, strict=True)
    return {
        "open_s": opened - start,
        "open_processor_s": open_used,
        "first_s": clock.ends[0][0] - opened,
        "trial_ms": statistics.fmean(wall),
        "median_ms": statistics.median(wall),
        "processor_median_ms": statistics.median(used_ms),
        "processor_ms": statistics.fmean(used_ms),
        "max_ms": max(wall),
        "new": len(wall) + 1,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "front": clock.front,
    }


def in_process(*words: object) -> tuple[str, float, float]:
    """What a command prints, the seconds that it took, and its peak memory in MiB."""
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    process = subprocess.Popen([sys.executable, *map(str, words)], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{words}: exit status {os.waitstatus_to_exitcode(status)}")
    return text, time.perf_counter() - start, usage.ru_maxrss / 1024


def with_sampler(filled: Path, folder: Path, sampler: str) -> Path:
    """A copy of a run whose study says that it has another sampler."""
    shutil.copytree(filled, folder)
    with sqlite3.connect(folder / "study.db") as connection:
        ((key, text),) = connection.execute(
            "SELECT study_user_attribute_id, value_json FROM study_user_attributes WHERE key = 'archsearch:config'"
        ).fetchall()
        config = make_config(folder, sampler).to_dict()
        config["name"] = json.loads(text)["name"]
        connection.execute(
            "UPDATE study_user_attributes SET value_json = ? WHERE study_user_attribute_id = ?",
            (json.dumps(config), key),
        )
    connection.close()
    return folder


def measure_all(trials: Sequence[int], samplers: Sequence[str], new: int, timeout_s: float) -> Iterator[Row]:
    """One row for each number of trials and each sampler; the report is timed once for each number."""
    for count in trials:
        with tempfile.TemporaryDirectory() as name:
            filled = Path(name) / "filled"
            fill(filled, make_config(filled, "random"), count)
            for sampler in samplers:
                folder = with_sampler(filled, Path(name) / sampler, sampler)
                text, _, _ = in_process(__file__, "--go-on", folder, sampler, new, timeout_s)
                _, report_s, report_mib = in_process("-m", "archsearch", "report", folder)
                found = json.loads(text.splitlines()[-1])
                yield {"trials": count, "sampler": sampler, **found, "report_s": report_s, "report_mib": report_mib}
                shutil.rmtree(folder)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trials", nargs="+", type=int, default=[1_000, 10_000, 30_000])
    parser.add_argument("--samplers", nargs="+", default=["random", "known-cost"])
    parser.add_argument("--new", type=int, default=400, help="further trials")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for them")


def main() -> None:
    """Measure, print, write."""
    if sys.argv[1:2] == ["--go-on"]:
        folder, sampler, new, timeout_s = sys.argv[2:]
        print(json.dumps(go_on(Path(folder), sampler, int(new), float(timeout_s))))
        return
    options = arguments(__doc__ or "", add=_options)
    if options.smoke:
        options.trials, options.new = [60], 3
    rows = list(measure_all(options.trials, options.samplers, options.new, options.timeout))
    cells = [
        [
            *(str(row["trials"]), row["sampler"], f"{row['open_s']:.1f}", f"{row['trial_ms']:.0f}"),
            *(f"{row['processor_ms']:.0f}", f"{row['max_ms']:.0f}", f"{row['peak_mib']:.0f}"),
            *(f"{row['report_s']:.1f}", f"{row['report_mib']:.0f}", str(row["front"])),
        ]
        for row in rows
    ]
    show(make_console(), make_table(COLUMNS, cells, left=("sampler",)))
    write(options.out, NAME, rows)


if __name__ == "__main__":
    main()
