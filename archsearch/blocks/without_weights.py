"""Modules that have shapes but no weights: to be counted, or to be given values that are known."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# The operations of torch.nn.init. On meta tensors each call takes up to a millisecond: van_b6 without weights takes 1.1 s, and 0.4 s with these skipped.
_INIT_OPERATIONS = frozenset("kaiming_uniform_ uniform_ normal_ erfinv_ mul_ add_ clamp_ fill_ zero_".split())


class WithoutWeights(TorchFunctionMode):
    """Modules made in this mode have parameters on meta, without memory and values, and ordinary buffers.

    torch's modules and ours allocate parameters with torch.empty; buffers that they compute (index maps, masks) come from other functions.
    """

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func is torch.empty:
            return func(*args, **{**named, "device": "meta"})
        if getattr(func, "__name__", "") in _INIT_OPERATIONS:
            tensor = args[0] if args else named["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **named)
