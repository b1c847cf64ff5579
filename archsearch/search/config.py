"""What identifies a run, and how two runs differ."""

import contextlib
import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from typing import Any

from archsearch.blocks import BlockFile
from archsearch.errors import UserError
from archsearch.models import GivenNetwork, read_network
from archsearch.proxy import ProxyTask, check_rungs
from archsearch.results import CONDITION_COLUMNS, OBJECTIVES, Direction, Limit, check_objectives, limits_of
from archsearch.search.rungs import Rung, rungs_of
from archsearch.space import Arch, Band, Bounds, Space, register_files
from archsearch.throughput import Measurement
from archsearch.units import format_count, format_sides, stored_size


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that identifies a run; the number of trials and the timeout do not. Raises UserError for its objectives and rungs.

    `settings` are what a worker needs beside the architecture, as `make_settings` gives them. `rungs` are the points of a training
    at which it may be stopped, in parts of the last one, its end; empty where every candidate is trained in full (as in all runs
    before there were rungs); their steps and proxy_ids lie in the settings. `fix` holds parameters of the space to one of their choices.
    `limits` are [least, most] by column, None for no end; without `budget_macs` candidates may have any MACs.
    `blocks` are the texts of the space's files of blocks by name, and of those of included networks. `include` has the networks that are
    measured as fixed trials beside the papers', by name: each an `arch_id` and the `network` that `models.read_network` reads.
    """

    name: str
    space_name: str
    space_text: str
    budget_macs: int | None
    tolerance: float
    settings: Mapping[str, Any]
    objectives: tuple[str, ...] = ("proxy_score", "throughput_img_s", "params")
    sampler: str = "tpe"
    seed: int = 0
    papers: tuple[str, ...] = ()
    rungs: tuple[int, ...] = ()
    fix: Mapping[str, Any] = field(default_factory=dict)
    blocks: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    include: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_objectives(self.objectives)
        if self.rungs:
            check_rungs(self.rungs)
        assert all(name in self.settings for name in CONDITION_COLUMNS), f"settings must have {CONDITION_COLUMNS}"

    @property
    def space_sha256(self) -> str:
        """SHA-256 of the space's text."""
        return hashlib.sha256(self.space_text.encode()).hexdigest()

    @cached_property
    def bounds(self) -> Bounds:
        """The MACs and parameters that sampled candidates may have."""
        return make_bounds(self.budget_macs, self.tolerance, self.limits)

    @property
    def budget_text(self) -> str:
        """`at 4.50G MACs +-5%, latency_ms up to 8 ms`, for the screen."""
        tolerance = f"+-{100 * self.tolerance:g}%"
        budget = "at any MACs" if self.budget_macs is None else f"at {format_count(self.budget_macs)} MACs {tolerance}"
        return ", ".join([budget, *map(str, self.kept_limits)])

    @cached_property
    def kept_limits(self) -> tuple[Limit, ...]:
        """What the members of the front keep."""
        return limits_of(self.limits)

    @property
    def directions(self) -> list[Direction]:
        """What better means for each objective."""
        return [OBJECTIVES[name] for name in self.objectives]

    @property
    def block_files(self) -> list[BlockFile]:
        """The space's files of blocks."""
        return [BlockFile(name, text) for name, text in self.blocks.items()]

    @cached_property
    def space(self) -> Space:
        """The space of `space_text`, for images of the size that the run was asked for, with what is fixed in it."""
        document = tomllib.loads(self.space_text)
        space = Space(document, source=self.space_name, text=self.space_text, files=self.block_files)
        space = space.resized(stored_size(self.settings))
        return space.fixed(self.fix) if self.fix else space

    @property
    def num_fixed(self) -> int:
        """How many fixed trials there are to be: the papers' models and the included networks."""
        return len(self.papers) + len(self.include)

    @cached_property
    def included(self) -> dict[str, Arch | GivenNetwork]:
        """The included networks by name."""
        register_files(self.block_files)
        return {name: read_network(one["network"]) for name, one in self.include.items()}

    @cached_property
    def measurement(self) -> Measurement:
        """How the run times its candidates."""
        return Measurement.from_dict(self.settings)

    @cached_property
    def trainings(self) -> tuple[Rung, ...]:
        """The rungs of a candidate in order, the full training last."""
        return rungs_of(self.settings)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; without `include` where there is none, as before there was any."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return document if self.include else {name: value for name, value in document.items() if name != "include"}

    @staticmethod
    def from_dict(document: Mapping[str, Any]) -> "RunConfig":
        """What `to_dict` gave."""
        tuples = {name: tuple(document.get(name, ())) for name in ("objectives", "papers", "rungs")}
        return RunConfig(**{**document, **tuples})

    def differences(self, other: "RunConfig") -> list[str]:
        """`tolerance was 0.05, now 0.1` for all that makes `other` another run.

        Names, a space's comments and the order of its choices do not.
        """
        return [f"{key} was {was}, now {now}" for key, (was, now) in self._changes(other).items()]

    def changed_files(self, other: "RunConfig") -> list[str]:
        """Names of the files of blocks whose texts differ, where nothing else makes `other` another run."""
        names = list(self._changes(other))
        is_only_files = all(name.startswith(_BLOCKS) for name in names)
        return [name.removeprefix(_BLOCKS) for name in names] if is_only_files else []

    def options(self, other: "RunConfig") -> str | None:
        """The options of `archsearch run` that ask for this run instead of `other`; None where there are none for all that differs."""
        names = [key for key in self._changes(other) if key not in _FOLLOWING]
        options = [_option(self, key) for key in names]
        return " ".join(map(str, options)) if options and None not in options else None

    def _changes(self, other: "RunConfig") -> dict[str, tuple[Any, Any]]:
        """Dotted key -> what it is here and in the other."""
        old, new = _comparable(self), _comparable(other)
        changes = {key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}
        if self.space_text == other.space_text:
            return changes
        was, now = _architectures(self.space_text), _architectures(other.space_text)
        return (
            changes
            if was == now
            else {"space": (f"{self.space_name} ({was})", f"{other.space_name} ({now})"), **changes}
        )


def make_bounds(budget_macs: int | None, tolerance: float, limits: Mapping[str, Sequence[float | None]]) -> Bounds:
    """The bounds of a budget, None for any, and of a limit on the parameters, if there is one."""
    least, most = limits.get("params", (None, None))
    return Bounds(
        macs=None if budget_macs is None else Band.around(budget_macs, tolerance),
        params=None if least is None or most is None else Band(int(least), int(most), unit="parameters"),
    )


_LIMITS = "limits."  # before a column, in dotted keys
_BLOCKS = "blocks."  # before the name of a file of blocks, in dotted keys
_INCLUDE = "include."  # before the name of an included network, in dotted keys
# Keys that differ only where others do.
_FOLLOWING = ("settings.proxy_id", "settings.weights_dtype")
_OPTIONS = {
    "budget_macs": "--budget",
    "tolerance": "--tolerance",
    "sampler": "--sampler",
    "seed": "--seed",
    "objectives": "--objectives",
    "papers": "--papers",
    "rungs": "--rungs",
    "settings.device": "--device",
    "settings.dtype": "--dtype",
    "settings.mode": "--mode",
    "settings.runtime": "--runtime",
    "settings.precision": "--precision",
    "settings.calibration_data": "--calibration-data",
    "settings.batch_size": "--batch-size",
    "settings.image_size": "--image-size",
    "settings.threads": "--threads",
    "settings.cpus": "--cpus",
    "settings.proxy.recipe.steps": "--proxy-steps",
}


def _option(config: RunConfig, key: str) -> str | None:
    """The option that gives a dotted key the value it has here; None where no option does."""
    if key.startswith(_LIMITS):
        found = [limit for limit in config.kept_limits if limit.column == key.removeprefix(_LIMITS)]
        return found[0].option if found else None
    value = _comparable(config).get(key)
    if key == "budget_macs" and value is None:
        return "--budget any"
    if not value and key in ("rungs", "papers"):
        return "--no-rungs" if key == "rungs" else "--papers none"
    if value is None:
        return None
    if key.startswith("fix."):
        return f"--fix {key.removeprefix('fix.')}={value}"
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{_OPTIONS[key]} {text}" if key in _OPTIONS else None


def _comparable(config: RunConfig) -> dict[str, Any]:
    """Dotted key -> value, all but names and the space; rungs by their lengths alone, files of blocks by digits of their text."""
    left_out = ("name", "space_name", "space_text", "rungs", "blocks", "include")
    flat = _flat({key: value for key, value in config.to_dict().items() if key not in left_out})
    if flat.pop("settings.image_width", None):  # where the image is not square
        flat["settings.image_size"] = format_sides(stored_size(config.settings))
    flat.pop("settings.proxy.rungs", None)  # which follow from the lengths, the recipe and the data
    files = {f"{_BLOCKS}{file.name}": f"sha256 {file.sha256[:12]}" for file in config.block_files}
    included = {f"{_INCLUDE}{name}": arch_id for name, arch_id in included_ids(config).items()}
    return {**flat, **files, **included, "rungs": ",".join(map(str, config.rungs)) or None}


def included_ids(config: RunConfig) -> dict[str, str]:
    """The arch_id of each included network by name: all that it says of a run."""
    return {name: str(one["arch_id"]) for name, one in config.include.items()}


@cache
def _architectures(text: str) -> str:
    """A few digits of a space's architectures, the same for every way of writing them."""
    said: Any = text
    with contextlib.suppress(tomllib.TOMLDecodeError, UserError):  # damaged, or in another version's grammar
        said = tomllib.loads(text)
        # Without its files, whose texts are compared by themselves: two versions of one file cannot be registered together.
        said = Space(said, source="", files=()).canonical()
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def make_settings(measurement: Measurement, proxy: ProxyTask) -> dict[str, Any]:
    """What a worker needs beside the architecture, and a run stores as part of its identity: plain values for JSON."""
    return {**measurement.to_dict(), **proxy.to_dict()}
