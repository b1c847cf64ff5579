"""MSG-Transformer's windows with messenger tokens, and the merging that takes both along (Fang et al., arXiv 2105.15168).

Changed against the paper's code: windows stay in row-major order over the whole map instead of by region, `head_dim` replaces a number of heads, the index
map is never stored, and messengers that the next stage does not take are dropped at the end of theirs.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from archsearch.blocks import cost
from archsearch.blocks.base import Block, Layer, LayerError, Role, Shape, choice
from archsearch.blocks.common import (
    ChannelNorm,
    Mlp,
    add_relative_bias,
    bias_table,
    check_divides,
    check_hidden,
    drop_path_layer,
    init_linears,
    merge_heads,
    pre_norm_cost,
    relative_bias,
    relative_bias_cost,
    split_heads,
    to_map,
    to_tokens,
    whole_ratio,
)
from archsearch.blocks.cost import Cost
from archsearch.blocks.kernels import apply_linear, attention, cached_tensor
from archsearch.blocks.positions import from_windows, to_windows, window_grid
from archsearch.blocks.registry import register
from archsearch.errors import UserError


class MessengerAttention(nn.Module):
    """Attention inside each window over its messenger and its positions; the bias of a pair with the messenger is one number a head and direction."""

    def __init__(self, width: int, head_dim: int, window: int) -> None:
        super().__init__()
        add_relative_bias(self, (window, window), width // head_dim)
        self.head_dim = head_dim
        self.rel_pos_msg = nn.Parameter(nn.init.trunc_normal_(torch.empty(width // head_dim, 2, 1, 1), std=0.02))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, windows, 1 + n, C) -> the same."""
        parts = apply_linear(self.qkv, tokens.flatten(0, 1)).chunk(3, dim=-1)
        query, key, value = (split_heads(part, self.head_dim) for part in parts)
        bias = cached_tensor(self, (bias_table(self), self.rel_pos_msg), self._window_bias)
        projected: Tensor = apply_linear(self.proj, merge_heads(attention(query, key, value, bias)).view(tokens.shape))
        return projected

    def _window_bias(self) -> Tensor:
        """(1, heads, 1 + n, 1 + n): the first row and column are the messenger's."""
        between = relative_bias(self)  # (1, heads, n, n)
        _, heads, positions, _ = between.shape
        to_messenger, from_messenger = self.rel_pos_msg[None, :, 0], self.rel_pos_msg[None, :, 1]  # (1, heads, 1, 1)
        below = torch.cat((to_messenger.expand(1, heads, positions, 1), between), dim=3)
        return torch.cat((from_messenger.expand(1, heads, 1, positions + 1), below), dim=2)


class MessengerBlock(nn.Module):
    """LocalMSA, exchange of the messengers' channels inside each region of shuffle x shuffle windows, MLP (sections 3.1 and 3.2)."""

    def __init__(self, shape: Shape, hidden: int, attention: nn.Module, shuffle: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.channels)
        self.attn = attention
        self.norm2 = nn.LayerNorm(shape.channels)
        self.mlp = Mlp(shape.channels, hidden)
        self.drop_path = drop_path_layer(drop_path)
        self.shuffle = shuffle
        rows, columns = window_grid(shape)
        self.regions = (rows // shuffle, columns // shuffle)
        init_linears(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, windows, 1 + n) -> the same."""
        tokens = to_tokens(x)
        tokens = self._exchange(tokens + self._drop(self.attn(self.norm1(tokens))))
        return to_map(tokens + self._drop(self.mlp(self.norm2(tokens))))

    def _exchange(self, tokens: Tensor) -> Tensor:
        """Window g's new messenger holds chunk g of every messenger of its region, in their order."""
        if self.shuffle == 1:
            return tokens
        batch, windows, _, channels = tokens.shape
        rows, columns, side = *self.regions, self.shuffle
        chunks = (side * side, channels // side**2)
        split = tokens[:, :, 0].view(batch, rows, side, columns, side, *chunks)
        by_region = split.transpose(2, 3).reshape(batch, rows, columns, side * side, *chunks)
        mixed = by_region.transpose(3, 4).reshape(batch, rows, columns, side, side, channels)
        messengers = mixed.transpose(2, 3).reshape(batch, windows, 1, channels)
        return torch.cat((messengers, tokens[:, :, 1:]), dim=2)

    def _drop(self, branch: Tensor) -> Tensor:
        """Stochastic depth by region of an image, as the paper's code has it, not by image."""
        if isinstance(self.drop_path, nn.Identity) or not self.training:
            return branch
        batch, windows = branch.shape[:2]
        rows, columns, side = *self.regions, self.shuffle
        kept: Tensor = self.drop_path(branch.new_ones(batch * rows * columns, 1)).view(batch, rows, 1, columns, 1)
        return branch * kept.expand(batch, rows, side, columns, side).reshape(batch, windows, 1, 1)


class Messengers(nn.Module):
    """Cuts the map into windows and puts a learned token in front of each, the same for every region."""

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
        rows, columns, side = self.size[0] // self.window, self.size[1] // self.window, self.shuffle
        region = self.token.view(1, 1, side, 1, side, -1)
        messengers = region.expand(x.shape[0], rows // side, side, columns // side, side, -1)
        messengers = messengers.reshape(x.shape[0], rows * columns, 1, -1)
        return to_map(torch.cat((messengers, to_windows(to_tokens(x), rows, columns)), dim=2))


def _check_windows(shape: Shape, window: int, shuffle: int) -> None:
    """Windows tile the map, regions tile the windows, chunks fill the channels."""
    if window < 2:
        allowed = "whole numbers from 2 are allowed"
        raise LayerError("window", f"window {window} is no side of a messenger's window; {allowed}")
    if shuffle < 1:
        raise LayerError("shuffle", f"shuffle {shuffle} is not a positive number of windows")
    if shape.height % window or shape.width % window:
        raise LayerError("window", f"messenger windows of {window}x{window} do not tile a map of {shape.sides}")
    if shape.height % (window * shuffle) or shape.width % (window * shuffle):
        region = f"{shuffle}x{shuffle} windows of {window}x{window}"
        raise LayerError("shuffle", f"regions of {region} do not tile a map of {shape.sides}")
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
        return shape._replace(tokens=(shape.height // self.window) * (shape.width // self.window))

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
    window: int = choice(7, scale="tiles", doc="side of a window in tokens; it must tile the map")
    shuffle: int = choice(1, 1, 2, 4, doc="side in windows of a region whose messengers exchange channels; 1: none do")
    head_dim: int = choice(32, 16, 32, scale="width", doc="channels of a head")
    mlp_ratio: float = choice(4.0, 2.0, 3.0, 4.0, doc="hidden width of the MLP over the width")

    def before_first(self) -> Layer | None:
        """The messengers."""
        return MessengersLayer(window=self.window, shuffle=self.shuffle)

    def check(self, shape: Shape) -> None:
        """Heads and shuffled chunks must divide the width, windows and regions tile the map."""
        check_divides("head_dim", self.head_dim, shape.channels)
        check_hidden(self.mlp_ratio, shape.channels)
        _check_windows(shape, self.window, self.shuffle)
        windows = (shape.height // self.window) * (shape.width // self.window)
        if shape.tokens and shape.tokens != windows:
            arrive = f"{shape.tokens} tokens arrive"
            raise LayerError("window", f"window {self.window} makes {windows} windows, and {arrive}")

    def canonical(self, shape: Shape) -> Layer:
        """Only the MLP's ratio is rounded."""
        return replace(self, mlp_ratio=whole_ratio(self.mlp_ratio, shape.channels))

    def cost(self, shape: Shape) -> Cost:
        """10CT + (4 + 2r) C^2 T + 2(w^2 + 1) CT with T = L + windows, and (2w-1)^2 + 2 parameters a head."""
        width, positions = shape.channels, shape.positions
        attention = cost.self_attention(positions, self.window**2 + 1, width)
        heads = width // self.head_dim
        biases = relative_bias_cost((self.window, self.window), heads) + Cost(params=2 * heads)
        return attention + biases + pre_norm_cost(shape, int(width * self.mlp_ratio))

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """The block for windows of exactly `shape`."""
        attention = MessengerAttention(shape.channels, self.head_dim, self.window)
        return MessengerBlock(shape, int(shape.channels * self.mlp_ratio), attention, self.shuffle, drop_path)


class MessengerMerging(nn.Module):
    """One 3x3 convolution of stride 2 and one LayerNorm for the map and, where there are some, for the map of its messengers."""

    def __init__(self, shape: Shape, outputs: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(shape.channels, outputs, 3, 2, padding=1)
        self.norm = ChannelNorm(outputs)
        self.tokens, self.size = shape.tokens, (shape.height, shape.width)
        self.windows = window_grid(shape) if shape.tokens else (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, outputs, H / 2, W / 2), or windows with messengers to a quarter as many."""
        if not self.tokens:
            return self._merge(x)
        tokens = to_tokens(x)
        rows, columns = self.windows
        patches = self._merge(to_map(from_windows(tokens[:, :, 1:], rows, columns, *self.size)))
        messengers = to_tokens(self._merge(to_map(tokens[:, :, 0].reshape(x.shape[0], rows, columns, -1))))
        windows = to_windows(to_tokens(patches), rows // 2, columns // 2)
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

    def check(self, shape: Shape) -> None:
        """Any map; windows must come in pairs."""
        if shape.tokens and any(side % 2 for side in window_grid(shape)):
            raise LayerError("image_size", f"an odd number of windows cannot be halved on a map of {shape.sides}")

    def out(self, shape: Shape) -> Shape:
        """Half the sides rounded up, `width` channels, a quarter of the tokens."""
        return Shape(self.width, (shape.height + 1) // 2, (shape.width + 1) // 2, shape.tokens // 4)

    def cost(self, shape: Shape) -> Cost:
        """(9 Cin C + 5C) L_out, the tokens' positions among them."""
        out = self.out(shape)
        return cost.conv(out.positions, shape.channels, out.channels, 3) + cost.layer_norm(out.positions, out.channels)

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """Convolution with PyTorch's default initialisation."""
        return MessengerMerging(shape, self.width)
