"""Swin's windows, shifted windows and patch merging (Liu et al., arXiv 2103.14030).

Changed against the paper's code: one (B, C, H, W) channels_last layout, `head_dim` instead of a number of heads, index map and mask are computed, never stored,
and the merging may give any width, not only twice the incoming one.

Any map is taken, where the paper's classifier asks for one that its windows tile: as in the paper's detection code the normed map is padded with zeros below
and to the right, shifted and masked as a whole, and cropped; padding itself is not masked, so it takes part in attention. The merging pads odd sides
likewise. The windows' side follows the classifier's rule also on padded maps (`window_and_shift`).
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from archsearch.blocks import cost
from archsearch.blocks.base import Block, Layer, LayerError, Role, Shape, choice
from archsearch.blocks.common import (
    PreNormBlock,
    add_relative_bias,
    bias_table,
    check_divides,
    check_hidden,
    crop_tokens,
    from_groups,
    grouped_attention,
    init_linears,
    pad_tokens,
    padded_positions,
    pre_norm_cost,
    relative_bias,
    relative_bias_cost,
    round_up,
    to_groups,
    to_map,
    to_tokens,
    whole_ratio,
)
from archsearch.blocks.cost import Cost
from archsearch.blocks.kernels import apply_linear, apply_norm, cached_tensor
from archsearch.blocks.lit import GlobalAttentionBlock
from archsearch.blocks.registry import register
from archsearch.errors import UserError

MASKED = -100.0  # added to the logits of pairs from different sides of the image; finite, as in the paper's code


def window_and_shift(height: int, width: int, window: int, *, is_shifted: bool) -> tuple[int, int]:
    """Side of the windows on a map and the cyclic shift: a window that would cover the short side takes it as its side and is never shifted."""
    side = min(height, width)
    return (side, 0) if side <= window else (window, window // 2 if is_shifted else 0)


def shift_mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """What is added to the logits on a shifted map, (windows, N, N): 0 between neighbours of the padded image, -100 across its edge."""
    height, width = round_up(height, window), round_up(width, window)

    def bands(side: int) -> Tensor:
        return (torch.arange(side) >= side - window).long() + (torch.arange(side) >= side - shift).long()

    regions = 3 * bands(height)[:, None] + bands(width)  # (H, W)
    split = regions.view(height // window, window, width // window, window).transpose(1, 2).reshape(-1, window**2)
    is_apart = split[:, :, None] != split[:, None, :]
    return torch.zeros(is_apart.shape).masked_fill(is_apart, MASKED)


class ShiftedWindowAttention(nn.Module):
    """Attention in square windows of a padded map, shifted cyclically or not, with a learned bias by relative position in windows of `window`.

    `largest` is the side that the windows have on every map with a longer short side; on others a window covers the short side.
    """

    attn_mask: Tensor | None

    def __init__(self, shape: Shape, head_dim: int, window: int, *, is_shifted: bool) -> None:
        side, shift = window_and_shift(shape.height, shape.width, window, is_shifted=is_shifted)
        super().__init__()
        add_relative_bias(self, (side, side), shape.channels // head_dim)
        self.head_dim, self.window, self.largest, self.is_shifted = head_dim, side, window, is_shifted
        self.size = (shape.height, shape.width)
        self.qkv = nn.Linear(shape.channels, 3 * shape.channels)
        self.proj = nn.Linear(shape.channels, shape.channels)
        mask = shift_mask(*self.size, side, shift) if shift else None
        self.register_buffer("attn_mask", mask, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        height, width = map(int, tokens.shape[1:3])
        side, shift = window_and_shift(height, width, self.largest, is_shifted=self.is_shifted)
        if side != self.window:
            raise UserError(self._refusal(height, width, side))
        weights = (bias_table(self), *self.buffers())
        bias = cached_tensor(self, weights, lambda: self._bias(height, width, shift), key=(height, width, shift))
        padded = pad_tokens(tokens, side)
        windows = to_groups(padded.roll((-shift, -shift), (1, 2)) if shift else padded, side)
        out = apply_linear(
            self.proj, grouped_attention(apply_linear(self.qkv, windows), head_dim=self.head_dim, bias=bias)
        )
        out = from_groups(out, padded.shape[1:3], side)
        return crop_tokens(out.roll((shift, shift), (1, 2)) if shift else out, height, width)

    def _refusal(self, height: int, width: int, side: int) -> str:
        """Why windows of the built side cannot be those of a map."""
        is_largest = self.window == self.largest
        allowed = f"a short side of {self.window}" + (" or more" if is_largest else "")
        return (
            f"the windows of a {height}x{width} map have a side of {side}, and this model's bias table is for {self.window}x{self.window}, "
            f"for maps with {allowed}; build the model for this image size"
        )

    def _bias(self, height: int, width: int, shift: int) -> Tensor:
        """(1, heads, N, N), or (windows, heads, N, N) for a shifted map."""
        bias, mask = relative_bias(self), self.attn_mask
        if not shift:
            return bias
        if mask is None or (height, width) != self.size:
            mask = shift_mask(height, width, self.window, shift).to(bias.device)
        return bias + mask[:, None].to(bias.dtype)


@register
@dataclass(frozen=True, kw_only=True)
class RegularWindowBlock(Block):
    """Swin's block with regular windows (W-MSA)."""

    kind: ClassVar[str] = "wmsa"
    paper: ClassVar[str] = "Swin"
    window: int = choice(7, 7, 14, scale="window", doc="side of a window in tokens")
    head_dim: int = choice(32, 16, 32, scale="width", doc="channels of a head")
    mlp_ratio: float = choice(4.0, 2.0, 3.0, 4.0, doc="hidden width of the MLP over the width")
    is_shifted: ClassVar[bool] = False

    def check(self, shape: Shape) -> None:
        """Heads must divide the width; any window fits by padding."""
        check_divides("head_dim", self.head_dim, shape.channels)
        check_hidden(self.mlp_ratio, shape.channels)
        if self.window < 1:
            raise LayerError("window", f"window {self.window} is not a positive side")

    def canonical(self, shape: Shape) -> Layer:
        """Windows without a shift are regular ones, and one window over the whole map is LIT's global attention."""
        side, shift = window_and_shift(shape.height, shape.width, self.window, is_shifted=self.is_shifted)
        ratio = whole_ratio(self.mlp_ratio, shape.channels)
        if side == shape.height == shape.width:
            return GlobalAttentionBlock(head_dim=self.head_dim, mlp_ratio=ratio)
        if not shift:
            return RegularWindowBlock(window=side, head_dim=self.head_dim, mlp_ratio=ratio)
        return replace(self, mlp_ratio=ratio)

    def cost(self, shape: Shape) -> Cost:
        """10CL + 4C^2 Lp + 2w^2 C Lp + 2rC^2 L, Lp the positions after padding to windows; the bias table has (2w-1)^2 rows of one parameter a head."""
        width = shape.channels
        side, _ = window_and_shift(shape.height, shape.width, self.window, is_shifted=self.is_shifted)
        attention = cost.self_attention(padded_positions(shape, side), side**2, width)
        table = relative_bias_cost((side, side), width // self.head_dim)
        return attention + table + pre_norm_cost(shape, int(width * self.mlp_ratio))

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """The block for maps of `shape`'s width whose windows have the same side."""
        attention = ShiftedWindowAttention(shape, self.head_dim, self.window, is_shifted=self.is_shifted)
        return PreNormBlock(shape.channels, int(shape.channels * self.mlp_ratio), attention, drop_path)


@register
@dataclass(frozen=True, kw_only=True)
class ShiftedWindowBlock(RegularWindowBlock):
    """Swin's block with windows shifted by half a side (SW-MSA)."""

    kind: ClassVar[str] = "swmsa"
    is_shifted: ClassVar[bool] = True


class PatchMerging(nn.Module):
    """The four positions of each 2x2 cell side by side, column by column, LayerNorm, Linear without bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * inputs)
        self.reduction = nn.Linear(4 * inputs, outputs, bias=False)
        init_linears(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, outputs, H / 2, W / 2), sides rounded up."""
        tokens = pad_tokens(to_tokens(x), 2)
        batch, height, width, channels = tokens.shape
        cells = tokens.reshape(batch, height // 2, 2, width // 2, 2, channels)
        # (row 0, column 0), (1, 0), (0, 1), (1, 1)
        cells = cells.permute(0, 1, 3, 4, 2, 5).reshape(batch, -1, 4 * channels)
        return to_map(
            apply_linear(self.reduction, apply_norm(self.norm, cells)).view(batch, height // 2, width // 2, -1)
        )


@register
@dataclass(frozen=True, kw_only=True)
class MergingDownsample(Layer):
    """Swin's patch merging: halves the map by concatenation, LayerNorm and a Linear layer without bias."""

    kind: ClassVar[str] = "merging"
    role: ClassVar[Role] = "downsample"
    paper: ClassVar[str] = "Swin"
    width: int

    def out(self, shape: Shape) -> Shape:
        """Half the sides rounded up, `width` channels."""
        return Shape(self.width, (shape.height + 1) // 2, (shape.width + 1) // 2)

    def cost(self, shape: Shape) -> Cost:
        """(4 Cin C + 20 Cin) L_out."""
        out, merged = self.out(shape), 4 * shape.channels
        return cost.layer_norm(out.positions, merged) + cost.linear(out.positions, merged, out.channels, bias=False)

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """For maps of `shape`'s width and any size."""
        return PatchMerging(shape.channels, self.width)
