"""LIT's FFN-only and global attention blocks and its deformable token merging (Pan et al., arXiv 2105.14217).

The FFN-only block also takes LITv2's depthwise convolution. Changed against the paper's code: one (B, C, H, W) channels_last layout, `head_dim` instead of a
number of heads, and the index map of the relative position bias is computed, never stored. LIT-Ti's other ways are fields: no bias, another epsilon.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from archsearch.blocks import cost
from archsearch.blocks.base import Block, Layer, LayerError, Role, Shape, choice
from archsearch.blocks.common import (
    ConvMlp,
    Mlp,
    PreNormBlock,
    add_relative_bias,
    bias_table,
    check_divides,
    check_hidden,
    drop_path_layer,
    init_convs_fan_out,
    init_linears,
    merge_heads,
    pre_norm_cost,
    relative_bias,
    relative_bias_cost,
    split_heads,
    to_map,
    to_sequence,
    to_tokens,
    whole_ratio,
)
from archsearch.blocks.cost import Cost
from archsearch.blocks.kernels import apply_linear, apply_norm, attention, cached_tensor, is_sampled, linear
from archsearch.blocks.positions import check_unpadded
from archsearch.blocks.registry import register
from archsearch.errors import UserError


class FfnBlock(nn.Module):
    """LayerNorm and an FFN with a skip; `norm2` is the paper's name, there is no `norm1`."""

    def __init__(self, width: int, mlp: nn.Module, drop_path: float, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = mlp
        self.drop_path = drop_path_layer(drop_path)
        init_linears(self)
        init_convs_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        tokens, shape = to_sequence(x), to_tokens(x).shape
        tokens = tokens + self.drop_path(self.mlp(apply_norm(self.norm2, tokens).view(shape)).flatten(1, 2))
        return to_map(tokens.view(shape))


class GlobalAttention(nn.Module):
    """Multi-head attention over all positions; a `grid` (height, width) adds a learned bias by relative position, for maps of exactly that size."""

    def __init__(self, width: int, head_dim: int, grid: tuple[int, int] | None) -> None:
        super().__init__()
        self.head_dim, self.grid = head_dim, grid
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        if grid is not None:
            add_relative_bias(self, grid, width // head_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        parts = apply_linear(self.qkv, tokens.flatten(1, 2)).chunk(3, dim=-1)
        query, key, value = (split_heads(part, self.head_dim) for part in parts)
        out = attention(query, key, value, self._bias(*tokens.shape[1:3]))
        projected: Tensor = apply_linear(self.proj, merge_heads(out).view(tokens.shape))
        return projected

    def _bias(self, height: int, width: int) -> Tensor | None:
        """(1, heads, N, N) or None."""
        if self.grid is None:
            return None
        if (height, width) != self.grid:
            raise UserError(
                f"msa: the relative position bias was built for a map of {self.grid[0]}x{self.grid[1]} tokens, got {height}x{width}; "
                "build the model for this image size, or without the bias"
            )
        return cached_tensor(self, (bias_table(self),), lambda: relative_bias(self))


class DeformableConv(nn.Conv2d):
    """Deformable convolution v1, 2x2 at stride 2: each tap is read at its place plus a learned (dy, dx) in pixels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        # Late, since importing torchvision takes as long as importing torch; not in forward, since it cannot be imported inside a trace.
        from torchvision.ops import deform_conv2d

        super().__init__(inputs, outputs, 2, 2)  # PyTorch's default initialisation is the paper's
        self._operator = deform_conv2d
        self.conv_offset = nn.Conv2d(inputs, 8, 2, 2)
        nn.init.zeros_(self.conv_offset.weight)
        assert self.conv_offset.bias is not None
        nn.init.zeros_(self.conv_offset.bias)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, outputs, H / 2, W / 2), sides rounded down."""
        assert self.bias is not None
        # At least float32, as the paper's code runs it; torchvision's CPU kernel knows no bfloat16 and no mixed types.
        dtype = torch.promote_types(input.dtype, torch.float32)
        tensors = (input, self.conv_offset(input), self.weight, self.bias)
        x, offsets, weight, bias = (tensor.to(dtype) for tensor in tensors)
        if is_sampled(x):
            out = deform_by_sampling(x, offsets, weight, bias)
        else:
            out = self._operator(x, offsets, weight, bias, stride=2)
        return out.to(input.dtype, memory_format=torch.channels_last)


def deform_by_sampling(x: Tensor, offsets: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same 2x2 stride-2 deformable convolution as bilinear sampling of the four taps and one matrix product.

    x (B, C, H, W), offsets (B, 8, H/2, W/2) as (dy, dx) by tap, weight (O, C, 2, 2) -> (B, O, H/2, W/2) in channels_last memory.
    Forward and backward on one core against torchvision's kernel: 3.5 to 23.6 ms at 32x24x16x16, 60 to 158 ms at 4x96x56x56.
    """
    batch, channels, height, width = x.shape
    rows, columns = height // 2, width // 2
    moves = offsets.view(batch, 2, 2, 2, rows, columns)  # (B, i, j, (dy, dx), u, v)
    tap = torch.arange(2, dtype=x.dtype, device=x.device)
    row, column = (torch.arange(count, dtype=x.dtype, device=x.device) for count in (rows, columns))
    down = 2 * row[:, None] + tap[:, None, None, None] + moves[:, :, :, 0]
    across = 2 * column + tap[:, None, None] + moves[:, :, :, 1]
    places = torch.stack((2 * across / (width - 1) - 1, 2 * down / (height - 1) - 1), dim=-1)  # (B, i, j, u, v, (x, y))
    samples = functional.grid_sample(
        x, places.view(batch, 4 * rows, columns, 2), mode="bilinear", padding_mode="zeros", align_corners=True
    )  # (B, C, (i, j, u), v)
    taps = samples.view(batch, channels, 4, rows, columns).permute(0, 3, 4, 2, 1)
    return to_map(linear(taps.reshape(batch, rows, columns, 4 * channels), weight.permute(0, 2, 3, 1).flatten(1), bias))


class DeformableMerging(nn.Module):
    """Deformable convolution, BatchNorm, GELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dconv = DeformableConv(inputs, outputs)
        self.norm_layer = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, outputs, H / 2, W / 2)."""
        return functional.gelu(self.norm_layer(self.dconv(x)))


@register
@dataclass(frozen=True, kw_only=True)
class MlpBlock(Block):
    """LIT's early block: an FFN and nothing else; with `conv` LITv2's."""

    kind: ClassVar[str] = "mlp"
    paper: ClassVar[str] = "LIT, LITv2"
    takes_tokens: ClassVar[bool] = True
    mlp_ratio: float = choice(4.0, 2.0, 3.0, 4.0, 6.0, doc="hidden width of the MLP over the width")
    conv: bool = choice(False, False, True, doc="depthwise 3x3 in the FFN (LITv2)")
    eps: float = choice(1e-5, is_later=True, doc="the LayerNorm's epsilon")

    def check(self, shape: Shape) -> None:
        """Any map fits; the convolution needs one without tokens."""
        check_hidden(self.mlp_ratio, shape.channels)
        if self.conv and shape.tokens:
            raise LayerError("conv", "a depthwise convolution has no place for the tokens beside the map")

    def canonical(self, shape: Shape) -> Layer:
        """Only the MLP's ratio is rounded."""
        return replace(self, mlp_ratio=whole_ratio(self.mlp_ratio, shape.channels))

    def cost(self, shape: Shape) -> Cost:
        """5CL + 2rC^2 L, and 9rCL with the depthwise convolution."""
        width, positions, hidden = shape.channels, shape.positions, int(shape.channels * self.mlp_ratio)
        total = cost.layer_norm(positions, width) + cost.mlp(positions, width, hidden)
        return total + cost.depthwise(positions, hidden, 3) if self.conv else total

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """The block for maps of `shape`'s width and any size."""
        width, hidden = shape.channels, int(shape.channels * self.mlp_ratio)
        return FfnBlock(width, ConvMlp(width, hidden) if self.conv else Mlp(width, hidden), drop_path, eps=self.eps)


@register
@dataclass(frozen=True, kw_only=True)
class GlobalAttentionBlock(Block):
    """LIT's late block: attention over the whole map, quadratic in its positions."""

    kind: ClassVar[str] = "msa"
    paper: ClassVar[str] = "LIT"
    takes_tokens: ClassVar[bool] = True
    head_dim: int = choice(32, 16, 32, scale="width", doc="channels of a head")
    mlp_ratio: float = choice(4.0, 2.0, 3.0, 4.0, doc="hidden width of the MLP over the width")
    bias: bool = choice(True, doc="relative position bias table of the whole map; ties the block to the map's size")
    eps: float = choice(1e-5, is_later=True, doc="the LayerNorms' epsilon")

    def check(self, shape: Shape) -> None:
        """Heads must divide the width; a token beside the map has no relative position."""
        check_divides("head_dim", self.head_dim, shape.channels)
        check_hidden(self.mlp_ratio, shape.channels)
        if self.bias and shape.tokens:
            raise LayerError("bias", "a token beside the map has no relative position; set bias = false")
        check_unpadded(shape, self.kind)

    def canonical(self, shape: Shape) -> Layer:
        """Without a table heads make no difference on a map of one position: softmax over one key."""
        head_dim = self.head_dim if self.bias or shape.positions > 1 else shape.channels
        return replace(self, head_dim=head_dim, mlp_ratio=whole_ratio(self.mlp_ratio, shape.channels))

    def cost(self, shape: Shape) -> Cost:
        """10CL + 4C^2 L + 2CL^2 + 2rC^2 L; the bias table has (2H-1)(2W-1) rows of one parameter a head."""
        width, positions = shape.channels, shape.positions
        attention = cost.self_attention(positions, positions, width)
        table = relative_bias_cost(shape[1:3], width // self.head_dim) if self.bias else Cost()
        return attention + table + pre_norm_cost(shape, int(width * self.mlp_ratio))

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """The block for maps of exactly `shape`, of any size without the bias."""
        width, grid = shape.channels, (shape.height, shape.width)
        attention = GlobalAttention(width, self.head_dim, grid if self.bias else None)
        return PreNormBlock(width, int(width * self.mlp_ratio), attention, drop_path, eps=self.eps)


@register
@dataclass(frozen=True, kw_only=True)
class DeformableDownsample(Layer):
    """LIT's deformable token merging; of an odd side the last row is read through the offsets alone, as in the papers' detection code."""

    kind: ClassVar[str] = "deformable"
    role: ClassVar[Role] = "downsample"
    paper: ClassVar[str] = "LIT, LITv2"
    width: int

    def out(self, shape: Shape) -> Shape:
        """Half the sides rounded down, `width` channels."""
        return Shape(self.width, shape.height // 2, shape.width // 2)

    def cost(self, shape: Shape) -> Cost:
        """(32 Cin + 4 Cin C + 2C) L_out: offsets, the convolution as if not deformed, BatchNorm; sampling is free."""
        positions = self.out(shape).positions
        offsets, taps = (cost.conv(positions, shape.channels, outputs, 2) for outputs in (8, self.width))
        return offsets + taps + cost.batch_norm(positions, self.width)

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """Starts as a plain convolution: the offsets begin at zero."""
        return DeformableMerging(shape.channels, self.width)
