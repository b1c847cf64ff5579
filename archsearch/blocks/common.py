"""Primitives that several families share. Inside a block tokens are (B, H, W, C), a view of the (B, C, H, W) map in channels_last memory: no copy.

What computes token by token (norms, skips) takes them as (B, N, C): torch.compile lays out four-dimensional results near a convolution as if they were
(B, C, H, W), so (B, H, W, C) with the height fastest, which the next Linear had to undo by a copy.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from archsearch.blocks import cost
from archsearch.blocks.base import LayerError, Shape
from archsearch.blocks.cost import Cost
from archsearch.blocks.kernels import (
    Depthwise,
    apply_gelu,
    apply_linear,
    apply_norm,
    attention,
    is_eager_cpu,
    layer_norm,
)


def round_up(size: int, multiple: int) -> int:
    """`size` rounded up to a multiple."""
    return -(-size // multiple) * multiple


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), a view."""
    return x.permute(0, 2, 3, 1)


def to_sequence(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C), a view of a map in channels_last memory."""
    return to_tokens(x).flatten(1, 2)


def to_map(tokens: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W) in channels_last memory, a view of contiguous tokens."""
    return tokens.permute(0, 3, 1, 2)


def check_divides(name: str, value: int, width: int) -> None:
    """Heads or groups of `value` channels must fill the width exactly."""
    if value < 1 or width % value:
        raise LayerError(name, f"{name} {value} does not divide the width {width}", against="width")


def check_hidden(mlp_ratio: float, width: int) -> None:
    """An FFN needs at least one hidden channel."""
    if int(width * mlp_ratio) < 1:
        raise LayerError("mlp_ratio", f"mlp_ratio {mlp_ratio} leaves no hidden channel at the width {width}")


def whole_ratio(mlp_ratio: float, width: int) -> float:
    """The FFN's hidden width over the width, equal for all ratios that round down to the same channels."""
    return int(width * mlp_ratio) / width


def drop_path_layer(rate: float) -> nn.Module:
    """Stochastic depth by sample, or the identity at rate 0."""
    if rate == 0:
        return nn.Identity()
    from torchvision.ops import StochasticDepth  # late: importing torchvision takes as long as importing torch

    layer: nn.Module = StochasticDepth(rate, mode="row")
    return layer


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a (B, C, H, W) map."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        return to_map(layer_norm(to_sequence(x), self.weight, self.bias, self.eps).view(to_tokens(x).shape))


class Mlp(nn.Module):
    """Linear, GELU, Linear on tokens (..., C)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        out: Tensor = apply_linear(self.fc2, apply_gelu(self.fc1, tokens))
        return out


class ConvMlp(nn.Module):
    """Linear, depthwise 3x3, GELU, Linear on tokens (B, H, W, C)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.dwconv = Depthwise(hidden, 3)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        out: Tensor = apply_linear(self.fc2, to_tokens(apply_gelu(self.dwconv, to_map(apply_linear(self.fc1, tokens)))))
        return out


class PreNormBlock(nn.Module):
    """LayerNorm and attention, LayerNorm and MLP, each with a skip; `attention` maps tokens (B, H, W, C) to the same shape, `conv` takes a ConvMlp."""

    def __init__(
        self, width: int, hidden: int, attention: nn.Module, drop_path: float, *, eps: float = 1e-5, conv: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = attention
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = ConvMlp(width, hidden) if conv else Mlp(width, hidden)
        self.drop_path = drop_path_layer(drop_path)
        init_linears(self)
        init_convs_fan_out(self.mlp)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        tokens, shape = to_sequence(x), to_tokens(x).shape
        tokens = tokens + self.drop_path(self.attn(apply_norm(self.norm1, tokens).view(shape)).flatten(1, 2))
        tokens = tokens + self.drop_path(self.mlp(apply_norm(self.norm2, tokens).view(shape)).flatten(1, 2))
        return to_map(tokens.view(shape))


def pre_norm_cost(shape: Shape, hidden: int) -> Cost:
    """A PreNormBlock without its attention: two LayerNorms and the MLP."""
    width, positions = shape.channels, shape.positions
    return cost.layer_norm(positions, width) * 2 + cost.mlp(positions, width, hidden)


def relative_position_index(height: int, width: int) -> Tensor:
    """Rows of the bias table, (N, N) by query and key: (yq - yk + H - 1)(2W - 1) + xq - xk + W - 1."""
    rows, columns = torch.arange(height), torch.arange(width)
    vertical = (rows[:, None] - rows + height - 1) * (2 * width - 1)  # (yq, yk)
    horizontal = columns[:, None] - columns + width - 1  # (xq, xk)
    return (vertical[:, None, :, None] + horizontal[None, :, None, :]).reshape(height * width, height * width)


def add_relative_bias(module: nn.Module, grid: tuple[int, int], heads: int) -> None:
    """Give an attention module a learned bias by relative position for all pairs of a grid (height, width): its table, and the table's rows as a buffer."""
    table = torch.empty((2 * grid[0] - 1) * (2 * grid[1] - 1), heads)
    module.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
    module.register_buffer("relative_position_index", relative_position_index(*grid), persistent=False)


def relative_bias_cost(grid: tuple[int, int], heads: int) -> Cost:
    """Parameters of a bias table: (2H-1)(2W-1) rows of one number a head."""
    return Cost(params=(2 * grid[0] - 1) * (2 * grid[1] - 1) * heads)


def bias_table(module: nn.Module) -> Tensor:
    """The table that `add_relative_bias` gave a module, ((2H-1)(2W-1), heads)."""
    table = module.relative_position_bias_table
    assert isinstance(table, Tensor)
    return table


def relative_bias(module: nn.Module) -> Tensor:
    """The bias (1, heads, N, N), [head, query, key], of a module with `add_relative_bias`'s table.

    Four dimensions, since with three PyTorch does not use its fused attention on the CPU: forward of 4 images of 12 heads and 196 tokens on one core
    10.4 ms, with four dimensions 5.0 ms; 256 windows of 2 heads and 50 tokens 14.5 and 7.8 ms.
    """
    index = module.relative_position_index
    assert isinstance(index, Tensor)
    # Forward and backward in 1.1 ms at 14x14 with 12 heads; table[index] takes 5.8 ms, mostly its backward.
    return bias_table(module).t().index_select(1, index.flatten()).view(1, -1, *index.shape)


def pad_tokens(tokens: Tensor, multiple: int) -> Tensor:
    """Zero-pad (B, H, W, C) at the bottom and right to multiples of `multiple`; the same tensor where nothing is missing."""
    height, width = tokens.shape[1:3]
    bottom, right = round_up(height, multiple) - height, round_up(width, multiple) - width
    return functional.pad(tokens, (0, 0, 0, right, 0, bottom)) if bottom or right else tokens


def crop_tokens(tokens: Tensor, height: int, width: int) -> Tensor:
    """Undo `pad_tokens`: the top left (B, height, width, C)."""
    return tokens if tokens.shape[1:3] == (height, width) else tokens[:, :height, :width].contiguous()


def to_groups(tokens: Tensor, window: int, interval: int = 1) -> Tensor:
    """(B, H, W, C) -> (B, groups, window^2, C): groups of window x window tokens that stand `interval` apart.

    H and W are multiples of window * interval. Token (row, column) = (R * window * interval + g * interval + i, ...); interval 1 gives plain windows.
    Groups are enumerated (R_h, R_w, i_h, i_w).
    """
    batch, height, width, channels = tokens.shape
    rows, columns = height // (window * interval), width // (window * interval)
    split = tokens.reshape(batch, rows, window, interval, columns, window, interval, channels)
    return split.permute(0, 1, 4, 3, 6, 2, 5, 7).reshape(batch, -1, window * window, channels)


def from_groups(groups: Tensor, size: Sequence[int], window: int, interval: int = 1) -> Tensor:
    """(B, groups, window^2, C) -> (B, H, W, C) with (H, W) = size, the inverse of `to_groups`."""
    batch, channels, (height, width) = groups.shape[0], groups.shape[-1], size
    rows, columns = height // (window * interval), width // (window * interval)
    split = groups.reshape(batch, rows, columns, interval, interval, window, window, channels)
    return split.permute(0, 1, 5, 3, 2, 6, 4, 7).reshape(batch, height, width, channels)


def grouped_attention(qkv: Tensor, *, head_dim: int, bias: Tensor | None = None) -> Tensor:
    """Softmax attention inside groups: (B, groups, N, 3C), the 3C read as (3, heads, head_dim), -> (B, groups, N, C), heads concatenated.

    bias: (1 or groups, 1 or heads, 1 or N, N), added to the scaled logits.
    """
    batch, groups, tokens, channels3 = qkv.shape
    query, key, value = qkv.view(batch * groups, tokens, 3, -1, head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    if bias is None or bias.shape[0] == 1:
        out = attention(query, key, value, bias)
    elif is_eager_cpu(qkv):
        # Image by image, so that the bias is not copied for each: as fast as with copies (4 x 64 windows of 3 heads and 49 tokens 10.3 and 10.6 ms).
        images = zip(*(torch.split(part, groups) for part in (query, key, value)), strict=True)
        out = torch.cat([attention(q, k, v, bias).transpose(1, 2) for q, k, v in images]).transpose(1, 2)
    else:
        out = attention(query, key, value, bias, images=batch)
    return out.transpose(1, 2).reshape(batch, groups, tokens, channels3 // 3)


def padded_key_mask(height: int, width: int, window: int, interval: int, value: float, like: Tensor) -> Tensor | None:
    """Additive mask (groups, 1, 1, window^2) with `value` on keys that are padding, groups as in `to_groups`; None where nothing was padded."""
    step = window * interval
    full_height, full_width = round_up(height, step), round_up(width, step)
    if (full_height, full_width) == (height, width):
        return None
    mask = torch.zeros(full_height, full_width, dtype=like.dtype, device=like.device)
    mask[height:] = value
    mask[:, width:] = value
    return to_groups(mask[None, :, :, None], window, interval).view(-1, 1, 1, window * window)


def mask_value(dtype: torch.dtype) -> float:
    """What masks a key: CrossFormer's -1e6, or half of a narrower range: a group of padding alone stays finite in float16."""
    return max(-1e6, torch.finfo(dtype).min / 2)


def split_heads(tokens: Tensor, head_dim: int) -> Tensor:
    """(B, N, C) -> (B, heads, N, head_dim)."""
    return tokens.view(*tokens.shape[:2], -1, head_dim).transpose(1, 2)


def padded_positions(shape: Shape, multiple: int) -> int:
    """Positions of a map after padding to multiples of `multiple`."""
    return round_up(shape.height, multiple) * round_up(shape.width, multiple)


def merge_heads(heads: Tensor) -> Tensor:
    """(B, heads, N, head_dim) -> (B, N, C)."""
    return heads.transpose(1, 2).flatten(2)


def init_linears(module: nn.Module) -> None:
    """Every Linear inside `module`: weight truncated normal 0.02 (cut at +-2), bias 0, as in all the papers."""
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.trunc_normal_(child.weight, std=0.02)
            if child.bias is not None:
                nn.init.zeros_(child.bias)


def init_convs_fan_out(module: nn.Module) -> None:
    """Every convolution inside `module`: weight normal with std sqrt(2 / (k^2 * outputs / groups)), bias 0 (Twins, VAN, LITv2's ConvFFN)."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            fan_out = child.kernel_size[0] * child.kernel_size[1] * child.out_channels // child.groups
            nn.init.normal_(child.weight, std=math.sqrt(2 / fan_out))
            assert child.bias is not None
            nn.init.zeros_(child.bias)
