"""Entries of official checkpoints besides plain weights: index maps and masks that the model computes, and tables that depend on the image size."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from archsearch.blocks import GlobalAttentionBlock, LearnedPositions, Shape
from archsearch.blocks.common import relative_position_index
from archsearch.blocks.crossformer import GroupAttention
from archsearch.blocks.swin import ShiftedWindowAttention, shift_mask
from archsearch.errors import UserError
from archsearch.models.checkpoints.keys import official_key
from archsearch.models.network import Network
from archsearch.space import ImageSize

Grid = tuple[int, int]  # height and width in tokens


def computed_buffers(network: Network) -> dict[str, Tensor]:
    """Our buffers that are not in our state dict, by our key: the index maps and masks that official state dicts hold."""
    state = network.state_dict()
    return {key: buffer for key, buffer in network.named_buffers() if key not in state}


def computed_entries(network: Network, pattern: str) -> dict[str, Tensor]:
    """Optional entries of a checkpoint, by official key, as the model computes them: its buffers, and the tables of CrossFormer's first releases."""
    computed = computed_buffers(network)
    for path, module in network.named_modules():
        if isinstance(module, ShiftedWindowAttention):
            computed.setdefault(f"{path}.attn_mask", torch.empty(0))  # of a map whose windows are not shifted
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
    """Whether an entry equals ours, or that of another window or map: of a square one, for a mask of any with its number of windows."""
    if _equal(got, ours):
        return True
    if kind == "attn_mask":
        return _is_shift_mask(got)
    if got.ndim != ours.ndim:
        return False
    if kind == "relative_position_index":
        side = math.isqrt(len(got))
        return got.shape == (side**2, side**2) and _equal(got, relative_position_index(side, side))
    assert kind == "biases", kind
    side = (math.isqrt(len(got)) + 1) // 2
    return got.shape == ((2 * side - 1) ** 2, 2) and _equal(got, _square_offsets(side))


def _is_shift_mask(got: Tensor) -> bool:
    """Whether a mask (windows, N, N) is that of some map whose windows are shifted by half a side."""
    if got.ndim != 3 or not len(got):
        return False
    side, count = math.isqrt(got.shape[1]), len(got)
    if side < 2 or got.shape[1:] != (side**2, side**2):
        return False
    grids = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    return any(_equal(got, shift_mask(rows * side, columns * side, side, side // 2)) for rows, columns in grids)


def _equal(got: Tensor, ours: Tensor) -> bool:
    """Equal shapes and values; the types may differ, since all values are small integers."""
    return got.shape == ours.shape and torch.equal(got.cpu().double(), ours.cpu().double())


def _square_offsets(side: int) -> Tensor:
    """((2 side - 1)^2, 2) offsets between two tokens of a square, row-major."""
    steps = torch.arange(1 - side, side)
    return torch.cartesian_prod(steps, steps)


def fit_tables(
    given: Mapping[str, Tensor], network: Network, image_size: ImageSize | None, pattern: str, where: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict with its tables resized to the network's by the papers' rules, and sentences that name the sizes.

    A whole map's table of the paper's own size is resized for `image_size` without a sentence. Raises UserError where there is no rule.
    """
    arch, fitted = network.arch, dict(given)
    resized: dict[tuple[Grid, Grid], int] = {}
    for own, built in zip(arch.layers(), arch.layers(image_size), strict=True):
        if own.layer.role == "block":
            key = official_key(pattern, f"{own.module}.attn.relative_position_bias_table")
            if key not in given:
                continue
            wanted = _grid(network.get_submodule(own.module), built.shape)
            usual = own.shape[1:3] if isinstance(own.layer, GlobalAttentionBlock) else wanted
            trained = _trained_grid(given[key], usual, wanted, f"{where}: {key}")
            if trained != wanted:
                fitted[key] = resize_table(given[key], trained, wanted)
            if trained not in (usual, wanted):
                resized[trained, wanted] = resized.get((trained, wanted), 0) + 1
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
    return fitted, [
        f"tables of relative position bias for {_sides(trained)} tokens were resized to {_sides(wanted)}, {count} of them"
        for (trained, wanted), count in resized.items()
    ]


def _grid(block: nn.Module, shape: Shape) -> Grid:
    """Height and width in tokens of the window, or the whole map, that a block's bias table is for."""
    side = getattr(block.get_submodule("attn"), "window", None)
    return (side, side) if side else (shape.height, shape.width)


def _trained_grid(table: Tensor, usual: Grid, wanted: Grid, where: str) -> Grid:
    """The grid that a checkpoint's table is for: the paper's usual one, the wanted one, or a square. Raises UserError where it is none.

    A table of another kind than a matrix of numbers is left to the check of the shapes.
    """
    if table.ndim != 2 or not table.is_floating_point():
        return wanted
    for grid in (usual, wanted):
        if len(table) == _num_rows(grid):
            return grid
    steps = math.isqrt(len(table))
    if steps**2 == len(table) and steps % 2:
        return (steps + 1) // 2, (steps + 1) // 2
    raise UserError(
        f"{where} is {tuple(table.shape)}, no table of a square window, and this model's are for {_sides(wanted)} tokens, of {_num_rows(wanted)} rows"
    )


def _num_rows(grid: Grid) -> int:
    """Number of rows of the bias table of a grid of tokens."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1)


def _sides(grid: Grid) -> str:
    """`7x7`."""
    return f"{grid[0]}x{grid[1]}"


def resize_table(table: Tensor, trained: Grid, wanted: Grid) -> Tensor:
    """A ((2H-1)(2W-1), heads) table for another grid of tokens: bicubic, align_corners false.

    So Swin's code does it for other windows, and LIT's detection code for other maps (LIT, section 8).
    """
    image = table.float().t().reshape(1, -1, 2 * trained[0] - 1, 2 * trained[1] - 1)
    sides = (2 * wanted[0] - 1, 2 * wanted[1] - 1)
    resized = functional.interpolate(image, sides, mode="bicubic", align_corners=False)  # (1, heads, 2H-1, 2W-1)
    return resized.flatten(2)[0].t()
