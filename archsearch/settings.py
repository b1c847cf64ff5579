"""What a worker needs to know beside the architecture: device, batch, threads, and the proxy's data, profile and recipe."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from archsearch.config import check_free_rung
from archsearch.data.preparation import Watch
from archsearch.device import check_cpu, pick_device
from archsearch.proxy.task import _cache_home, _source, choose_proxy, load_proxy, proxy_id
from archsearch.proxy.training.recipe import rung_steps

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
