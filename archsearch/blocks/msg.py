"""MSG-Transformer's windows with messenger tokens, and the merging that takes both along (Fang et al., arXiv 2105.15168).

Changed against the paper's code: windows stay in row-major order over the whole map instead of by region, `head_dim` replaces a number of heads, the index
map is never stored, and messengers that the next stage does not take are dropped at the end of theirs.

Any map is taken, where the paper's code asks for one that regions of windows tile. Our rule: where windows are cut the map is padded with zeros below and to
the right, padded keys are masked, and whatever reads the map (the merging, the next stage, a feature pyramid) reads it without padding, so that padding is
never seen. Windows of a region that is cut off at the edge exchange among themselves; the chunks for windows that it lacks stay where they are.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from archsearch.blocks import cost
from archsearch.blocks.base import Block, Layer, LayerError, Role, Shape, choice
from archsearch.blocks.common import (
    ChannelNorm,
    Mlp,
    add_relative_bias,
    bias_table,
    check_divides,
    check_hidden,
    crop_tokens,
    drop_path_layer,
    from_groups,
    grouped_attention,
    init_linears,
    mask_value,
    pad_tokens,
    padded_key_mask,
    pre_norm_cost,
    relative_bias,
    relative_bias_cost,
    round_up,
    to_groups,
    to_map,
    to_sequence,
    to_tokens,
    whole_ratio,
)
from archsearch.blocks.cost import Cost
from archsearch.blocks.kernels import apply_linear, apply_norm, cached_tensor
from archsearch.blocks.positions import from_windows, to_windows
from archsearch.blocks.registry import register
from archsearch.errors import UserError


class MessengerAttention(nn.Module):
    """Attention inside each window over its messenger and its positions; the bias of a pair with the messenger is one number a head and direction."""

    def __init__(self, shape: Shape, head_dim: int, window: int) -> None:
        super().__init__()
        width = shape.channels
        add_relative_bias(self, (window, window), width // head_dim)
        self.head_dim, self.window, self.size = head_dim, window, (shape.height, shape.width)
        self.rel_pos_msg = nn.Parameter(nn.init.trunc_normal_(torch.empty(width // head_dim, 2, 1, 1), std=0.02))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, windows, 1 + n, C) -> the same."""
        bias = cached_tensor(self, (bias_table(self), self.rel_pos_msg), self._window_bias)
        out = grouped_attention(apply_linear(self.qkv, tokens), head_dim=self.head_dim, bias=bias)
        projected: Tensor = apply_linear(self.proj, out)
        return projected

    def _window_bias(self) -> Tensor:
        """(1, heads, 1 + n, 1 + n), or (windows, heads, 1 + n, 1 + n) where keys are padding: the first row and column are the messenger's."""
        between = relative_bias(self)  # (1, heads, n, n)
        _, heads, positions, _ = between.shape
        to_messenger, from_messenger = self.rel_pos_msg[None, :, 0], self.rel_pos_msg[None, :, 1]  # (1, heads, 1, 1)
        below = torch.cat((to_messenger.expand(1, heads, positions, 1), between), dim=3)
        bias = torch.cat((from_messenger.expand(1, heads, 1, positions + 1), below), dim=2)
        mask = padded_key_mask(*self.size, self.window, 1, mask_value(bias.dtype), bias)
        return bias if mask is None else bias + functional.pad(mask, (1, 0))


class MessengerBlock(nn.Module):
    """LocalMSA, exchange of the messengers' channels inside each region of shuffle x shuffle windows, MLP (sections 3.1 and 3.2)."""

    def __init__(self, shape: Shape, hidden: int, attention: nn.Module, shuffle: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.channels)
        self.attn = attention
        self.norm2 = nn.LayerNorm(shape.channels)
        self.mlp = Mlp(shape.channels, hidden)
        self.drop_path = drop_path_layer(drop_path)
        self.shuffle, self.windows = shuffle, shape.grid
        self.regions = tuple(-(-count // shuffle) for count in shape.grid)
        init_linears(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, windows, 1 + n) -> the same."""
        tokens, shape = to_sequence(x), to_tokens(x).shape
        tokens = tokens + self._drop(self.attn(apply_norm(self.norm1, tokens).view(shape))).flatten(1, 2)
        tokens = self._exchange(tokens.view(shape)).flatten(1, 2)
        tokens = tokens + self._drop(self.mlp(apply_norm(self.norm2, tokens).view(shape))).flatten(1, 2)
        return to_map(tokens.view(shape))

    def _exchange(self, tokens: Tensor) -> Tensor:
        """Window g's new messenger holds chunk g of every messenger of its region, in their order, and its own for windows that the region lacks."""
        if self.shuffle == 1:
            return tokens
        batch, windows, _, channels = tokens.shape
        side, count = self.shuffle, self.shuffle**2
        padded = pad_tokens(tokens[:, :, 0].view(batch, *self.windows, channels), side)
        # (B, regions, window, chunk, C / count)
        by_region = to_groups(padded, side).view(batch, -1, count, count, channels // count)
        mixed = by_region.transpose(2, 3)
        absent = padded_key_mask(*self.windows, side, 1, 1.0, tokens)  # (regions, 1, 1, window)
        if absent is not None:
            mixed = torch.where(absent.view(-1, 1, count, 1) > 0, by_region, mixed)
        messengers = crop_tokens(from_groups(mixed.flatten(3), padded.shape[1:3], side), *self.windows)
        return torch.cat((messengers.reshape(batch, windows, 1, channels), tokens[:, :, 1:]), dim=2)

    def _drop(self, branch: Tensor) -> Tensor:
        """Stochastic depth by region of an image, as the paper's code has it, not by image."""
        if isinstance(self.drop_path, nn.Identity) or not self.training:
            return branch
        batch, windows = branch.shape[:2]
        rows, columns, side = *self.regions, self.shuffle
        kept: Tensor = self.drop_path(branch.new_ones(batch * rows * columns, 1)).view(batch, rows, 1, columns, 1)
        by_window = kept.expand(batch, rows, side, columns, side).reshape(batch, rows * side, columns * side, 1)
        return branch * crop_tokens(by_window, *self.windows).reshape(batch, windows, 1, 1)


class Messengers(nn.Module):
    """Cuts the padded map into windows and puts a learned token in front of each, the same for every region."""

    def __init__(self, shape: Shape, window: int, shuffle: int) -> None:
        super().__init__()
        self.size, self.window, self.shuffle = (shape.height, shape.width), window, shuffle
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, shuffle**2, 1, shape.channels), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, windows, 1 + window^2)."""
        if x.shape[-2:] != self.size:
            raise UserError(
                f"messenger windows were cut for a map of {self.size[0]}x{self.size[1]}, got {x.shape[-2]}x{x.shape[-1]}; build the model for this image size"
            )
        rows, columns = _window_grid(self.size[0], self.size[1], self.window)
        side, height, width = self.shuffle, round_up(rows, self.shuffle), round_up(columns, self.shuffle)
        region = self.token.view(1, 1, side, 1, side, -1).expand(-1, height // side, -1, width // side, -1, -1)
        messengers = region.reshape(1, height, width, -1)[:, :rows, :columns].reshape(1, rows * columns, 1, -1)
        windows = to_windows(pad_tokens(to_tokens(x), self.window), rows, columns)
        return to_map(torch.cat((messengers.expand(x.shape[0], -1, -1, -1), windows), dim=2))


def _window_grid(height: int, width: int, window: int) -> tuple[int, int]:
    """Rows and columns of the windows that cover a map."""
    return -(-height // window), -(-width // window)


def _check_windows(shape: Shape, window: int, shuffle: int) -> None:
    """Windows have room for positions, regions for windows, and chunks fill the channels."""
    if window < 2:
        allowed = "whole numbers from 2 are allowed"
        raise LayerError("window", f"window {window} is no side of a messenger's window; {allowed}")
    if shuffle < 1:
        raise LayerError("shuffle", f"shuffle {shuffle} is not a positive number of windows")
    if shape.channels % shuffle**2:
        needs = f"shuffle {shuffle} needs a width divisible by {shuffle**2}, not {shape.channels}"
        raise LayerError("shuffle", needs, against="width")


@register
@dataclass(frozen=True, kw_only=True)
class MessengersLayer(Layer):
    """The messengers' birth: one learned vector a window of a region."""

    kind: ClassVar[str] = "messengers"
    role: ClassVar[Role] = "extra"
    paper: ClassVar[str] = "MSG-Transformer"
    window: int = field(default=7, metadata={"doc": "the block's"})
    shuffle: int = field(default=1, metadata={"doc": "the block's"})

    def check(self, shape: Shape) -> None:
        """As the block it opens for."""
        _check_windows(shape, self.window, self.shuffle)

    def out(self, shape: Shape) -> Shape:
        """The same map with a token for each window."""
        rows, columns = _window_grid(shape.height, shape.width, self.window)
        return shape._replace(tokens=rows * columns, window=self.window)

    def cost(self, shape: Shape) -> Cost:
        """Parameters only."""
        return Cost(params=self.shuffle**2 * shape.channels)

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """Truncated normal 0.02; for maps of exactly `shape`."""
        return Messengers(shape, self.window, self.shuffle)


@register
@dataclass(frozen=True, kw_only=True)
class MsgBlock(Block):
    """MSG-Transformer's block; its stage makes messengers, or takes those a `messenger` merging brings from windows of the same side."""

    kind: ClassVar[str] = "msg"
    paper: ClassVar[str] = "MSG-Transformer"
    takes_tokens: ClassVar[bool] = True
    coupled: ClassVar[tuple[str, ...]] = ("window", "shuffle")
    window: int = choice(7, scale="tiles", doc="side of a window in tokens")
    shuffle: int = choice(1, 1, 2, 4, doc="side in windows of a region whose messengers exchange channels; 1: none do")
    head_dim: int = choice(32, 16, 32, scale="width", doc="channels of a head")
    mlp_ratio: float = choice(4.0, 2.0, 3.0, 4.0, doc="hidden width of the MLP over the width")

    def before_first(self) -> Layer | None:
        """The messengers."""
        return MessengersLayer(window=self.window, shuffle=self.shuffle)

    def check(self, shape: Shape) -> None:
        """Heads and shuffled chunks must divide the width; any window fits by padding."""
        check_divides("head_dim", self.head_dim, shape.channels)
        check_hidden(self.mlp_ratio, shape.channels)
        _check_windows(shape, self.window, self.shuffle)
        windowed = self._windowed(shape)
        if shape.tokens and shape.tensor != windowed.tensor:
            arrive = f"{shape.tokens} tokens arrive"
            raise LayerError("window", f"window {self.window} makes {windowed.tokens} windows, and {arrive}")

    def check_choice(self, shape: Shape) -> None:
        """A region may be as large as the map."""
        super().check_choice(shape)
        side = max(shape.height, shape.width)
        if self.window * self.shuffle > side:
            region = f"a region of {self.shuffle}x{self.shuffle} windows of {self.window}x{self.window}"
            raise LayerError("shuffle", f"{region} is larger than the map of {shape.sides}")

    def _windowed(self, shape: Shape) -> Shape:
        """The shape with this block's windows."""
        return MessengersLayer(window=self.window, shuffle=self.shuffle).out(shape)

    def canonical(self, shape: Shape) -> Layer:
        """A single window has none to exchange with; the MLP's ratio is rounded."""
        shuffle = self.shuffle if self._windowed(shape).tokens > 1 else 1
        return replace(self, shuffle=shuffle, mlp_ratio=whole_ratio(self.mlp_ratio, shape.channels))

    def cost(self, shape: Shape) -> Cost:
        """10CT + (4 + 2r) C^2 T + 2(w^2 + 1) CT with T the windows' positions, padded ones too, and messengers; (2w-1)^2 + 2 parameters a head."""
        width, positions = shape.channels, shape.positions
        attention = cost.self_attention(positions, self.window**2 + 1, width)
        heads = width // self.head_dim
        biases = relative_bias_cost((self.window, self.window), heads) + Cost(params=2 * heads)
        return attention + biases + pre_norm_cost(shape, int(width * self.mlp_ratio))

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """The block for windows of exactly `shape`."""
        shape = self._windowed(shape)
        attention = MessengerAttention(shape, self.head_dim, self.window)
        return MessengerBlock(shape, int(shape.channels * self.mlp_ratio), attention, self.shuffle, drop_path)


class MessengerMerging(nn.Module):
    """One 3x3 convolution of stride 2 and one LayerNorm for the map and, where there are some, for the map of its messengers."""

    def __init__(self, shape: Shape, outputs: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(shape.channels, outputs, 3, 2, padding=1)
        self.norm = ChannelNorm(outputs)
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, outputs, H / 2, W / 2), or windows with messengers to a quarter as many; halves are rounded up."""
        if not self.shape.tokens:
            return self._merge(x)
        tokens, (rows, columns) = to_tokens(x), self.shape.grid
        patches = from_windows(tokens[:, :, 1:], rows, columns, *self.shape.covered)
        merged = self._merge(to_map(crop_tokens(patches, self.shape.height, self.shape.width)))
        messengers = to_tokens(self._merge(to_map(tokens[:, :, 0].reshape(x.shape[0], rows, columns, -1))))
        side = self.shape.covered[0] // rows
        windows = to_windows(pad_tokens(to_tokens(merged), side), *messengers.shape[1:3])
        return to_map(torch.cat((messengers.flatten(1, 2)[:, :, None], windows), dim=2))

    def _merge(self, x: Tensor) -> Tensor:
        merged: Tensor = self.norm(self.reduction(x))
        return merged


@register
@dataclass(frozen=True, kw_only=True)
class MessengerDownsample(Layer):
    """MSG-Transformer's merging: an overlapping convolution and LayerNorm; messengers go along between stages of equal windows."""

    kind: ClassVar[str] = "messenger"
    role: ClassVar[Role] = "downsample"
    paper: ClassVar[str] = "MSG-Transformer"
    takes_tokens: ClassVar[bool] = True
    width: int

    def out(self, shape: Shape) -> Shape:
        """Half the sides, and half the rows and columns of windows, rounded up; `width` channels."""
        half = Shape(self.width, (shape.height + 1) // 2, (shape.width + 1) // 2)
        if not shape.tokens:
            return half
        rows, columns = shape.grid
        return half._replace(tokens=((rows + 1) // 2) * ((columns + 1) // 2), window=shape.window)

    def cost(self, shape: Shape) -> Cost:
        """(9 Cin C + 5C) (L_out + tokens after it); padding is left out."""
        out = self.out(shape)
        positions = out.height * out.width + out.tokens
        return cost.conv(positions, shape.channels, out.channels, 3) + cost.layer_norm(positions, out.channels)

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """Convolution with PyTorch's default initialisation."""
        return MessengerMerging(shape, self.width)
