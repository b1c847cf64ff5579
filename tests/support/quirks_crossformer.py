"""CrossFormer's quirks: every figure is the measured effect of undoing one on the logits of a fixture, or (measured, as crossformer.md has it)."""

from typing import Any

import pytest
import torch
from support.quirks_base import Case, Forward, Quirk, edited, eps, forward, head_norm, tanh_gelu
from torch import Tensor, nn

from archsearch.blocks import crossformer

SQUARE, PADDED, WIDE = "crossformer_tiny@224x224", "crossformer_tiny@192x192", "crossformer_tiny@192x256"


def _no_padding_mask(patch: pytest.MonkeyPatch, model: nn.Module, case: Case) -> None:
    patch.setattr(crossformer, "padded_key_mask", lambda *arguments: None)


def _grouped_by_the_longer_side(patch: pytest.MonkeyPatch, model: nn.Module, case: Case) -> None:
    def grouping(height: int, width: int, window: int, interval: int) -> tuple[int, int]:
        return (max(height, width), 1) if min(height, width) <= window else (window, interval)

    patch.setattr(crossformer, "grouping", grouping)


def _interval_by_the_map(patch: pytest.MonkeyPatch, model: nn.Module, case: Case) -> None:
    own = crossformer.grouping

    def grouping(height: int, width: int, window: int, interval: int) -> tuple[int, int]:
        side, step = own(height, width, window, interval)
        return side, step if step == 1 else max(1, height // window)

    patch.setattr(crossformer, "grouping", grouping)


def _all_short(document: dict[str, Any]) -> None:
    for stage in document["stages"]:
        stage["block"] = "sda"
        stage.pop("lda")


def _long_first(document: dict[str, Any]) -> None:
    for stage in document["stages"]:
        stage["block"] = "lda/sda"


def _offsets(change: Any) -> Any:
    """For `forward` of the position MLP's first layer: other offsets; attention's own interval is not known there."""
    return lambda module, own: lambda pairs: own(change(pairs))


def _interval_offsets(module: Any, own: Forward) -> Forward:
    """For `forward` of a GroupAttention: offsets in tokens of the map instead of places in the group."""

    def changed(tokens: Tensor) -> Tensor:
        height, width = tokens.shape[1:3]
        _, interval = crossformer.grouping(height, width, module.window, module.interval)
        with pytest.MonkeyPatch.context() as patch:
            first = module.pos.pos_proj
            first_own = first.forward
            patch.setattr(first, "forward", lambda pairs: first_own(pairs * interval))
            return own(tokens)

    return changed


def _scales_reversed(module: Any, own: Forward) -> Forward:
    """For `forward` of cross-scale convolutions: largest kernel first."""
    return lambda x: torch.cat([conv(x) for conv in reversed(module)], dim=1)


QUIRKS: list[Quirk] = [
    Quirk(
        "crossformer 10.1",
        "a small map's group has the shorter side -> the longer side (detection)",
        _grouped_by_the_longer_side,
        {SQUARE: (0, 0), PADDED: (0, 0), WIDE: (0.031, 0.03)},
    ),
    Quirk(
        "crossformer 10.2",
        "the interval is fixed by stage -> side over group (old branch)",
        _interval_by_the_map,
        {SQUARE: (0, 0), PADDED: 0.081, WIDE: 0.091},
    ),
    Quirk(
        "crossformer 10.6",
        "even blocks are short-distance: depth 1 has no long-distance one -> long-distance first",
        edited(_long_first),
        {SQUARE: 0.3, PADDED: 0.25, WIDE: 0.24},
    ),
    Quirk(
        "crossformer 5",
        "odd blocks are long-distance -> all short-distance",
        edited(_all_short),
        {SQUARE: (0.063, 0.06), PADDED: (0.081, 0.08), WIDE: (0.091, 0.09)},
    ),
    Quirk(
        "crossformer 10.7",
        "the final LayerNorm precedes the mean -> mean, then norm",
        head_norm("after"),
        {SQUARE: 0.026},
    ),
    Quirk(
        "crossformer 10.8",
        "offsets of the position bias are places in the group -> times the interval",
        forward(r"B\.attn", _interval_offsets),
        {SQUARE: (0.00097, 0.001), PADDED: (0.00099, 0.001), WIDE: (0.0011, 0.001)},
    ),
    Quirk(
        "crossformer 5.2",
        "offset is query minus key -> key minus query",
        forward(r"B\.attn\.pos\.pos_proj", _offsets(torch.neg)),
        {SQUARE: (0.1, 0.1), PADDED: (0.1, 0.1), WIDE: (0.094, 0.09)},
    ),
    Quirk(
        "crossformer 5.2",
        "dynamic position bias -> none",
        forward(r"B\.attn\.pos", lambda module, own: lambda window: 0 * own(window)),
        {SQUARE: (0.063, 0.06), PADDED: (0.054, 0.05), WIDE: (0.048, 0.05)},
    ),
    Quirk(
        "crossformer 5.2",
        "padded keys are masked -> unmasked",
        _no_padding_mask,
        {SQUARE: (0, 0), PADDED: (0.22, 0.22), WIDE: (0.22, 0.22)},
    ),
    Quirk(
        "crossformer 3",
        "stem concatenates the smallest kernel first -> largest first",
        forward(r"stem\.projs", _scales_reversed),
        {SQUARE: 0.31},
    ),
    Quirk(
        "crossformer 4",
        "merging concatenates kernel 2 first -> kernel 4 first",
        forward(r"stages\.\d\.downsample\.reductions", _scales_reversed),
        {SQUARE: 1.2},
    ),
    Quirk(
        "crossformer 11",
        "LayerNorm eps 1e-5 -> 1e-6",
        eps(r".*norm[^.]*|.*\.pos[123]\.0", 1e-6),
        {SQUARE: (4.4e-6, 5e-6), PADDED: (4.1e-6, 4e-6), WIDE: (4.4e-6, 4e-6)},
    ),
    Quirk(
        "crossformer 11",
        "GELU by erf -> tanh",
        tanh_gelu,
        {SQUARE: (0.00013, 0.00013), PADDED: (0.00013, 0.00013), WIDE: (0.00014, 0.00014)},
    ),
]
