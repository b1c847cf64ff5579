"""What makes a training repeatable: its own random numbers, and deterministic algorithms where CUDA has them."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

RandomState = tuple[Tensor, Tensor | None]


def own_random_numbers(device: torch.device) -> AbstractContextManager[None]:
    """The caller's random state comes back at the end."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def read_random_state(device: torch.device) -> RandomState:
    """Of the host and, for CUDA, of the device."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def write_random_state(state: RandomState, device: torch.device) -> None:
    """Goes on from a state that was read."""
    host, own = state
    torch.set_rng_state(host)
    if own is not None:
        torch.cuda.set_rng_state(own, device)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On CUDA: no cuDNN benchmark, and deterministic algorithms where PyTorch has them; all as before at the end. Elsewhere nothing to do.

    What PyTorch 2.14 still does in an order of its own there: the backward of fused attention (memory-efficient, flash and
    cuDNN's say so in warnings of theirs), of bilinear `interpolate` and of adaptive average pooling (documentation of
    `torch.use_deterministic_algorithms`). Only warnings are asked for, and left out here, since without a deterministic
    version an op would end the training. Scores on CUDA are therefore close between repetitions, not always equal bit by
    bit; on the CPU they are equal.
    """
    if device.type != "cuda":
        yield
        return
    before = (
        torch.backends.cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]  # a property of the module's
    )
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing of ours reads such memory; filling takes time
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*[Dd]eterministic")
            yield
    finally:
        torch.backends.cudnn.benchmark = before[0]
        torch.use_deterministic_algorithms(before[1], warn_only=before[2])
        torch.utils.deterministic.fill_uninitialized_memory = before[3]  # type: ignore[attr-defined]  # as above
