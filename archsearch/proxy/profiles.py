"""Proxies as documented data files: which data, how small a copy, which training. Those of the house lie in `archsearch/proxy/shipped/`."""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from archsearch.data.load import EMBEDDED
from archsearch.errors import UserError
from archsearch.proxy.shrink import Profile
from archsearch.proxy.training.recipe import Recipe

# What a profile may name as its data beside the embedded ones: those of --data.
IMAGES = "images"

Table = Mapping[str, Any]
Made = TypeVar("Made", Profile, Recipe)


@dataclass(frozen=True, kw_only=True)
class Images:
    """How many of a source's images a proxy takes at most."""

    train: int = 128_000
    val: int = 10_000


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """A proxy task as its file says it: `data` is embedded or "images" (any source the user has); `rungs` in parts of the last."""

    name: str
    title: str
    data: str
    profile: Profile
    recipe: Recipe
    rungs: tuple[int, ...] = ()
    images: Images = Images()

    @property
    def needs_data(self) -> bool:
        """Whether the user has to say which images."""
        return self.data == IMAGES


def proxy_names() -> list[str]:
    """The house's own, sorted."""
    return sorted(entry.name.removesuffix(".toml") for entry in _house().iterdir() if entry.name.endswith(".toml"))


def load_profile(name_or_file: str) -> Proxy:
    """A proxy of the house by name, or one's own TOML file. Raises UserError that says where, what and what is allowed."""
    return parse_profile(profile_text(name_or_file), name_or_file)


def profile_text(name_or_file: str) -> str:
    """The text of such a file. Raises UserError where there is none."""
    if name_or_file in proxy_names():
        return str((_house() / f"{name_or_file}.toml").read_text(encoding="utf-8"))
    path = Path(name_or_file).expanduser()
    if not path.is_file():
        close = difflib.get_close_matches(name_or_file, proxy_names(), n=1, cutoff=0.5)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise UserError(
            f"--proxy: no proxy and no file {name_or_file!r}{hint}; there are {', '.join(proxy_names())}, or write a TOML file's name"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--proxy {path}: not a readable file ({error})") from error


def parse_profile(text: str, source: str) -> Proxy:
    """The proxy that a TOML text says. Raises UserError for any key that is unknown, missing or of another type."""
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
    recipe = dict(document["recipe"])
    rungs = _rungs(recipe.pop("rungs", []), source)
    profile = _made(Profile, document["profile"], f"{source}: profile")
    recipe = {"image_size": profile.image_size, **recipe}
    if recipe["image_size"] != profile.image_size:
        raise UserError(
            f"{source}: recipe.image_size is {recipe['image_size']!r}, profile.image_size {profile.image_size}; leave the first out"
        )
    return Proxy(
        name=Path(source).stem,
        title=str(document.get("title", "")),
        data=data,
        profile=profile,
        recipe=_made(Recipe, recipe, f"{source}: recipe"),
        rungs=rungs,
        images=_images(document.get("images", {}), f"{source}: images"),
    )


def recipe_marks(recipe: Recipe, *, usual_augment: str) -> str:
    """What a proxy id has to say of a recipe beside steps, batch, rate and dtype: `/x1a2b3c` where anything else is not the house's own, else nothing."""
    house = {item.name: item.default for item in fields(Recipe) if item.default is not MISSING}
    house = {**house, "augment": usual_augment}
    odd = {name: value for name, value in asdict(recipe).items() if name in house and value != house[name]}
    odd.pop("seed", None)  # repetitions of one proxy share its id
    return f"/x{hashlib.sha256(json.dumps(odd, sort_keys=True).encode()).hexdigest()[:6]}" if odd else ""


def _house() -> Any:
    return resources.files("archsearch") / "proxy" / "shipped"


def _rungs(value: Any, source: str) -> tuple[int, ...]:
    whole = isinstance(value, list) and all(type(part) is int and part > 0 for part in value)
    if not whole or any(a >= b for a, b in pairwise(value)):
        raise UserError(
            f"{source}: recipe.rungs is {value!r}; write positive whole numbers that increase, such as [1, 8]"
        )
    return tuple(value)


def _images(table: Table, where: str) -> Images:
    _check_keys(table, ("train", "val"), (), where)
    for key, value in table.items():
        if type(value) is not int or value < 1:
            raise UserError(f"{where}.{key} is {value!r}; it must be a whole number of at least 1")
    return Images(**table)


def _made(kind: type[Made], table: Table, where: str) -> Made:
    """The dataclass of a table, each value of the field's own type."""
    required = [item.name for item in fields(kind) if item.default is MISSING]
    _check_keys(table, [item.name for item in fields(kind)], required, where)
    hints = get_type_hints(kind)
    return kind(**{name: _value(value, hints[name], f"{where}.{name}") for name, value in table.items()})


def _value(value: Any, hint: Any, where: str) -> Any:
    """The value, checked; a whole number stands for a float."""
    allowed = get_args(hint) or (hint,)
    if value in [word for word in allowed if isinstance(word, str)]:
        return value
    for kind in allowed:
        if kind is float and type(value) in (int, float):
            return float(value)
        if isinstance(kind, type) and type(value) is kind:
            return value
    words = " or ".join(
        repr(kind) if isinstance(kind, str) else kind.__name__ for kind in allowed if kind is not type(None)
    )
    raise UserError(f"{where} is {value!r}; it must be {words}")


def _check_keys(table: Table, known: Sequence[str], required: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f", did you mean {close[0]!r}?" if close else ""
            raise UserError(f"{where}: unknown key {key!r}{hint}; known are {', '.join(known)}")
    for key in required:
        if key not in table:
            raise UserError(f"{where}: {key!r} is missing; needed are {', '.join(required)}")
