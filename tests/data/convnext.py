"""ConvNeXt's block (Liu et al., arXiv 2201.03545): a depthwise convolution, a LayerNorm and an MLP behind one skip."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from archsearch.blocks import Block, Cost, LayerError, Shape, choice, register


class ConvNext(nn.Module):
    def __init__(self, width: int, kernel: int, ratio: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))
        self.scale = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        tokens = self.norm(self.depthwise(x).permute(0, 2, 3, 1))  # (B, H, W, C)
        out: Tensor = x + (self.scale * self.mlp(tokens)).permute(0, 3, 1, 2)
        return out


@register
@dataclass(frozen=True, kw_only=True)
class ConvNextBlock(Block):
    """A depthwise convolution and an MLP behind one skip."""

    kind: ClassVar[str] = "convnext"
    paper: ClassVar[str] = "ConvNeXt"
    kernel: int = choice(7, 3, 5, 7, doc="side of the depthwise convolution")
    ratio: int = choice(4, 2, 4, doc="hidden width of the MLP over the width")

    def check(self, shape: Shape) -> None:
        """The kernel must have a centre."""
        if self.kernel % 2 == 0:
            raise LayerError("kernel", f"kernel {self.kernel} has no centre; odd numbers are allowed")

    def cost(self, shape: Shape) -> Cost:
        """Written out, so that no formula of the package is in it."""
        width, positions, hidden = shape.channels, shape.positions, self.ratio * shape.channels
        depthwise = Cost(
            positions * self.kernel**2 * width, (self.kernel**2 + 1) * width, activations=positions * width
        )
        norm = Cost(5 * positions * width, 2 * width, norm_macs=5 * positions * width)
        weights = 2 * width * hidden
        mlp = Cost(positions * weights, weights + hidden + width, activations=positions * (hidden + width))
        return depthwise + norm + mlp + Cost(params=width)

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """The block."""
        return ConvNext(shape.channels, self.kernel, self.ratio)
