"""The deterministic weights under which the reference logits were made, by the papers' own parameter names.

Convention `crc32-pcg64 v1`: every floating tensor is a standard normal draw from PCG64(crc32(official key)), cast to float32, scaled by its shape and name.
"""

import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from archsearch.models import key_pattern
from archsearch.models.checkpoints.keys import official_key


def official_tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    """The values of an official key under the convention."""
    values = _normal(key, shape)
    last = key.rsplit(".", 1)[-1]
    if last == "running_var":
        values = np.float32(1) + np.float32(0.1) * np.abs(values)
    elif len(shape) <= 1:
        values = np.float32(1) + np.float32(0.1) * values if last == "weight" else np.float32(0.1) * values
    else:
        values = values / np.float32(np.sqrt(np.prod(shape[1:])))
    return torch.from_numpy(values)


def official_input(height: int, width: int) -> Tensor:
    """The convention's image."""
    return torch.from_numpy(_normal(f"input-1x3x{height}x{width}", (1, 3, height, width)))


def _normal(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return generator.standard_normal(int(np.prod(shape))).astype(np.float32).reshape(shape)


def fill_official(model: nn.Module, name: str) -> None:
    """Fill a model with the convention's weights; official 1x1 convolutions that are Linear layers here have the same values in another shape."""
    pattern, state = key_pattern(name), model.state_dict()
    for key, tensor in state.items():
        if tensor.is_floating_point():
            state[key] = official_tensor(official_key(pattern, key), tuple(tensor.shape))
    model.load_state_dict(state)
