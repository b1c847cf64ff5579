"""LayerNorm over the last dimension in Triton: a tile of whole rows at once, computed in float32. The backward pass computes mean and deviation again."""

from typing import Any

import torch
import triton
from torch import Tensor
from torch.library import triton_op, wrap_triton
from triton import language as tl

_TILE, _TILE_BACKWARD = 4096, 2048  # numbers at once
_PROGRAMS = 512  # of the backward pass, each with its own sums for weight and bias


@triton.jit
def _normed(x, place, mask, inside, eps, channels):  # type: ignore[no-untyped-def]  # Triton's types are its own
    """The rows at `place` normalised, and one over their deviation."""
    values = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(values, 1) / channels
    centred = tl.where(inside, values - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / channels + eps)
    return centred * scale[:, None], scale


@triton.jit  # type: ignore[untyped-decorator]  # Triton leaves it untyped
def _forward(x, weight, bias, out, rows, eps, channels: tl.constexpr, block: tl.constexpr, tile: tl.constexpr):  # type: ignore[no-untyped-def]  # Triton's types are its own
    row, channel = tl.arange(0, tile)[:, None], tl.arange(0, block)[None, :]
    first = tl.cast(tl.program_id(0), tl.int64) * tile  # one number of 64 bits; the places behind it have 32
    inside = channel < channels
    mask = (row < rows - first) & inside
    place = row * channels + channel
    normed, _ = _normed(x + first * channels, place, mask, inside, eps, channels)
    scaled = normed * tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    scaled += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + first * channels + place, scaled.to(out.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]  # Triton leaves it untyped
def _backward(  # type: ignore[no-untyped-def]  # Triton's types are its own
    grad, x, weight, grad_x, sums, rows, eps, channels: tl.constexpr, block: tl.constexpr, tile: tl.constexpr
):
    row, channel = tl.arange(0, tile)[:, None], tl.arange(0, block)[None, :]
    inside = channel < channels
    place = row * channels + channel
    weights = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    of_weight = tl.zeros((tile, block), tl.float32)
    of_bias = tl.zeros((tile, block), tl.float32)
    for index in range(tl.program_id(0), tl.cdiv(rows, tile), tl.num_programs(0)):
        first = tl.cast(index, tl.int64) * tile
        mask = (row < rows - first) & inside
        normed, scale = _normed(x + first * channels, place, mask, inside, eps, channels)
        slope = tl.load(grad + first * channels + place, mask=mask, other=0.0).to(tl.float32)
        of_weight += slope * normed
        of_bias += slope
        weighted = slope * weights
        along = tl.sum(weighted * normed, 1)[:, None] / channels
        slope_x = (weighted - tl.sum(weighted, 1)[:, None] / channels - normed * along) * scale[:, None]
        tl.store(grad_x + first * channels + place, slope_x.to(grad_x.dtype.element_ty), mask=mask)
    own = sums + tl.program_id(0) * 2 * channels + tl.arange(0, block)
    tl.store(own, tl.sum(of_weight, 0), mask=tl.arange(0, block) < channels)
    tl.store(own + channels, tl.sum(of_bias, 0), mask=tl.arange(0, block) < channels)


def _blocks(x: Tensor, numbers: int) -> tuple[int, int, int]:
    """Rows, channels of a block, and rows of a tile of about so many numbers."""
    block = triton.next_power_of_2(x.shape[-1])
    return x.numel() // x.shape[-1], block, max(1, numbers // block)


@triton_op("archsearch::layer_norm", mutates_args=())
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension: x (..., C), weight and bias (C,) -> (..., C), contiguous and of the weight's type.

    So that it gives float32 of bfloat16, as torch's does under autocast, without a copy of x.
    """
    x = x.contiguous()
    out = torch.empty_like(x, dtype=weight.dtype)
    rows, block, tile = _blocks(x, _TILE)
    wrap_triton(_forward)[(triton.cdiv(rows, tile),)](
        x, weight, bias, out, rows, eps, channels=x.shape[-1], block=block, tile=tile
    )
    return out


@triton_op("archsearch::layer_norm_backward", mutates_args=())
def layer_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, each of the type of its own."""
    grad, x = grad.contiguous(), x.contiguous()
    grad_x, channels = torch.empty_like(x), x.shape[-1]
    rows, block, tile = _blocks(x, _TILE_BACKWARD)
    programs = min(_PROGRAMS, triton.cdiv(rows, tile))
    sums = torch.empty((programs, 2, channels), dtype=torch.float32, device=x.device)
    wrap_triton(_backward)[(programs,)](
        grad, x, weight, grad_x, sums, rows, eps, channels=channels, block=block, tile=tile
    )
    grad_weight, grad_bias = sums.sum(0).to(weight.dtype).unbind(0)
    return grad_x, grad_weight.clone(), grad_bias.clone()  # an operation's results share no memory


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    # Gradients are enabled here for a second derivative (create_graph=True), which only standard operations have.
    backward = _backward_by_formula if torch.is_grad_enabled() else layer_norm_backward
    return (*backward(grad, x, weight, ctx.eps), None)


def _backward_by_formula(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    grad, values = grad.float(), x.float()
    centred = values - values.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    normed, weighted = centred * scale, grad * weight
    along = (weighted * normed).mean(-1, keepdim=True)
    grad_x = (weighted - weighted.mean(-1, keepdim=True) - normed * along) * scale
    by_rows = ((grad * normed).flatten(0, -2).sum(0), grad.flatten(0, -2).sum(0))
    return grad_x.to(x.dtype), by_rows[0].to(weight.dtype), by_rows[1].to(weight.dtype)


layer_norm.register_autograd(_differentiate, setup_context=_save)
