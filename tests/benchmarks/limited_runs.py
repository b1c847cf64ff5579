"""A limit on the latency given to the run, against one that is applied to a run's trials afterwards, for the same wall time, really.

Usage: python tests/benchmarks/limited_runs.py [--minutes 6] [--seeds 2] [--keeps 0.3] [--work DIR]

Of each seed the run without a limit is first; the limit is the latency that `--keeps` of its sampled candidates keep. Then comes the run with
`--max-latency`. Both are alone on the machine. Hypervolumes are over proxy_score and params of the complete trials that keep the limit, scaled
together over both runs of a seed, with the reference point at 1.1. The runs stay in DIR; what is there already is not run again.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from clock import RESULTS, write

from archsearch.metrics import hypervolume, is_dominated
from archsearch.report import make_console, make_table, show
from archsearch.results import read_rows

SPACE = Path(__file__).with_name("real_space.toml")
SIGNS = np.array([-1.0, 1.0])

Row = dict[str, Any]


def search(folder: Path, seed: int, options: argparse.Namespace, *more: str) -> list[Row]:
    """The rows of a run in this folder, run now unless it is there. Raises SystemExit when it fails."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            "-m",
            "archsearch",
            "run",
            str(SPACE),
            "--budget",
            options.budget,
            "--papers",
            "none",
        ]
        command += ["--proxy-steps", str(options.steps), "--trials", "100000", "--no-recheck", "--seed", str(seed)]
        command += [
            "--timeout",
            f"{options.minutes}m",
            "--threads",
            "1",
            "--workers",
            "1",
            "--output",
            str(folder),
            *more,
        ]
        with folder.with_suffix(".log").open("wb") as log:
            code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
        if code not in (0, 124):
            raise SystemExit(f"exit code {code}: see {folder.with_suffix('.log')}")
    return [row for row in read_rows(folder) if row["state"] in ("complete", "stopped")]


def facts(way: str, seed: int, limit: float, rows: list[Row], ends: np.ndarray[Any, Any]) -> Row:
    """What a run found; `ends`: least and most of the two objectives, (2, 2)."""
    kept = [row for row in rows if row["state"] == "complete" and row["latency_ms"] <= limit]
    points = (values(kept) - ends[0]) / np.maximum(ends[1] - ends[0], 1e-12)
    front = points[~is_dominated(points)]
    return {
        "way": way,
        "seed": seed,
        "limit_ms": limit,
        "timed": sum(row["latency_ms"] is not None for row in rows),
        "over_the_limit": sum(row["latency_ms"] is not None and row["latency_ms"] > limit for row in rows),
        "trained": sum(row["learning_curve"] is not None for row in rows),
        "trained_over_the_limit": sum(row["learning_curve"] is not None and row["latency_ms"] > limit for row in rows),
        "complete_within": len(kept),
        "front": len(front),
        "hypervolume": hypervolume(front, np.full(2, 1.1)) if len(front) else 0.0,
        "best_score": max((row["proxy_score"] for row in kept), default=0.0),
    }


def values(rows: list[Row]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(N, 2), to be minimised."""
    figures = np.array([(row["proxy_score"], row["params"]) for row in rows], dtype=np.float64)
    return np.asarray(figures.reshape(-1, 2) * SIGNS)


def main() -> None:
    """Search, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--keeps", type=float, default=0.3, help="share of the candidates")
    parser.add_argument("--budget", default="250M")
    parser.add_argument("--steps", type=int, default=80, help="of a full proxy training, batch 32")
    parser.add_argument("--work", type=Path, default=Path("results/limited"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    found = []
    for seed in range(options.seeds):
        plain = search(options.work / f"plain-{seed}", seed, options)
        limit = float(np.quantile([row["latency_ms"] for row in plain], options.keeps))
        limited = search(options.work / f"limited-{seed}", seed, options, "--max-latency", f"{limit:.6f}ms")
        within = [row for row in plain + limited if row["state"] == "complete" and row["latency_ms"] <= limit]
        ends = np.stack([values(within).min(axis=0), values(within).max(axis=0)])
        found += [facts("filtered", seed, limit, plain, ends), facts("limited", seed, limit, limited, ends)]
    cells = [[f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()] for row in found]
    show(make_console(), make_table(list(found[0]), cells, left=["way"]))
    write(options.out, "limited_runs", found)


if __name__ == "__main__":
    main()
