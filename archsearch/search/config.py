"""What identifies a run, how two runs differ, and at which points of its training a candidate is judged."""

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from archsearch.data.preparation import Watch
from archsearch.device import check_cpu, pick_device
from archsearch.proxy.task import _cache_home, _source, choose_proxy, load_proxy, proxy_id
from archsearch.proxy.training.recipe import check_rungs, rung_steps
from archsearch.results import CONDITION_COLUMNS, OBJECTIVES, Direction, check_objectives
from archsearch.search.rungs import Rung, check_free_rung, rungs_of
from archsearch.space.budget import Band
from archsearch.space.space import Space


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


Settings = dict[str, Any]


_BATCH_SIZE = {"cpu": 2, "cuda": 128, "mps": 32}


def make_settings(
    *,
    device: str = "auto",
    dtype: str = "float32",
    mode: str = "eager",
    batch_size: int | None = None,
    image_size: int = 224,
    threads: int | None = None,
    cpus: Sequence[int] | None = None,
    proxy: str | None = None,
    proxy_steps: int | None = None,
    data: str | Path | None = None,
    train_split: str = "train",
    val_split: str | None = None,
    max_unreadable: float = 0.01,
    cache_dir: Path | None = None,
    rungs: Sequence[int] | None = None,
    training_free: bool = False,
    free_rung: str | None = None,
    watch: Watch | None = None,
) -> Settings:
    """Everything a worker needs beside the architecture, as JSON; prepares `data` in `cache_dir` on first use, where `watch` is told how far it is.

    Without `val_split` validation is held out of the training split.

    `proxy` is the name of a profile or a file; by default the one for the data and the device. `rungs` are the points of a training
    at which it is scored, in parts of the last one, its end, by default the profile's own: of all others `proxy.rungs` says the
    steps, and the proxy_id of a score there. `training_free` has the training-free scores worked out too; `free_rung` names one of
    them to judge by before any training.

    Raises UserError for an unknown profile, an absent device, threads and cores that are not there, and for data that are missing,
    empty, of one class, or too damaged.
    """
    kind = pick_device(device).type
    check_cpu(threads, cpus)  # now, not in the worker, trial by trial
    if free_rung is not None:
        check_free_rung(free_rung)
    chosen = choose_proxy(proxy, kind, data)
    profile, recipe = chosen.profile, replace(chosen.recipe, steps=proxy_steps or chosen.recipe.steps)
    source = _source(
        chosen,
        data,
        train_split=train_split,
        val_split=val_split,
        max_unreadable=max_unreadable,
        cache_dir=str(cache_dir or _cache_home() / "archsearch" / "proxy"),
    )
    loaded = load_proxy(source, watch)
    if loaded.folder:
        source["prepared"] = str(loaded.folder)  # or every worker would list the source anew
    rungs = chosen.rungs if rungs is None else rungs
    below = rung_steps(recipe.steps, rungs) if rungs else []
    lower = [{"steps": steps, "proxy_id": proxy_id(loaded, profile, recipe, steps)} for steps in below]
    return {
        "device": kind,
        "dtype": dtype,
        "mode": mode,
        "batch_size": batch_size or _BATCH_SIZE[kind],
        "image_size": image_size,
        "threads": threads,
        "cpus": None if cpus is None else sorted(cpus),
        # Runs from when that name meant autocast lack this: they are other runs.
        "weights_dtype": dtype if dtype == "bfloat16" else None,
        # Runs from before there were such scores lack these, and are the same runs.
        "training_free": training_free or free_rung is not None or None,
        "free_rung": free_rung,
        "proxy": {
            "source": source,
            "profile": asdict(profile),
            "recipe": asdict(recipe),
            **({"rungs": lower} if lower else {}),  # runs from before there were rungs lack it, and are the same runs
        },
        "proxy_id": proxy_id(loaded, profile, recipe),
        "proxy_num_train": len(loaded.train_labels),
        "proxy_num_val": len(loaded.val_labels),
        "proxy_classes": len(loaded.classes),
        "proxy_unreadable": list(loaded.unreadable),
    }
