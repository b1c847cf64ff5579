"""What a layer is: a frozen dataclass that checks, prices and builds itself, and the one registry of them."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from torch import nn

from archsearch.cost import Cost
from archsearch.errors import UserError

Scalar = str | int | float | bool
Role = Literal["stem", "downsample", "block", "extra", "head"]
Scale = Literal["width", "window", "interval"]


class Shape(NamedTuple):
    """A feature map without its batch: channels, height, width."""

    channels: int
    height: int
    width: int

    @property
    def positions(self) -> int:
        """Number of tokens of the map."""
        return self.height * self.width


class LayerError(UserError):
    """A layer that cannot stand at a shape; `field` names the value to change."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(sentence)
        self.field = field


def choice(default: Scalar, *choices: Scalar, scale: Scale | None = None, doc: str) -> Any:
    """A dataclass field with its value in papers, what a space may choose when it leaves the field out, and how a proxy of another size scales it.

    `scale`: `width` shrinks with the widths, `window` with the map it tiles, `interval` is kept but clipped to the map.
    """
    return field(default=default, metadata={"choices": choices or (default,), "scale": scale, "doc": doc})


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One node of a network: `check`, `out`, `cost` and `build` at a given input shape."""

    kind: ClassVar[str]
    role: ClassVar[Role]
    paper: ClassVar[str] = ""

    def check(self, shape: Shape) -> None:
        """Raise LayerError when the layer cannot stand at `shape`."""

    def out(self, shape: Shape) -> Shape:
        """Shape after the layer; blocks keep theirs."""
        return shape

    def cost(self, shape: Shape) -> Cost:
        """MACs for one image and parameters at input `shape`."""
        raise AssertionError(f"{type(self).__name__} has no cost")

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """The module: (B, C, H, W) in, (B, *out(shape)) out, both in channels_last memory."""
        raise AssertionError(f"{type(self).__name__} has no build")


@dataclass(frozen=True, kw_only=True)
class Block(Layer):
    """A layer that keeps its shape and may be repeated inside a stage."""

    role: ClassVar[Role] = "block"

    def after_first(self) -> Layer | None:
        """Layer that a stage holding this block puts once after its first block (Twins' PEG)."""
        return None

    def stage_end(self) -> Layer | None:
        """Layer that closes a stage ending on this block unless the head follows (VAN's LayerNorm)."""
        return None


LayerType = TypeVar("LayerType", bound=type[Layer])
_REGISTRY: dict[tuple[Role, str], type[Layer]] = {}


def register(layer: LayerType) -> LayerType:
    """Class decorator: make a layer known under its role and kind; a second one of that name is refused."""
    key = (layer.role, layer.kind)
    assert key not in _REGISTRY, f"{layer.role} {layer.kind!r} is registered twice"
    _REGISTRY[key] = layer
    return layer


def layers_of(role: Role) -> dict[str, type[Layer]]:
    """Registered layers of a role by kind, in order of registration."""
    return {kind: layer for (layer_role, kind), layer in _REGISTRY.items() if layer_role == role}


def layer_type(role: Role, kind: str, where: str) -> type[Layer]:
    """The registered layer of that name, or a UserError that names `where` and the nearest kind."""
    known = layers_of(role)
    if kind not in known:
        raise UserError(f"{where}: unknown {role} {kind!r}{nearest(kind, list(known))}; allowed: {', '.join(known)}")
    return known[kind]


def nearest(name: str, known: Sequence[str]) -> str:
    """`, did you mean 'hilo'?` when something known is close to `name`, else nothing."""
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def own_choices(layer: type[Layer]) -> dict[str, tuple[Scalar, ...]]:
    """Searchable fields of a layer with its own choices, in order of definition."""
    return {item.name: item.metadata["choices"] for item in fields(layer) if "choices" in item.metadata}


def field_scale(layer: type[Layer], name: str) -> Scale | None:
    """How a proxy of another size scales the field."""
    scale: Scale | None = layer.__dataclass_fields__[name].metadata["scale"]
    return scale
