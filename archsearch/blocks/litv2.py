"""LITv2's block (Pan et al., arXiv 2205.13213): HiLo attention and an FFN with a depthwise convolution.

Changed against the paper's code: one (B, C, H, W) channels_last layout, `head_dim` instead of a number of heads, and maps that the window does not divide are
always padded, as the paper's detection backbone does it.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from archsearch.blocks import cost
from archsearch.blocks.base import Block, Layer, LayerError, Shape, choice, own_choices
from archsearch.blocks.common import (
    PreNormBlock,
    check_divides,
    check_hidden,
    crop_tokens,
    from_groups,
    grouped_attention,
    merge_heads,
    pad_tokens,
    padded_positions,
    pre_norm_cost,
    split_heads,
    to_groups,
    to_map,
    to_sequence,
    whole_ratio,
)
from archsearch.blocks.cost import Cost
from archsearch.blocks.kernels import apply_linear, attention
from archsearch.blocks.registry import register


class HiLo(nn.Module):
    """Some heads attend inside windows (Hi-Fi), the others from every token to window averages (Lo-Fi) (section 3.2).

    Padded tokens are zeros and take part in both without a mask. A kind without heads has no parameters.
    """

    def __init__(self, lofi_width: int, hifi_width: int, head_dim: int, window: int) -> None:
        super().__init__()
        self.lofi_width, self.hifi_width, self.head_dim, self.window = lofi_width, hifi_width, head_dim, window
        width = lofi_width + hifi_width
        if lofi_width:
            self.l_q = nn.Linear(width, lofi_width)
            self.l_kv = nn.Linear(width, 2 * lofi_width)
            self.l_proj = nn.Linear(lofi_width, lofi_width)
        if hifi_width:
            self.h_qkv = nn.Linear(width, 3 * hifi_width)
            self.h_proj = nn.Linear(hifi_width, hifi_width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C), Hi-Fi's channels first."""
        height, width = tokens.shape[1:3]
        padded = pad_tokens(tokens, self.window)
        sequence, shape = padded.flatten(1, 2), padded.shape
        if not self.hifi_width:
            out = self._lofi(sequence, shape)
        elif not self.lofi_width:
            out = self._hifi(sequence, shape)
        else:
            out = torch.cat((self._hifi(sequence, shape), self._lofi(sequence, shape)), dim=-1)
        return crop_tokens(out, height, width)

    def _hifi(self, sequence: Tensor, shape: torch.Size) -> Tensor:
        """(B, H * W, C), and (B, H, W, C) as `shape` -> (B, H, W, hifi_width)."""
        qkv = apply_linear(self.h_qkv, to_groups(sequence.view(shape), self.window))
        out = apply_linear(self.h_proj, grouped_attention(qkv, head_dim=self.head_dim))
        return from_groups(out, shape[1:3], self.window)

    def _lofi(self, sequence: Tensor, shape: torch.Size) -> Tensor:
        """(B, H * W, C), and (B, H, W, C) as `shape` -> (B, H, W, lofi_width)."""
        pooled = sequence
        if self.window > 1:
            pooled = to_sequence(functional.avg_pool2d(to_map(sequence.view(shape)), self.window))
        query = split_heads(apply_linear(self.l_q, sequence), self.head_dim)
        key, value = (split_heads(part, self.head_dim) for part in apply_linear(self.l_kv, pooled).chunk(2, dim=-1))
        out = merge_heads(attention(query, key, value))  # (B, H * W, lofi_width)
        projected: Tensor = apply_linear(self.l_proj, out.view(*shape[:3], self.lofi_width))
        return projected


@register
@dataclass(frozen=True, kw_only=True)
class HiLoBlock(Block):
    """LITv2's late block. Window 1 makes every head Lo-Fi, so plain global attention, whatever `alpha` says."""

    kind: ClassVar[str] = "hilo"
    paper: ClassVar[str] = "LITv2"
    window: int = choice(
        2, 1, 2, 4, 7, 14, scale="window", doc="side of a Hi-Fi window and of a Lo-Fi average in tokens"
    )
    alpha: float = choice(0.9, 0.0, 0.25, 0.5, 0.75, 0.9, 1.0, doc="share of Lo-Fi heads, rounded down to whole heads")
    head_dim: int = choice(32, 16, 32, scale="width", doc="channels of a head")
    mlp_ratio: float = choice(4.0, 2.0, 3.0, 4.0, doc="hidden width of the MLP over the width")

    def lofi_width(self, width: int) -> int:
        """Channels of the Lo-Fi heads."""
        heads = width // self.head_dim
        return self.head_dim * (heads if self.window == 1 else int(heads * self.alpha))

    def check(self, shape: Shape) -> None:
        """Heads must divide the width; any window fits by padding."""
        check_divides("head_dim", self.head_dim, shape.channels)
        check_hidden(self.mlp_ratio, shape.channels)
        if self.window < 1:
            raise LayerError("window", f"window {self.window} is not a positive side")
        if not 0 <= self.alpha <= 1:
            raise LayerError("alpha", f"alpha {self.alpha} is not a share from 0 to 1")

    def canonical(self, shape: Shape) -> Layer:
        """One `alpha` for all that split the heads alike: the first of the usual ones. Heads over a single average make no difference."""
        heads, lofi = shape.channels // self.head_dim, self.lofi_width(shape.channels) // self.head_dim
        usual = (0.9, *own_choices(HiLoBlock)["alpha"])
        alike = [float(alpha) for alpha in usual if self.window == 1 or int(heads * float(alpha)) == lofi]
        alpha = alike[0] if alike else (lofi + 0.5) / heads
        head_dim, ratio = self.head_dim, whole_ratio(self.mlp_ratio, shape.channels)
        if lofi == heads and max(shape.height, shape.width) <= self.window:
            head_dim, alpha = shape.channels, 1.0 if self.window > 1 else 0.9
        return replace(self, alpha=alpha, head_dim=head_dim, mlp_ratio=ratio)

    def cost(self, shape: Shape) -> Cost:
        """10CL + (3C Dh + 2w^2 Dh + Dh^2)Lp + (C Dl + 2K Dl + Dl^2)Lp + 2KC Dl + (2C + 9)rCL.

        Lp are the positions after padding to windows, K = Lp / w^2 the averages, Dh and Dl the branches' channels.
        """
        width, padded = shape.channels, padded_positions(shape, self.window)
        averages, lofi = padded // self.window**2, self.lofi_width(width)
        hifi = width - lofi
        high = cost.linear(padded, width, 3 * hifi) + cost.linear(padded, hifi, hifi)
        high += cost.attention(padded, self.window**2, hifi)
        low = cost.linear(padded, width, lofi) + cost.linear(averages, width, 2 * lofi)
        low += cost.attention(padded, averages, lofi) + cost.linear(padded, lofi, lofi)
        hidden = int(width * self.mlp_ratio)
        return high + low + pre_norm_cost(shape, hidden) + cost.depthwise(shape.positions, hidden, 3)

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """The block for maps of `shape`'s width and any size."""
        width, lofi = shape.channels, self.lofi_width(shape.channels)
        attention = HiLo(lofi, width - lofi, self.head_dim, self.window)
        return PreNormBlock(width, int(width * self.mlp_ratio), attention, drop_path, conv=True)
