"""DaViT's blocks (Ding et al., arXiv 2204.03645): spatial window attention and channel-group attention, each with two conditional position encodings.

Changed against the paper's code: one (B, C, H, W) channels_last layout, and `head_dim` / `group_dim` instead of numbers of heads.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from archsearch.blocks import cost
from archsearch.blocks.base import Block, Layer, LayerError, Shape, choice
from archsearch.blocks.common import (
    Mlp,
    check_divides,
    crop_tokens,
    drop_path_layer,
    from_groups,
    grouped_attention,
    init_linears,
    pad_tokens,
    padded_positions,
    pre_norm_cost,
    to_groups,
    to_map,
    to_sequence,
    to_tokens,
    whole_ratio,
)
from archsearch.blocks.cost import Cost
from archsearch.blocks.kernels import Depthwise, apply_linear, apply_norm
from archsearch.blocks.registry import register


class WindowAttention(nn.Module):
    """Attention in non-overlapping windows (section 3.1); padded tokens are zeros before qkv and take part unmasked, as in the paper's code."""

    def __init__(self, width: int, head_dim: int, window: int) -> None:
        super().__init__()
        self.head_dim, self.window = head_dim, window
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        height, width = tokens.shape[1:3]
        padded = pad_tokens(tokens, self.window)
        # Windows first: two copies of C channels, where cutting up queries, keys and values would make one of 3C and one of C.
        out = apply_linear(
            self.proj, grouped_attention(apply_linear(self.qkv, to_groups(padded, self.window)), head_dim=self.head_dim)
        )
        return crop_tokens(from_groups(out, padded.shape[1:3], self.window), height, width)


class ChannelAttention(nn.Module):
    """Attention between the channels of each group over all positions (section 3.2): softmax(k^T v / sqrt(d)) applied to q, the roles of the paper's code."""

    def __init__(self, width: int, group_dim: int) -> None:
        super().__init__()
        self.group_dim = group_dim
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        batch, height, width, channels = tokens.shape
        qkv = apply_linear(self.qkv, tokens).view(batch, height * width, 3, -1, self.group_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, groups, L, d)
        weights = ((key * self.group_dim**-0.5).transpose(-1, -2) @ value).softmax(dim=-1)  # (B, groups, d, d)
        out = query @ weights.transpose(-1, -2)  # (B, groups, L, d)
        projected: Tensor = apply_linear(self.proj, out.transpose(1, 2).reshape(batch, height, width, channels))
        return projected


class DualBlock(nn.Module):
    """The skeleton both kinds share: position encoding, attention, position encoding, MLP, each with a skip."""

    def __init__(self, width: int, hidden: int, attention: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.cpe1 = Depthwise(width, 3)
        self.norm1 = nn.LayerNorm(width)
        self.attn = attention
        self.cpe2 = Depthwise(width, 3)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, hidden)
        self.drop_path = drop_path_layer(drop_path)
        init_linears(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        tokens, shape = to_sequence(x + self.cpe1(x)), to_tokens(x).shape
        tokens = tokens + self.drop_path(self.attn(apply_norm(self.norm1, tokens).view(shape)).flatten(1, 2))
        x = to_map(tokens.view(shape))
        tokens = to_sequence(x + self.cpe2(x))
        tokens = tokens + self.drop_path(self.mlp(apply_norm(self.norm2, tokens).view(shape)).flatten(1, 2))
        return to_map(tokens.view(shape))


def _dual_cost(shape: Shape, hidden: int) -> Cost:
    """A DualBlock without its attention: two position encodings, two LayerNorms and the MLP."""
    return cost.depthwise(shape.positions, shape.channels, 3) * 2 + pre_norm_cost(shape, hidden)


@register
@dataclass(frozen=True, kw_only=True)
class WindowBlock(Block):
    """DaViT's spatial block."""

    kind: ClassVar[str] = "window"
    paper: ClassVar[str] = "DaViT"
    window: int = choice(7, 7, 14, scale="window", doc="side of a window in tokens")
    head_dim: int = choice(32, 16, 32, scale="width", doc="channels of a head")
    mlp_ratio: float = choice(4.0, 2.0, 3.0, 4.0, doc="hidden width of the MLP over the width")

    def check(self, shape: Shape) -> None:
        """Heads must divide the width; any window fits by padding."""
        check_divides("head_dim", self.head_dim, shape.channels)
        if self.window < 1:
            raise LayerError("window", f"window {self.window} is not a positive side")

    def canonical(self, shape: Shape) -> Layer:
        """Heads make no difference where a window is one token: softmax over one key."""
        head_dim = self.head_dim if self.window > 1 else shape.channels
        return replace(self, head_dim=head_dim, mlp_ratio=whole_ratio(self.mlp_ratio, shape.channels))

    def cost(self, shape: Shape) -> Cost:
        """28CL + 4C^2 Lp + 2w^2 C Lp + 2rC^2 L, Lp the positions after padding to windows."""
        attention = cost.self_attention(padded_positions(shape, self.window), self.window**2, shape.channels)
        return attention + _dual_cost(shape, int(shape.channels * self.mlp_ratio))

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """The block for maps of `shape`'s width and any size."""
        width = shape.channels
        attention = WindowAttention(width, self.head_dim, self.window)
        return DualBlock(width, int(width * self.mlp_ratio), attention, drop_path)


@register
@dataclass(frozen=True, kw_only=True)
class ChannelBlock(Block):
    """DaViT's channel-group block."""

    kind: ClassVar[str] = "channel"
    paper: ClassVar[str] = "DaViT"
    group_dim: int = choice(32, 16, 32, scale="width", doc="channels of a group")
    mlp_ratio: float = choice(4.0, 2.0, 3.0, 4.0, doc="hidden width of the MLP over the width")

    def check(self, shape: Shape) -> None:
        """Groups must divide the width."""
        check_divides("group_dim", self.group_dim, shape.channels)

    def canonical(self, shape: Shape) -> Layer:
        """Only the MLP's ratio is rounded."""
        return replace(self, mlp_ratio=whole_ratio(self.mlp_ratio, shape.channels))

    def cost(self, shape: Shape) -> Cost:
        """28CL + 4C^2 L + 2dCL + 2rC^2 L; unlike fused attention both products are written, C (d + L) elements."""
        attention = cost.self_attention(shape.positions, self.group_dim, shape.channels)
        attention += Cost(activations=shape.channels * (self.group_dim + shape.positions))
        return attention + _dual_cost(shape, int(shape.channels * self.mlp_ratio))

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """The block for maps of `shape`'s width and any size."""
        width = shape.channels
        return DualBlock(width, int(width * self.mlp_ratio), ChannelAttention(width, self.group_dim), drop_path)
