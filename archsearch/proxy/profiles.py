"""Profiles: files that say what data, how small a copy and which training a proxy score comes from; `shipped/` has those of the package.

A profile on given images is a proxy task (`archsearch.proxy.task`).
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from archsearch.data import EMBEDDED
from archsearch.errors import UserError, did_you_mean
from archsearch.proxy.scale import Scale
from archsearch.proxy.training.recipe import Recipe

# What a profile may name as its data beside the embedded ones: those of --data.
IMAGES = "images"

Table = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Images:
    """How many of a source's images are used at most."""

    train: int = 128_000
    val: int = 10_000

    def __post_init__(self) -> None:
        for name in ("train", "val"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"images.{name} is {value!r}; allowed is at least 1")


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
    path = Path(name_or_file).expanduser()
    if not path.is_file():
        raise UserError(
            f"--proxy: no proxy and no file {name_or_file!r}{did_you_mean(name_or_file, names)}; "
            f"there are {', '.join(names)}, or write a TOML file's name"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--proxy {path}: not a readable file ({error})") from error


def parse_profile(text: str, source: str) -> Profile:
    """The profile of a TOML text. Raises UserError for any key that is unknown, missing or of another type."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{source}: not TOML ({error})") from error
    _check_keys(document, ("title", "data", "images", "profile", "recipe"), ("data", "profile", "recipe"), source)
    for key in ("images", "profile", "recipe"):
        if not isinstance(document.get(key, {}), dict):
            raise UserError(f"{source}: {key} is {document[key]!r}; it must be a table, [{key}]")
    data = document["data"]
    if data not in (*EMBEDDED, IMAGES):
        allowed = ", ".join(f'"{name}"' for name in (*EMBEDDED, IMAGES))
        raise UserError(f"{source}: data is {data!r}; allowed is {allowed} (of --data)")
    scale = _convert(Scale, document["profile"], "profile", source)
    recipe = {"image_size": scale.image_size, **document["recipe"]}
    rungs = recipe.pop("rungs", [])
    is_whole = isinstance(rungs, list) and all(type(part) is int and part > 0 for part in rungs)
    if not is_whole or any(a >= b for a, b in pairwise(rungs)):
        raise UserError(
            f"{source}: recipe.rungs is {rungs!r}; write positive whole numbers that increase, such as [1, 8]"
        )
    if recipe["image_size"] != scale.image_size:
        raise UserError(
            f"{source}: recipe.image_size is {recipe['image_size']!r}, profile.image_size {scale.image_size}; leave the first out"
        )
    return Profile(
        name=Path(source).stem,
        title=str(document.get("title", "")),
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
        return float(value)
    if value in [word for word in allowed if isinstance(word, str)] or type(value) in allowed:
        return value
    words = [repr(kind) if isinstance(kind, str) else kind.__name__ for kind in allowed if kind is not type(None)]
    raise UserError(f"{where} is {value!r}; it must be {' or '.join(words)}")


def _check_keys(table: Table, known: Sequence[str], required: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}{did_you_mean(key, known)}; known are {', '.join(known)}")
    for key in required:
        if key not in table:
            raise UserError(f"{where}: {key!r} is missing; needed are {', '.join(required)}")
