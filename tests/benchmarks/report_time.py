"""Seconds of `archsearch report` on made runs of many trials, as text and as JSON, each in a process of its own.

    python tests/benchmarks/report_time.py [--trials 22 10000 100000] [--stopped 0.6 0]

The runs have real architectures of the default space with made figures: a share of the trials stopped at a rung, one of a hundred failed.
"""

# ruff: noqa: E402  # the checkout comes first in the path, not an installed package

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from clock import Row, arguments, write
from support.made_runs import write_made_run

from archsearch.report import make_console, make_table, show
from archsearch.results import read_rows

NAME = "report_time"
COLUMNS = ("trials", "stopped", "form", "front", "seconds", "processor s")
# The words of each form, and the columns of its terminal: with them the scatter is drawn.
FORMS: dict[str, tuple[list[str], dict[str, str]]] = {"text": ([], {"COLUMNS": "120"}), "json": (["--json"], {})}


def report_once(folder: Path, form: str) -> tuple[float, float]:
    """Seconds and processor seconds of one report."""
    words, environment = FORMS[form]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    start = time.perf_counter()
    command = [sys.executable, "-m", "archsearch", "report", str(folder), *words]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, env={**os.environ, **environment, "PYTHONPATH": path}
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"report of {folder}: exit status {os.waitstatus_to_exitcode(status)}")
    return seconds, usage.ru_utime + usage.ru_stime


def measure(trials: Sequence[int], stopped: Sequence[float], repeats: int) -> Iterator[Row]:
    """One row for each run and form: the quickest of some repeats."""
    for number in trials:
        for share in stopped:
            with tempfile.TemporaryDirectory() as name:
                folder = write_made_run(Path(name), number, stopped=share)
                front = sum(row["front"] == 0 for row in read_rows(folder, without=["arch"]))
                for form in FORMS:
                    seconds, processor_s = min(report_once(folder, form) for _ in range(repeats))
                    figures = {"seconds": seconds, "processor_s": processor_s}
                    yield {"trials": number, "share_stopped": share, "form": form, "front": front, **figures}


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trials", nargs="+", type=int, default=[22, 10_000, 100_000])
    parser.add_argument(
        "--stopped", nargs="+", type=float, default=[0.6, 0.0], help="shares of trials stopped at a rung"
    )
    parser.add_argument("--repeats", type=int, default=3)


def main() -> None:
    """Measure, print, write."""
    options = arguments(__doc__ or "", add=_options)
    if options.smoke:
        options.trials, options.repeats = [22], 1
    rows = list(measure(options.trials, options.stopped, options.repeats))
    cells = [
        [
            *(str(row["trials"]), f"{row['share_stopped']:.0%}", row["form"], str(row["front"])),
            *(f"{row['seconds']:.1f}", f"{row['processor_s']:.1f}"),
        ]
        for row in rows
    ]
    show(make_console(), make_table(COLUMNS, cells, left=("form",)))
    write(options.out, NAME, rows)


if __name__ == "__main__":
    main()
