"""The contents of manifest.json: what was asked for, under which conditions it was measured, and what the trainings cost."""

import json
import platform
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from typing import Any

from archsearch.blocks import installed_packages
from archsearch.results import Row, is_unscored
from archsearch.search.config import RunConfig
from archsearch.system import utc_now
from archsearch.version import __version__

_VERSIONS = ("torch", "torchvision", "timm", "optuna")


def describe(config: RunConfig, rows: Sequence[Row], throughput_id: str | None = None) -> dict[str, Any]:
    """The part of the manifest that follows from the configuration and the rows; conditions are of a timing of this identity."""
    ranked = [row for row in rows if row["conditions"] and row["throughput_id"] == throughput_id]
    conditions = json.loads(ranked[0]["conditions"]) if ranked else None
    return {
        "name": config.name,
        "space": {"name": config.space_name, "sha256": config.space_sha256},
        "budget_macs": config.budget_macs,
        "tolerance": config.tolerance,
        "band": config.bounds.macs and [config.bounds.macs.low, config.bounds.macs.high],
        "limits": {name: list(ends) for name, ends in config.limits.items()},
        "objectives": list(config.objectives),
        "sampler": config.sampler,
        "seed": config.seed,
        "fix": dict(config.fix),
        "blocks": {file.name: file.sha256 for file in config.block_files},
        **({"include": {name: dict(one) for name, one in config.include.items()}} if config.include else {}),
        "rungs": list(config.rungs),
        "training": training_document(config, rows),
        "settings": dict(config.settings),
        "proxy_id": config.settings.get("proxy_id"),
        "versions": _versions(),
        "throughput_id": throughput_id,
        "conditions": conditions and {key: value for key, value in conditions.items() if key != "again"},
        "created_at": rows[0]["started_at"].isoformat(timespec="seconds") if rows else utc_now(),
        "updated_at": utc_now(),
    }


@cache
def _versions() -> dict[str, str]:
    """Versions of what the figures depend on; cached, since reading them takes milliseconds, after every trial."""
    libraries = {name: metadata.version(name) for name in _VERSIONS}
    return {"archsearch": __version__, **libraries, **installed_packages(), "python": platform.python_version()}


def training_document(config: RunConfig, rows: Sequence[Row]) -> dict[str, Any] | None:
    """Training images and seconds that a run spent, and that early stopping saved; None where the settings give no training length.

    Saved is the rest of every stopped training, its seconds in proportion to its steps. Failed and unfinished trials only count as spent.
    """
    if not config.trainings:
        return None
    full = config.trainings[-1]
    measured = [row for row in rows if row["learning_curve"] is not None and row["reused_from"] is None]
    early = [row for row in rows if row["state"] == "stopped" and not is_unscored(row)]
    stopped = [row for row in early if row["reused_from"] is None]
    # Stopped before any training; how many seconds that saved is unknown.
    unspent = full.images * sum(row["rung"] == 0 for row in stopped)
    spent_s, unspent_s = 0.0, 0.0
    for row in measured:
        curve: list[Mapping[str, Any]] = json.loads(row["learning_curve"])
        seconds = sum(point["seconds"] or 0.0 for point in curve)
        spent_s += seconds
        if row["state"] == "stopped":
            unspent += full.images - config.trainings[row["rung"] - 1].images
            unspent_s += seconds * (full.steps / curve[-1]["steps"] - 1)
    return {
        "rungs": [rung.steps for rung in config.trainings],
        "images_spent": sum(row["train_images"] for row in measured),
        "images_not_spent": unspent,
        "seconds_spent": spent_s,
        "seconds_not_spent": unspent_s,
        "trials": len(measured),
        "stopped": len(stopped),
    }
