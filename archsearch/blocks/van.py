"""VAN's block, overlapping stem and merging, and the LayerNorm that closes a stage (Guo et al., arXiv 2202.09741).

Changed against the paper's code: 1x1 convolutions are Linear layers on channels_last tokens (weights (out, in)), and the dilated depthwise convolution runs by
phases on the CPU.
"""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from archsearch.blocks import cost
from archsearch.blocks.base import Block, Layer, LayerError, Role, Shape, choice
from archsearch.blocks.common import (
    ChannelNorm,
    ConvMlp,
    check_hidden,
    crop_tokens,
    drop_path_layer,
    init_convs_fan_out,
    pad_tokens,
    round_up,
    to_map,
    to_tokens,
    whole_ratio,
)
from archsearch.blocks.cost import Cost
from archsearch.blocks.kernels import Depthwise, apply_gelu, apply_linear, depthwise, is_traced
from archsearch.blocks.registry import register


def dilated_by_phases(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Dilated depthwise convolution as an ordinary one over the map's dilation^2 phases; (B, C, H, W) -> the same."""
    height, width = x.shape[-2:]
    tokens = pad_tokens(to_tokens(x), dilation)  # zeros, as the convolution's own padding
    batch, full_height, full_width, channels = tokens.shape
    rows, columns = full_height // dilation, full_width // dilation
    split = tokens.reshape(batch, rows, dilation, columns, dilation, channels).permute(0, 2, 4, 1, 3, 5)
    phases = to_map(split.reshape(-1, rows, columns, channels))  # (B * dilation^2, C, rows, columns)
    out = to_tokens(depthwise(phases, weight, bias))
    merged = out.reshape(batch, dilation, dilation, rows, columns, channels).permute(0, 3, 1, 4, 2, 5)
    return to_map(crop_tokens(merged.reshape(batch, full_height, full_width, channels), height, width))


class DilatedDepthwise(nn.Conv2d):
    """Size-keeping dilated depthwise convolution with the faster forward of equal ones.

    By phases on the CPU, by Triton on CUDA. Milliseconds plain/phases, one core, float32, batch 32, 32 channels, kernel 7, dilation 3:

        side                    56        28        14         7        16         8         4         2
        forward              49/21    12/2.9  2.3/0.72  4.4/0.45   3.6/1.1  4.8/0.50  2.6/0.24  1.2/0.16
        and backward       162/163     37/24    23/7.5    18/3.0    21/9.3    16/2.9   7.0/1.5   3.8/1.1
    """

    def __init__(self, channels: int, kernel: int, dilation: int) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(channels, channels, kernel, padding=padding, dilation=dilation, groups=channels)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W). Plain on meta and in a trace: counters must see no padding."""
        dilation = self.dilation[0]
        if dilation == 1:
            return super().forward(input)
        if input.device.type == "cpu" and not is_traced():
            return dilated_by_phases(input, self.weight, self.bias, dilation)
        return depthwise(input, self.weight, self.bias, dilation)


class LargeKernelGate(nn.Module):
    """Depthwise, dilated depthwise and pointwise convolution without activations: a decomposed K x K (section 3.1)."""

    def __init__(self, width: int, local_kernel: int, dilated_kernel: int, dilation: int) -> None:
        super().__init__()
        self.conv0 = Depthwise(width, local_kernel)
        self.conv_spatial = DilatedDepthwise(width, dilated_kernel, dilation)
        self.conv1 = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C), the gate."""
        gate: Tensor = apply_linear(self.conv1, to_tokens(self.conv_spatial(self.conv0(to_map(tokens)))))
        return gate


class LargeKernelAttention(nn.Module):
    """The gate between two projections, plus the *normed* input as in the paper's code (its equations leave it out)."""

    def __init__(self, width: int, gate: LargeKernelGate) -> None:
        super().__init__()
        self.proj_1 = nn.Linear(width, width)
        self.spatial_gating_unit = gate
        self.proj_2 = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        sequence = tokens.flatten(1, 2)
        value = apply_gelu(self.proj_1, sequence)
        gate = self.spatial_gating_unit(value.view(tokens.shape)).flatten(1, 2)
        out: Tensor = apply_linear(self.proj_2, value * gate) + sequence
        return out.view(tokens.shape)


class LargeKernelBlock(nn.Module):
    """Attention and ConvMlp, each behind a BatchNorm and scaled by channel before its skip."""

    def __init__(self, width: int, hidden: int, gate: LargeKernelGate, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(width)
        self.attn = LargeKernelAttention(width, gate)
        self.norm2 = nn.BatchNorm2d(width)
        self.mlp = ConvMlp(width, hidden)
        self.layer_scale_1 = nn.Parameter(torch.full((width,), 0.01))
        self.layer_scale_2 = nn.Parameter(torch.full((width,), 0.01))
        self.drop_path = drop_path_layer(drop_path)
        init_convs_fan_out(self)
        for child in self.modules():
            if isinstance(child, nn.Linear):  # initialised as the 1x1 convolution that it stands for
                nn.init.normal_(child.weight, std=math.sqrt(2 / child.out_features))
                nn.init.zeros_(child.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = x + to_map(self.drop_path(self.layer_scale_1 * self.attn(to_tokens(self.norm1(x)))))
        return x + to_map(self.drop_path(self.layer_scale_2 * self.mlp(to_tokens(self.norm2(x)))))


class OverlappingConv(nn.Module):
    """Strided convolution with overlapping windows, BatchNorm after it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        kernel = 2 * stride - 1
        self.proj = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(outputs)
        init_convs_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride))."""
        out: Tensor = self.norm(self.proj(x))
        return out


@dataclass(frozen=True, kw_only=True)
class _Overlapping(Layer):
    """What VAN's stem and merging share: a convolution of side 2 stride - 1, then BatchNorm."""

    kind: ClassVar[str] = "overlapping"
    paper: ClassVar[str] = "VAN"
    width: int
    stride: ClassVar[int] = 2

    def out(self, shape: Shape) -> Shape:
        """Any side n becomes ceil(n / stride): half a kernel of padding on both ends."""
        height, width = (round_up(side, self.stride) // self.stride for side in (shape.height, shape.width))
        return Shape(self.width, height, width)

    def cost(self, shape: Shape) -> Cost:
        """(k^2 Cin C + 2C) L_out with k = 2 stride - 1."""
        positions = self.out(shape).positions
        convolution = cost.conv(positions, shape.channels, self.width, 2 * self.stride - 1)
        return convolution + cost.batch_norm(positions, self.width)

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """Convolution (weights by fan-out) and BatchNorm."""
        return OverlappingConv(shape.channels, self.width, self.stride)


@register
@dataclass(frozen=True, kw_only=True)
class OverlappingStem(_Overlapping):
    """VAN's stem: 7x7 at stride 4 (3x3 at stride 2), BatchNorm; any image size."""

    role: ClassVar[Role] = "stem"
    stride: int = field(default=4, metadata={"doc": "pixels a token stands apart; proxies of small images set 2"})  # type: ignore[misc]  # here a field

    def check(self, shape: Shape) -> None:
        """Any image fits; the stride must be one."""
        if self.stride < 1:
            raise LayerError("stride", f"stride {self.stride} is not positive")


@register
@dataclass(frozen=True, kw_only=True)
class OverlappingDownsample(_Overlapping):
    """VAN's merging: 3x3 at stride 2, BatchNorm; odd sides round up."""

    role: ClassVar[Role] = "downsample"


@register
@dataclass(frozen=True, kw_only=True)
class StageNorm(Layer):
    """The LayerNorm (eps 1e-6) that VAN puts behind the last block of a stage."""

    kind: ClassVar[str] = "stage-norm"
    role: ClassVar[Role] = "extra"
    paper: ClassVar[str] = "VAN"

    def cost(self, shape: Shape) -> Cost:
        """5CL."""
        return cost.layer_norm(shape.positions, shape.channels)

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """LayerNorm over channels."""
        return ChannelNorm(shape.channels, eps=1e-6)


@register
@dataclass(frozen=True, kw_only=True)
class LargeKernel(Block):
    """VAN's block; kernel K at dilation D becomes a (2D-1) and a dilated ceil(K/D) depthwise convolution."""

    kind: ClassVar[str] = "lka"
    paper: ClassVar[str] = "VAN"
    kernel: int = choice(21, 9, 15, 21, 27, doc="side of the convolution that the two depthwise ones stand for")
    dilation: int = choice(3, doc="dilation of the second depthwise convolution")
    mlp_ratio: float = choice(4.0, 2.0, 3.0, 4.0, doc="hidden width of the MLP over the width")

    @property
    def kernels(self) -> tuple[int, int]:
        """Sides of the local and of the dilated depthwise convolution."""
        return 2 * self.dilation - 1, round_up(self.kernel, self.dilation) // self.dilation

    def check(self, shape: Shape) -> None:
        """Any map fits; the dilated kernel must have a centre."""
        check_hidden(self.mlp_ratio, shape.channels)
        if self.dilation < 1:
            raise LayerError("dilation", f"dilation {self.dilation} is not positive")
        if self.kernel < 1 or self.kernels[1] % 2 == 0:
            makes = f"kernel {self.kernel} at dilation {self.dilation} makes a dilated kernel of {self.kernels[1]}"
            raise LayerError("kernel", f"{makes}, which must be odd and positive")

    def canonical(self, shape: Shape) -> Layer:
        """The largest kernel that its two convolutions stand for."""
        ratio = whole_ratio(self.mlp_ratio, shape.channels)
        return replace(self, kernel=round_up(self.kernel, self.dilation), mlp_ratio=ratio)

    def cost(self, shape: Shape) -> Cost:
        """(3+2r)C^2 L + (k1^2 + k2^2 + 4 + 9r)CL; the gate's and the layer scale's products are free."""
        width, positions, hidden = shape.channels, shape.positions, int(shape.channels * self.mlp_ratio)
        norms = cost.batch_norm(positions, width) * 2
        spatial = sum((cost.depthwise(positions, width, kernel) for kernel in self.kernels), Cost())
        pointwise = cost.linear(positions, width, width) * 3 + cost.mlp(positions, width, hidden)
        return norms + spatial + pointwise + cost.depthwise(positions, hidden, 3) + Cost(params=2 * width)

    def build(self, shape: Shape, drop_path: float = 0.0) -> nn.Module:
        """The block for maps of `shape`'s width and any size."""
        width = shape.channels
        gate = LargeKernelGate(width, *self.kernels, self.dilation)
        return LargeKernelBlock(width, int(width * self.mlp_ratio), gate, drop_path)

    def stage_end(self) -> Layer | None:
        """The LayerNorm of the stage."""
        return StageNorm()
