"""CrossFormer's layers (Wang et al., arXiv 2108.00154): short- and long-distance attention, cross-scale convolutions.

Changed against the paper's code: one (B, C, H, W) channels_last layout, `head_dim` instead of a number of heads, grouping and bias follow the map that arrives
(the paper's classifier fixes them for a square image at construction), and the merging may give any width, not only twice the incoming one. As in the paper's
code the stem takes images that its stride divides and the merging maps with even sides, when a network is built and when it runs.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from archsearch.blocks import cost
from archsearch.blocks.base import Block, Layer, LayerError, Role, Shape, choice
from archsearch.blocks.common import (
    ChannelNorm,
    PreNormBlock,
    check_divides,
    crop_tokens,
    from_groups,
    grouped_attention,
    mask_value,
    pad_tokens,
    padded_key_mask,
    padded_positions,
    pre_norm_cost,
    to_groups,
    whole_ratio,
)
from archsearch.blocks.cost import Cost
from archsearch.blocks.kernels import apply_linear, cached_tensor, patch_conv
from archsearch.blocks.patch import PatchDownsample, PatchStem
from archsearch.blocks.registry import register
from archsearch.errors import UserError


def grouping(height: int, width: int, window: int, interval: int) -> tuple[int, int]:
    """Side and interval of groups on a map: one that would cover the short side takes it as its side, interval 1."""
    side = min(int(height), int(width))
    return (side, 1) if side <= window else (window, interval)


class DynamicPositionBias(nn.Module):
    """Position bias from an MLP on the offset of query and key in their group, in tokens of the group: the interval has no effect."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        hidden = width // 16
        self.pos_proj = nn.Linear(2, hidden)
        self.pos1 = nn.Sequential(nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.pos2 = nn.Sequential(nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.pos3 = nn.Sequential(nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, heads))

    def forward(self, window: int) -> Tensor:
        """Side of the group -> (heads, window^2, window^2), [head, query, key]."""
        like, offsets = self.pos1[0].weight, 2 * window - 1  # a norm's: a quantised Linear has no tensor of this name
        assert isinstance(like, Tensor)
        steps = torch.arange(1 - window, window, device=like.device, dtype=like.dtype)
        pairs = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1).view(-1, 2)
        table = self.pos3(self.pos2(self.pos1(self.pos_proj(pairs))))  # (offsets^2, heads)
        side = torch.arange(window, device=like.device)
        apart = side[:, None] - side + window - 1  # (query, key) along one axis
        # (row, column of query, row, column of key)
        index = apart[:, None, :, None] * offsets + apart[None, :, None, :]
        # By rows of the transposed table, so that the bias lies in memory as it is added.
        bias: Tensor = table.t().index_select(1, index.flatten()).view(-1, window**2, window**2)
        return bias


class GroupAttention(nn.Module):
    """Attention in groups of window x window tokens that stand `interval` apart; padded keys are masked."""

    def __init__(self, width: int, head_dim: int, window: int, interval: int) -> None:
        super().__init__()
        self.head_dim, self.window, self.interval = head_dim, window, interval
        self.pos = DynamicPositionBias(width, width // head_dim)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        height, width = tokens.shape[1:3]
        window, interval = grouping(height, width, self.window, self.interval)
        padded = pad_tokens(tokens, window * interval)
        qkv = apply_linear(self.qkv, to_groups(padded, window, interval))
        place = (height, width, window, interval)
        bias = cached_tensor(self, list(self.pos.parameters()), lambda: self._bias(*place), key=place)
        out = grouped_attention(qkv, head_dim=self.head_dim, bias=bias)
        return crop_tokens(
            from_groups(apply_linear(self.proj, out), padded.shape[1:3], window, interval), height, width
        )

    def _bias(self, height: int, width: int, window: int, interval: int) -> Tensor:
        """(1, heads, N, N), or (groups, heads, N, N) where keys are padding."""
        bias: Tensor = self.pos(window)[None]
        mask = padded_key_mask(height, width, window, interval, mask_value(bias.dtype), bias)
        return bias if mask is None else bias + mask


@register
@dataclass(frozen=True, kw_only=True)
class ShortDistanceBlock(Block):
    """CrossFormer's block with short-distance attention: groups are neighbouring tokens."""

    kind: ClassVar[str] = "sda"
    paper: ClassVar[str] = "CrossFormer"
    window: int = choice(7, 7, 14, scale="window", doc="side of a group in tokens")
    head_dim: int = choice(32, 16, 32, scale="width", doc="channels of a head")
    mlp_ratio: float = choice(4.0, 2.0, 3.0, 4.0, doc="hidden width of the MLP over the width")
    interval: ClassVar[int] = 1

    def check(self, shape: Shape) -> None:
        """Heads must divide the width and the position MLP needs 16 channels; any group fits by padding."""
        if shape.channels < 16:
            least = f"below 16, the least that {self.kind}'s position bias works with"
            raise LayerError("width", f"width {shape.channels} is {least}")
        check_divides("head_dim", self.head_dim, shape.channels)
        if self.window < 1:
            raise LayerError("window", f"window {self.window} is not a positive side")
        if self.interval < 1:
            raise LayerError("interval", f"interval {self.interval} is not a positive distance")

    def canonical(self, shape: Shape) -> Layer:
        """Long-distance attention at interval 1 is short-distance attention; the group is at most as large as the map."""
        window, interval = grouping(shape.height, shape.width, self.window, self.interval)
        ratio = whole_ratio(self.mlp_ratio, shape.channels)
        # Every token a group of its own.
        is_single = window == 1 and shape.height % interval == shape.width % interval == 0
        if interval == 1 or is_single:
            return ShortDistanceBlock(window=window, head_dim=self.head_dim, mlp_ratio=ratio)
        return replace(self, mlp_ratio=ratio)

    def pair(self) -> tuple[Block, ...]:
        """CrossFormer's pair, whose two blocks are equal on its last map."""
        if self.interval > 1:
            return (self,)
        return self, LongDistanceBlock(window=self.window, head_dim=self.head_dim, mlp_ratio=self.mlp_ratio, interval=1)

    def cost(self, shape: Shape) -> Cost:
        """10CL + 4C^2 Lp + 2G^2 C Lp + 2rC^2 L and the bias; Lp positions after padding to multiples of GI.

        The bias: (2G-1)^2 (2p + 2p^2 + ph + 15p) MACs a forward, p = C / 16; counted as one image's although a batch shares it.
        """
        width = shape.channels
        window, interval = grouping(shape.height, shape.width, self.window, self.interval)
        attention = cost.self_attention(padded_positions(shape, window * interval), window**2, width)
        offsets, hidden = (2 * window - 1) ** 2, width // 16
        bias = cost.linear(offsets, 2, hidden) + cost.linear(offsets, hidden, width // self.head_dim)
        bias += cost.layer_norm(offsets, hidden) * 3 + cost.linear(offsets, hidden, hidden) * 2
        return attention + bias + pre_norm_cost(shape, int(width * self.mlp_ratio))

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """The block for maps of `shape`'s width and any size."""
        attention = GroupAttention(shape.channels, self.head_dim, self.window, self.interval)
        return PreNormBlock(shape.channels, int(shape.channels * self.mlp_ratio), attention, drop_path)


@register
@dataclass(frozen=True, kw_only=True)
class LongDistanceBlock(ShortDistanceBlock):
    """CrossFormer's block with long-distance attention: tokens of a group stand `interval` apart."""

    kind: ClassVar[str] = "lda"
    interval: int = choice(8, 2, 4, 8, scale="interval", doc="distance of neighbouring tokens of a group")  # type: ignore[misc]  # here a field


_MOST_KERNELS = 16  # the last one would be 2^15 strides wide


def _convs(width: int, stride: int, num_kernels: int) -> list[tuple[int, int]]:
    """(kernel, outputs) of each convolution: kernels double, outputs halve, the last as wide as the one before."""
    return [(stride << index, width >> min(index + 1, num_kernels - 1)) for index in range(num_kernels)]


def _check_split(width: int, num_kernels: int) -> None:
    """The width is halved for each further kernel and must divide."""
    if not 1 <= num_kernels <= _MOST_KERNELS:
        raise LayerError("num_kernels", f"num_kernels {num_kernels} is not a positive number up to {_MOST_KERNELS}")
    share = 1 << (num_kernels - 1)
    if width < share or width % share:
        needed = f"{share}, what {num_kernels} cross-scale kernels need"
        raise LayerError("width", f"width {width} is not a multiple of {needed}")


def _stem_misfit(height: int, width: int, stride: int) -> str | None:
    """Why the stem does not take an image; None when it does."""
    if height % stride == width % stride == 0:
        return None
    return f"an image of {height}x{width} does not divide by the stem's stride {stride}"


def _merging_misfit(height: int, width: int) -> str | None:
    """Why the merging does not take a map; None when it does."""
    if height % 2 == width % 2 == 0:
        return None
    return f"the downsample 'cross-scale' needs a map with even sides, got {height}x{width}"


class PatchConv2d(nn.Conv2d):
    """A strided convolution by `patch_conv`."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, outputs, h, w)."""
        return patch_conv(input, self.weight, self.bias, self.stride[0], self.padding[0])  # type: ignore[arg-type]  # numbers, not "same"


class CrossScaleConv(nn.ModuleList):
    """Convolutions of one stride and centre at growing sizes, concatenated on channels, smallest kernel first."""

    def __init__(self, inputs: int, width: int, stride: int, num_kernels: int) -> None:
        kernels = _convs(width, stride, num_kernels)
        super().__init__(
            PatchConv2d(inputs, outputs, kernel, stride, padding=(kernel - stride) // 2) for kernel, outputs in kernels
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, width, H / stride, W / stride)."""
        return torch.cat([conv(x) for conv in self], dim=1)


def _convs_cost(inputs: int, out: Shape, stride: int, num_kernels: int) -> Cost:
    """L_out times the sum of k^2 Cin c over the kernels."""
    kernels = _convs(out.channels, stride, num_kernels)
    return sum((cost.conv(out.positions, inputs, outputs, kernel) for kernel, outputs in kernels), Cost())


class CrossScaleEmbedding(nn.Module):
    """The stem: parallel convolutions on the image, then LayerNorm."""

    def __init__(self, inputs: int, width: int, stride: int, num_kernels: int) -> None:
        super().__init__()
        self.stride = stride
        self.projs = CrossScaleConv(inputs, width, stride, num_kernels)
        self.norm = ChannelNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, width, H / stride, W / stride)."""
        if error := _stem_misfit(x.shape[-2], x.shape[-1], self.stride):
            raise UserError(error)
        out: Tensor = self.norm(self.projs(x))
        return out


class CrossScaleMerging(nn.Module):
    """The merging: LayerNorm, then parallel convolutions of stride 2."""

    def __init__(self, inputs: int, width: int, num_kernels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(inputs)
        self.reductions = CrossScaleConv(inputs, width, 2, num_kernels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, width, H / 2, W / 2)."""
        if error := _merging_misfit(x.shape[-2], x.shape[-1]):
            raise UserError(error)
        out: Tensor = self.reductions(self.norm(x))
        return out


@register
@dataclass(frozen=True, kw_only=True)
class CrossScaleStem(Layer):
    """Image to tokens: convolutions with kernels of stride, 2 stride, 4 stride ... side by side, then LayerNorm."""

    kind: ClassVar[str] = "cross-scale"
    role: ClassVar[Role] = "stem"
    paper: ClassVar[str] = "CrossFormer"
    width: int
    stride: int = field(default=4, metadata={"doc": "pixels a token stands apart; proxies of small images set 2"})
    num_kernels: int = choice(
        4, 2, 3, 4, doc="number of convolutions, the first of the stride's size, each next one twice as large"
    )

    def check(self, shape: Shape) -> None:
        """Kernels must share the width and agree on one grid."""
        _check_split(self.width, self.num_kernels)
        if self.stride < 1 or (self.num_kernels > 1 and self.stride % 2):
            raise LayerError("stride", f"stride {self.stride} must be positive and, for several kernels, even")
        if error := _stem_misfit(shape.height, shape.width, self.stride):
            raise LayerError("image_size", error)

    def out(self, shape: Shape) -> Shape:
        """Sides over the stride, `width` channels."""
        return Shape(self.width, shape.height // self.stride, shape.width // self.stride)

    def canonical(self, shape: Shape) -> Layer:
        """One kernel of the stride's size is a patch stem."""
        if self.num_kernels > 1:
            return self
        return PatchStem(width=self.width, stride=self.stride, kernel=self.stride).canonical(shape)

    def cost(self, shape: Shape) -> Cost:
        """L (sum of k^2 Cin c over the kernels + 5C)."""
        out = self.out(shape)
        norm = cost.layer_norm(out.positions, out.channels)
        return norm + _convs_cost(shape.channels, out, self.stride, self.num_kernels)

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """Convolutions with PyTorch's default initialisation."""
        return CrossScaleEmbedding(shape.channels, self.width, self.stride, self.num_kernels)


@register
@dataclass(frozen=True, kw_only=True)
class CrossScaleDownsample(Layer):
    """Halves the map with convolutions of kernels 2, 4 ... side by side after a LayerNorm."""

    kind: ClassVar[str] = "cross-scale"
    role: ClassVar[Role] = "downsample"
    paper: ClassVar[str] = "CrossFormer"
    width: int
    num_kernels: int = choice(
        2, 1, 2, 3, doc="number of convolutions, the first with kernel 2, each next one twice as large"
    )

    def check(self, shape: Shape) -> None:
        """Kernels must share the width; the map must halve exactly."""
        _check_split(self.width, self.num_kernels)
        if error := _merging_misfit(shape.height, shape.width):
            raise LayerError("image_size", error)

    def out(self, shape: Shape) -> Shape:
        """Half the sides, `width` channels."""
        return Shape(self.width, shape.height // 2, shape.width // 2)

    def canonical(self, shape: Shape) -> Layer:
        """One kernel is a patch merging with its norm before."""
        return self if self.num_kernels > 1 else PatchDownsample(width=self.width).canonical(shape)

    def cost(self, shape: Shape) -> Cost:
        """5CL + L/4 times the sum of k^2 C c over the kernels."""
        norm = cost.layer_norm(shape.positions, shape.channels)
        return norm + _convs_cost(shape.channels, self.out(shape), 2, self.num_kernels)

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """Convolutions with PyTorch's default initialisation."""
        return CrossScaleMerging(shape.channels, self.width, self.num_kernels)
