"""The residual blocks of any network, found by what they do: for scores that are sums over blocks, stage by stage."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Blocks(NamedTuple):
    """Dotted names, stage by stage, and the dimension of the channels in each block's tensors."""

    names: list[list[str]]
    channel_dims: dict[str, int]


def find_blocks(network: nn.Module, images: Tensor) -> Blocks:
    """The innermost modules that a parent numbers, that keep the shape of their input, run once and have two weight matrices or more.

    Blocks in series with tensors of one shape are a stage. `images` (B, C, H, W) run through the network once, in eval mode.
    """
    shapes = _kept_shapes(network.eval(), images)
    numbered = [name for name in shapes if name.rpartition(".")[2].isdecimal()]
    weights = {name: list(_weights(network.get_submodule(name))) for name in numbered}
    able = [name for name in numbered if len(weights[name]) > 1 and not _is_container(network.get_submodule(name))]
    blocks = [name for name in able if not any(other.startswith(f"{name}.") for other in able)]
    stages = [list(stage) for _, stage in groupby(blocks, key=lambda name: shapes[name])]
    return Blocks(stages, {name: _channel_dim(shapes[name], weights[name]) for name in blocks})


def _kept_shapes(network: nn.Module, images: Tensor) -> dict[str, tuple[int, ...]]:
    """The shape of the maps or tokens of each module that keeps it and runs once, in order of execution."""
    shapes: dict[str, tuple[int, ...] | None] = {}
    handles = []
    for name, module in network.named_modules():

        def keep(module: nn.Module, args: tuple[Any, ...], output: Any, name: str = name) -> None:
            before, after = _shape(args), _shape(output)
            shapes[name] = before if before == after and name not in shapes else None

        handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return {name: shape for name, shape in shapes.items() if shape is not None and len(shape) > 2}


def _shape(value: Any) -> tuple[int, ...] | None:
    """Of a tensor, or of the first one of several."""
    first = value[0] if isinstance(value, (tuple, list)) and value else value
    return tuple(first.shape) if isinstance(first, Tensor) else None


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, (nn.Sequential, nn.ModuleList))


def _weights(module: nn.Module) -> Iterator[Tensor]:
    return (weight for name, weight in module.named_parameters() if name.endswith("weight") and weight.ndim > 1)


def _channel_dim(shape: tuple[int, ...], weights: list[Tensor]) -> int:
    """Tokens (B, N, C) have channels last; maps first or last: where the block's weights have that many rows, and of both at the map's square."""
    rows = {weight.shape[0] for weight in weights}
    is_first = len(shape) == 4 and shape[1] in rows and (shape[-1] not in rows or shape[2] == shape[3])
    return 1 if is_first else len(shape) - 1
