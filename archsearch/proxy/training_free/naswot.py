"""NASWOT: how differently an untrained network's activations respond to different images.

Mellor, Turner, Storkey and Crowley, "Neural Architecture Search without Training", ICML 2021, arXiv 2006.04647, section 3. Changed against the paper,
whose networks have ReLU: a unit's code is the sign of the input of its GELU, ReLU, SiLU or hard swish. Only activations on tokens or maps count, since those in
CrossFormer's position networks see no image.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_ACTIVATIONS = tuple(f"aten::{name}{end}" for name in ("gelu", "relu", "silu", "hardswish") for end in ("", "_"))


class _AgreementCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves these untyped
    """Sums, over all calls of activation functions, in how many units any two images of a batch have the same sign."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self.batch_size = batch_size
        self.agreeing = torch.zeros(batch_size, batch_size, dtype=torch.float64)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func._schema.name in _ACTIVATIONS and args[0].dim() > 2 and len(args[0]) % self.batch_size == 0:
            signs = (args[0].detach() > 0).reshape(self.batch_size, -1).float() * 2 - 1
            # Signs of -1 and 1: their product counts agreeing minus differing units. Whole numbers, exact in float32 up to 16M units.
            agreeing_minus_differing = (signs @ signs.t()).double().cpu()
            self.agreeing += (signs.shape[1] + agreeing_minus_differing) / 2
        return func(*args, **(kwargs or {}))


def naswot(network: nn.Module, images: Tensor) -> float:
    """log |det K|, K[i, j] the number of units with the same sign for images i and j of (B, 3, H, W); NaN where K is singular."""
    with torch.no_grad(), _AgreementCounter(len(images)) as counter:
        network(images)
    sign, value = torch.linalg.slogdet(counter.agreeing)
    return float(value) if sign != 0 else float("nan")
