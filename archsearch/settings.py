"""What a worker needs to know beside the architecture: device, batch, threads, and the proxy's data, profile and recipe."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from archsearch.config import check_free_rung, rung_steps
from archsearch.data.dataset import ProxyData
from archsearch.data.load import EMBEDDED, DataRequest, load_data
from archsearch.data.preparation import Watch
from archsearch.data.prepared import is_prepared
from archsearch.device import check_cpu, pick_device
from archsearch.errors import UserError
from archsearch.proxy.profile import Profile
from archsearch.proxy.profiles import Proxy, load_profile, recipe_marks
from archsearch.proxy.recipe import Recipe

Settings = dict[str, Any]

PROXY_VERSION = "v1"
DEFAULT_PROXY = "fashion-mnist"
# What a proxy id need not say; of photographs it is the crop.
_USUAL_AUGMENT = {"fashion-mnist": "shift", "constellation": "none"}
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


def _cache_home() -> Path:
    """Where prepared images are kept: the XDG folder for caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def choose_proxy(proxy: str | None, device: str, data: str | Path | None) -> Proxy:
    """The profile asked for, or the house's own for this data and device. Raises UserError for one that goes without images it needs."""
    if proxy is None:
        if data is None or str(data) in EMBEDDED:
            return load_profile(str(data or DEFAULT_PROXY))
        return load_profile("imagenet-short" if device == "cuda" else "cpu-small")
    chosen = load_profile(proxy)
    if chosen.needs_data and data is None:
        raise UserError(f"--proxy {proxy}: trains on images of your own; say which by --data")
    return chosen


def _source(chosen: Proxy, data: str | Path | None, **asked: Any) -> dict[str, Any]:
    """What `load_proxy` takes: the profile's own data, or those asked for."""
    text, size = str(data or chosen.data), chosen.profile.image_size
    if text == "fashion-mnist":
        return {"kind": text}
    if text in EMBEDDED:
        return {"kind": text, "size": size}
    path = Path(text).expanduser()
    request = DataRequest(
        text=str(path.absolute()) if path.exists() else text,
        size=round(size * _STORED_SHARE),
        max_train=chosen.images.train,
        max_val=chosen.images.val,
        **asked,
    )
    return {"kind": "data", **request.to_dict()}


def proxy_id(data: ProxyData, profile: Profile, recipe: Recipe, rung: int | None = None) -> str:
    """What two scores must share to be compared: data, profile, recipe and version; and after how many of the steps, before the last (`rung`)."""
    name = data.name
    if data.manifest_fingerprint:  # embedded and generated data are what their names say
        name = f"{name}-{len(data.train_labels)}-{data.fingerprint}"
    usual = "crop" if data.manifest_fingerprint else _USUAL_AUGMENT[data.name.rpartition("-12k")[0]]
    steps = f"{recipe.steps}steps" if rung is None else f"{rung}of{recipe.steps}steps"
    return (
        f"{name}@{profile}/{steps}/batch{recipe.batch_size}/lr{recipe.learning_rate:g}/{recipe.dtype}"
        f"{recipe_marks(recipe, usual_augment=usual)}/{PROXY_VERSION}"
    )


def load_proxy(source: Mapping[str, Any], watch: Watch | None = None) -> ProxyData:
    """The proxy's images from a settings' `proxy.source`."""
    if source["kind"] == "data":
        prepared = source.get("prepared")
        if prepared and is_prepared(Path(prepared)):
            source = {**source, "text": prepared}
        return load_data(DataRequest.from_dict(source), watch)
    return load_data(DataRequest(text=source["kind"], size=source.get("size", 0)))
