"""Finished runs of any number of trials: real architectures of the default space with made figures, written through `archsearch.results`."""

import base64
import gzip
import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from support.report_runs import OBJECTIVES, PROXY_ID, write_run

from archsearch.identity import with_throughput_ids
from archsearch.results import SCHEMA, Row
from archsearch.space import Arch, Band, InBand, load_space, paper, paper_names

BUDGET = 4_500_000_000
_START = datetime(2026, 1, 1, tzinfo=UTC)
_CONDITIONS = json.dumps(
    {"device_name": "a test's CPU", "threads": 2, "host_cores": 2, "torch": "2.14.1", "reference": "davit_tiny"}
)
_STEPS = (25, 100, 400)


def write_made_run(
    root: Path, number: int, *, name: str = "made", stopped: float = 0.6, papers: int = 10, distinct: int = 2_000
) -> Path:
    """A run of `number` trials, the papers' models first; this share of the others was stopped at a rung, one of a hundred failed."""
    rows = made_rows(number, stopped=stopped, papers=papers, distinct=distinct)
    names = [row["paper"] for row in rows if row["is_fixed"]]
    return write_run(root, rows, name, OBJECTIVES, extra={"trials": number - len(names), "papers": names})


def stored_page(path: Path) -> dict[str, Any]:
    """The values inside a page of `report --html`, as its script unpacks them."""
    text = path.read_text().partition('id="data">')[2].partition("</script>")[0]
    values: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(text)))
    return values


def made_rows(number: int, *, stopped: float, papers: int, distinct: int = 2_000) -> list[Row]:
    """The rows, equal for equal arguments, of so many architectures at most; further trials of one have figures of their own."""
    rng = random.Random(0)
    band = Band.around(BUDGET, 0.05)
    fixed = [paper(each) for each in paper_names()[:papers]][:number]
    archs = [arch for _, arch in InBand(load_space("hybrid"), band).draw_many(min(number, distinct), rng)]
    constants = {id(arch): _of_arch(arch) for arch in [*fixed, *archs]}
    rows = []
    for trial in range(number):
        arch = fixed[trial] if trial < len(fixed) else archs[trial % len(archs)]
        row = constants[id(arch)] | _figures(trial, arch, rng)
        if trial < len(fixed):
            row |= {"is_fixed": True, "paper": arch.name, "in_band": arch.cost().macs in range(band.low, band.high)}
        elif trial % 100 == 99:
            row |= dict.fromkeys(_SCORE, None) | {"state": "failed", "reason": "proxy: out of memory on cpu"}
        elif rng.random() < stopped:
            row |= _stopped(row, rng)
        rows.append(row)
    return with_throughput_ids(rows)


_SCORE = ("proxy_score", "proxy_score_se", "proxy_train_loss", "seconds_proxy", "learning_curve", "train_images")


def _of_arch(arch: Arch) -> Row:
    """What is the same in all trials of an architecture and of the run."""
    cost = arch.cost()
    return dict.fromkeys(SCHEMA.names) | {
        "state": "complete",
        "is_fixed": False,
        "in_band": True,
        "macs": cost.macs,
        "macs_fvcore": cost.macs,
        "params": cost.params,
        "activations": cost.activations,
        "architecture": arch.describe(),
        "arch": json.dumps(arch.to_dict()),
        "proxy_id": PROXY_ID,
        "device": "cpu",
        "dtype": "float32",
        "mode": "eager",
        "batch_size": 4,
        "image_size": 224,
        "seed": 0,
        "archsearch_version": "0.1.0",
        "torch_version": "2.14.1",
        "python_version": "3.11.9",
        "conditions": _CONDITIONS,
        "run": "made",
        "space": "hybrid",
        "budget_macs": BUDGET,
        "other_cores": 0.1,
        "throughput_noisy": False,
        "throughput_drift": 0.002,
    }


def _figures(trial: int, arch: Arch, rng: random.Random) -> Row:
    """Speed against score, with noise of both."""
    slow = random.Random(arch.arch_id).random()
    ratio = 0.2 + (1 - slow) ** 2 + 0.05 * rng.random()
    score = round(0.55 + 0.25 * slow**0.5 + 0.03 * (rng.random() - 0.5), 4)
    begin = _START + timedelta(minutes=trial)
    curve = [_point(steps, score) for steps in _STEPS]
    return {
        "trial": trial,
        "arch_id": f"{trial:012x}",
        "throughput_img_s": 200 * ratio,
        "throughput_raw_img_s": 195 * ratio,
        "throughput_ratio": ratio,
        "throughput_iqr": 0.01,
        "latency_ms": 20 / ratio,
        "peak_memory_bytes": 10**9,
        "proxy_score": score,
        "proxy_score_se": 0.009,
        "proxy_train_loss": 1 - score,
        "rung": len(_STEPS),
        "learning_curve": json.dumps(curve),
        "train_images": 12_800,
        "started_at": begin,
        "finished_at": begin + timedelta(seconds=50),
        "seconds_count": 0.7,
        "seconds_throughput": 7.1,
        "seconds_proxy": 42.0,
        "seconds_total": 50.0,
    }


def _point(steps: int, score: float) -> dict[str, Any]:
    proxy = PROXY_ID.replace("400", str(steps))
    return {
        "steps": steps,
        "score": score - 5 / steps,
        "standard_error": 0.009,
        "proxy_id": proxy,
        "seconds": steps / 10,
    }


def _stopped(row: Row, rng: random.Random) -> Row:
    """What a trial has instead that was stopped after its first or second rung."""
    rung = rng.choice((1, 2))
    reached = json.loads(row["learning_curve"])[:rung]
    return dict.fromkeys(_SCORE, None) | {
        "state": "stopped",
        "reason": f"after {_STEPS[rung - 1]} of 400 training steps: trial 12 is no worse in throughput_img_s and params",
        "rung": rung,
        "rung_score": reached[-1]["score"],
        "rung_score_se": 0.009,
        "rung_proxy_id": reached[-1]["proxy_id"],
        "learning_curve": json.dumps(reached),
        "train_images": 32 * _STEPS[rung - 1],
        "seconds_proxy": 4.2 * rung,
    }
