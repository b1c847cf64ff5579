"""manifest.json: what was asked for, under which conditions it was measured, and where the run stands."""

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from typing import Any

from archsearch.results import Row
from archsearch.search.config import RunConfig
from archsearch.version import __version__

_VERSIONS = ("torch", "torchvision", "timm", "optuna")


def describe(config: RunConfig, rows: Sequence[Row]) -> dict[str, Any]:
    """What follows from the run's identity and its rows."""
    conditions = next((json.loads(row["conditions"]) for row in rows if row["conditions"]), None)
    return {
        "name": config.name,
        "space": {"name": config.space_name, "sha256": config.space_sha256},
        "budget_macs": config.budget_macs,
        "tolerance": config.tolerance,
        "band": [config.band.low, config.band.high],
        "objectives": list(config.objectives),
        "sampler": config.sampler,
        "seed": config.seed,
        "fix": dict(config.fix),
        "rungs": list(config.rungs),
        "training": training_document(config, rows),
        "settings": dict(config.settings),
        "proxy_id": config.settings.get("proxy_id"),
        "versions": _versions(),
        "conditions": conditions and {key: value for key, value in conditions.items() if key != "again"},
        "created_at": rows[0]["started_at"].isoformat(timespec="seconds") if rows else _now(),
        "updated_at": _now(),
    }


@cache
def _versions() -> dict[str, str]:
    """Of what the figures depend on; reading them from disk takes milliseconds, and the manifest is written every trial."""
    libraries = {name: metadata.version(name) for name in _VERSIONS}
    return {"archsearch": __version__, **libraries, "python": platform.python_version()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def training_document(config: RunConfig, rows: Sequence[Row]) -> dict[str, Any] | None:
    """Training images and seconds that a run spent and, by its rungs, did not; None where its settings do not say how long it trains.

    Not spent is what is left of the trainings that were stopped; its seconds are taken in proportion. What failed or is at work counts only
    as spent.
    """
    if not config.trainings:
        return None
    full = config.trainings[-1]
    measured = [row for row in rows if row["learning_curve"] is not None and row["reused_from"] is None]
    # Those that a training-free score has stopped; their seconds are not known.
    unspent = full.images * sum(
        row["state"] == "stopped" and row["rung"] == 0 and row["reused_from"] is None for row in rows
    )
    spent_s, unspent_s = 0.0, 0.0
    for row in measured:
        curve: list[Mapping[str, Any]] = json.loads(row["learning_curve"])
        seconds = sum(point["seconds"] or 0.0 for point in curve)
        spent_s += seconds
        if row["state"] == "stopped":
            unspent += config.trainings[-1].images - config.trainings[row["rung"] - 1].images
            unspent_s += seconds * (full.steps / curve[-1]["steps"] - 1)
    return {
        "rungs": [rung.steps for rung in config.trainings],
        "images_spent": sum(row["train_images"] for row in measured),
        "images_not_spent": unspent,
        "seconds_spent": spent_s,
        "seconds_not_spent": unspent_s,
        "trials": len(measured),
        "stopped": sum(row["state"] == "stopped" and row["reused_from"] is None for row in rows),
    }
