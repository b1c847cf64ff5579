"""How many trials an hour N workers give, against N times one's: the driver's own share of the time, its memory, and its cost of a trial.

    python tests/benchmarks/many_workers.py [--only real processes simulated memory long] [--samplers random]

A real driver and a SQLite study; the workers sleep (2 s, standard deviation 30 %) and emit three phases and a progress event every second.
`real`: timers of the driver's process. `processes`: real worker processes, one or two. `simulated`: a clock that jumps over the sleeping, so that
the driver's own seconds are measured and 1,000 workers need no machine of theirs; the files are written when they would be. `memory`: the same
over 2,000 trials. `long`: further trials of a run that has 10,000. Each row is measured in a process of its own.
"""

# ruff: noqa: E402  # the checkout comes first in the path, not an installed package

import argparse
import heapq
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import scale
from clock import Row, arguments, write
from support.runs import make_config, make_pool
from support.stub_evaluators import Document, measure

from archsearch.report import make_console, make_table, show
from archsearch.search import Driver, Job, Workers, open_run
from archsearch.search.engine.workers.base import Event

NAME = "many_workers"
COLUMNS = (
    "what",
    "sampler",
    "workers",
    "seconds",
    "trials",
    "efficiency",
    "busy",
    "first ask ms",
    "ask ms",
    "tell ms",
    "trial ms",
    "processor ms",
    "MiB",
)
SPREAD, PROGRESS_S = 0.3, 1.0
PHASES = (
    "count",
    "throughput",
    "proxy",
)  # each takes its part of the evaluation; those of a run with rungs are of its configuration
MEMORY_AT = (500, 1000, 2000)


class SimulatedClock:
    """Takes the place of `time.monotonic`: real seconds, and those that were jumped over."""

    def __init__(self) -> None:
        self._jumped = 0.0

    def now(self) -> float:
        """Seconds."""
        return time.perf_counter() + self._jumped

    def sleep(self, seconds: float) -> None:
        """Jump."""
        self._jumped += seconds


class Sleepers:
    """`Workers` whose evaluations pass time, each job as long as a seed says, and give what `measure` says of each of their phases."""

    def __init__(
        self,
        capacity: int,
        mean_s: float,
        now: Callable[[], float],
        sleep: Callable[[float], None],
        measure: Callable[[str, Document], Document],
    ) -> None:
        self._capacity, self._mean_s, self._now, self._sleep, self._measure = capacity, mean_s, now, sleep, measure
        self._rng, self._due, self._count = random.Random(0), list[tuple[float, int, Event]](), 0
        self.spans: list[tuple[float, float]] = []  # of every job

    @property
    def capacity(self) -> int:
        """Fixed."""
        return self._capacity

    def submit(self, job: Job) -> None:
        """Lay out its events in time."""
        begin = self._now()
        seconds = max(0.1 * self._mean_s, self._rng.gauss(self._mean_s, SPREAD * self._mean_s))
        self.spans.append((begin, begin + seconds))
        for step in range(1, int(seconds / PROGRESS_S)):
            self._add(begin + step * PROGRESS_S, {"event": "progress", "phase": "proxy", "step": step}, job)
        phases = job.settings.get("phases", PHASES)
        for place, phase in enumerate(phases, start=1):
            values = {**self._measure(phase, job.arch), "seconds": seconds / len(phases)}
            due = begin + place / len(phases) * seconds  # of the last one exactly the end, before `done`
            self._add(due, {"event": "phase", "phase": phase, "values": values}, job)
        self._add(begin + seconds, {"event": "done"}, job)

    def _add(self, due: float, event: Event, job: Job) -> None:
        self._count += 1
        heapq.heappush(self._due, (due, self._count, {**event, "trial": job.trial}))

    def events(self, timeout: float) -> list[Event]:
        """Those that are due."""
        wait = min(timeout, self._due[0][0] - self._now()) if self._due else timeout
        if wait > 0:
            self._sleep(wait)
        found = []
        while self._due and self._due[0][0] <= self._now():
            found.append(heapq.heappop(self._due)[2])
        return found

    def end(self, trial: int, reason: str) -> None:
        """Not asked for here."""

    def close(self) -> None:
        """Nothing to end."""

    def efficiency(self) -> float:
        """Share of the workers' time in which they evaluated, until the last job began: trials an hour over the ideal."""
        first, last = self.spans[0][0], max(begin for begin, _ in self.spans)
        return sum(min(end, last) - begin for begin, end in self.spans) / (self._capacity * (last - first))


class Timed:
    """Notes the milliseconds of a method's calls."""

    def __init__(self, owner: Any, name: str) -> None:
        self._method, self.ms = getattr(owner, name), list[float]()
        setattr(owner, name, self)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """The method."""
        start = time.perf_counter()
        result = self._method(*args, **options)
        self.ms.append(1e3 * (time.perf_counter() - start))
        return result


class Clock(scale.Clock):
    """Also notes the memory of the driver at some trials, in MiB."""

    def __init__(self) -> None:
        super().__init__()
        self.mib: dict[str, float] = {}

    def trial_finished(self, row: Row, tally: Any) -> None:
        """Note it."""
        super().trial_finished(row, tally)
        if len(self.ends) in MEMORY_AT:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.mib[str(len(self.ends))] = pages * 4096 / 2**20


def measure_one(what: str, sampler: str, workers: int, mean_s: float, trials: int, folder: Path) -> Row:
    """A run of so many trials, or so many further ones."""
    clock = Clock()
    passing: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    if what in ("simulated", "memory", "long"):
        simulated = SimulatedClock()
        passing, sleep = simulated.now, simulated.sleep
        time.monotonic = passing
    config = make_config(folder / "log", sampler=sampler, papers=(), settings={"phase_s": mean_s / 3})
    if what == "long":
        config = scale.make_config(folder, sampler)
    with open_run(folder, config) as store:
        ask, tell, before = Timed(store, "propose_many"), Timed(store, "finish"), store.count()
        slept = Sleepers(workers, mean_s, passing, sleep, scale.measure if what == "long" else measure)
        pool: Workers = make_pool(folder, workers) if what == "processes" else slept
        driver = Driver(config, store, pool, clock, fixed={}, command=[])
        begin, real, used = passing(), time.perf_counter(), time.process_time()
        driver.run(before + trials)
        wall_s, real_s, used_s = passing() - begin, time.perf_counter() - real, time.process_time() - used
        done = store.count() - before
    is_jumping = what in ("simulated", "memory", "long")
    return {
        "what": what,
        "sampler": sampler,
        "workers": workers,
        "mean_s": mean_s,
        "trials": done,
        "efficiency": done * mean_s / (workers * wall_s) if what == "processes" else slept.efficiency(),
        "busy": real_s / wall_s if is_jumping else None,
        "first_ask_ms": ask.ms[0],
        "ask_ms": sum(ask.ms[1:]) / max(1, done - workers),  # the first call asks for one candidate a worker
        "tell_ms": statistics.fmean(tell.ms),
        "driver_ms": 1e3 * real_s / done if is_jumping else None,
        "processor_ms": 1e3 * used_s / done,
        **{f"mib_{number}": clock.mib.get(str(number)) for number in MEMORY_AT},
    }


def plans(options: argparse.Namespace) -> Iterator[tuple[str, int, float, int]]:
    """What is measured: kind, workers, mean seconds of an evaluation, trials."""
    if options.smoke:
        yield from (("real", 8, 0.02, 24), ("simulated", 50, 600.0, 100))
        return
    for workers in (1, 2, 8, 64):
        yield "real", workers, 2.0, max(12, 15 * workers)
    for workers in (1, 2):
        yield "processes", workers, 2.0, 40 * workers
    for workers in (1, 8, 64):
        yield "simulated", workers, 2.0, max(200, 16 * workers)
    yield "simulated", 1000, 600.0, 3000
    yield "memory", 64, 2.0, 2000
    yield "long", 64, 2.0, 600


def measure_all(options: argparse.Namespace) -> Iterator[Row]:
    """One row for each plan and sampler."""
    for sampler in options.samplers:
        for what, workers, mean_s, trials in plans(options):
            if what not in options.only:
                continue
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name) / "run"
                if what == "long":
                    scale.fill(folder, scale.make_config(folder, sampler), 10_000)
                text, _, _ = scale.in_process(__file__, "--one", what, sampler, workers, mean_s, trials, folder)
                yield json.loads(text.splitlines()[-1])


def cells(row: Row) -> list[str]:
    """A line of the table."""
    memory = " ".join(f"{row[f'mib_{number}']:.0f}" for number in MEMORY_AT if row[f"mib_{number}"] is not None)
    busy = "" if row["busy"] is None else f"{row['busy']:.1%}"
    trial = "" if row["driver_ms"] is None else f"{row['driver_ms']:.1f}"
    return [
        *(row["what"], row["sampler"], str(row["workers"]), f"{row['mean_s']:g}", str(row["trials"])),
        *(f"{row['efficiency']:.3f}", busy, f"{row['first_ask_ms']:.0f}"),
        *(f"{row['ask_ms']:.1f}", f"{row['tell_ms']:.1f}", trial, f"{row['processor_ms']:.1f}", memory),
    ]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", default=["real", "processes", "simulated", "memory", "long"])
    parser.add_argument("--samplers", nargs="+", default=["random"])


def main(words: Sequence[str]) -> None:
    """Measure, print, write."""
    if words[:1] == ["--one"]:
        what, sampler, workers, mean_s, trials, folder = words[1:]
        print(json.dumps(measure_one(what, sampler, int(workers), float(mean_s), int(trials), Path(folder))))
        return
    options = arguments(__doc__ or "", add=_options)
    rows = list(measure_all(options))
    show(make_console(), make_table(COLUMNS, [cells(row) for row in rows], left=("what", "sampler")))
    write(options.out, NAME, rows)


if __name__ == "__main__":
    main(sys.argv[1:])
