"""What identifies a run, how two runs differ, and at which points of its training a candidate is judged."""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from archsearch.errors import UserError
from archsearch.proxy.training.recipe import check_rungs
from archsearch.results import CONDITION_COLUMNS, OBJECTIVES, Direction, check_objectives
from archsearch.space.budget import Band
from archsearch.space.space import Space

# The evaluation's phase of the full training, of one up to a rung (this with its steps behind it), and of one more with
# another seed (with its number behind it).
FULL_PHASE, RUNG_PHASE, SEED_PHASE = "proxy", "proxy@", "seed@"
# The evaluation's phase of the scores that need no training, and their columns; one of them may be the first rung (settings["free_rung"]).
FREE_PHASE = "free"
FREE_SCORES = ("naswot", "zico", "expressivity", "progressivity", "trainability")


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A rung, the `place`-th of `total`: a point of a candidate's training, after so many steps and images of it from its start."""

    phase: str
    place: int
    total: int
    steps: int
    images: int
    proxy_id: str | None


def rungs_of(settings: Mapping[str, Any]) -> tuple[Rung, ...]:
    """The rungs of a run's settings, the full training last; none where they do not say how long that is."""
    proxy = settings.get("proxy") or {}
    recipe = proxy.get("recipe") or {}
    if not recipe.get("steps"):
        return ()
    full = {"steps": recipe["steps"], "proxy_id": settings.get("proxy_id")}
    lower = [{**rung, "phase": f"{RUNG_PHASE}{rung['steps']}"} for rung in proxy.get("rungs", [])]
    return tuple(
        Rung(
            phase=rung.get("phase", FULL_PHASE),
            place=place,
            total=len(lower) + 1,
            steps=rung["steps"],
            images=rung["steps"] * recipe.get("batch_size", 0),
            proxy_id=rung["proxy_id"],
        )
        for place, rung in enumerate([*lower, full], start=1)
    )


def check_free_rung(name: str, where: str = "--free-rung") -> None:
    """Raise UserError for a name that is no training-free score."""
    if name not in FREE_SCORES:
        close = difflib.get_close_matches(name, FREE_SCORES, n=1, cutoff=0.5)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise UserError(f"{where}: unknown training-free score {name!r}{hint}; there are {', '.join(FREE_SCORES)}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that identifies a run; the number of trials and the timeout do not. Raises UserError for its objectives and rungs.

    `settings` are what the evaluation is told: device, dtype, mode, batch_size, image_size, proxy, proxy_id. `rungs` are the
    points of a training at which it may be stopped, in parts of the last one, its end; none where every candidate is trained
    in full (as in all runs before there were rungs); what they come to lies in the settings. `fix` holds parameters of the
    space to one of their choices.
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
