"""One candidate from architecture to row, in a worker process: exact count, measured throughput, proxy score; each phase is told as soon as it is through."""

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from archsearch import __version__
from archsearch.arch import Arch
from archsearch.errors import RunError, UserError
from archsearch.machine import conditions, device_lock, is_out_of_memory, pick_device
from archsearch.model import build
from archsearch.proxy.data import ProxyData, load_fashion_mnist, load_image_folder
from archsearch.proxy.profile import FASHION_MNIST, FOLDER_FULL, FOLDER_SMALL, Profile, shrink
from archsearch.proxy.recipe import Recipe
from archsearch.proxy.train import Progress, train_and_score
from archsearch.space import paper
from archsearch.throughput import Protocol, measure
from archsearch.trace import count_fvcore

Event = dict[str, Any]
Emit = Callable[[Event], None]
Settings = dict[str, Any]

PROXY_VERSION = "v1"
REFERENCE = "van_b0"  # the smallest of the papers' models: timed around every candidate, so its own time is the price of every trial
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
    proxy_steps: int | None = None,
    data: str | Path | None = None,
    train_split: str = "train",
    val_split: str = "val",
    max_unreadable: float = 0.01,
    cache_dir: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Settings:
    """Everything a worker needs beside the architecture, as JSON; decodes an ImageFolder into `cache_dir` on first use.

    Raises UserError for an absent device, and for a data folder that is missing, empty, of one class, or too damaged.
    """
    kind = pick_device(device).type
    source: dict[str, Any] = {"kind": "fashion-mnist"}
    profile, recipe = _profile(kind, folder=data is not None)
    recipe = replace(recipe, steps=proxy_steps or recipe.steps)
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
    loaded = _load(source, progress)
    return {
        "device": kind,
        "dtype": dtype,
        "mode": mode,
        "batch_size": batch_size or _BATCH_SIZE[kind],
        "image_size": image_size,
        "proxy": {"source": source, "profile": asdict(profile), "recipe": asdict(recipe)},
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


def proxy_id(data: ProxyData, profile: Profile, recipe: Recipe) -> str:
    """What two scores must share to be compared: data, profile, recipe and version."""
    name = (
        data.name
        if data.name.startswith("fashion-mnist")
        else f"{data.name}-{len(data.train_labels)}-{_fingerprint(data)}"
    )
    return f"{name}@{profile}/{recipe.steps}steps/batch{recipe.batch_size}/lr{recipe.learning_rate:g}/{recipe.dtype}/{PROXY_VERSION}"


def _fingerprint(data: ProxyData) -> str:
    """Six hexadecimal digits of the labels and of 64 images spread over the training split."""
    digest = hashlib.sha256(np.ascontiguousarray(data.train_labels).tobytes())
    for index in np.linspace(0, len(data.train_labels) - 1, 64).astype(int):
        digest.update(np.ascontiguousarray(data.train_images[index]).tobytes())
    return digest.hexdigest()[:6]


def _load(source: Mapping[str, Any], progress: Callable[[int, int], None] | None = None) -> ProxyData:
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


def reference_arch() -> Arch:
    """The fixed model that is timed around every candidate."""
    return paper(REFERENCE)


def evaluate(
    arch_document: Mapping[str, Any], settings: Mapping[str, Any], done: Mapping[str, Mapping[str, Any]], emit: Emit
) -> None:
    """Run the phases `count`, `throughput` and `proxy` that are not in `done`, emitting progress and, after each phase, its columns.

    Raises RunError with the reason when the counts disagree, the candidate does not fit into memory or its training diverges.
    """
    arch = Arch.from_dict(arch_document)
    device = torch.device(settings["device"])
    full = cache(lambda: build(arch))  # counted, then timed
    phases: dict[str, Callable[[], dict[str, Any]]] = {
        "count": lambda: _count(arch, full()),
        "throughput": lambda: _throughput(full(), settings, device, emit),
        "proxy": lambda: _proxy(arch, settings, device, emit),
    }
    for phase, work in phases.items():
        if phase in done:
            continue
        emit({"event": "progress", "phase": phase})
        start = time.perf_counter()
        try:
            values = work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise RunError(f"{phase}: out of memory on {device.type}") from error
        emit({"event": "phase", "phase": phase, "values": {**values, f"seconds_{phase}": time.perf_counter() - start}})


def _count(arch: Arch, model: nn.Module) -> dict[str, Any]:
    """fvcore's count of the built model and its parameters; both must equal the exact cost."""
    cost = arch.cost()
    counted, params = count_fvcore(model, arch.image_size), sum(parameter.numel() for parameter in model.parameters())
    if (counted, params) != (cost.macs, cost.params):
        raise RunError(
            f"the built model has {counted} MACs and {params} parameters, the exact cost says {cost.macs} and {cost.params}"
        )
    return {"macs_fvcore": counted, "archsearch_version": __version__, "torch_version": torch.__version__}


def _throughput(model: nn.Module, settings: Mapping[str, Any], device: torch.device, emit: Emit) -> dict[str, Any]:
    """Images/s of the full architecture at its own input size, between two timings of the reference."""
    protocol = Protocol.for_device(
        device,
        batch_size=settings["batch_size"],
        image_size=settings["image_size"],
        dtype=settings["dtype"],
        mode=settings["mode"],
    )
    with device_lock(device, exclusive=True):
        reference = _reference(device.type)
        figures = measure(
            model,
            protocol,
            device,
            reference=reference,
            progress=lambda text: emit({"event": "progress", "phase": "throughput", "text": text}),
        )
    where = conditions(device)
    return {
        "throughput_img_s": figures.throughput_img_s,
        "throughput_iqr": figures.throughput_iqr,
        "latency_ms": figures.latency_ms,
        "throughput_noisy": figures.noisy,
        "throughput_ratio": figures.ratio_to_reference,
        "throughput_drift": figures.drift,
        "peak_memory_bytes": figures.peak_memory_bytes,
        "device_name": where.get("device_name"),
        "conditions": {
            **where,
            "reference": REFERENCE,
            "reference_img_s": figures.reference_img_s,
            "drifted": figures.drifted,
        },
    }


@cache
def _reference(device: str) -> nn.Module:
    torch.manual_seed(0)
    return build(reference_arch()).to(device)


@cache
def _proxy_data(source: tuple[tuple[str, Any], ...]) -> ProxyData:
    """The data of this worker, read once for all its trials."""
    return _load(dict(source))


def _proxy(arch: Arch, settings: Mapping[str, Any], device: torch.device, emit: Emit) -> dict[str, Any]:
    """Train the profile's small version of the architecture on the proxy data; every candidate gets the same seed, order and augmentation."""
    proxy = settings["proxy"]
    data = _proxy_data(tuple(sorted(proxy["source"].items())))
    recipe = Recipe(**proxy["recipe"])
    small = shrink(arch, Profile(**proxy["profile"]), len(data.classes))
    torch.manual_seed(recipe.seed)
    model = build(small)  # grey images are shipped as three equal channels

    def told(progress: Progress) -> None:
        emit(
            {
                "event": "progress",
                "phase": "proxy",
                "step": progress.step,
                "steps": progress.steps,
                "images_s": progress.images_s,
                "loss": progress.loss,
            }
        )

    with device_lock(device, exclusive=False):
        score = train_and_score(model, data, recipe, device=device, progress=told)
    return {
        "proxy_score": score.score,
        "proxy_score_se": score.standard_error,
        "proxy_id": settings["proxy_id"],
        "proxy_train_loss": score.train_loss,
        "proxy_retried": score.retried,
    }


def refuse_unknown_shape(arch: Arch, settings: Mapping[str, Any]) -> None:
    """Raise UserError when the proxy cannot hold this architecture; called before a run starts."""
    try:
        shrink(arch, Profile(**settings["proxy"]["profile"]), settings["proxy_classes"])
    except UserError as error:
        raise UserError(f"{arch.name or arch.arch_id}: {error}") from error
