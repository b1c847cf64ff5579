"""What identifies a run, and how two runs differ."""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from archsearch.budget import Band
from archsearch.results import CONDITION_COLUMNS, OBJECTIVES, Direction, check_objectives
from archsearch.space import Space


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that identifies a run; the number of trials and the timeout do not. Raises UserError for its objectives.

    `settings` are what the evaluation is told: device, dtype, mode, batch_size, image_size, proxy, proxy_id.
    """

    name: str
    space_name: str
    space_text: str
    budget_macs: int
    tolerance: float
    settings: Mapping[str, Any]
    objectives: tuple[str, ...] = ("proxy_score", "throughput_img_s", "params")
    sampler: str = "tpe"
    seed: int = 0
    papers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_objectives(self.objectives)
        assert all(name in self.settings for name in CONDITION_COLUMNS), f"settings must have {CONDITION_COLUMNS}"

    @property
    def space_sha256(self) -> str:
        """SHA-256 of the space's text."""
        return hashlib.sha256(self.space_text.encode()).hexdigest()

    @property
    def band(self) -> Band:
        """The MACs that sampled candidates may have."""
        return Band.around(self.budget_macs, self.tolerance)

    @property
    def directions(self) -> list[Direction]:
        """What better means for each objective."""
        return [OBJECTIVES[name] for name in self.objectives]

    @cached_property
    def space(self) -> Space:
        """The space of `space_text`."""
        return Space(tomllib.loads(self.space_text), source=self.space_name, text=self.space_text)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return document

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> "RunConfig":
        """What `to_dict` gave."""
        return RunConfig(**{**document, **{name: tuple(document[name]) for name in ("objectives", "papers")}})

    def differences(self, other: "RunConfig") -> list[str]:
        """`tolerance was 0.05, now 0.1` for all that makes `other` another run; names and a space's comments do not."""
        old, new = _comparable(self), _comparable(other)
        return [
            f"{key} was {old.get(key)}, now {new.get(key)}" for key in {**old, **new} if old.get(key) != new.get(key)
        ]


def _comparable(config: RunConfig) -> dict[str, Any]:
    """Dotted key -> value; the space by what it says instead of how it is written."""
    document = {
        key: value for key, value in config.to_dict().items() if key not in ("name", "space_name", "space_text")
    }
    said = json.dumps(tomllib.loads(config.space_text), sort_keys=True)
    return {"space": f"{config.space_name} ({hashlib.sha256(said.encode()).hexdigest()[:12]})", **_flat(document)}


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat
