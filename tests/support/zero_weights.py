"""Networks whose weights are zeros, for tests that only count: drawing a network's weights takes as long as tracing it."""

import torch

from archsearch.models.network import Network, build_without_weights
from archsearch.space.arch import Arch


def build_with_zeros(arch: Arch) -> Network:
    """The built network on the CPU, every weight and buffer there at its own size."""
    model = build_without_weights(arch)
    zeros = {name: torch.zeros_like(tensor, device="cpu") for name, tensor in model.state_dict().items()}
    model.load_state_dict(zeros, assign=True)
    return model
