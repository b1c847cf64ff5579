"""Profiles: files that say what data, how small a copy and which training a proxy score comes from; `shipped/` has those of the package.

A profile on given images is a proxy task (`archsearch.proxy.task`).
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from archsearch.data import EMBEDDED
from archsearch.errors import UserError, did_you_mean, shown
from archsearch.proxy.scale import Scale
from archsearch.proxy.training.recipe import Recipe, check_rungs
from archsearch.system import parse_toml, read_text, user_path

# What a profile may name as its data beside the embedded ones: those of --data.
IMAGES = "images"
_MOST_IMAGES = 10**9
_LONGEST_TITLE = 200
_WHOLE = 2**53  # below it a float is every whole number

Table = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Images:
    """How many of a source's images are used at most."""

    train: int = 128_000
    val: int = 10_000

    def __post_init__(self) -> None:
        for name in ("train", "val"):
            if not 1 <= (value := getattr(self, name)) <= _MOST_IMAGES:
                raise UserError(f"images.{name} is {shown(value)}; allowed is 1 to {_MOST_IMAGES}")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A profile as its file says it: `data` is embedded or "images" (any source the user has); `scale` is the table `[profile]`.

    `rungs` are where a training may be stopped, in parts of the last one.
    """

    name: str
    title: str
    data: str
    scale: Scale
    recipe: Recipe
    rungs: tuple[int, ...] = ()
    images: Images = Images()

    @property
    def needs_data(self) -> bool:
        """Whether the user has to say which images."""
        return self.data == IMAGES

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the file's own names."""
        return {"profile" if name == "scale" else name: value for name, value in asdict(self).items()}


Converted = TypeVar("Converted", Scale, Recipe, Images)


def profile_names() -> list[str]:
    """The names of the shipped profiles, sorted."""
    return sorted(entry.name.removesuffix(".toml") for entry in _shipped().iterdir() if entry.name.endswith(".toml"))


def load_profile(name_or_file: str) -> Profile:
    """A shipped profile by name, or the user's own TOML file. Raises UserError that says where, what and what is allowed."""
    return parse_profile(profile_text(name_or_file), name_or_file)


def profile_text(name_or_file: str) -> str:
    """The text of a profile's file. Raises UserError where there is none."""
    names = profile_names()
    if name_or_file in names:
        return (_shipped() / f"{name_or_file}.toml").read_text(encoding="utf-8")
    path = user_path(name_or_file)
    if not os.path.lexists(path):
        raise UserError(
            f"--proxy: no proxy and no file {shown(name_or_file)}{did_you_mean(name_or_file, names)}; "
            f"there are {', '.join(names)}, or write a TOML file's name"
        )
    return read_text(path, "a profile")


def parse_profile(text: str, source: str) -> Profile:
    """The profile of a TOML text. Raises UserError for any key that is unknown, missing or of another type."""
    document = parse_toml(text, source)
    _check_keys(document, ("title", "data", "images", "profile", "recipe"), ("data", "profile", "recipe"), source)
    for key in ("images", "profile", "recipe"):
        if not isinstance(document.get(key, {}), dict):
            raise UserError(f"{source}: {key} is {shown(document[key])}; it must be a table, [{key}]")
    data, title = document["data"], document.get("title", "")
    if data not in (*EMBEDDED, IMAGES):
        allowed = ", ".join(f'"{name}"' for name in (*EMBEDDED, IMAGES))
        raise UserError(f"{source}: data is {shown(data)}; allowed is {allowed} (of --data)")
    if not isinstance(title, str) or not title.isprintable() or len(title) > _LONGEST_TITLE:
        raise UserError(f"{source}: title is {shown(title)}; allowed is one line of {_LONGEST_TITLE} characters")
    scale = _convert(Scale, document["profile"], "profile", source)
    recipe = {"image_size": scale.image_size, **document["recipe"]}
    rungs = recipe.pop("rungs", [])
    if not isinstance(rungs, list) or not all(type(part) is int and part < _WHOLE for part in rungs):
        raise UserError(
            f"{source}: recipe.rungs is {shown(rungs)}; write positive whole numbers that increase, such as [1, 8]"
        )
    if rungs:
        check_rungs(rungs, f"{source}: recipe.rungs")
    if recipe["image_size"] != scale.image_size:
        raise UserError(
            f"{source}: recipe.image_size is {shown(recipe['image_size'])}, profile.image_size {scale.image_size}; leave the first out"
        )
    return Profile(
        name=Path(source).stem,
        title=title,
        data=data,
        scale=scale,
        recipe=_convert(Recipe, recipe, "recipe", source),
        rungs=tuple(rungs),
        images=_convert(Images, document.get("images", {}), "images", source),
    )


def recipe_marks(recipe: Recipe, *, usual_augment: str) -> str:
    """What a proxy id has to say of a recipe beside steps, batch, rate and dtype: `/x1a2b3c` where anything else is not the default, else nothing."""
    defaults = {item.name: item.default for item in fields(Recipe) if item.default is not MISSING}
    defaults["augment"] = usual_augment
    changed = {name: value for name, value in asdict(recipe).items() if name in defaults and value != defaults[name]}
    changed.pop("seed", None)  # repetitions of one proxy share its id
    return f"/x{hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:6]}" if changed else ""


def _shipped() -> Traversable:
    return resources.files("archsearch") / "proxy" / "shipped"


# By hand: pydantic or msgspec would be one more dependency, and neither says the key, what was got, what is allowed and
# the nearest name in one sentence; putting their errors into such sentences takes as many lines as these checks.
def _convert(kind: type[Converted], table: Table, key: str, source: str) -> Converted:
    """The dataclass of a table, each value of its field's type."""
    names = [item.name for item in fields(kind)]
    _check_keys(table, names, [item.name for item in fields(kind) if item.default is MISSING], f"{source}: {key}")
    hints = get_type_hints(kind)
    values = {name: _check_value(value, hints[name], f"{source}: {key}.{name}") for name, value in table.items()}
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def _check_value(value: Any, hint: Any, where: str) -> Any:
    """The value if its type, or the word itself, is allowed; a whole number stands for a float too."""
    allowed = get_args(hint) or (hint,)
    if float in allowed and type(value) is int:
        return float(value) if abs(value) < _WHOLE else math.inf * (1 if value > 0 else -1)
    if value in [word for word in allowed if isinstance(word, str)] or type(value) in allowed:
        return value
    words = [repr(kind) if isinstance(kind, str) else kind.__name__ for kind in allowed if kind is not type(None)]
    raise UserError(f"{where} is {shown(value)}; it must be {' or '.join(words)}")


def _check_keys(table: Table, known: Sequence[str], required: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise UserError(
                f"{where}: unknown key {shown(key)}{did_you_mean(key, known)}; known are {', '.join(known)}"
            )
    for key in required:
        if key not in table:
            raise UserError(f"{where}: {key!r} is missing; needed are {', '.join(required)}")
