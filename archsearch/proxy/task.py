"""archsearch/proxy/task.py."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from archsearch.data.dataset import ProxyData
from archsearch.data.load import EMBEDDED, DataRequest, load_data
from archsearch.data.preparation import Watch
from archsearch.data.prepared import is_prepared
from archsearch.errors import UserError
from archsearch.proxy.profiles import Proxy, load_profile, recipe_marks
from archsearch.proxy.shrink import Profile
from archsearch.proxy.training.recipe import Recipe

PROXY_VERSION = "v1"


DEFAULT_PROXY = "fashion-mnist"


# What a proxy id need not say; of photographs it is the crop.
_USUAL_AUGMENT = {"fashion-mnist": "shift", "constellation": "none"}


_STORED_SHARE = 1.125  # stored images are this much larger than the training crop


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
