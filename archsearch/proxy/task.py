"""What candidates are trained and scored on: a profile on given images, and the proxy_id that scores must share to be compared."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from archsearch.compiler import compiler_problem
from archsearch.data import EMBEDDED, DataRequest, ProxyData, folder_stamp, is_prepared, load_data
from archsearch.errors import RunError, UserError
from archsearch.proxy.profiles import Profile, load_profile, recipe_marks
from archsearch.proxy.scale import Scale
from archsearch.proxy.training.recipe import Recipe, rung_steps
from archsearch.system import Progress, Say, ignore, user_path

PROXY_VERSION = "v1"
DEFAULT_PROXY = "fashion-mnist"
# Augmentations that a proxy id does not name; for photographs it is the crop.
_USUAL_AUGMENT = {"fashion-mnist": "shift", "constellation": "none"}
_STORED_SHARE = 1.125  # stored images are this much larger than the training crop


@dataclass(frozen=True, kw_only=True)
class LowerRung:
    """A point before the end of the training at which a candidate is scored, after so many steps; scores there have a proxy_id of their own."""

    steps: int
    proxy_id: str


@dataclass(frozen=True, kw_only=True)
class ProxyTask:
    """What candidates are trained and scored on: images (`source`, as `load_images` takes it), how small a copy (`scale`), and the training (`recipe`).

    `rungs` are the points before its end at which it is scored, shortest first. `training_free` says whether the training-free scores are
    computed too, `free_rung` which of them may stop a candidate before any training. The numbers are of training and validation images and of classes.
    """

    source: Mapping[str, Any]
    scale: Scale
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
        profile: Profile,
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
        scale, recipe = profile.scale, replace(profile.recipe, steps=steps or profile.recipe.steps)
        cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        source = _source(
            profile,
            data,
            train_split=train_split,
            val_split=val_split,
            max_unreadable=max_unreadable,
            cache_dir=str(cache_dir or cache_home / "archsearch" / "proxy"),
        )
        loaded = load_images(source, say=say, progress=progress)
        if loaded.folder:
            source["prepared"] = str(loaded.folder)  # or every worker would list the source again
        lengths = profile.rungs if rungs is None else rungs
        below = rung_steps(recipe.steps, lengths) if lengths else []
        return cls(
            source=source,
            scale=scale,
            recipe=recipe,
            proxy_id=proxy_id(loaded, scale, recipe),
            rungs=tuple(LowerRung(steps=at, proxy_id=proxy_id(loaded, scale, recipe, at)) for at in below),
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
            scale=Scale(**proxy["profile"]),
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
        """Plain values for JSON, in the order in which runs have always stored them; what is off is None or left out, as in runs of earlier versions."""
        rungs = {"rungs": [asdict(rung) for rung in self.rungs]} if self.rungs else {}
        return {
            "training_free": self.training_free or None,
            "free_rung": self.free_rung,
            "proxy": {
                "source": dict(self.source),
                "profile": asdict(self.scale),
                "recipe": {
                    name: value for name, value in asdict(self.recipe).items() if (name, value) != ("mode", "eager")
                },
                **rungs,
            },
            "proxy_id": self.proxy_id,
            "proxy_num_train": self.num_train,
            "proxy_num_val": self.num_val,
            "proxy_classes": self.num_classes,
            "proxy_unreadable": list(self.unreadable),
        }

    def load_data(self) -> ProxyData:
        """The images, as training wants them. Raises RunError where they are others than the proxy_id names."""
        loaded = load_images(self.source)
        name = _data_name(loaded)
        if not self.proxy_id.startswith(f"{name}@"):
            raise RunError(
                f"{loaded.folder or self.source['kind']}: the images are {name} now, and this run trains on"
                f" {self.proxy_id.partition('@')[0]}; put these back, or begin a new run with the others"
            )
        return loaded


class LoadedData:
    """The images of a task, read once for many trainings; read and compared again where their files have changed meanwhile."""

    def __init__(self) -> None:
        self._key: tuple[ProxyTask, object] | None = None
        self._data: ProxyData | None = None

    def of(self, task: ProxyTask) -> ProxyData:
        """The images of a task. Raises as `ProxyTask.load_data` does."""
        folder = task.source.get("prepared")
        key = (task, folder_stamp(Path(folder)) if folder else None)
        if self._data is None or self._key != key:
            self._data, self._key = task.load_data(), key
        return self._data


def choose_profile(proxy: str | None, device: str, data: str | Path | None) -> Profile:
    """The profile of that name or file, by default the shipped one for this data and device.

    Raises UserError where it needs images and there are none, and where its training is compiled and no compiler can run here.
    """
    if proxy is None:
        if data is None or str(data) in EMBEDDED:
            return load_profile(str(data or DEFAULT_PROXY))
        return load_profile("imagenet-short" if device == "cuda" else "cpu-small")
    profile = load_profile(proxy)
    if profile.needs_data and data is None:
        raise UserError(f"--proxy {proxy}: trains on images of your own; say which by --data")
    mode = profile.recipe.mode
    problem = None if mode == "eager" else compiler_problem(device)
    if problem is not None:
        raise UserError(
            f"--proxy {proxy}: recipe.mode is {mode!r}, but torch.compile cannot run here: {problem}; install it, or use 'eager'"
        )
    return profile


def _source(profile: Profile, data: str | Path | None, **asked: Any) -> dict[str, Any]:
    """What `load_images` takes: the profile's own data, or the user's."""
    text, size = str(data or profile.data), profile.scale.image_size
    if text == "fashion-mnist":
        return {"kind": text}
    if text in EMBEDDED:
        return {"kind": text, "size": size}
    path = user_path(text)
    request = DataRequest(
        text=str(path.absolute()) if os.path.exists(path) else text,
        size=round(size * _STORED_SHARE),
        max_train=profile.images.train,
        max_val=profile.images.val,
        **asked,
    )
    return {"kind": "data", **request.to_dict()}


def proxy_id(data: ProxyData, scale: Scale, recipe: Recipe, rung: int | None = None) -> str:
    """What two scores must share to be compared: data, scale, recipe and version, and for a rung the step at which it scores."""
    usual = "crop" if data.manifest_fingerprint else _USUAL_AUGMENT[data.name.rpartition("-12k")[0]]
    steps = f"{recipe.steps}steps" if rung is None else f"{rung}of{recipe.steps}steps"
    return (
        f"{_data_name(data)}@{scale}/{steps}/batch{recipe.batch_size}/lr{recipe.learning_rate:g}/{recipe.dtype}"
        f"{recipe_marks(recipe, usual_augment=usual)}/{PROXY_VERSION}"
    )


def _data_name(data: ProxyData) -> str:
    """The part of a proxy_id that says which images; embedded and generated ones are what their names say."""
    return f"{data.name}-{len(data.train_labels)}-{data.fingerprint}" if data.manifest_fingerprint else data.name


def load_images(source: Mapping[str, Any], *, say: Say = ignore, progress: Progress = ignore) -> ProxyData:
    """The images of a proxy task's `source`; prepared in its cache folder where they are not yet."""
    if source["kind"] == "data":
        prepared = source.get("prepared")
        if prepared and is_prepared(Path(prepared)):
            source = {**source, "text": prepared}
        return load_data(DataRequest.from_dict(source), say=say, progress=progress)
    return load_data(DataRequest(text=source["kind"], size=source.get("size", 0)))
