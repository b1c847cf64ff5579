"""Repeatable training: random numbers of its own, and deterministic algorithms where CUDA has them."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

RandomState = tuple[Tensor, Tensor | None]


def own_random_numbers(device: torch.device) -> AbstractContextManager[None]:
    """A context that gives the caller's random state back at its end."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def read_random_state(device: torch.device) -> RandomState:
    """The random state of the host and, for CUDA, of the device."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def write_random_state(state: RandomState, device: torch.device) -> None:
    """Continue from a state that was read."""
    host, own = state
    torch.set_rng_state(host)
    if own is not None:
        torch.cuda.set_rng_state(own, device)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On CUDA: no cuDNN benchmark, no TF32, and deterministic algorithms where PyTorch has them; the settings of before come back at the end.

    Timings of the same process allow TF32, but a recipe's float32, of which the proxy_id speaks, is float32 on every device.
    Not deterministic there in PyTorch 2.14: the backward of fused attention (memory-efficient, flash and cuDNN's warn of
    it), of bilinear `interpolate` and of adaptive average pooling (documentation of `torch.use_deterministic_algorithms`).
    They warn, and the warnings are ignored, since otherwise such an op would end the training. Scores on CUDA are therefore
    close between repetitions, not always equal bit by bit; on the CPU they are equal.
    """
    if device.type != "cuda":
        yield
        return
    before = (
        torch.backends.cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]  # a property of the module's
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]  # torch sets it at run time
    )
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # as above
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # we read no uninitialised memory, and filling it takes time
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*[Dd]eterministic")
            yield
    finally:
        torch.backends.cudnn.benchmark = before[0]
        torch.use_deterministic_algorithms(before[1], warn_only=before[2])
        torch.utils.deterministic.fill_uninitialized_memory = before[3]  # type: ignore[attr-defined]  # as above
        torch.backends.cuda.matmul.fp32_precision = before[4]
        torch.backends.cudnn.conv.fp32_precision = before[5]  # type: ignore[attr-defined]  # as above
