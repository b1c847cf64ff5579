"""What a worker needs to know beside the architecture: device, batch, threads, and the proxy's data, profile and recipe."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from archsearch.config import rung_steps
from archsearch.errors import UserError
from archsearch.machine import check_cpu, pick_device
from archsearch.proxy.data import ProxyData, load_fashion_mnist, load_image_folder
from archsearch.proxy.profile import Profile
from archsearch.proxy.profiles import Proxy, load_profile, recipe_marks
from archsearch.proxy.recipe import Recipe

Settings = dict[str, Any]

PROXY_VERSION = "v1"
DEFAULT_PROXY = "fashion-mnist"
# What a proxy id need not say; of photographs it is the crop.
_USUAL_AUGMENT = {"fashion-mnist-12k": "shift"}
_BATCH_SIZE = {"cpu": 2, "cuda": 128, "mps": 32}
_STORED_SHARE = 1.125  # stored images are this much larger than the training crop


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
    val_split: str = "val",
    max_unreadable: float = 0.01,
    cache_dir: Path | None = None,
    rungs: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Settings:
    """Everything a worker needs beside the architecture, as JSON; decodes an ImageFolder into `cache_dir` on first use.

    `proxy` is the name of a profile or a file; by default the one for the data and the device. `rungs` are the points of a training
    at which it is scored, in parts of the last one, its end, by default the profile's own: of all others `proxy.rungs` says the
    steps, and the proxy_id of a score there.

    Raises UserError for an unknown profile, an absent device, threads and cores that are not there, and for data that are missing,
    empty, of one class, or too damaged.
    """
    kind = pick_device(device).type
    check_cpu(threads, cpus)  # now, not in the worker, trial by trial
    chosen = choose_proxy(proxy, kind, data)
    profile, recipe = chosen.profile, replace(chosen.recipe, steps=proxy_steps or chosen.recipe.steps)
    source: dict[str, Any] = {"kind": chosen.data}
    if data is not None:
        source = {
            "kind": "folder",
            "path": str(Path(data).expanduser().absolute()),
            "train_split": train_split,
            "val_split": val_split,
            "max_unreadable": max_unreadable,
            "max_train": min(chosen.images.train, recipe.steps * recipe.batch_size),
            "size": round(profile.image_size * _STORED_SHARE),
            "cache_dir": str(cache_dir or _cache_home() / "archsearch" / "proxy"),
        }
    loaded = load_proxy(source, progress)
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


def _cache_home() -> Path:
    """Where prepared images are kept: the XDG folder for caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def choose_proxy(proxy: str | None, device: str, data: str | Path | None) -> Proxy:
    """The profile asked for, or the house's own for this data and device. Raises UserError for one that goes without images it needs."""
    if proxy is None:
        if data is None:
            return load_profile(DEFAULT_PROXY)
        return load_profile("imagenet-short" if device == "cuda" else "cpu-small")
    chosen = load_profile(proxy)
    if chosen.needs_data and data is None:
        raise UserError(f"--proxy {proxy}: trains on images of your own; say which by --data")
    return chosen


def proxy_id(data: ProxyData, profile: Profile, recipe: Recipe, rung: int | None = None) -> str:
    """What two scores must share to be compared: data, profile, recipe and version; and after how many of the steps, before the last (`rung`)."""
    name = (
        data.name
        if data.name.startswith("fashion-mnist")
        else f"{data.name}-{len(data.train_labels)}-{_fingerprint(data)}"
    )
    steps = f"{recipe.steps}steps" if rung is None else f"{rung}of{recipe.steps}steps"
    return (
        f"{name}@{profile}/{steps}/batch{recipe.batch_size}/lr{recipe.learning_rate:g}/{recipe.dtype}"
        f"{recipe_marks(recipe, usual_augment=_USUAL_AUGMENT.get(data.name, 'crop'))}/{PROXY_VERSION}"
    )


def _fingerprint(data: ProxyData) -> str:
    """Six hexadecimal digits of the labels and of 64 images spread over the training split."""
    digest = hashlib.sha256(np.ascontiguousarray(data.train_labels).tobytes())
    for index in np.linspace(0, len(data.train_labels) - 1, 64).astype(int):
        digest.update(np.ascontiguousarray(data.train_images[index]).tobytes())
    return digest.hexdigest()[:6]


def load_proxy(source: Mapping[str, Any], progress: Callable[[int, int], None] | None = None) -> ProxyData:
    """The proxy's images from a settings' `proxy.source`."""
    if source["kind"] == "fashion-mnist":
        return load_fashion_mnist()
    return load_image_folder(
        Path(source["path"]),
        size=source["size"],
        train_split=source["train_split"],
        val_split=source["val_split"],
        max_train=source["max_train"],
        max_unreadable=source["max_unreadable"],
        cache_dir=Path(source["cache_dir"]),
        progress=progress,
    )
