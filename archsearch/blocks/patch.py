"""Patch stems and mergings: one strided convolution and a LayerNorm, in the ways of DaViT, Twins, PVT and LIT."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from archsearch.blocks import cost
from archsearch.blocks.base import Layer, LayerError, Role, Shape, choice
from archsearch.blocks.common import ChannelNorm, init_convs_fan_out, round_up
from archsearch.blocks.cost import Cost
from archsearch.blocks.registry import register

_INIT_DOC = "`default` (PyTorch's) or `fan-out` (normal with std sqrt(2 / fan_out), bias 0: Twins)"


def _check_init(init: str) -> None:
    if init not in ("default", "fan-out"):
        raise LayerError("init", f"init {init!r} is neither 'default' nor 'fan-out'")


class PatchConv(nn.Module):
    """Strided convolution with a LayerNorm (eps 1e-5) before or after it; `pad` zero-pads the map to a multiple of the stride first."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int, stride: int, padding: int, norm: str, pad: bool, init: str
    ) -> None:
        super().__init__()
        self.stride, self.pad, self.norm_first = stride, pad, norm == "before"
        self.proj = nn.Conv2d(inputs, outputs, kernel, stride, padding=padding)
        self.norm = ChannelNorm(inputs if self.norm_first else outputs)
        if init == "fan-out":
            init_convs_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, outputs, H / stride, W / stride)."""
        if self.norm_first:
            x = self.norm(x)
        height, width = x.shape[-2:]
        bottom, right = round_up(height, self.stride) - height, round_up(width, self.stride) - width
        if self.pad and (bottom or right):
            x = functional.pad(x, (0, right, 0, bottom))
        x = self.proj(x)
        return x if self.norm_first else self.norm(x)


def _out(shape: Shape, outputs: int, kernel: int, stride: int, padding: int, pad: bool) -> Shape:
    """Shape after the convolution."""
    sides = [round_up(side, stride) if pad else side for side in (shape.height, shape.width)]
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in sides)
    return Shape(outputs, height, width)


@register
@dataclass(frozen=True, kw_only=True)
class PatchStem(Layer):
    """Image to tokens: convolution of stride 4, then LayerNorm. Kernel 7 is DaViT's and MSG-Transformer's, kernel 4 everybody else's."""

    kind: ClassVar[str] = "patch"
    role: ClassVar[Role] = "stem"
    paper: ClassVar[str] = "DaViT, Twins, PVT, LIT, MSG-Transformer, Swin"
    width: int
    stride: int = field(default=4, metadata={"doc": "pixels a token stands apart; proxies of small images set 2"})
    kernel: int = choice(4, 4, 7, doc="side of the convolution")
    padding: int = choice(
        3, is_later=True, doc="zeros around the image for a kernel that overlaps (MSG-Transformer: 2)"
    )
    pad: bool = choice(False, doc="zero-pad the image to a multiple of 4 (DaViT) instead of dropping the rest")
    init: str = choice("default", is_later=True, doc=_INIT_DOC)

    def check(self, shape: Shape) -> None:
        """A patch must fit into the image, unless this is padded to it."""
        _check_init(self.init)
        if self.stride < 1:
            raise LayerError("stride", f"stride {self.stride} is not positive")
        if self.kernel < self.stride:
            raise LayerError("kernel", f"kernel {self.kernel} is smaller than the stem's stride {self.stride}")
        if not self.pad and min(shape.height, shape.width) < self.stride:
            raise LayerError("image_size", f"an image of {shape.sides} is smaller than the stem's stride {self.stride}")
        if self.kernel > min(shape.height, shape.width) + 2 * self._padding and not self.pad:
            raise LayerError("kernel", f"kernel {self.kernel} is larger than the padded image of {shape.sides}")

    def out(self, shape: Shape) -> Shape:
        """A quarter of the sides, `width` channels."""
        return _out(shape, self.width, self.kernel, self.stride, self._padding, self.pad)

    @property
    def _padding(self) -> int:
        """None for patches that do not overlap, at most half a kernel for those that do."""
        return 0 if self.kernel <= self.stride else min(self.padding, self.kernel // 2)

    def canonical(self, shape: Shape) -> Layer:
        """`padding` as far as it is used, and `pad` where it pads; elsewhere both take the values of the paper with this kernel."""
        usual = min(3, self.kernel // 2)
        padding = 3 if self.kernel <= self.stride or self._padding == usual else self._padding
        # With the same output all that is read beyond the image is zero either way.
        is_idle = replace(self, pad=not self.pad).out(shape) == self.out(shape)
        pad = self.kernel > self.stride and self._padding == usual if is_idle else self.pad
        return replace(self, padding=padding, pad=pad)

    def cost(self, shape: Shape) -> Cost:
        """(k^2 Cin C + 5C) L."""
        positions = self.out(shape).positions
        norm = cost.layer_norm(positions, self.width)
        return norm + cost.conv(positions, shape.channels, self.width, self.kernel)

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """Convolution initialised as `init` says."""
        sides = {"kernel": self.kernel, "stride": self.stride, "padding": self._padding}
        return PatchConv(shape.channels, self.width, **sides, norm="after", pad=self.pad, init=self.init)


@register
@dataclass(frozen=True, kw_only=True)
class PatchDownsample(Layer):
    """Halves the map with a 2x2 convolution of stride 2; LayerNorm before it is DaViT's way, after it Twins' and PVT's."""

    kind: ClassVar[str] = "patch"
    role: ClassVar[Role] = "downsample"
    paper: ClassVar[str] = "DaViT, Twins, PVT"
    width: int
    norm: str = choice("before", "before", "after", doc="where the LayerNorm stands")
    pad: bool = choice(False, doc="zero-pad odd maps (DaViT) instead of dropping the last row and column")
    init: str = choice("default", is_later=True, doc=_INIT_DOC)

    def check(self, shape: Shape) -> None:
        """The map must have two rows and columns, unless it is padded to them."""
        _check_init(self.init)
        if self.norm not in ("before", "after"):
            raise LayerError("norm", f"norm {self.norm!r} is neither 'before' nor 'after'")
        if not self.pad and min(shape.height, shape.width) < 2:
            raise LayerError("image_size", f"a map of {shape.sides} cannot be halved")

    def out(self, shape: Shape) -> Shape:
        """Half the sides, `width` channels."""
        return _out(shape, self.width, 2, 2, 0, self.pad)

    def canonical(self, shape: Shape) -> Layer:
        """`pad` where it pads; on even maps it takes the papers' value: true with the norm before (DaViT)."""
        is_even = shape.height % 2 == shape.width % 2 == 0
        return replace(self, pad=self.norm == "before") if is_even else self

    def cost(self, shape: Shape) -> Cost:
        """4 Cin Cout L_out + 5C L on the side of the norm."""
        out = self.out(shape)
        normed = shape if self.norm == "before" else out
        norm = cost.layer_norm(normed.positions, normed.channels)
        return norm + cost.conv(out.positions, shape.channels, out.channels, 2)

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """Convolution initialised as `init` says."""
        return PatchConv(
            shape.channels, self.width, kernel=2, stride=2, padding=0, norm=self.norm, pad=self.pad, init=self.init
        )
