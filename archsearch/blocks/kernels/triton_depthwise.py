"""Dilated depthwise convolution of channels_last maps in Triton: a tile of neighbouring pixels and channels at once, sums in float32."""

from typing import Any

import torch
import triton
from torch import Tensor
from torch.library import triton_op, wrap_triton
from triton import language as tl

_CHANNELS = 64  # of a tile
_CHUNKS = 128  # of the rows of all images, each with its own sum for the weight


@triton.jit  # type: ignore[untyped-decorator]  # Triton leaves it untyped
def _forward(  # type: ignore[no-untyped-def]  # Triton's types are its own
    x, weight, bias, out, height, width, channels,
    kernel: tl.constexpr, dilation: tl.constexpr, tile: tl.constexpr, block: tl.constexpr, has_bias: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(width, tile)
    row = tl.program_id(0) // tiles  # of all images
    column = tl.program_id(0) % tiles * tile + tl.arange(0, tile)
    y, channel = row % height, tl.program_id(1) * block + tl.arange(0, block)
    inside = channel < channels
    total = tl.zeros((tile, block), tl.float32)
    for i in range(kernel):
        down = (i - kernel // 2) * dilation
        line = x + tl.cast(row + down, tl.int64) * width * channels
        for j in range(kernel):
            across = column + (j - kernel // 2) * dilation
            is_there = (y + down >= 0) & (y + down < height) & (across >= 0) & (across < width)
            place = across[:, None] * channels + channel[None, :]
            values = tl.load(line + place, mask=is_there[:, None] & inside[None, :], other=0.0)
            tap = tl.load(weight + (i * kernel + j) * channels + channel, mask=inside, other=0.0)
            total += values.to(tl.float32) * tap[None, :].to(tl.float32)
    if has_bias:
        total += tl.load(bias + channel, mask=inside, other=0.0)[None, :].to(tl.float32)
    place = out + tl.cast(row, tl.int64) * width * channels + column[:, None] * channels + channel[None, :]
    tl.store(place, total.to(out.dtype.element_ty), mask=(column < width)[:, None] & inside[None, :])


@triton.jit  # type: ignore[untyped-decorator]  # Triton leaves it untyped
def _weight_gradient(  # type: ignore[no-untyped-def]  # Triton's types are its own
    grad, x, sums, rows, height, width, channels,
    kernel: tl.constexpr, dilation: tl.constexpr, taps: tl.constexpr, tile: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    down = (tl.program_id(1) - kernel // 2) * dilation
    tap = tl.arange(0, taps)  # of this row of the kernel
    channel = tl.program_id(2) * block + tl.arange(0, block)
    inside = channel < channels
    total = tl.zeros((taps, block), tl.float32)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        y = row % height + down
        if (y >= 0) & (y < height):
            here = grad + tl.cast(row, tl.int64) * width * channels
            line = x + tl.cast(row + down, tl.int64) * width * channels
            for start in range(0, width, tile):
                column = start + tl.arange(0, tile)
                slope = tl.load(
                    here + column[:, None] * channels + channel[None, :],
                    mask=(column < width)[:, None] & inside[None, :],
                    other=0.0,
                )
                across = column[None, :] + (tap[:, None] - kernel // 2) * dilation
                is_there = (across >= 0) & (across < width) & (tap < kernel)[:, None]
                values = tl.load(
                    line + across[:, :, None] * channels + channel[None, None, :],
                    mask=is_there[:, :, None] & inside[None, None, :],
                    other=0.0,
                )
                total += tl.sum(values.to(tl.float32) * slope[None, :, :].to(tl.float32), 1)
    place = (tl.program_id(0) * kernel + tl.program_id(1)) * kernel + tap
    mask = (tap < kernel)[:, None] & inside[None, :]
    tl.store(sums + place[:, None] * channels + channel[None, :], total, mask=mask)


def _convolve(x: Tensor, taps: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """x (B, H, W, C), taps (k, k, C) -> (B, H, W, C)."""
    batch, height, width, channels = x.shape
    out = torch.empty_like(x)
    tile, block = 16 if width >= 16 else 8, min(_CHANNELS, triton.next_power_of_2(channels))
    grid = (batch * height * triton.cdiv(width, tile), triton.cdiv(channels, block))
    wrap_triton(_forward)[grid](
        *(x, taps, x if bias is None else bias, out, height, width, channels),
        kernel=taps.shape[0],
        dilation=dilation,
        tile=tile,
        block=block,
        has_bias=bias is not None,
    )
    return out


@triton_op("archsearch::depthwise", mutates_args=())
def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Size-keeping dilated depthwise convolution: x (B, H, W, C), weight (C, 1, k, k) with odd k, bias (C,) -> (B, H, W, C), contiguous."""
    taps = weight[:, 0].permute(1, 2, 0).contiguous()
    return _convolve(x.contiguous(), taps, bias, dilation)


@triton_op("archsearch::depthwise_backward", mutates_args=())
def depthwise_backward(grad: Tensor, x: Tensor, weight: Tensor, dilation: int) -> tuple[Tensor, Tensor]:
    """Gradients of x, the convolution of the output's gradient with the kernel turned by half a turn, and of the weight."""
    grad, x = grad.contiguous(), x.contiguous()
    grad_x = _convolve(grad, weight[:, 0].flip(1, 2).permute(1, 2, 0).contiguous(), None, dilation)
    batch, height, width, channels = x.shape
    kernel, block = weight.shape[-1], min(_CHANNELS, triton.next_power_of_2(channels))
    chunks = torch.sym_min(_CHUNKS, batch * height)  # no condition on the batch, as min would make
    sums = torch.empty((chunks, kernel, kernel, channels), dtype=torch.float32, device=x.device)
    wrap_triton(_weight_gradient)[(chunks, kernel, triton.cdiv(channels, block))](
        *(grad, x, sums, batch * height, height, width, channels),
        kernel=kernel,
        dilation=dilation,
        taps=triton.next_power_of_2(kernel),
        tile=8,
        block=block,
    )
    return grad_x, sums.sum(0).permute(2, 0, 1)[:, None].to(weight.dtype, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.dilation = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    # Gradients are enabled here for a second derivative (create_graph=True), which only standard operations have.
    backward = _backward_by_convolution if torch.is_grad_enabled() else depthwise_backward
    grad_bias = grad.sum((0, 1, 2)) if ctx.has_bias else None
    return (*backward(grad, x, weight, ctx.dilation), grad_bias, None)


def _backward_by_convolution(grad: Tensor, x: Tensor, weight: Tensor, dilation: int) -> tuple[Tensor, Tensor]:
    channels, padding = len(weight), dilation * (weight.shape[-1] // 2)
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        *(grad.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2), weight, [channels], [1, 1], [padding] * 2, [dilation] * 2),
        *(False, [0, 0], channels, [True, True, False]),
    )
    return grad_x.permute(0, 2, 3, 1), grad_weight


depthwise.register_autograd(_differentiate, setup_context=_save)
