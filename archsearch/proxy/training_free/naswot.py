"""NASWOT (Mellor et al., Neural Architecture Search without Training, ICML 2021): how differently a network's activations answer different images.

Changed against the paper, whose networks have ReLU: a unit's code is the sign of what goes into its GELU or ReLU. Only those on tokens or maps count;
the position networks of CrossFormer have activations too, which see no image.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_ACTIVATIONS = ("aten::gelu", "aten::gelu_", "aten::relu", "aten::relu_")


class _Codes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves these untyped
    """Adds up, over all activations, how many units any two images of a batch agree in; wherever in the code these are called."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self.batch_size = batch_size
        self.agreeing = torch.zeros(batch_size, batch_size, dtype=torch.float64)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func._schema.name in _ACTIVATIONS and args[0].dim() > 2 and len(args[0]) % self.batch_size == 0:
            signs = (args[0].detach() > 0).reshape(self.batch_size, -1).float() * 2 - 1
            # Signs of -1 and 1: their product is agreeing minus differing units. Whole numbers, exact in float32 up to 16M units.
            both = (signs @ signs.t()).double().cpu()
            self.agreeing += (signs.shape[1] + both) / 2
        return func(*args, **(kwargs or {}))


def naswot(network: nn.Module, images: Tensor) -> float:
    """log |det K|, K[i, j] the number of units with the same sign for images i and j of (B, 3, H, W); NaN where K is singular."""
    with torch.no_grad(), _Codes(len(images)) as codes:
        network(images)
    sign, value = torch.linalg.slogdet(codes.agreeing)
    return float(value) if sign != 0 else float("nan")
