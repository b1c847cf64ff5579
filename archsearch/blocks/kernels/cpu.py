"""What is computed in another way in eager mode on the CPU, and for which sizes; both ways give the same values up to rounding.

Figures: one core of an x86 server CPU with AVX-512 and without AMX, torch 2.14, milliseconds, float32 unless noted, 4 images of 224 px.
torch.compile chooses for itself.
"""

import functools
import platform
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from archsearch.blocks.kernels.modes import is_eager_cpu, is_inference, is_intercepted, is_plain, is_watched

# oneDNN's matrix product for inference, which torch registers where it was built with oneDNN; torch.compile emits the same call.
_HAS_POINTWISE = (
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    and platform.machine().lower() in ("x86_64", "amd64")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
_POINTWISE_DTYPES = (torch.float32, torch.bfloat16)
_TINY = 16  # query-key pairs of a window
_LONG = 1024  # queries
_FEW_KEYS = 16  # that a query attends to
_SMALL_MAP = 16  # positions
# Multiply-adds of a linear layer in training: oneDNN is the slower one up to here, and its layer has to be entered through Python.
_SMALL_TRAINED = 20_000_000
_SMALL = 4_000_000  # multiply-adds, below which oneDNN's 20 microseconds more a call are not earned back


def is_linear_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether a linear layer is oneDNN's instead of MKL's: in inference, and in float32 training forward and for the input's gradient.

    MKL / oneDNN: (4, 56, 56, 384) to 96 channels 13.5 / 9.7, (4, 28, 28, 192) to 768 11.1 / 9.7, (4, 14, 14, 1536) to 384 9.6 / 9.0; in bfloat16
    4.9 / 5.0, 5.3 / 4.8, 4.4 / 4.4. Gradient of the input: 14.4 / 12.5, 17.0 / 10.0, 12.8 / 10.9, in bfloat16 4.8 / 4.8, 5.1 / 5.3, 5.2 / 5.4;
    of the weight: 13.3 / 16.5, 10.5 / 13.1, 14.2 / 10.7. Small copies in training, processor time of (8192, 24) to 72, (2048, 48) to 144, (512, 96) to 384,
    (128, 192) to 768: forward 0.70 / 0.50, 0.35 / 0.36, 0.58 / 0.64, 0.32 / 0.41; gradient of the input 0.33 / 0.52, 0.21 / 0.29, 0.46 / 0.62, 0.26 / 0.36.
    """
    is_possible = x.dtype == weight.dtype and x.dtype in _POINTWISE_DTYPES and not torch.is_autocast_enabled("cpu")
    # The size is looked at last: in an export it is a symbol, and must stay one.
    if not (_HAS_POINTWISE and is_possible and is_plain(weight) and is_eager_cpu(x)):
        return False
    if torch.is_grad_enabled() and x.dtype != torch.float32:
        return False
    return x.numel() * len(weight) >= (_SMALL_TRAINED if torch.is_grad_enabled() else _SMALL)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer by oneDNN."""
    if not torch.is_grad_enabled():
        return _pointwise(x, weight, bias)
    out: Tensor = _TrainedLinear.apply(x, weight, bias)
    return out


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


class _TrainedLinear(torch.autograd.Function):
    """A linear layer whose products forward and for the input's gradient are oneDNN's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _pointwise(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (grad,), rows = grads, grads[0].reshape(-1, len(weight))
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = None
        if needs_x:
            # Gradients are enabled here for a second derivative (create_graph=True), which only standard operations have.
            grad_x = grad @ weight if torch.is_grad_enabled() else _pointwise(grad.contiguous(), weight.t(), None)
        if needs_weight:
            grad_weight = rows.t() @ x.reshape(-1, x.shape[-1])
        if needs_bias:
            grad_bias = rows.sum(0)
        return grad_x, grad_weight, grad_bias


def is_depthwise_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether a depthwise convolution has our own gradient of weight and bias: in float32 training on small maps.

    oneDNN takes a slow path for that gradient where the kernel is above 3 or does not fit the map. Milliseconds oneDNN / own:
    32 images, 3x3 on 2x2 of 512 channels 3.5 / 0.2, 5x5 on 4x4 of 80 1.5 / 0.7; 288 phases, 7x7 on 3x3 of 32 4.3 / 1.3, on 2x2 of 80 7.2 / 0.5,
    on 1x1 of 128 4.7 / 0.1. Where it takes the fast one, 3x3 on 4x4 of 320, 0.3 / 5.2; on larger maps, 5x5 on 8x8 of 32, 1.5 / 5.3.
    """
    kernel, (height, width) = weight.shape[-1], x.shape[-2:]
    is_slow = height * width <= _SMALL_MAP and (kernel > 3 or min(height, width) < kernel)
    is_possible = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return is_slow and is_possible and torch.is_grad_enabled() and is_eager_cpu(x)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A size-keeping depthwise convolution with our own gradient."""
    out: Tensor = _TrainedDepthwise.apply(x, weight, bias)
    return out


class _TrainedDepthwise(torch.autograd.Function):
    """A size-keeping depthwise convolution whose weight gradient comes from the products of all pairs of positions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return functional.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (x, weight), (grad,), (needs_x, needs_weight, needs_bias) = ctx.saved_tensors, grads, ctx.needs_input_grad
        channels, padding = len(weight), weight.shape[-1] // 2
        is_differentiated = torch.is_grad_enabled()  # by create_graph=True, for which only standard operations work
        grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            *(grad, x, weight, [channels], [1, 1], [padding] * 2, [1, 1], False, [0, 0], channels),
            [needs_x, needs_weight and is_differentiated, needs_bias and is_differentiated],
        )
        if needs_weight and not is_differentiated:
            grad_weight = _depthwise_weight_gradient(x, grad, weight)
        if needs_bias and not is_differentiated:
            grad_bias = grad.permute(0, 2, 3, 1).reshape(-1, channels).sum(0)
        return grad_x, grad_weight, grad_bias


def _depthwise_weight_gradient(x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the weight (C, 1, k, k), from the input and the output's gradient, (B, C, H, W) each."""
    batch, channels, height, width = x.shape
    inputs = x.permute(0, 2, 3, 1).reshape(batch, 1, -1, channels)
    outputs = grad.permute(0, 2, 3, 1).reshape(batch, -1, 1, channels)
    pairs = (outputs * inputs).sum(0).view(-1, channels)  # (positions of the output x positions of the input, C)
    return (pairs.t() @ _taps(height, width, weight.shape[-1])).view_as(weight)


@functools.cache
def _taps(height: int, width: int, kernel: int) -> Tensor:
    """Which tap of the kernel joins an output's position with an input's, 0 or 1: (positions of the output x positions of the input, k^2)."""
    row, column, tap = torch.arange(height), torch.arange(width), torch.arange(kernel) - kernel // 2
    rows = (row - row[:, None])[:, None, :, None, None, None] == tap[:, None]  # (H, 1, H, 1, k, 1)
    columns = (column - column[:, None])[None, :, None, :, None, None] == tap  # (1, W, 1, W, 1, k)
    return (rows & columns).reshape((height * width) ** 2, kernel**2).float()


def is_unfused(query: Tensor, key: Tensor, bias: Tensor | None) -> bool:
    """Whether attention is computed by hand.

    Fused / by hand, B x heads x queries x keys of 32 channels, forward and, behind the comma, with backward:

        bias, shape            none, float32     none, bfloat16      learned, float32     learned, bfloat16
        784 x  6 x 4 x 4       6.9/5.8, 25/15    9.0/4.3, 22/9.2     5.7/5.2, 17/14       9.7/4.4, 12/9.0
        256 x  3 x 49 x 49     8.9/17,  37/45    11/12,   136/24     9.1/16,  56/44       13/12,   56/20
         16 x 12 x 49 x 49     1.9/2.2, 8.9/9.6  2.8/2.3, 29/4.9     1.8/2.3, 11/8.1      2.7/2.5, 9.0/5.0
          4 x  8 x 196 x 196   3.1/4.7, 12/16    4.2/3.3, 16/6.7     3.6/5.5, 20/16       4.2/3.4, 15/7.4
          4 x  2 x 3136 x 49   5.0/6.4, 17/20    4.4/6.0, 19/11      6.6/6.4, 26/21       5.6/6.5, 24/12

    Of 8 channels, as small copies have them, processor time with backward, none, float32: 512 x 3 x 16 x 16 19/12, 32 x 12 x 16 x 16 5.8/4.0,
    32 x 2 x 256 x 16 7.8/5.3, 32 x 10 x 16 x 4 4.6/3.4; 32 x 2 x 256 x 64 13/15.
    """
    queries, keys = query.shape[-2], key.shape[-2]
    if queries * keys <= _TINY:
        return True
    if torch.is_grad_enabled():
        return keys <= _FEW_KEYS or query.dtype != torch.float32 or (bias is not None and bias.requires_grad)
    return query.dtype == torch.bfloat16 and queries < _LONG


# By module: a copy of a network starts with an empty cache, and a network that is freed takes its tensors along.
_CACHE: weakref.WeakKeyDictionary[nn.Module, tuple[Hashable, list[Tensor], Tensor]] = weakref.WeakKeyDictionary()


def cached_tensor(
    module: nn.Module, weights: Sequence[Tensor], make: Callable[[], Tensor], *, key: Hashable = None
) -> Tensor:
    """make(), which depends on `weights` of `module` and on `key` alone; in inference on the CPU it is kept while they have the same values.

    The values are compared in each pass: nothing else tells of a change by `parameter.data`. Not kept where a layer inside has hooks, which
    are to see it in each pass, nor on other devices, which would have to wait for the comparison.
    """
    if is_intercepted():  # asked first: a compiler would guard what is kept for all networks
        return make()
    is_kept = not module.training and all(map(is_inference, weights))
    if not is_kept or any(map(is_watched, module.modules())):
        _CACHE.pop(module, None)
        return make()
    state = (key, torch.is_autocast_enabled("cpu"), *(weight.dtype for weight in weights))
    kept = _CACHE.get(module)
    if kept is None or kept[0] != state or not all(map(torch.equal, kept[1], weights)):
        kept = _CACHE[module] = (state, [weight.detach().clone() for weight in weights], make())
    return kept[2]
