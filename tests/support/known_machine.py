"""A simulated machine with known layer times, a space of tiny networks, and the measurements of a calibration on it."""

import functools
import json
import math
import random
import tomllib
from pathlib import Path
from typing import Any

from archsearch.space import Arch, Space, paper
from archsearch.throughput import Calibration, CalibrationKey, CalibrationPlan, calibration_path, fit_calibration
from archsearch.throughput.calibration.collect import site_json
from archsearch.throughput.calibration.file import SCHEMA
from archsearch.throughput.calibration.sites import Site, arch_sites

SMALL = """
name = "small"
image_size = 32
num_classes = 10
[stem]
kind = "patch"
patch = { kernel = 4, pad = false }
[[stages]]
width = [32, 64]
depth = [1, 2, 3]
block = ["mlp", "hilo", "lsa/gsa"]
head_dim = 16
mlp_ratio = [2, 4]
mlp = { conv = false }
hilo = { window = 2, alpha = 0.5 }
lsa = { window = [2, 4] }
gsa = { reduction = 2 }
[[stages]]
width = [64, 96]
depth = [1, 2]
block = ["lka", "mlp"]
mlp_ratio = [2, 3]
mlp = { conv = false }
lka = { kernel = [9, 21] }
downsample = ["patch", "overlapping"]
patch = { norm = "before", pad = false }
"""
KEY = CalibrationKey(
    device_name="Abacus (TM) 9000",
    device="cpu",
    dtype="float32",
    mode="eager",
    batch_size=2,
    image_size=32,
    threads=1,
    torch="2.9.0+cpu",
)


@functools.cache  # drawing thousands of architectures takes half a second
def small_plan(**changes: Any) -> CalibrationPlan:
    """A plan in a space of tiny networks."""
    values: dict[str, Any] = {
        "key": KEY,
        "space": Space(tomllib.loads(SMALL), "small.toml", SMALL),
        "budget_macs": 3_000_000,
        "tolerance": 0.6,
        "seed": 0,
        "hybrids": 24,
        "held_out": 12,
        "slopes": 40,
        "papers": (),
        "reference": paper("van_b0"),
    }
    return CalibrationPlan(**{**values, **changes})


RATES = {"mlp": 3.0, "hilo": 5.0, "lsa": 7.0, "gsa": 6.0, "lka": 20.0}


def true_ms(site: Site) -> float:
    """Milliseconds of a layer on this machine: a constant, MACs at its kind's rate, and a term for the positions."""
    cost = site.layer.cost(site.shape)
    return 0.02 + RATES.get(site.layer.kind, 10.0) * cost.macs / 1e6 + 0.5 * site.shape.positions / 1e3


def true_latency_ms(arch: Arch) -> float:
    """Milliseconds of a network: its layers take longer than in a chain, blocks most, and there is a constant part."""
    factors = {"block": 1.2}
    return 0.7 + sum(factors.get(site.layer.role, 1.05) * true_ms(site) for site in arch_sites(arch))


def measurements(plan: CalibrationPlan, speeds: random.Random | None = None) -> list[dict[str, Any]]:
    """Rows like those of `measure_plan`; with `speeds`, the machine's speed changes, steadily for slopes and at random for networks."""
    empty = dict.fromkeys(SCHEMA.names)
    rows: list[dict[str, Any]] = []
    for number, site in enumerate(plan.sites):
        speed = 1 + 0.2 * math.sin(number / 10) if speeds else 1.0
        rows.append(
            {
                **empty,
                "record": "slope",
                "group": site.layer.role,
                "name": site.layer.kind,
                "value": true_ms(site) / speed,
                "unit": "ms",
                "reference_img_s": 20.0 * speed,
                "layer": site_json(site),
                "seconds": 0.5,
            }
        )
    for task in plan.networks:
        speed = speeds.uniform(0.7, 1.3) if speeds else 1.0
        rows.append(
            {
                **empty,
                "record": "network",
                "group": task.group,
                "name": task.name,
                "value": speed * 1000 * plan.key.batch_size / true_latency_ms(task.arch),
                "unit": "img/s",
                "reference_img_s": 50.0 * speed,
                "macs": task.arch.cost().macs,
                "arch_id": task.arch.arch_id,
                "arch": json.dumps(task.arch.to_dict()),
                "seconds": 3.0,
            }
        )
    return rows


def known_calibration(root: Path, **changes: Any) -> tuple[CalibrationPlan, Calibration]:
    """The plan and the calibration of the known machine."""
    plan = small_plan(**changes)
    path = calibration_path(root, plan.key)
    return plan, fit_calibration(measurements(plan, random.Random(0)), plan.key, path, {"identity": plan.identity})
