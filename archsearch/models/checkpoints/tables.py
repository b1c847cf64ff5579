"""Entries of official checkpoints besides plain weights: index maps and masks that the model computes, and tables that depend on the image size."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from archsearch.blocks import GlobalAttentionBlock, LearnedPositions, Shape
from archsearch.blocks.common import relative_position_index
from archsearch.blocks.crossformer import GroupAttention
from archsearch.errors import UserError
from archsearch.models.checkpoints.keys import official_key
from archsearch.models.network import Network
from archsearch.space import Arch, ImageSize


def computed_buffers(network: Network) -> dict[str, Tensor]:
    """Our buffers that are not in our state dict, by our key: the index maps and masks that official state dicts hold."""
    state = network.state_dict()
    return {key: buffer for key, buffer in network.named_buffers() if key not in state}


def computed_entries(network: Network, pattern: str) -> dict[str, Tensor]:
    """Optional entries of a checkpoint, by official key, as the model computes them: its buffers, and the tables of CrossFormer's first releases."""
    computed = computed_buffers(network)
    for path, module in network.named_modules():
        if isinstance(module, GroupAttention):
            computed[f"{path}.relative_position_index"] = relative_position_index(module.window, module.window)
            computed[f"{path}.biases"] = _square_offsets(module.window)
    return {official_key(pattern, key): tensor for key, tensor in computed.items()}


def check_computed(given: Mapping[str, Tensor], computed: Mapping[str, Tensor], where: str) -> None:
    """Raise UserError when the checkpoint has other index maps or masks than the model computes; missing ones are fine."""
    for key, ours in computed.items():
        if key in given and not _agrees(key.rpartition(".")[2], given[key], ours):
            raise UserError(
                f"{where}: {key} {tuple(given[key].shape)} differs from what this model computes {tuple(ours.shape)}; "
                "the checkpoint comes from other code, another window or another image size"
            )


def _agrees(kind: str, got: Tensor, ours: Tensor) -> bool:
    """Whether an entry equals ours, or that of a square map of its own size; a mask for another number of windows cannot be compared and passes."""
    if _equal(got, ours):
        return True
    if got.ndim != ours.ndim:
        return False
    if kind == "attn_mask":
        return got.shape[1:] == ours.shape[1:] and len(got) != len(ours)
    if kind == "relative_position_index":
        side = math.isqrt(len(got))
        return got.shape == (side**2, side**2) and _equal(got, relative_position_index(side, side))
    assert kind == "biases", kind
    side = (math.isqrt(len(got)) + 1) // 2
    return got.shape == ((2 * side - 1) ** 2, 2) and _equal(got, _square_offsets(side))


def _equal(got: Tensor, ours: Tensor) -> bool:
    """Equal shapes and values; the types may differ, since all values are small integers."""
    return got.shape == ours.shape and torch.equal(got.cpu().double(), ours.cpu().double())


def _square_offsets(side: int) -> Tensor:
    """((2 side - 1)^2, 2) offsets between two tokens of a square, row-major."""
    steps = torch.arange(1 - side, side)
    return torch.cartesian_prod(steps, steps)


def fit_tables(
    given: Mapping[str, Tensor], arch: Arch, image_size: ImageSize | None, pattern: str, where: str
) -> dict[str, Tensor]:
    """The state dict with its tables resized for `image_size` by the paper's rule. Raises UserError where the paper has no rule."""
    fitted = dict(given)
    for own, built in zip(arch.layers(), arch.layers(image_size), strict=True):
        if isinstance(own.layer, GlobalAttentionBlock) and own.layer.bias:
            key = official_key(pattern, f"{own.module}.attn.relative_position_bias_table")
            is_own = key in given and given[key].ndim == 2 and len(given[key]) == _num_rows(own.shape)
            if is_own and _num_rows(own.shape) != _num_rows(built.shape):
                fitted[key] = resize_table(given[key], own.shape, built.shape)
        elif isinstance(own.layer, LearnedPositions) and not own.layer.side:
            key = official_key(pattern, f"{own.module}.table")
            # `_check_keys` reports a table of another size than the paper's as misshaped.
            rows = own.shape.positions + own.layer.class_token
            is_own = key in given and given[key].ndim == 3 and given[key].shape[1] == rows
            if is_own and own.shape.positions != built.shape.positions:
                raise UserError(
                    f"{where}: {key} holds the learned positions of a map of {own.shape.sides}, and the image size asked for makes one of {built.shape.sides}; "
                    "the paper's code has no rule to resize them, so these weights work at their own image size only"
                )
    return fitted


def _num_rows(shape: Shape) -> int:
    """Number of rows of the bias table of a map."""
    return (2 * shape.height - 1) * (2 * shape.width - 1)


def resize_table(table: Tensor, trained: Shape, wanted: Shape) -> Tensor:
    """A ((2H-1)(2W-1), heads) table for another map: bicubic, align_corners false, as LIT's detection code does (LIT, section 8)."""
    image = table.float().t().reshape(1, -1, 2 * trained.height - 1, 2 * trained.width - 1)
    sides = (2 * wanted.height - 1, 2 * wanted.width - 1)
    resized = functional.interpolate(image, sides, mode="bicubic", align_corners=False)  # (1, heads, 2H-1, 2W-1)
    return resized.flatten(2)[0].t()
