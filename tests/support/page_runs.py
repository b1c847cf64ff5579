"""Made runs for the page: real architectures drawn from the default space inside a band, with figures that follow from them and a little chance."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from support.report_runs import OBJECTIVES, PROXY_ID, trial, write_run

from archsearch.results import Row
from archsearch.space import Arch, Band, Bounds, draw, load_space, paper

BUDGET, TOLERANCE = 4_500_000_000, 0.05
PAPERS = ("van_b2", "davit_tiny", "litv2_s", "crossformer_small", "swin_tiny", "twins_svt_small")
STEPS = (25, 100, 400)
# What each kind does to score and speed in this made world.
TASTE = {
    "lka": (0.05, -0.3),
    "hilo": (0.04, 0.1),
    "window": (0.02, 0.0),
    "lsa": (0.01, 0.05),
    "sda": (0.0, -0.1),
    "mlp": (-0.06, 0.5),
}


def architectures(number: int, seed: int = 0) -> list[Arch]:
    """So many of the default space inside 4.5 G +- 5 %."""
    space, rng = load_space("hybrid"), random.Random(seed)
    bounds = Bounds(macs=Band.around(BUDGET, TOLERANCE))
    return [draw(space, bounds, rng)[1] for _ in range(number)]


def _curve(score: float, last: int, rng: random.Random) -> list[Mapping[str, Any]]:
    scores = [score - 5 / steps + rng.gauss(0, 0.2) / steps for steps in STEPS[:last]]
    return [
        {"steps": steps, "score": each, "standard_error": 0.01, "seconds": steps / 20}
        for steps, each in zip(STEPS, scores, strict=False)
    ]


def _figures(arch: Arch, rng: random.Random) -> tuple[float, float]:
    """A score and images per second."""
    tastes = [TASTE.get(stage.blocks[0].kind, (0.0, 0.0)) for stage in arch.stages]
    cost = arch.cost()
    score = (
        0.55 + sum(taste[0] for taste in tastes) / 2 + 0.004 * (cost.params / 1e6) ** 0.5 * 10 / 3 + rng.gauss(0, 0.012)
    )
    return min(0.95, score), 60 * (4.5e9 / cost.macs) * (1.3 + sum(taste[1] for taste in tastes) / 3) * rng.gauss(
        1, 0.03
    )


def rows(archs: Sequence[Arch], number: int, seed: int = 0, papers: Sequence[str] = PAPERS) -> Iterator[Row]:
    """The papers' models and so many trials, which repeat `archs` where these are fewer; some stopped early, some failed."""
    rng = random.Random(seed)
    fixed = [(paper(name), name) for name in papers]
    texts = [(arch, json.dumps(arch.to_dict()), arch.arch_id) for arch in archs]
    start = trial(0, 0.5, 1.0, 1)["started_at"].replace(minute=0)
    for place in range(len(fixed) + number):
        if place < len(fixed):
            arch, name = fixed[place]
            text, arch_id = json.dumps(arch.to_dict()), arch.arch_id
        else:
            (arch, text, arch_id), name = texts[place % len(texts)], None
        score, speed = _figures(arch, rng)
        rung = 3 if name or score > 0.66 or rng.random() < 0.3 else rng.choice([1, 2])
        curve = _curve(score, rung, rng)
        changes: Row = {
            "arch_id": arch_id,
            "arch": text,
            "architecture": arch.describe(),
            "macs": arch.cost().macs,
            "activations": arch.cost().activations,
            "throughput_iqr": abs(rng.gauss(0.01, 0.004)),
            "throughput_ratio": speed / 60,
            "latency_ms": 4000 / speed,
            "is_fixed": name is not None,
            "paper": name,
            "in_band": name is None,
            "rung": rung,
            "learning_curve": json.dumps(curve),
            "train_images": 32 * STEPS[rung - 1],
            "started_at": start + timedelta(seconds=60 * place),
            "finished_at": start + timedelta(seconds=60 * place + 50),
        }
        if rung < 3:
            changes |= {
                "state": "stopped",
                "reason": f"stopped at rung {rung}: it can no longer reach the front",
                "proxy_score": None,
                "proxy_score_se": None,
                "proxy_id": None,
            }
        elif name is None and rng.random() < 0.01:
            changes |= {
                "state": "failed",
                "reason": "throughput: out of memory on cpu",
                "proxy_score": None,
                "proxy_score_se": None,
            }
        else:
            changes["proxy_score"] = curve[-1]["score"]
        made = trial(0, score, speed, arch.cost().params, proxy_id=PROXY_ID)
        yield made | {"trial": place} | changes


def made_run(
    root: Path, number: int, *, distinct: int = 2_000, name: str = "made", extra: Mapping[str, Any] | None = None
) -> Path:
    """A run of so many trials beside the papers' models, of at most so many architectures."""
    archs = architectures(min(number, distinct))
    training = {
        "rungs": list(STEPS),
        "images_spent": 0,
        "images_not_spent": 0,
        "seconds_spent": 0.0,
        "seconds_not_spent": 0.0,
        "trials": 0,
        "stopped": 0,
    }
    more = {"trials": number, "papers": list(PAPERS), "training": training, **(extra or {})}
    return write_run(root, list(rows(archs, number)), name, OBJECTIVES, extra=more)
