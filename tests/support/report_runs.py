"""Small finished runs written through `archsearch.results`, as a report reads them."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from archsearch.results import SCHEMA, Row, ranked, write_front, write_manifest, write_trials
from archsearch.space import paper

OBJECTIVES = ("proxy_score", "throughput_img_s", "params")
PROXY_ID = "fashion-mnist-12k@32px/400steps/v1"


def trial(number: int, score: float | None, images_s: float | None, params: int, **changes: Any) -> Row:
    """One row; without a score it is a failed one."""
    arch = paper("davit_tiny")
    state = "complete" if score is not None else "failed"
    row: Row = dict.fromkeys(SCHEMA.names)
    row |= {
        "trial": number,
        "arch_id": f"{number:012x}",
        "state": state,
        "reason": None if score is not None else "throughput: out of memory on cpu",
        "is_fixed": False,
        "in_band": True,
        "macs": 4_500_000_000 + number,
        "macs_fvcore": 4_500_000_000 + number,
        "params": params,
        "architecture": "hilo 96x2 - lka 192x3",
        "throughput_img_s": images_s,
        "throughput_noisy": False,
        "throughput_drift": 0.0,
        "proxy_score": score,
        "proxy_score_se": None if score is None else 0.01,
        "proxy_id": PROXY_ID,
        "device": "cpu",
        "dtype": "float32",
        "mode": "eager",
        "batch_size": 4,
        "image_size": 224,
        "seed": 0,
        "started_at": datetime(2026, 1, 2, 3, tzinfo=UTC) + timedelta(minutes=number),
        "archsearch_version": "0.1.0",
        "python_version": "3.11",
        "arch": json.dumps(arch.to_dict()),
    }
    return row | changes


def fixed(number: int, name: str, score: float, images_s: float, params: int) -> Row:
    """A paper's model as a row."""
    return trial(number, score, images_s, params, is_fixed=True, paper=name, in_band=False)


def write_run(
    root: Path,
    rows: Sequence[Row],
    name: str = "one",
    objectives: Sequence[str] = OBJECTIVES,
    state: str = "complete",
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """A run folder as the engine leaves it."""
    folder = root / "results" / name
    folder.mkdir(parents=True)
    rows = ranked(rows, objectives)
    write_trials(rows, folder)
    write_front(rows, folder, objectives)
    manifest = {
        "name": name,
        "command": ["archsearch", "run"],
        "space": {"name": "hybrid", "sha256": "0" * 64},
        "budget_macs": 4_500_000_000,
        "tolerance": 0.05,
        "band": [4_275_000_000, 4_725_000_000],
        "objectives": list(objectives),
        "sampler": "tpe",
        "seed": 0,
        "trials": 6,
        "papers": ["davit_tiny", "van_b2"],
        "settings": {
            "device": "cpu",
            "dtype": "float32",
            "mode": "eager",
            "batch_size": 4,
            "image_size": 224,
            "proxy_num_val": 2000,
            "proxy": {"recipe": {"steps": 400}, "profile": {"image_size": 32, "width_divisor": 4}},
        },
        "proxy_id": PROXY_ID,
        "versions": {"archsearch": "0.1.0", "torch": "2.14.1"},
        "conditions": {"device_name": "a test's CPU", "threads": 2, "drift": float("nan")},
        "created_at": "2026-01-02T03:00:00+00:00",
        "updated_at": "2026-01-02T04:00:00+00:00",
        "state": state,
        **(extra or {}),
    }
    write_manifest(manifest, folder)
    return folder


SIX = [
    fixed(0, "davit_tiny", 0.70, 20.0, 28_360_168),
    fixed(1, "van_b2", 0.80, 15.0, 26_580_000),
    trial(2, 0.60, 40.0, 20_000_000),
    trial(3, 0.79, 25.0, 25_000_000),
    trial(4, 0.75, 10.0, 30_000_000),
    trial(5, None, None, 22_000_000),
    trial(6, 0.79, 25.0, 25_000_000, reused_from=3, arch_id=f"{3:012x}"),
]
