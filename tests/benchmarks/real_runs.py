"""Two ways to search, for the same wall time, really: Optuna's default TPE without rungs against archsearch's defaults, on an image folder.

Usage: python tests/benchmarks/real_runs.py --data FOLDER [--minutes 8] [--seeds 3] [--work DIR]

Each pair of runs of a seed is at work at the same time, each on one core of its own; the cores change sides from seed to seed. Hypervolumes are over
proxy_score, the throughput's ratio to the reference (the cores differ in speed) and params, scaled together over the complete trials of all runs, with
the reference point at 1.1. The runs stay in DIR and can be reported on by `archsearch report`; what is there already is not run again.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from clock import RESULTS, write

from archsearch.metrics import hypervolume, is_dominated
from archsearch.report import make_console, make_table, show
from archsearch.results import read_manifest, read_rows

SPACE = Path(__file__).with_name("real_space.toml")
WAYS = {"tpe": ["--sampler", "tpe", "--no-rungs"], "ours": []}
OBJECTIVES = ("proxy_score", "throughput_ratio", "params")
SIGNS = np.array([-1.0, -1.0, 1.0])

Row = dict[str, Any]


def start(way: str, seed: int, core: int, options: argparse.Namespace) -> "subprocess.Popen[bytes] | None":
    """A run pinned to a core; None when it is there already."""
    folder = options.work / f"{way}-{seed}"
    if folder.exists():
        return None
    command = [sys.executable, "-m", "archsearch", "run", str(SPACE), "--budget", options.budget, "--papers", "none"]
    command += ["--data", str(options.data), "--proxy-steps", str(options.steps), "--trials", "100000", "--no-recheck"]
    command += ["--timeout", f"{options.minutes}m", "--seed", str(seed), "--threads", "1", "--cpus", str(core)]
    with (options.work / f"{way}-{seed}.log").open("wb") as log:
        return subprocess.Popen([*command, "--output", str(folder), *WAYS[way]], stdout=log, stderr=log)


def run_all(options: argparse.Namespace) -> None:
    """All pairs, one after the other. Raises SystemExit when a run fails."""
    options.work.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds):
        cores = {way: (index + seed) % 2 for index, way in enumerate(WAYS)}
        for process in [start(way, seed, core, options) for way, core in cores.items()]:
            if process is not None and process.wait() != 0:
                raise SystemExit(f"a run of seed {seed} failed: see the logs in {options.work}")
        print(f"seed {seed} done", flush=True)


def complete(folder: Path) -> list[Row]:
    """The rows that have every objective."""
    rows = [row for row in read_rows(folder) if row["state"] == "complete"]
    return [row for row in rows if all(row[name] is not None for name in OBJECTIVES)]


def values(rows: Sequence[Row]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(N, 3), to be minimised."""
    return np.asarray(np.array([[float(row[name]) for name in OBJECTIVES] for row in rows]).reshape(-1, 3) * SIGNS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", default="250M")
    parser.add_argument("--steps", type=int, default=80, help="of a full proxy training, batch 32")
    parser.add_argument("--work", type=Path, default=Path("results/real"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    run_all(options)
    found = {(way, seed): complete(options.work / f"{way}-{seed}") for seed in range(options.seeds) for way in WAYS}
    everything = values([row for rows in found.values() for row in rows])
    low, span = everything.min(axis=0), np.ptp(everything, axis=0)
    kept, lines = [], []
    for (way, seed), rows in found.items():
        points = (values(rows) - low) / span
        is_front = ~is_dominated(points)
        volume = hypervolume(points[is_front], np.full(3, 1.1))
        training = read_manifest(options.work / f"{way}-{seed}").get("training") or {}
        states = [row["state"] for row in read_rows(options.work / f"{way}-{seed}")]
        facts = {
            "way": way,
            "seed": seed,
            "hypervolume": volume,
            "complete": len(rows),
            "stopped": states.count("stopped"),
        }
        facts |= {"front": int(is_front.sum()), "best_score": max(row["proxy_score"] for row in rows)}
        facts |= {"images_spent": training.get("images_spent"), "images_not_spent": training.get("images_not_spent")}
        lines.append([f"{value:.4f}" if isinstance(value, float) else str(value) for value in facts.values()])
        for row, member in zip(rows, is_front, strict=True):
            kept.append(
                {
                    **facts,
                    "trial": row["trial"],
                    "architecture": row["architecture"],
                    "member": bool(member),
                    **{k: row[k] for k in OBJECTIVES},
                }
            )
    show(make_console(), make_table(list(facts), lines, left=["way"]))
    for way in WAYS:
        volumes = [row["hypervolume"] for row in kept if row["way"] == way]
        print(way, "mean hypervolume", json.dumps(float(np.mean(list(dict.fromkeys(volumes))))))
    write(options.out, "real_runs", kept)


if __name__ == "__main__":
    main()
