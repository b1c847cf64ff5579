"""What a worker needs to know beside the architecture: device, batch, threads, and the proxy's data, profile and recipe."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from archsearch.config import rung_steps
from archsearch.machine import check_cpu, pick_device
from archsearch.proxy.data import ProxyData, load_fashion_mnist, load_image_folder
from archsearch.proxy.profile import FASHION_MNIST, FOLDER_FULL, FOLDER_SMALL, Profile
from archsearch.proxy.recipe import Recipe

Settings = dict[str, Any]

PROXY_VERSION = "v1"
_BATCH_SIZE = {"cpu": 2, "cuda": 128, "mps": 32}
_STORED_SHARE = 1.125  # stored images are this much larger than the training crop
_MAX_IMAGES = 128_000  # a tenth of ImageNet: 8 GB prepared at 144 px


def make_settings(
    *,
    device: str = "auto",
    dtype: str = "float32",
    mode: str = "eager",
    batch_size: int | None = None,
    image_size: int = 224,
    threads: int | None = None,
    cpus: Sequence[int] | None = None,
    proxy_steps: int | None = None,
    data: str | Path | None = None,
    train_split: str = "train",
    val_split: str = "val",
    max_unreadable: float = 0.01,
    cache_dir: Path | None = None,
    rungs: Sequence[int] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Settings:
    """Everything a worker needs beside the architecture, as JSON; decodes an ImageFolder into `cache_dir` on first use.

    `rungs` are the points of a training at which it is scored, in parts of the last one, its end: of all others `proxy.rungs`
    says the steps, and the proxy_id of a score there.

    Raises UserError for an absent device, threads and cores that are not there, and for a data folder that is missing, empty, of one class, or too damaged.
    """
    kind = pick_device(device).type
    check_cpu(threads, cpus)  # now, not in the worker, trial by trial
    profile, recipe = _profile(kind, folder=data is not None)
    recipe = replace(recipe, steps=proxy_steps or recipe.steps)

    source: dict[str, Any] = {"kind": "fashion-mnist"}
    if data is not None:
        source = {
            "kind": "folder",
            "path": str(Path(data).expanduser().absolute()),
            "train_split": train_split,
            "val_split": val_split,
            "max_unreadable": max_unreadable,
            "max_train": min(_MAX_IMAGES, recipe.steps * recipe.batch_size),
            "size": round(profile.image_size * _STORED_SHARE),
            "cache_dir": str(cache_dir or _cache_home() / "archsearch" / "proxy"),
        }
    loaded = load_proxy(source, progress)
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


def _profile(device: str, *, folder: bool) -> tuple[Profile, Recipe]:
    """The house's profile and recipe for a kind of data and device.

    Rates: swept once on three anchors (tests/benchmarks/learning_rate.py) and frozen for every candidate. Top-1 on Fashion-MNIST at 1e-3 / 2e-3 / 4e-3:
    davit_tiny .743 .758 .749, van_b2 .745 .777 .782, litv2_s .774 .766 (standard error .010). float32 on a CPU: bfloat16 autocast trained a
    plain transformer slower at width 64 and 1.15x faster at 128; the profiles themselves were not compared. The rate for CUDA is unmeasured.
    """
    if not folder:
        return FASHION_MNIST, Recipe(
            steps=200, batch_size=32, learning_rate=2e-3, image_size=32, dtype="float32", augment="shift"
        )
    if device == "cuda":
        return FOLDER_FULL, Recipe(
            steps=1250, batch_size=256, learning_rate=1e-3, image_size=128, dtype="bfloat16", augment="crop"
        )
    return FOLDER_SMALL, Recipe(
        steps=200, batch_size=32, learning_rate=1e-3, image_size=128, dtype="float32", augment="crop"
    )


def proxy_id(data: ProxyData, profile: Profile, recipe: Recipe, rung: int | None = None) -> str:
    """What two scores must share to be compared: data, profile, recipe and version; and after how many of the steps, before the last (`rung`)."""
    name = (
        data.name
        if data.name.startswith("fashion-mnist")
        else f"{data.name}-{len(data.train_labels)}-{_fingerprint(data)}"
    )
    steps = f"{recipe.steps}steps" if rung is None else f"{rung}of{recipe.steps}steps"
    return (
        f"{name}@{profile}/{steps}/batch{recipe.batch_size}/lr{recipe.learning_rate:g}/{recipe.dtype}/{PROXY_VERSION}"
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
