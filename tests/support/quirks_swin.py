"""Swin's quirks: every figure is the measured effect of undoing one on the logits of a fixture, or (measured, as swin.md has it)."""

import math
from typing import Any

import pytest
import torch
from support.quirks_base import BLOCK_NORMS, PATCH_NORMS, Case, Quirk, eps, head_norm, tanh_gelu, values
from torch import nn

from archsearch.blocks import swin

TINY, WIDE = "swin_tiny@224x224", "swin_tiny@224x448"


def _middle_swapped(axis: int) -> Any:
    """The four pixels of a cell row by row."""
    return lambda tensor: torch.cat([tensor.chunk(4, dim=axis)[index] for index in (0, 2, 1, 3)], dim=axis)


def _merged_by_rows(patch: pytest.MonkeyPatch, model: nn.Module, case: Case) -> None:
    for kind, axis in (("norm.weight", 0), ("norm.bias", 0), ("reduction.weight", 1)):
        undo = values(rf"stages\.\d\.downsample\.{kind}", _middle_swapped(axis))
        assert undo(patch, model, case) is None


def _mask(change: Any) -> Any:
    return values(r"B\.attn\.attn_mask", change)


def _shift(change: Any) -> Any:
    """Another rule for the shift; masks are recomputed for it."""

    def undo(patch: pytest.MonkeyPatch, model: nn.Module, case: Case) -> None:
        own = swin.window_and_shift

        def changed(height: int, width: int, window: int, *, is_shifted: bool) -> tuple[int, int]:
            side, shift = own(height, width, window, is_shifted=is_shifted)
            return side, change(max(height, width), side, shift, is_shifted)

        patch.setattr(swin, "window_and_shift", changed)
        for module in model.modules():
            if getattr(module, "attn_mask", None) is not None:
                patch.setitem(module._buffers, "attn_mask", None)

    return undo


QUIRKS: list[Quirk] = [
    Quirk(
        "swin 9.1",
        "merging takes a cell's pixels column by column -> row by row",
        _merged_by_rows,
        {TINY: (0.13, 0.13), WIDE: 0.1},
    ),
    Quirk(
        "swin 9.6",
        "shifted windows are masked -> unmasked",
        _mask(torch.zeros_like),
        {TINY: (0.025, 0.025), WIDE: 0.012},
    ),
    Quirk(
        "swin 9.2",
        "the mask is -100 -> -inf",
        _mask(lambda mask: mask.masked_fill(mask < 0, -math.inf)),
        {TINY: (0, 0)},
    ),
    Quirk(
        "swin 9.6",
        "bias row is query minus key -> key minus query",
        values(r"B\.attn\.relative_position_index", torch.t),
        {TINY: (0.032, 0.03), WIDE: 0.023},
    ),
    Quirk(
        "swin 9.6",
        "relative position bias -> none",
        values(r"B\.attn\.relative_position_bias_table", torch.zeros_like),
        {TINY: (0.02, 0.02), WIDE: 0.018},
    ),
    Quirk(
        "swin 9.4",
        "a map as short as the window is never shifted -> shifted where it is longer",
        _shift(lambda longer, side, shift, is_shifted: 3 if is_shifted and longer > side else 0),
        {TINY: (0, 0), WIDE: 0.0031},
    ),
    Quirk(
        "swin 3",
        "the shift is floor(w / 2) -> ceil(w / 2)",
        _shift(lambda longer, side, shift, is_shifted: 4 if shift else 0),
        {TINY: 0.04},
    ),
    Quirk(
        "swin 3",
        "odd blocks are shifted -> none is",
        _shift(lambda longer, side, shift, is_shifted: 0),
        {TINY: 0.046, WIDE: 0.029},
    ),
    Quirk(
        "swin 2.3",
        "the final LayerNorm precedes the mean -> mean, then norm",
        head_norm("after"),
        {TINY: 0.031},
    ),
    Quirk(
        "swin 1",
        "LayerNorm eps 1e-5 -> 1e-6",
        eps(rf"{PATCH_NORMS}|{BLOCK_NORMS}", 1e-6),
        {TINY: 3.8e-6, WIDE: 3.2e-6},
    ),
    Quirk(
        "swin 1",
        "GELU by erf -> tanh",
        tanh_gelu,
        {TINY: 0.00015},
    ),
]
