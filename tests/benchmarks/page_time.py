"""The page of a run: seconds to write it, its size, and milliseconds until a browser shows it and until its charts answer.

    python tests/benchmarks/page_time.py [--trials 22 1000 10000]

The runs are made: real architectures of the default space inside a band, all different, with made figures. Needs playwright and a Chromium.
"""

# ruff: noqa: E402  # the checkout comes first in the path, not an installed package

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from clock import Row, arguments, quiet_device, write
from support.browser import opened, started
from support.made_runs import write_made_run

from archsearch.report import make_console, make_table, show

NAME = "page_time"
COLUMNS = (
    "trials",
    "write s",
    "processor s",
    "MiB",
    "page MB",
    "shown ms",
    "ready ms",
    "select ms",
    "filter ms",
    "sort ms",
    "axis ms",
)
# What a person does on the page, each timed until the page has done it and the browser has painted twice.
ACTIONS = {
    "select_ms": "document.querySelectorAll('.trials tbody tr[data-index]')[5].click()",
    "filter_ms": "(() => { const box = document.getElementById('filter'); box.value = 'hilo params<25M'; box.dispatchEvent(new Event('input')); })()",
    "sort_ms": "document.querySelectorAll('.trials th button')[2].click()",
    "axis_ms": "(() => { const box = document.getElementById('x-column'); box.value = 'macs'; box.dispatchEvent(new Event('change')); })()",
}
TIMED = (
    "async () => {{ const start = performance.now(); {}; "
    "for (let frame = 0; frame < 2; frame += 1) await new Promise(requestAnimationFrame); return performance.now() - start; }}"
)


def written(folder: Path) -> Row:
    """`archsearch report --html` as a process: duration, processor time, most memory, size of its file."""
    start, environment = time.perf_counter(), {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "archsearch", "report", str(folder), "--html"],
        stdout=subprocess.DEVNULL,
        env=environment,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{folder}: exit status {os.waitstatus_to_exitcode(status)}")
    figures = {
        "write_s": time.perf_counter() - start,
        "write_processor_s": usage.ru_utime + usage.ru_stime,
        "write_mib": usage.ru_maxrss / 1024,
    }
    return {**figures, "page_bytes": (folder / "report.html").stat().st_size}


def shown(browser: Any, path: Path) -> Row:
    """Milliseconds from the page's own clock, which starts with its loading."""
    with opened(browser, path) as found:
        page = found.page
        times = {
            f"{name}_ms": float(page.evaluate(f"document.documentElement.dataset.{name}"))
            for name in ("shown", "ready")
        }
        return times | {name: float(page.evaluate(TIMED.format(action))) for name, action in ACTIONS.items()}


def median(rows: Sequence[Row]) -> Row:
    """Of each column."""
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def measure_all(trials: Sequence[int], rounds: int) -> Iterator[Row]:
    """One row for each number of trials: medians of so many rounds."""
    with started() as browser:
        for count in trials:
            with tempfile.TemporaryDirectory() as name:
                folder = write_made_run(Path(name), count, distinct=count)
                with quiet_device():
                    both = [{**written(folder), **shown(browser, folder / "report.html")} for _ in range(rounds)]
                yield {"trials": count, "rounds": rounds, **median(both)}


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trials", nargs="+", type=int, default=[22, 1_000, 10_000])
    parser.add_argument("--rounds", type=int, default=3)


def main() -> None:
    """Measure, print, write."""
    options = arguments(__doc__ or "", add=_options)
    if options.smoke:
        options.trials, options.rounds = [22], 1
    rows = list(measure_all(options.trials, options.rounds))
    cells = [
        [
            *(
                str(row["trials"]),
                f"{row['write_s']:.1f}",
                f"{row['write_processor_s']:.1f}",
                f"{row['write_mib']:.0f}",
                f"{row['page_bytes'] / 1e6:.2f}",
            ),
            *(f"{row[f'{name}_ms']:.0f}" for name in ("shown", "ready", "select", "filter", "sort", "axis")),
        ]
        for row in rows
    ]
    show(make_console(), make_table(COLUMNS, cells))
    write(options.out, NAME, rows)


if __name__ == "__main__":
    main()
