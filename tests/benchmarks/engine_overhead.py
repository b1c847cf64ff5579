"""Engine overhead a trial: wall time outside the evaluation, at the 500th trial of a run. Target: 150 ms.

    python tests/benchmarks/engine_overhead.py [--trials 500] [--sampler tpe]

A stub evaluates in a real worker process, in no time; the default space, real SQLite, and all files written each trial.
"""

# ruff: noqa: E402  # the checkout comes first in the path, not an installed package

import argparse
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from archsearch.results import Row
from archsearch.search import Driver, ProcessWorker, RunConfig, Tally, open_run
from archsearch.space import load_space

PAPERS = ("davit_tiny", "twins_svt_small", "van_b2")


class Clock:
    """Listens to a run and keeps when each trial ended."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def trial_started(self, row: Row, tally: Tally) -> None:
        """Nothing to note."""

    def progress(self, event: dict[str, object]) -> None:
        """Nothing to note."""

    def trial_finished(self, row: Row, tally: Tally) -> None:
        """Note the time, and the processor time of the driver."""
        self.ends.append((time.perf_counter(), time.process_time()))

    def remeasure_started(self, row: Row, place: int, total: int) -> None:
        """Not asked for here."""

    def remeasure_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """Not asked for here."""

    def again_started(self, row: Row, place: int, total: int) -> None:
        """Nothing to note."""

    def again_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """Nothing to note."""

    def seed_started(self, row: Row, place: int, total: int) -> None:
        """Not asked for here."""

    def seed_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """Not asked for here."""

    def finished(self, state: str, tally: Tally) -> None:
        """Print where the run stands."""
        print(f"{state}: {tally.ended} of {tally.total} trials, {tally.failed} failed, front of {tally.front_size}")


def main() -> None:
    """Run and print the overhead in steps of a tenth of the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--sampler", default="tpe")
    options = parser.parse_args()
    space = load_space("hybrid")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "overhead"
        settings = {"log": str(Path(name) / "log"), "device": "cpu", "dtype": "float32", "mode": "eager"}
        config = RunConfig(
            name="overhead",
            space_name=space.name,
            space_text=space.text,
            budget_macs=4_500_000_000,
            tolerance=0.05,
            sampler=options.sampler,
            papers=PAPERS,
            settings={**settings, "batch_size": 1, "image_size": 224, "proxy_id": "stub"},
        )
        clock = Clock()
        with open_run(folder, config) as store:
            worker = ProcessWorker(folder / "worker.log", "support.stub_evaluators:evaluate")
            Driver(config, store, worker, clock, command=[]).run(options.trials)
    spans = [(after[0] - before[0], after[1] - before[1]) for before, after in pairwise(clock.ends)]
    step = max(1, len(spans) // 10)
    for start in range(0, len(spans), step):
        wall, used = ([1000 * value for value in column] for column in zip(*spans[start : start + step], strict=True))
        print(
            f"trials {start + 2:>4} to {start + len(wall) + 1:>4}: median {statistics.median(wall):6.1f} ms, "
            f"worst {max(wall):6.1f} ms; of the driver's processor time {statistics.median(used):6.1f} ms"
        )


if __name__ == "__main__":
    main()
