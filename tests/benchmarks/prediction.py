"""Time of one throughput prediction (target: 100 microseconds) and of a calibration's fit, in the default space.

    python tests/benchmarks/prediction.py [--archs 200] [--file results/calibration/NAME.parquet]

Without a file the slopes are made up from the exact costs: how long a prediction takes does not depend on them. `first` meets settings of layers for the
first time and interpolates what was not timed, `again` has met them, as a search has after its first hundred candidates.
"""

# ruff: noqa: E402  # the checkout comes first in the path, not an installed package

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from archsearch.space import Arch, Bounds, draw, load_space, paper
from archsearch.throughput import (
    Calibration,
    CalibrationKey,
    CalibrationPlan,
    Measurement,
    fit_calibration,
    load_calibration,
)
from archsearch.throughput.calibration.collect import site_json
from archsearch.throughput.calibration.file import FOLDER, SCHEMA, read_rows

BUDGET, TOLERANCE = 4_500_000_000, 0.05
SETTINGS = {"device": "cpu", "dtype": "float32", "mode": "eager", "batch_size": 2, "image_size": 224}


def made_up_rows(plan: CalibrationPlan) -> list[dict[str, Any]]:
    """Measurements of a machine on which MACs are all that counts."""
    empty = dict.fromkeys(SCHEMA.names)
    slopes = [
        {
            **empty,
            "record": "slope",
            "value": site.layer.cost(site.shape).macs / 5e7 + 0.1,
            "reference_img_s": 1.0,
            "layer": site_json(site),
        }
        for site in plan.sites
    ]
    networks = [
        {
            **empty,
            "record": "network",
            "group": task.group,
            "name": task.name,
            "value": 2e10 / task.arch.cost().macs,
            "reference_img_s": 1.0,
            "macs": task.arch.cost().macs,
            "arch_id": task.arch.arch_id,
            "arch": json.dumps(task.arch.to_dict()),
        }
        for task in plan.networks
    ]
    return [*slopes, *networks]


def made_up(plan: CalibrationPlan) -> Calibration:
    """A calibration from such measurements; prints how long the fit took."""
    rows = made_up_rows(plan)
    start = time.perf_counter()
    calibration = fit_calibration(rows, plan.key, Path("none"), {"identity": plan.identity})
    print(f"fit of {len(plan.sites)} slopes and {plan.hybrids} hybrids: {time.perf_counter() - start:.2f} s")
    return calibration


def microseconds(calibration: Calibration, archs: list[Arch]) -> list[float]:
    """Of each prediction."""
    times = []
    for arch in archs:
        start = time.perf_counter()
        calibration.predict(arch)
        times.append(1e6 * (time.perf_counter() - start))
    return times


def report(name: str, times: list[float]) -> None:
    """Median and ninth decile."""
    decile = statistics.quantiles(times, n=10)[-1]
    print(f"{name}: median {statistics.median(times):.0f}, ninth decile {decile:.0f} microseconds")


def main() -> None:
    """Print fit and prediction times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", type=int, default=200, metavar="N")
    parser.add_argument("--file", type=Path, metavar="PATH")
    asked = parser.parse_args()
    key = CalibrationKey.for_this_machine(Measurement.from_dict(SETTINGS))
    space = load_space("hybrid")
    plan = CalibrationPlan(
        key=key,
        space=space,
        budget_macs=BUDGET,
        tolerance=TOLERANCE,
        seed=0,
        hybrids=40,
        held_out=20,
        slopes=400,
        papers=(),
        reference=paper("van_b0"),
    )
    if asked.file:
        key = CalibrationKey.from_dict(read_rows(asked.file)[1]["key"])
        start = time.perf_counter()
        loaded = load_calibration(asked.file.parent.parent, key)
        assert loaded is not None, f"{asked.file} does not lie in a folder called {FOLDER}"
        print(f"loading {asked.file.name}: {time.perf_counter() - start:.2f} s")
        calibration = loaded
    else:
        calibration = made_up(plan)
    rng = random.Random(1)
    archs = [draw(space, Bounds(macs=plan.band), rng)[1] for _ in range(asked.archs)]
    report("first", microseconds(calibration, archs))
    report("again", microseconds(calibration, archs))


if __name__ == "__main__":
    main()
