"""The operations of layers, each by the faster of two ways that give the same values up to rounding, as `cpu` and `cuda` have measured them."""

import torch
from torch import Tensor, nn
from torch.nn import LayerNorm, Linear, functional

from archsearch.blocks.kernels import cpu, cuda
from archsearch.blocks.kernels.modes import is_eager_cpu, is_eager_cuda, is_inference, is_watched


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """functional.linear."""
    if cpu.is_linear_faster(x, weight):
        return cpu.linear(x, weight, bias)
    return functional.linear(x, weight, bias)


def apply_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x), where the layer is a plain nn.Linear that nothing watches, by `linear`.

    A subclass of nn.Linear would be the same to us, and not to quantisers, which ask for the type.
    """
    if type(layer) is Linear and is_eager_cpu(x) and not is_watched(layer):
        return linear(x, layer.weight, layer.bias)
    out: Tensor = layer(x)
    return out


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """functional.layer_norm over the last dimension, (..., C) -> the same."""
    if weight is not None and bias is not None and cuda.is_norm_triton(x, weight, bias):
        return cuda.layer_norm(x, weight, bias, eps)
    return functional.layer_norm(x, x.shape[-1:], weight, bias, eps)


def apply_norm(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x), where the layer is a plain nn.LayerNorm over the last dimension that nothing watches, on CUDA by `layer_norm`."""
    if type(layer) is LayerNorm and is_eager_cuda(x) and len(layer.normalized_shape) == 1 and not is_watched(layer):
        return layer_norm(x, layer.weight, layer.bias, layer.eps)
    out: Tensor = layer(x)
    return out


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int = 1) -> Tensor:
    """Size-keeping depthwise convolution, x (B, C, H, W), weight (C, 1, k, k) with odd k, bias (C,) -> (B, C, H, W)."""
    if cuda.is_depthwise_triton(x, weight, dilation):
        return cuda.depthwise(x, weight, bias, dilation)
    if dilation == 1 and cpu.is_depthwise_faster(x, weight):
        return cpu.depthwise(x, weight, bias)
    padding = dilation * (weight.shape[-1] // 2)
    return functional.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=len(weight))


class Depthwise(nn.Conv2d):
    """A size-keeping depthwise convolution by `depthwise`."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(channels, channels, kernel, padding=kernel // 2, groups=channels)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return depthwise(input, self.weight, self.bias)


def patch_conv(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """Strided convolution, x (B, C, H, W), weight (O, C, k, k), bias (O,) -> (B, O, h, w)."""
    if cuda.is_large_patch(x, weight, stride):
        return cuda.unshuffled_conv(x, weight, bias, stride, padding)
    return functional.conv2d(x, weight, bias, stride, padding)


def apply_gelu(layer: nn.Module, x: Tensor) -> Tensor:
    """GELU (by erf) of layer(x); in inference on the CPU in place, unless a hook or a layer of another's may have kept the output.

    After `Linear`, apart / in place: (4, 56, 56, 96) to 384 16.9 / 12.5, (4, 28, 28, 192) to 768 11.5 / 10.8; inside oneDNN's product 13.1 and 11.4.
    """
    out = apply_linear(layer, x)
    if type(layer) in (Linear, Depthwise) and is_inference(out) and not is_watched(layer):
        torch.ops.aten.gelu_(out)
        return out
    return functional.gelu(out)
