"""What a layer is: a frozen dataclass that checks, prices and builds itself."""

import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple

from torch import nn

from archsearch.blocks.cost import Cost
from archsearch.errors import UserError

Scalar = str | int | float | bool
Role = Literal["stem", "downsample", "positions", "block", "extra", "head"]
Scale = Literal["width", "window", "tiles", "interval"]


class Shape(NamedTuple):
    """A feature map without its batch: channels, height, width; `tokens` windows of it may each be headed by a token of its own.

    With tokens (a class token: 1, the whole map its window; messengers: one for each square window of side `window`) the tensor is (B, C, tokens, 1 + n): a
    row for each window in row-major order, first its token, then its n positions in row-major order. Square windows reach beyond a map that they do not tile.
    """

    channels: int
    height: int
    width: int
    tokens: int = 0
    window: int = 0

    @property
    def positions(self) -> int:
        """Number of positions of the tensor: the map's, those that fill up its windows, and the tokens beside it."""
        return math.prod(self.covered) + self.tokens

    @property
    def plain(self) -> "Shape":
        """The map without its tokens."""
        return self._replace(tokens=0, window=0)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of windows: one window is the whole map, several are squares."""
        if self.tokens == 1 and not self.window:
            return 1, 1
        side = self.window or math.isqrt(self.height * self.width // self.tokens)
        return -(-self.height // side), -(-self.width // side)

    @property
    def covered(self) -> tuple[int, int]:
        """Height and width that the windows cover: the map's sides, rounded up to windows."""
        if not self.window:
            return self.height, self.width
        rows, columns = self.grid
        return rows * self.window, columns * self.window

    @property
    def sides(self) -> str:
        """Height and width in words: `56x56`."""
        return f"{self.height}x{self.width}"

    @property
    def tensor(self) -> tuple[int, int, int]:
        """Shape of the tensor without its batch."""
        if not self.tokens:
            return self.channels, self.height, self.width
        return self.channels, self.tokens, self.positions // self.tokens


class LayerError(UserError):
    """A layer that does not fit a shape; `field` names the value to change, `against` another one that could be changed instead."""

    def __init__(self, field: str, sentence: str, *, against: str = "") -> None:
        super().__init__(sentence)
        self.field, self.against = field, against


def choice(default: Scalar, *choices: Scalar, scale: Scale | None = None, is_later: bool = False, doc: str) -> Any:
    """A dataclass field with the papers' value, the choices of a space that does not write the field, and how a proxy of another size scales it.

    `scale`: `width` shrinks with the widths, `window` with the map it tiles, `tiles` so that their number stays, `interval` is kept but clipped to the map.
    `is_later`: a field that was added when results existed already; at its default it is not written, so that architectures keep their id.
    """
    assert not (is_later and choices)
    metadata = {"choices": choices or (default,), "scale": scale, "is_later": is_later, "doc": doc}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One node of a network: `check`, `out`, `cost` and `build` at a given input shape."""

    kind: ClassVar[str]
    role: ClassVar[Role]
    paper: ClassVar[str] = ""
    takes_tokens: ClassVar[bool] = False  # whether the layer works on a shape with tokens
    coupled: ClassVar[tuple[str, ...]] = ()  # fields whose allowed values depend on each other

    def check_at(self, shape: Shape) -> None:
        """Raise LayerError when the layer does not fit `shape`: by the checks that all layers share, and the layer's own."""
        if shape.tokens and not self.takes_tokens:
            raise LayerError("kind", f"{self.kind} works on a map alone, and this one has tokens beside it")
        self.check(shape)
        out = self.out(shape)
        if min(out.height, out.width) < 1:
            raise LayerError("image_size", f"{self.kind} leaves nothing of a map of {shape.sides}")

    def check(self, shape: Shape) -> None:
        """The layer's own requirements on `shape`; raises LayerError."""

    def check_choice(self, shape: Shape) -> None:
        """What a choice of a space must fit besides, so that it is worth a trial; at other input sizes the papers' rules pad or clip. Raises LayerError."""
        side = max(shape.height, shape.width)
        for item in fields(self):
            size = getattr(self, item.name)
            if item.metadata.get("scale") in ("window", "tiles", "interval") and size > side:
                problem = f"{item.name} {size} is larger than the map of {shape.sides}; allowed: 1 to {side}"
                raise LayerError(item.name, problem)

    def out(self, shape: Shape) -> Shape:
        """Shape after the layer; blocks keep theirs."""
        return shape

    def canonical(self, shape: Shape) -> "Layer":
        """The one representative of all layers that are the same at `shape`: same weights from the same initialisation, same function, same cost."""
        return self

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

    def before_first(self) -> "Layer | None":
        """Layer before the first block of a stage, unless tokens came with the map (MSG-Transformer's messengers)."""
        return None

    def after_first(self) -> Layer | None:
        """Layer after the first block of a stage, once (Twins' PEG)."""
        return None

    def canonical_in(self, shape: Shape, extra: Layer | None) -> "Block":
        """`canonical` inside a stage with `extra` after its first block."""
        layer = self.canonical(shape)
        assert isinstance(layer, Block)
        return layer

    def pair(self) -> "tuple[Block, ...]":
        """How a canonical stage of nothing but this block is written: alternating with its equal where papers write two kinds."""
        return (self,)

    def stage_end(self) -> Layer | None:
        """Layer after the last block of a stage, unless the head follows (VAN's LayerNorm)."""
        return None


def own_choices(layer: type[Layer]) -> dict[str, tuple[Scalar, ...]]:
    """Searchable fields of a layer and the choices of each, in order of definition."""
    return {item.name: item.metadata["choices"] for item in fields(layer) if "choices" in item.metadata}


def field_scale(layer: type[Layer], name: str) -> Scale | None:
    """How a proxy of another size scales the field."""
    scale: Scale | None = layer.__dataclass_fields__[name].metadata["scale"]
    return scale
