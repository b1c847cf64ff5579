"""Learned positions, the class token that comes with them (PVT, Wang et al., arXiv 2102.12122; LIT-Ti, arXiv 2105.14217), and windows headed by a token.

Changed against the papers' code: one table keeps the class token's row in front, and where a table already has the map's size it is not resized by the
identity (the cost counts it, as the paper's code runs it).
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from archsearch.blocks.base import Layer, LayerError, Role, Shape, choice
from archsearch.blocks.common import crop_tokens, to_map, to_tokens
from archsearch.blocks.cost import Cost
from archsearch.blocks.kernels import is_counted
from archsearch.blocks.registry import register
from archsearch.errors import UserError


def to_windows(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """(B, H, W, C) -> (B, rows * columns, positions of a window, C), both row-major."""
    batch, height, width, channels = tokens.shape
    split = tokens.reshape(batch, rows, height // rows, columns, width // columns, channels)
    return split.transpose(2, 3).reshape(batch, rows * columns, -1, channels)


def check_unpadded(shape: Shape, kind: str) -> None:
    """Attention over all positions must not meet those that only fill up windows."""
    if shape.covered != (shape.height, shape.width):
        windows = f"messenger windows of {shape.window}x{shape.window}"
        raise LayerError(
            "image_size", f"{kind} attends to every position, and {windows} do not tile a map of {shape.sides}"
        )


def from_windows(windows: Tensor, rows: int, columns: int, height: int, width: int) -> Tensor:
    """(B, rows * columns, n, C) -> (B, height, width, C), the inverse of `to_windows`."""
    batch, channels = windows.shape[0], windows.shape[-1]
    split = windows.reshape(batch, rows, columns, height // rows, width // columns, channels)
    return split.transpose(2, 3).reshape(batch, height, width, channels)


_PVT_POSITIONS = 3136  # of PVT's first map, and PVT's `unresized` in all stages


class Positions(nn.Module):
    """Adds a learned table to a map, resized to it where it has another size; with a class token the token goes in front, with a row of its own."""

    def __init__(self, shape: Shape, *, side: int, unresized: int, class_token: bool) -> None:
        super().__init__()
        self.grid = (side, side) if side else (shape.height, shape.width)
        self.side, self.unresized = side, unresized
        rows = self.grid[0] * self.grid[1] + class_token
        self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, rows, shape.channels), std=0.02))
        self.token: nn.Parameter | None = None
        if class_token:
            self.token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, shape.channels), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same, or (B, C, 1, 1 + H * W) with the class token."""
        height, width = x.shape[-2:]
        tokens = to_tokens(x)
        if self.token is None:
            return to_map(tokens + self._spatial(self.table, height, width).view(1, height, width, -1))
        table = torch.cat((self.table[:, :1], self._spatial(self.table[:, 1:], height, width)), dim=1)
        line = torch.cat((self.token.expand(x.shape[0], -1, -1), tokens.flatten(1, 2)), dim=1) + table
        return to_map(line[:, None])

    def _spatial(self, table: Tensor, height: int, width: int) -> Tensor:
        """(1, rows, C) -> (1, H * W, C)."""
        if error := misfit(height, width, self.grid, self.side, self.unresized):
            raise UserError(error)
        if not self.side or height * width == self.unresized:
            return table
        if (height, width) == self.grid and not is_counted(table):
            return table
        spatial = to_map(table.view(1, *self.grid, -1))
        resized = functional.interpolate(spatial, size=(height, width), mode="bilinear", align_corners=False)
        return to_tokens(resized).flatten(1, 2)


def misfit(height: int, width: int, grid: tuple[int, int], side: int, unresized: int) -> str | None:
    """Why a table of `grid` cannot be added to a map; None when it can."""
    if not side and (height, width) != grid:
        return f"the table of positions was built for a map of {grid[0]}x{grid[1]}, got {height}x{width}; build the model for this image size"
    if side and height * width == unresized != side * side:
        return f"a map of {unresized} positions takes the table as it is, by the paper's own rule, and this table has {side * side} rows"
    return None


@register
@dataclass(frozen=True, kw_only=True)
class LearnedPositions(Layer):
    """A learned table of positions at the start of a stage; with `class_token` also a token in front of the map, for attention over all positions."""

    kind: ClassVar[str] = "learned"
    role: ClassVar[Role] = "positions"
    paper: ClassVar[str] = "PVT, LIT"
    side: int = choice(0, doc="side of the table, resized to the map; 0 makes it for the map, and no other fits")
    unresized: int = choice(0, doc="a map of this many positions takes the table as it is, whatever its sides (PVT)")
    class_token: bool = choice(False, doc="one learned token in front; a `token` head reads it")

    def check(self, shape: Shape) -> None:
        """The table must fit the map or be resized to it."""
        if error := misfit(shape.height, shape.width, shape[1:3], self.side, self.unresized):
            raise LayerError("image_size", error)

    def out(self, shape: Shape) -> Shape:
        """The same map, headed by a token with `class_token`."""
        return shape._replace(tokens=int(self.class_token))

    def canonical(self, shape: Shape) -> Layer:
        """A table that is not resized has the map's side; `unresized` without effect takes PVT's value."""
        positions = shape.height * shape.width
        if shape.height == shape.width and (not self.side or self.unresized == positions):
            return replace(self, side=shape.height, unresized=positions)
        if self.unresized == positions:
            return self
        return replace(self, unresized=0 if positions == _PVT_POSITIONS else _PVT_POSITIONS)

    def cost(self, shape: Shape) -> Cost:
        """One parameter a row and channel; resizing to the map takes 4CL by fvcore's count of bilinear sampling, adding is free."""
        rows = self.side**2 if self.side else shape.height * shape.width
        is_resized = self.side and shape.height * shape.width != self.unresized
        macs = 4 * shape.channels * shape.height * shape.width if is_resized else 0
        return Cost(macs, (rows + 2 * self.class_token) * shape.channels)

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """Truncated normal 0.02."""
        return Positions(shape, side=self.side, unresized=self.unresized, class_token=self.class_token)


class Patches(nn.Module):
    """Windows headed by tokens back to the map; the tokens are dropped."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.windows, self.covered, self.rows = shape.grid, shape.covered, shape.tensor[1:]
        self.size = (shape.height, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, tokens, 1 + n) -> (B, C, H, W)."""
        if x.shape[-2:] != self.rows:
            raise UserError(
                f"tokens were put beside a map of {self.size[0]}x{self.size[1]} and another comes back; build the model for this image size"
            )
        tokens = from_windows(to_tokens(x)[:, :, 1:], *self.windows, *self.covered)
        return to_map(crop_tokens(tokens, *self.size).contiguous())


@register
@dataclass(frozen=True, kw_only=True)
class PatchesLayer(Layer):
    """Where tokens end: what follows works on the map alone."""

    kind: ClassVar[str] = "patches"
    role: ClassVar[Role] = "extra"
    takes_tokens: ClassVar[bool] = True

    def out(self, shape: Shape) -> Shape:
        """The map without tokens."""
        return shape.plain

    def cost(self, shape: Shape) -> Cost:
        """Nothing."""
        return Cost()

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """For maps of exactly `shape`, or the identity where there are no tokens."""
        return Patches(shape) if shape.tokens else nn.Identity()
