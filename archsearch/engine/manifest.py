"""manifest.json: what was asked for, under which conditions it was measured, and where the run stands."""

import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from typing import Any

from archsearch.config import RunConfig
from archsearch.engine.stopping import training_document
from archsearch.results import Row
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
