"""The faster of two implementations of one operation, chosen by measurement; both give the same values up to rounding.

Figures in the comments: one core of an x86 server CPU with AVX-512 and without AMX, torch 2.14, milliseconds, float32 unless noted, 4 images of 224 px.
The faster ones are used in eager mode on the CPU only: torch.compile chooses for itself, and on other devices nothing was measured.
"""

import platform
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

# oneDNN's matrix product for inference, which torch registers where it was built with oneDNN; torch.compile emits the same call.
_HAS_POINTWISE = (
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    and platform.machine().lower() in ("x86_64", "amd64")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
_POINTWISE_DTYPES = (torch.float32, torch.bfloat16)
_TINY = 16  # query-key pairs of a window
_LONG = 1024  # queries
_SMALL = 4_000_000  # multiply-adds, below which oneDNN's 20 microseconds more a call are not earned back


def is_traced() -> bool:
    """True inside torch.jit.trace, with which fvcore counts: it must see the plain operation, not a faster one with the same values."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]  # torch leaves it untyped
    return tracing


def is_counted(x: Tensor) -> bool:
    """True where operations are counted: in a trace (fvcore), or on meta tensors (FlopCounterMode)."""
    return x.is_meta or is_traced()


def is_eager_cpu(x: Tensor) -> bool:
    """True in eager mode on the CPU where operations are not traced, compiled or counted."""
    return x.device.type == "cpu" and not _is_intercepted()


def _is_intercepted() -> bool:
    """True where only standard operations work: traced, compiled, counted (FlopCounterMode), differentiated in forward mode or by torch.func."""
    return (
        torch.compiler.is_compiling()
        or is_traced()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def _is_inference(x: Tensor) -> bool:
    return not torch.is_grad_enabled() and is_eager_cpu(x)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """functional.linear, on the CPU by oneDNN instead of MKL: in inference, and in float32 training forward and for the input's gradient.

    MKL / oneDNN: (4, 56, 56, 384) to 96 channels 13.5 / 9.7, (4, 28, 28, 192) to 768 11.1 / 9.7, (4, 14, 14, 1536) to 384 9.6 / 9.0; in bfloat16
    4.9 / 5.0, 5.3 / 4.8, 4.4 / 4.4. Gradient of the input: 14.4 / 12.5, 17.0 / 10.0, 12.8 / 10.9, in bfloat16 4.8 / 4.8, 5.1 / 5.3, 5.2 / 5.4;
    of the weight: 13.3 / 16.5, 10.5 / 13.1, 14.2 / 10.7.
    """
    is_worth_it = _HAS_POINTWISE and x.numel() * len(weight) >= _SMALL
    is_possible = x.dtype == weight.dtype and x.dtype in _POINTWISE_DTYPES and not torch.is_autocast_enabled("cpu")
    if not (is_worth_it and is_possible and is_eager_cpu(x)):
        return functional.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return _pointwise(x, weight, bias)
    if x.dtype != torch.float32:
        return functional.linear(x, weight, bias)
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


class Linear(nn.Linear):
    """nn.Linear by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return linear(input, self.weight, self.bias)


def apply_gelu(layer: nn.Module, x: Tensor) -> Tensor:
    """GELU (by erf) of layer(x); in inference on the CPU in place, unless a forward hook may have kept the layer's output.

    After `Linear`, apart / in place: (4, 56, 56, 96) to 384 16.9 / 12.5, (4, 28, 28, 192) to 768 11.5 / 10.8; inside oneDNN's product 13.1 and 11.4.
    """
    out: Tensor = layer(x)
    if _is_inference(out) and out is not x and not layer._forward_hooks:
        torch.ops.aten.gelu_(out)
        return out
    return functional.gelu(out)


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v; (B, heads, N, d), (B, heads, M, d) twice and a bias that broadcasts to (B, heads, N, M) -> (B, heads, N, d).

    Fused or by hand, whichever is faster. Fused / by hand, B x heads x queries x keys of 32 channels, forward and, behind the comma, with backward:

        bias, shape            none, float32     none, bfloat16      learned, float32     learned, bfloat16
        784 x  6 x 4 x 4       6.9/5.8, 25/15    9.0/4.3, 22/9.2     5.7/5.2, 17/14       9.7/4.4, 12/9.0
        256 x  3 x 49 x 49     8.9/17,  37/45    11/12,   136/24     9.1/16,  56/44       13/12,   56/20
         16 x 12 x 49 x 49     1.9/2.2, 8.9/9.6  2.8/2.3, 29/4.9     1.8/2.3, 11/8.1      2.7/2.5, 9.0/5.0
          4 x  8 x 196 x 196   3.1/4.7, 12/16    4.2/3.3, 16/6.7     3.6/5.5, 20/16       4.2/3.4, 15/7.4
          4 x  2 x 3136 x 49   5.0/6.4, 17/20    4.4/6.0, 19/11      6.6/6.4, 26/21       5.6/6.5, 24/12
    """
    if not _is_unfused(query, key, bias):
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if bias is not None:
        scores += bias.to(scores.dtype)  # float32 under autocast: 256 x 3 x 49 x 49 takes 1.4 ms mixed, 0.5 cast
    out: Tensor = scores.softmax(-1) @ value
    return out


def _is_unfused(query: Tensor, key: Tensor, bias: Tensor | None) -> bool:
    if not is_eager_cpu(query):
        return False
    queries, keys = query.shape[-2], key.shape[-2]
    if queries * keys <= _TINY:
        return True
    if torch.is_grad_enabled():
        return query.dtype != torch.float32 or (bias is not None and bias.requires_grad)
    return query.dtype == torch.bfloat16 and queries < _LONG


# By module: a copy of a network starts with an empty cache, and a network that is freed takes its tensors along.
_CACHE: weakref.WeakKeyDictionary[nn.Module, tuple[Hashable, list[Tensor], Tensor]] = weakref.WeakKeyDictionary()


def cached_tensor(
    module: nn.Module, weights: Sequence[Tensor], make: Callable[[], Tensor], *, key: Hashable = None
) -> Tensor:
    """make(), which depends on `weights` of `module` and on `key` alone; in inference it is cached until one of them changes or moves.

    A change that autograd does not record (`parameter.data.add_`) is missed until the next pass with gradients or in training mode.
    """
    if torch.is_grad_enabled() or module.training or not _is_cacheable(weights):
        _CACHE.pop(module, None)
        return make()
    autocast = torch.is_autocast_enabled(weights[0].device.type)
    state = (key, autocast, *((weight.data_ptr(), weight._version, weight.dtype) for weight in weights))
    kept = _CACHE.get(module)
    if kept is None or kept[0] != state:
        # The weights' memory is kept alive: a new tensor at the same address would be taken for the old one.
        kept = _CACHE[module] = (state, [weight.detach() for weight in weights], make())
    return kept[2]


def _is_cacheable(weights: Sequence[Tensor]) -> bool:
    """Not where operations are intercepted, which must see them all, nor for parameters made in inference mode, which count no versions."""
    return not _is_intercepted() and not any(weight.is_inference() or weight.is_meta for weight in weights)
