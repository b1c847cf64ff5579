"""Networks whose every parameter matters: initial weights leave biases and tables at nothing, and layer scales so small that a wrong block would not show."""

import torch
from torch import nn

from archsearch import build
from archsearch.space import Arch


def shaken(arch: Arch) -> nn.Module:
    """A network from the seed 0, with random numbers added to each vector and to the running statistics of norms.

    Small ones to layer scales: through twelve blocks of VAN, whose gates square their input, 0.3 grows beyond float32.
    """
    torch.manual_seed(0)
    network = build(arch)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim < 2:
                spread = 0.03 if "scale" in name else 0.3
                parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
        for name, buffer in network.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand(buffer.shape, generator=generator))
    return network
