"""A network compiled ahead, into the compiler's cache on disk."""

import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn

from archsearch.throughput.protocol import Protocol
from archsearch.throughput.timer import compiled, make_inputs, prepared


def keep_progress_bars_here() -> None:
    """Give the progress bars of this process, with which the compiler goes through a graph, a lock of its own.

    By default all processes share one, a semaphore, and the end of a worker that is killed is then a warning about it on the terminal.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]  # it has no types

    tqdm.set_lock(threading.RLock())


class _CompiledError(Exception):
    """Raised in place of the first pass."""


def compile_ahead(model: nn.Module, protocol: Protocol, device: torch.device) -> None:
    """Compile the forward pass as `measure` does, without running it: where it is measured later, the compiler's cache has it.

    A GPU does nothing meanwhile but take weights and images, so that it may be timed on. Raises what the compiler raises.
    """
    with prepared(model, protocol) as network:
        network.to(device)
        forward = compiled(network, protocol, backend=_compile_only)
        images = make_inputs(protocol, device)[0]
        is_autocast = protocol.dtype == "amp_bfloat16"
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=is_autocast):
            try:
                forward(images)
            except _CompiledError:
                return


def _compile_only(graph: torch.fx.GraphModule, inputs: list[Tensor], mode: str | None = None) -> Callable[..., Tensor]:
    """A backend for torch.compile: its own in this mode, whose result is left alone."""
    # Here, since they take over a second where nothing may be compiled.
    from torch._inductor import list_mode_options
    from torch._inductor.compile_fx import compile_fx

    compile_fx(graph, inputs, config_patches=list_mode_options(mode) if mode else None)

    def stop(*_: Tensor) -> Tensor:
        raise _CompiledError

    return stop
