"""What candidates are trained and scored on: a proxy profile on images, and the proxy_id that scores must share to be compared."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from archsearch.data.dataset import ProxyData
from archsearch.data.load import EMBEDDED, DataRequest, load_data
from archsearch.data.prepared import is_prepared
from archsearch.errors import UserError
from archsearch.proxy.profiles import Proxy, load_profile, recipe_marks
from archsearch.proxy.shrink import Profile
from archsearch.proxy.training.recipe import Recipe, rung_steps
from archsearch.system import Progress, Say, ignore

PROXY_VERSION = "v1"
DEFAULT_PROXY = "fashion-mnist"
# What a proxy id need not say; of photographs it is the crop.
_USUAL_AUGMENT = {"fashion-mnist": "shift", "constellation": "none"}
_STORED_SHARE = 1.125  # stored images are this much larger than the training crop


@dataclass(frozen=True, kw_only=True)
class LowerRung:
    """A point before the end of the training at which a candidate is scored, after so many steps; scores there have a proxy_id of their own."""

    steps: int
    proxy_id: str


@dataclass(frozen=True, kw_only=True)
class ProxyTask:
    """What candidates are trained and scored on: images (`source`, as `load_proxy` takes it), how small a copy, and the training.

    `rungs` are the points before its end at which it is scored, shortest first. `training_free` says whether the training-free scores are
    worked out too, `free_rung` which of them judges before any training. The numbers are of training and validation images and of classes.
    """

    source: Mapping[str, Any]
    profile: Profile
    recipe: Recipe
    proxy_id: str
    rungs: tuple[LowerRung, ...] = ()
    num_train: int = 0
    num_val: int = 0
    num_classes: int = 0
    unreadable: tuple[str, ...] = ()
    training_free: bool = False
    free_rung: str | None = None

    @classmethod
    def resolve(
        cls,
        chosen: Proxy,
        *,
        data: str | Path | None = None,
        steps: int | None = None,
        rungs: Sequence[int] | None = None,
        train_split: str = "train",
        val_split: str | None = None,
        max_unreadable: float = 0.01,
        cache_dir: Path | None = None,
        training_free: bool = False,
        free_rung: str | None = None,
        say: Say = ignore,
        progress: Progress = ignore,
    ) -> Self:
        """The task of a profile on these images, which are prepared in `cache_dir` on first use; `progress` hears how far that is.

        Without `val_split` validation is held out of the training split. `steps` and `rungs` (in parts of the last one, the training's end)
        are by default the profile's. Raises UserError for data that are missing, empty, of one class, or too damaged.
        """
        profile, recipe = chosen.profile, replace(chosen.recipe, steps=steps or chosen.recipe.steps)
        source = _source(
            chosen,
            data,
            train_split=train_split,
            val_split=val_split,
            max_unreadable=max_unreadable,
            cache_dir=str(cache_dir or _cache_home() / "archsearch" / "proxy"),
        )
        loaded = load_proxy(source, say=say, progress=progress)
        if loaded.folder:
            source["prepared"] = str(loaded.folder)  # or every worker would list the source again
        lengths = chosen.rungs if rungs is None else rungs
        below = rung_steps(recipe.steps, lengths) if lengths else []
        return cls(
            source=source,
            profile=profile,
            recipe=recipe,
            proxy_id=proxy_id(loaded, profile, recipe),
            rungs=tuple(LowerRung(steps=at, proxy_id=proxy_id(loaded, profile, recipe, at)) for at in below),
            num_train=len(loaded.train_labels),
            num_val=len(loaded.val_labels),
            num_classes=len(loaded.classes),
            unreadable=tuple(loaded.unreadable),
            training_free=training_free or free_rung is not None,
            free_rung=free_rung,
        )

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """From a run's settings, as `to_dict` wrote them beside others; what runs of earlier versions lack is left at its default."""
        proxy = settings["proxy"]
        return cls(
            source=proxy["source"],
            profile=Profile(**proxy["profile"]),
            recipe=Recipe(**proxy["recipe"]),
            proxy_id=settings["proxy_id"],
            rungs=tuple(LowerRung(**rung) for rung in proxy.get("rungs", ())),
            num_train=settings.get("proxy_num_train", 0),
            num_val=settings.get("proxy_num_val", 0),
            num_classes=settings.get("proxy_classes", 0),
            unreadable=tuple(settings.get("proxy_unreadable", ())),
            training_free=bool(settings.get("training_free")),
            free_rung=settings.get("free_rung"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in the order in which runs have always stored them; what is off is None or left out, as before there was such a thing."""
        rungs = {"rungs": [asdict(rung) for rung in self.rungs]} if self.rungs else {}
        return {
            "training_free": self.training_free or None,
            "free_rung": self.free_rung,
            "proxy": {
                "source": dict(self.source),
                "profile": asdict(self.profile),
                "recipe": asdict(self.recipe),
                **rungs,
            },
            "proxy_id": self.proxy_id,
            "proxy_num_train": self.num_train,
            "proxy_num_val": self.num_val,
            "proxy_classes": self.num_classes,
            "proxy_unreadable": list(self.unreadable),
        }

    def load_data(self) -> ProxyData:
        """The images, as training wants them."""
        return load_proxy(self.source)


def _cache_home() -> Path:
    """Where prepared images are kept: the XDG folder for caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def choose_proxy(proxy: str | None, device: str, data: str | Path | None) -> Proxy:
    """The profile asked for, by default the shipped one for this data and device. Raises UserError for one that goes without images it needs."""
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


def load_proxy(source: Mapping[str, Any], *, say: Say = ignore, progress: Progress = ignore) -> ProxyData:
    """The images of a proxy task's `source`; prepared in its cache folder where they are not yet."""
    if source["kind"] == "data":
        prepared = source.get("prepared")
        if prepared and is_prepared(Path(prepared)):
            source = {**source, "text": prepared}
        return load_data(DataRequest.from_dict(source), say=say, progress=progress)
    return load_data(DataRequest(text=source["kind"], size=source.get("size", 0)))
