"""What identifies a run, and how two runs differ."""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from archsearch.proxy import ProxyTask, check_rungs
from archsearch.results import CONDITION_COLUMNS, OBJECTIVES, Direction, check_objectives
from archsearch.search.rungs import Rung, rungs_of
from archsearch.space import Band, Space
from archsearch.throughput import Measurement

SPACE_FILE = "space.toml"  # a run's copy of its space


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that identifies a run; the number of trials and the timeout do not. Raises UserError for its objectives and rungs.

    `settings` are what a worker needs beside the architecture, as `make_settings` gives them. `rungs` are the points of a training
    at which it may be stopped, in parts of the last one, its end; empty where every candidate is trained in full (as in all runs
    before there were rungs); their steps and proxy_ids lie in the settings. `fix` holds parameters of the space to one of their choices.
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
    rungs: tuple[int, ...] = ()
    fix: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_objectives(self.objectives)
        if self.rungs:
            check_rungs(self.rungs)
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
        """The space of `space_text`, with what is fixed in it."""
        space = Space(tomllib.loads(self.space_text), source=self.space_name, text=self.space_text)
        return space.fixed(self.fix) if self.fix else space

    @cached_property
    def measurement(self) -> Measurement:
        """How the run times its candidates."""
        return Measurement.from_dict(self.settings)

    @cached_property
    def trainings(self) -> tuple[Rung, ...]:
        """The rungs of a candidate in order, the full training last."""
        return rungs_of(self.settings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return document

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> "RunConfig":
        """What `to_dict` gave."""
        tuples = {name: tuple(document.get(name, ())) for name in ("objectives", "papers", "rungs")}
        return RunConfig(**{**document, **tuples})

    def differences(self, other: "RunConfig") -> list[str]:
        """`tolerance was 0.05, now 0.1` for all that makes `other` another run; names and a space's comments do not."""
        old, new = _comparable(self), _comparable(other)
        return [
            f"{key} was {old.get(key)}, now {new.get(key)}" for key in {**old, **new} if old.get(key) != new.get(key)
        ]


def _comparable(config: RunConfig) -> dict[str, Any]:
    """Dotted key -> value; the space by what it says instead of how it is written, rungs by their lengths alone."""
    left_out = ("name", "space_name", "space_text", "rungs")
    document = {key: value for key, value in config.to_dict().items() if key not in left_out}
    said = json.dumps(tomllib.loads(config.space_text), sort_keys=True)
    flat = _flat(document)
    flat.pop("settings.proxy.rungs", None)  # which follow from the lengths, the recipe and the data
    return {
        "space": f"{config.space_name} ({hashlib.sha256(said.encode()).hexdigest()[:12]})",
        **flat,
        "rungs": ",".join(map(str, config.rungs)) or None,
    }


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def make_settings(measurement: Measurement, proxy: ProxyTask) -> dict[str, Any]:
    """What a worker needs beside the architecture, and a run stores as part of its identity: plain values for JSON."""
    return {**measurement.to_dict(), **proxy.to_dict()}
