"""Twins' layers (Chu et al., arXiv 2104.13840): locally grouped and global sub-sampled attention, and PEG.

Changed against the paper's code: one (B, C, H, W) channels_last layout, `head_dim` instead of a number of heads, and locally grouped attention on maps that
its window does not divide. There the paper's classifier refuses and its dense-prediction copies disagree (one attends to the padding, one masks it in some
cases only). Our rule: zeros below and to the right after the first LayerNorm, padded keys masked, projection after the crop.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from archsearch.blocks import cost
from archsearch.blocks.base import Block, Layer, LayerError, Role, Shape, choice
from archsearch.blocks.common import (
    PreNormBlock,
    check_divides,
    crop_tokens,
    from_groups,
    grouped_attention,
    init_convs_fan_out,
    mask_value,
    pad_tokens,
    padded_key_mask,
    padded_positions,
    pre_norm_cost,
    to_groups,
    whole_ratio,
)
from archsearch.blocks.cost import Cost
from archsearch.blocks.davit import WindowAttention
from archsearch.blocks.kernels import Depthwise, apply_linear
from archsearch.blocks.lit import GlobalAttentionBlock
from archsearch.blocks.pvt import (
    BLOCK_EPS,
    SpatialReductionAttention,
    SpatialReductionBlock,
    check_reduction,
    reduced_head_dim,
    reduction_cost,
)
from archsearch.blocks.registry import register


class LocalAttention(WindowAttention):
    """DaViT's attention in windows with Twins' rule for padding: padded keys are masked, and the projection runs on the cropped map."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        height, width = tokens.shape[1:3]
        padded = pad_tokens(tokens, self.window)
        if padded is tokens and torch.compiler.is_compiling():
            # Projected inside the windows: the compiler merges the copy out of them into the skip. Eager mode has to copy either way.
            return super().forward(tokens)
        qkv = apply_linear(self.qkv, to_groups(padded, self.window))
        mask = padded_key_mask(height, width, self.window, 1, mask_value(qkv.dtype), qkv)
        out = from_groups(grouped_attention(qkv, head_dim=self.head_dim, bias=mask), padded.shape[1:3], self.window)
        projected: Tensor = apply_linear(self.proj, crop_tokens(out, height, width))
        return projected


class PositionEncoding(nn.Module):
    """x + depthwise 3x3 of x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = Depthwise(width, 3)
        init_convs_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        out: Tensor = x + self.proj(x)
        return out


@register
@dataclass(frozen=True, kw_only=True)
class PegLayer(Layer):
    """Twins' position encoding generator, once in a stage after its first block."""

    kind: ClassVar[str] = "peg"
    role: ClassVar[Role] = "extra"
    paper: ClassVar[str] = "Twins"

    def cost(self, shape: Shape) -> Cost:
        """9CL."""
        return cost.depthwise(shape.positions, shape.channels, 3)

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """The encoding for maps of `shape`'s width and any size."""
        return PositionEncoding(shape.channels)


@register
@dataclass(frozen=True, kw_only=True)
class LocalBlock(Block):
    """Twins' block with locally grouped attention."""

    kind: ClassVar[str] = "lsa"
    paper: ClassVar[str] = "Twins"
    window: int = choice(7, 7, 14, scale="window", doc="side of a window in tokens")
    head_dim: int = choice(32, 16, 32, scale="width", doc="channels of a head")
    mlp_ratio: float = choice(4.0, 2.0, 3.0, 4.0, doc="hidden width of the MLP over the width")
    peg: bool = choice(True, doc="position encoding after the first block of the stage")

    def check(self, shape: Shape) -> None:
        """Heads must divide the width; any window fits by padding."""
        check_divides("head_dim", self.head_dim, shape.channels)
        if self.window < 1:
            raise LayerError("window", f"window {self.window} is not a positive side")

    def after_first(self) -> Layer | None:
        """The position encoding generator, unless `peg` is off."""
        return PegLayer() if self.peg else None

    def canonical_in(self, shape: Shape, extra: Layer | None) -> Block:
        """`peg` as the stage has it; without it one window over the whole map is global attention. Heads make no difference in windows of one token."""
        head_dim = self.head_dim if self.window > 1 and shape.positions > 1 else shape.channels
        ratio = whole_ratio(self.mlp_ratio, shape.channels)
        if extra is None and self.window == shape.height == shape.width:
            return GlobalAttentionBlock(head_dim=head_dim, mlp_ratio=ratio, bias=False, eps=BLOCK_EPS)
        return replace(self, head_dim=head_dim, mlp_ratio=ratio, peg=extra is not None)

    def cost(self, shape: Shape) -> Cost:
        """10CL + (3C^2 + 2w^2 C) Lp + (1 + 2r) C^2 L, Lp the positions after padding to windows."""
        width, padded = shape.channels, padded_positions(shape, self.window)
        attention = cost.linear(padded, width, 3 * width) + cost.attention(padded, self.window**2, width)
        attention += cost.linear(shape.positions, width, width)
        return attention + pre_norm_cost(shape, int(width * self.mlp_ratio))

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """The block for maps of `shape`'s width and any size."""
        width = shape.channels
        attention = LocalAttention(width, self.head_dim, self.window)
        return PreNormBlock(width, int(width * self.mlp_ratio), attention, drop_path, eps=BLOCK_EPS)


@register
@dataclass(frozen=True, kw_only=True)
class GlobalBlock(Block):
    """Twins' block with global sub-sampled attention, the only one in Twins-PCPVT."""

    kind: ClassVar[str] = "gsa"
    paper: ClassVar[str] = "Twins"
    reduction: int = choice(2, 1, 2, 4, 8, scale="window", doc="side of the cell that becomes one key")
    head_dim: int = choice(32, 16, 32, scale="width", doc="channels of a head")
    mlp_ratio: float = choice(4.0, 2.0, 3.0, 4.0, doc="hidden width of the MLP over the width")
    peg: bool = choice(True, doc="position encoding after the first block of the stage")

    def check(self, shape: Shape) -> None:
        """Heads must divide the width and one cell must fit into the map."""
        check_divides("head_dim", self.head_dim, shape.channels)
        check_reduction(self.reduction, shape)

    def after_first(self) -> Layer | None:
        """The position encoding generator, unless `peg` is off."""
        return PegLayer() if self.peg else None

    def canonical_in(self, shape: Shape, extra: Layer | None) -> Block:
        """`peg` as the stage has it; without it and without the convolution, which Twins initialises in its own way, it is PVT's block."""
        head_dim = reduced_head_dim(self.head_dim, self.reduction, shape)
        ratio = whole_ratio(self.mlp_ratio, shape.channels)
        if extra is None and self.reduction == 1:
            return SpatialReductionBlock(reduction=1, head_dim=head_dim, mlp_ratio=ratio)
        return replace(self, head_dim=head_dim, mlp_ratio=ratio, peg=extra is not None)

    def cost(self, shape: Shape) -> Cost:
        """As PVT's."""
        return reduction_cost(shape, self.reduction, int(shape.channels * self.mlp_ratio))

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """The block for maps of `shape`'s width and any size."""
        width = shape.channels
        attention = SpatialReductionAttention(width, self.head_dim, self.reduction)
        block = PreNormBlock(width, int(width * self.mlp_ratio), attention, drop_path, eps=BLOCK_EPS)
        init_convs_fan_out(block)
        return block
