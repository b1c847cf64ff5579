"""PVT's block (Wang et al., arXiv 2102.12122): attention of every position to a spatially reduced map; Twins' global blocks came from it.

Changed against the paper's code: one (B, C, H, W) channels_last layout, and `head_dim` instead of a number of heads.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from archsearch.blocks import cost
from archsearch.blocks.base import Block, Layer, LayerError, Shape, choice
from archsearch.blocks.common import (
    PreNormBlock,
    check_divides,
    check_hidden,
    merge_heads,
    pre_norm_cost,
    split_heads,
    to_map,
    to_sequence,
    whole_ratio,
)
from archsearch.blocks.cost import Cost
from archsearch.blocks.kernels import apply_linear, apply_norm, attention
from archsearch.blocks.positions import check_unpadded
from archsearch.blocks.registry import register

BLOCK_EPS = 1e-6  # of a block's two LayerNorms; the reduction's keeps 1e-5


class SpatialReductionAttention(nn.Module):
    """Attention of every position to one key a reduction x reduction cell; what fills no cell gives no key."""

    def __init__(self, width: int, head_dim: int, reduction: int) -> None:
        super().__init__()
        self.head_dim, self.reduction = head_dim, reduction
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        if reduction > 1:
            self.sr = nn.Conv2d(width, width, reduction, reduction)
            self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        sequence = tokens.flatten(1, 2)
        cells = (
            apply_norm(self.norm, to_sequence(self.sr(to_map(sequence.view(tokens.shape)))))
            if self.reduction > 1
            else sequence
        )  # (B, M, C)
        query = split_heads(apply_linear(self.q, sequence), self.head_dim)  # (B, heads, N, d)
        # (B, heads, M, d) each
        key, value = split_heads(apply_linear(self.kv, cells), self.head_dim).chunk(2, dim=1)
        out: Tensor = apply_linear(self.proj, merge_heads(attention(query, key, value)))
        return out.view(tokens.shape)


def check_reduction(reduction: int, shape: Shape) -> None:
    """One cell must fit into the map; a token beside the map belongs to no cell."""
    if not 1 <= reduction <= min(shape.height, shape.width):
        raise LayerError(
            "reduction", f"reduction {reduction} is not between 1 and the short side of a {shape.sides} map"
        )
    if shape.tokens and reduction > 1:
        problem = "leaves no room for the token beside the map; 1 is allowed"
        raise LayerError("reduction", f"reduction {reduction} {problem}")
    check_unpadded(shape, "sra")


def reduced_head_dim(head_dim: int, reduction: int, shape: Shape) -> int:
    """Heads make no difference where one cell is all there is: softmax over one key."""
    is_single = (shape.height // reduction) * (shape.width // reduction) == 1 and not shape.tokens
    return shape.channels if is_single else head_dim


def reduction_cost(shape: Shape, reduction: int, hidden: int) -> Cost:
    """10CL + (2 + 2r) C^2 L + 2C^2 M + 2CLM and, if s > 1, M (s^2 C^2 + 5C); M = floor(H/s) floor(W/s), or L with a token."""
    width, positions = shape.channels, shape.positions
    if reduction == 1:
        cells, reduced = positions, Cost()
    else:
        cells = (shape.height // reduction) * (shape.width // reduction)
        reduced = cost.conv(cells, width, width, reduction) + cost.layer_norm(cells, width)
    projections = cost.linear(positions, width, width) * 2 + cost.linear(cells, width, 2 * width)
    return projections + cost.attention(positions, cells, width) + reduced + pre_norm_cost(shape, hidden)


@register
@dataclass(frozen=True, kw_only=True)
class SpatialReductionBlock(Block):
    """PVT's block: as Twins' `gsa` without position encoding, so a stage of these wants `positions = "learned"`; takes a class token."""

    kind: ClassVar[str] = "sra"
    paper: ClassVar[str] = "PVT"
    takes_tokens: ClassVar[bool] = True
    reduction: int = choice(2, 1, 2, 4, 8, scale="window", doc="side of the cell that becomes one key")
    head_dim: int = choice(64, 16, 32, 64, scale="width", doc="channels of a head")
    mlp_ratio: float = choice(4.0, 2.0, 3.0, 4.0, 8.0, doc="hidden width of the MLP over the width")

    def check(self, shape: Shape) -> None:
        """Heads must divide the width and one cell must fit into the map."""
        check_divides("head_dim", self.head_dim, shape.channels)
        check_hidden(self.mlp_ratio, shape.channels)
        check_reduction(self.reduction, shape)

    def canonical(self, shape: Shape) -> Layer:
        """Heads where they make a difference, and the MLP's ratio rounded."""
        head_dim = reduced_head_dim(self.head_dim, self.reduction, shape)
        return replace(self, head_dim=head_dim, mlp_ratio=whole_ratio(self.mlp_ratio, shape.channels))

    def cost(self, shape: Shape) -> Cost:
        """As `reduction_cost`."""
        return reduction_cost(shape, self.reduction, int(shape.channels * self.mlp_ratio))

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """The block for maps of `shape`'s width and any size; the convolution keeps PyTorch's default initialisation."""
        width = shape.channels
        attention = SpatialReductionAttention(width, self.head_dim, self.reduction)
        return PreNormBlock(width, int(width * self.mlp_ratio), attention, drop_path, eps=BLOCK_EPS)
