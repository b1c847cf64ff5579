"""In what mode a call runs, and which layers someone watches: what decides whether a faster operation may stand in for torch's."""

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import LayerNorm, Linear
from torch.nn.modules.module import _has_any_global_hook as has_any_global_hook


def is_traced() -> bool:
    """True inside torch.jit.trace, with which fvcore counts: it must see the plain operation, not a faster one with the same values."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]  # torch leaves it untyped
    return tracing


def is_exported() -> bool:
    """True inside torch.export and torch.jit.trace, which must see standard operations and no condition on the batch."""
    return torch.compiler.is_exporting() or is_traced()


def is_counted(x: Tensor) -> bool:
    """True where operations are counted: in a trace (fvcore), or on meta tensors (FlopCounterMode)."""
    return x.is_meta or is_traced()


def is_eager_cpu(x: Tensor) -> bool:
    """True in eager mode on the CPU where operations are not traced, compiled or counted."""
    return x.device.type == "cpu" and not is_intercepted()


def is_eager_cuda(x: Tensor) -> bool:
    """True in eager mode on a CUDA device where operations are not traced, compiled or counted."""
    return x.device.type == "cuda" and not is_intercepted()


def runs_on_cuda(x: Tensor) -> bool:
    """True on a CUDA device in eager mode and inside torch.compile, where nothing is exported, traced or counted."""
    if torch.compiler.is_compiling():
        return x.device.type == "cuda" and not torch.compiler.is_exporting()
    return is_eager_cuda(x)


def is_intercepted() -> bool:
    """True where only standard operations work: traced, compiled, counted (FlopCounterMode), differentiated in forward mode or by torch.func."""
    return (
        torch.compiler.is_compiling()
        or is_traced()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def is_inference(x: Tensor) -> bool:
    """True in eager mode on the CPU without gradients."""
    return not torch.is_grad_enabled() and is_eager_cpu(x)


def is_plain(*tensors: Tensor) -> bool:
    """Whether these are torch's own: a quantised or sharded one has operations of its own."""
    return all(type(tensor) in (Tensor, nn.Parameter) for tensor in tensors)


_FORWARDS: dict[type[nn.Module], object] = {Linear: Linear.forward, LayerNorm: LayerNorm.forward}


def is_watched(layer: nn.Module) -> bool:
    """Whether someone could tell a call of this layer from its function: by hooks, of it or of all modules, or by a forward of another's."""
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or has_any_global_hook()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        or "forward" in vars(layer)
        or layer._compiled_call_impl is not None
        or any(kind.forward is not forward for kind, forward in _FORWARDS.items())
    )
