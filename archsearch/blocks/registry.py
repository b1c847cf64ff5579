"""The one registry of layers: what a class must have to join it, and the layers that installed packages bring."""

import contextlib
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar, get_args

from archsearch.blocks.base import Block, Layer, Role
from archsearch.errors import UserError, did_you_mean, first_line, shown

ENTRY_POINTS = "archsearch.blocks"  # the group in which an installed package names its modules of layers
LayerType = TypeVar("LayerType", bound=type[Layer])
_REGISTRY: dict[tuple[Role, str], type[Layer]] = {}
_TABLE_ROLES = ("block", "downsample", "positions")  # whose fields stand in a stage's own tables, named by kind
_NEEDED = {"stem": "width", "downsample": "width", "head": "num_classes"}
_KIND = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_TAKEN_WORDS = frozenset(
    "block blocks depth downsample extras head head_dim kind mlp_ratio none positions stem width".split()
)


class BlocksWarning(UserWarning):
    """The layers of an installed package are missing, since it cannot be loaded."""


def register(layer: LayerType) -> LayerType:
    """Class decorator: add a layer to the registry under its role and kind.

    Raises UserError for a class that is no layer, and for a kind that another layer has.
    """
    for problem in _problems(layer):
        raise UserError(f"{getattr(layer, '__name__', shown(layer))}: {problem}")
    for (role, kind), other in _REGISTRY.items():
        same_place = role == layer.role or (role in _TABLE_ROLES and layer.role in _TABLE_ROLES)
        if kind == layer.kind and same_place:
            raise UserError(
                f"{layer.__name__}: the {role} {kind!r} is registered already, by {other.__name__} of {origin(other)}; "
                "give it another kind, or use one of the two"
            )
    _REGISTRY[layer.role, layer.kind] = layer
    return layer


def origin(layer: type[Layer]) -> str:
    """Where a layer comes from: `archsearch`, or the path of the file that defines it."""
    if layer.__module__.startswith("archsearch."):
        return "archsearch"
    return getattr(sys.modules.get(layer.__module__), "__file__", None) or layer.__module__


def _problems(layer: Any) -> Iterator[str]:
    """What keeps a class from being a layer."""
    if not (isinstance(layer, type) and issubclass(layer, Layer)):
        yield "no subclass of Layer; a block derives from archsearch.blocks.Block"
        return
    parameters = vars(layer).get("__dataclass_params__")
    if parameters is None or not parameters.frozen:
        yield "no frozen dataclass; write @dataclass(frozen=True, kw_only=True) between @register and the class"
        return
    kind, role = getattr(layer, "kind", None), getattr(layer, "role", None)
    if not isinstance(kind, str) or not _KIND.fullmatch(kind) or kind in _TAKEN_WORDS:
        yield (
            f'its kind is {shown(kind)}; write kind: ClassVar[str] = "...", a name of lower-case letters, digits and - '
            "that is no key of a stage"
        )
    if role not in get_args(Role) or (role == "block") != issubclass(layer, Block):
        yield f"its role is {shown(role)}; a Block has the role block, any other Layer one of {', '.join(get_args(Role)[:3])}, extra, head"
    for name in ("cost", "build"):
        if getattr(layer, name) is getattr(Layer, name):
            yield f"has no method {name}, which every layer needs"
    yield from _field_problems(layer, _NEEDED.get(str(role)))


def _field_problems(layer: type[Layer], needed: str | None) -> Iterator[str]:
    found = {item.name: item for item in fields(layer)}
    for name in {"kind", "role", "paper", "coupled", "takes_tokens"} & set(found):
        yield f"{name} is a field; annotate it as ClassVar, since it belongs to the class"
    if needed and needed not in found:
        yield f"has no field {needed}, which every {layer.role} needs: {needed}: int"
    for name, item in found.items():
        if item.default is MISSING and name != needed:
            yield f"the field {name} has no default; write {name}: ... = choice(value, doc=...)"
        if not item.compare or item.hash is False:
            yield f"the field {name} is left out of comparisons, by which costs and arch_ids are cached; write {name}: ... = choice(value, doc=...)"


@contextlib.contextmanager
def registering() -> Iterator[list[type[Layer]]]:
    """The layers that are registered meanwhile, filled at the end; none of them stays where an error ends it."""
    before, added = dict(_REGISTRY), list[type[Layer]]()
    try:
        yield added
    except BaseException:
        _REGISTRY.clear()
        _REGISTRY.update(before)
        raise
    added.extend(layer for key, layer in _REGISTRY.items() if key not in before)


@cache
def installed_packages() -> dict[str, str]:
    """Packages that bring layers, with their versions; the first call loads them. Warns with BlocksWarning of one that cannot be loaded."""
    packages: dict[str, str] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        name = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
        try:
            with registering():
                entry.load()
        except (Exception, SystemExit) as error:
            _BROKEN[name] = f"{type(error).__name__}: {first_line(error)}"
            warnings.warn(
                f"the blocks of {name} are missing: {entry.value}: {_BROKEN[name]}", BlocksWarning, stacklevel=2
            )
        else:
            packages.update({entry.dist.name: entry.dist.version} if entry.dist else {})
    return packages


_BROKEN: dict[str, str] = {}


def registered_layers(role: Role) -> dict[str, type[Layer]]:
    """Registered layers of a role by kind, in order of registration; with those of installed packages, which the first call loads."""
    installed_packages()
    return {kind: layer for (layer_role, kind), layer in _REGISTRY.items() if layer_role == role}


def layer_type(role: Role, kind: str, where: str, also: Sequence[str] = ()) -> type[Layer]:
    """The registered layer of that name. Raises UserError with `where`, the nearest kind and all that is allowed, `also` included."""
    known = registered_layers(role)
    if kind not in known:
        allowed = [*also, *known]
        broken = "".join(f"; the blocks of {name} are missing ({reason})" for name, reason in _BROKEN.items())
        raise UserError(
            f"{where}: unknown {role} {shown(kind)}{did_you_mean(kind, allowed)}; allowed: {', '.join(allowed)}{broken}; "
            'a layer of your own needs its file: blocks = ["FILE.py"] in the space'
        )
    return known[kind]
