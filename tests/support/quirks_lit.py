"""LIT's and LITv2's quirks: every figure is the measured effect of undoing one on the logits of a fixture, or (measured, as lit.md has it)."""

from typing import Any

import pytest
import torch
from support.quirks_base import (
    BLOCK_NORMS,
    Case,
    Effects,
    Forward,
    Quirk,
    eps,
    forward,
    gelu_before_depthwise,
    head_norm,
    mean_of_all,
    rows,
    tanh_gelu,
    values,
)
from torch import Tensor, nn
from torch.nn import functional

S, S_WIDE, TI, V2 = "lit_s@224x224", "lit_s@192x256", "lit_ti@224x224", "litv2_s@224x224"
MERGING = r"stages\.\d\.downsample"
OFFSETS = rf"{MERGING}\.dconv\.conv_offset\.(weight|bias)"


def _without_gelu(module: Any, own: Forward) -> Forward:
    """For `forward` of deformable merging."""
    return lambda x: module.norm_layer(module.dconv(x))


def _clamped_samples(patch: pytest.MonkeyPatch, model: nn.Module, case: Case) -> None:
    """Places beyond the map read its border."""
    own = functional.grid_sample

    def changed(*arguments: Any, **settings: Any) -> Tensor:
        return own(*arguments, **{**settings, "padding_mode": "border"})

    patch.setattr(functional, "grid_sample", changed)


def _deformable(source: str, *effects: Effects) -> list[Quirk]:
    """The quirks of deformable merging, which all three kinds of models share, each with its effects."""
    undos = {
        "taps are displaced -> offsets ignored": values(OFFSETS, torch.zeros_like),
        "offset channels are dy, dx -> dx, dy": values(OFFSETS, rows(1, 0, 3, 2, 5, 4, 7, 6)),
        "dy and dx of a tap stand together -> all dy, then all dx": values(OFFSETS, rows(0, 4, 1, 5, 2, 6, 3, 7)),
        "taps are counted row by row -> column by column": values(OFFSETS, rows(0, 1, 4, 5, 2, 3, 6, 7)),
        "beyond the map is zero -> the map's border": _clamped_samples,
        "merging ends with GELU -> without": forward(MERGING, _without_gelu),
        "BatchNorm eps 1e-5 -> 1e-3": eps(rf"{MERGING}\.norm_layer", 1e-3),
    }
    return [Quirk(source, what, undo, effect) for (what, undo), effect in zip(undos.items(), effects, strict=True)]


def _lofi_first(module: Any, own: Forward) -> Forward:
    """For `forward` of HiLo: its two parts in the other order."""

    def changed(tokens: Tensor) -> Tensor:
        return own(tokens).roll(-module.hifi_width, dims=-1)

    return changed


LIT_S: list[Quirk] = [
    *_deformable(
        "lit 3, 10",
        {S: (0.49, 0.49), S_WIDE: (0.49, 0.49)},
        {S: (0.16, 0.16), S_WIDE: (0.15, 0.15)},
        {S: (0.33, 0.33), S_WIDE: (0.41, 0.41)},
        {S: 0.38, S_WIDE: 0.51},
        {S: 0.34, S_WIDE: 0.39},
        {S: (0.73, 0.73), S_WIDE: (0.66, 0.66)},
        {S: (0.0004, 0.0004), S_WIDE: (0.00048, 0.00048)},
    ),
    Quirk(
        "lit 10",
        "bias row is query minus key -> key minus query",
        values(r"B\.attn\.relative_position_index", torch.t),
        {S: (0.011, 0.011), S_WIDE: (0.0098, 0.0098)},
    ),
    Quirk(
        "lit 2.2",
        "relative position bias -> none",
        values(r"B\.attn\.relative_position_bias_table", torch.zeros_like),
        {S: (0.0062, 0.0062), S_WIDE: (0.0059, 0.0059)},
    ),
    Quirk(
        "lit 9.2",
        "LayerNorm eps 1e-5 in S, M, B -> 1e-6",
        eps(rf"stem\.norm|{BLOCK_NORMS}", 1e-6),
        {S: (1.6e-5, 1.6e-5), S_WIDE: (1.1e-5, 1.1e-5)},
    ),
    Quirk(
        "lit 10",
        "GELU by erf -> tanh",
        tanh_gelu,
        {S: (0.00033, 0.00033), S_WIDE: (0.00027, 0.00027)},
    ),
    Quirk(
        "lit 4",
        "the final LayerNorm precedes the mean -> mean, then norm",
        head_norm("after"),
        {S: 0.11},
    ),
]


LIT_TI: list[Quirk] = [
    *_deformable(
        "lit 3",
        {TI: 0.53},
        {TI: 0.16},
        {TI: 0.24},
        {TI: 0.2},
        {TI: 0.21},
        {TI: 0.82},
        {TI: 0.00051},
    ),
    Quirk(
        "lit 9.2",
        "LayerNorm eps 1e-6 in Ti's blocks and head -> 1e-5",
        eps(BLOCK_NORMS, 1e-5),
        {TI: (0.00037, 0.00037)},
    ),
    Quirk(
        "lit 9.2",
        "LayerNorm eps 1e-5 in Ti's stem -> 1e-6",
        eps(r"stem\.norm", 1e-6),
        {TI: 1.4e-5},
    ),
    Quirk(
        "lit 4, 9.1",
        "Ti's head reads the class token -> mean of all positions",
        forward("head", mean_of_all),
        {TI: 0.7},
    ),
    Quirk(
        "lit 4, 9.1",
        "Ti has learned positions -> none",
        values(r"stages\.\d\.positions\.table", torch.zeros_like),
        {TI: 0.017},
    ),
    Quirk(
        "lit 4",
        "the class token has a position of its own -> none for the token",
        values(r"stages\.4\.positions\.table", lambda table: torch.cat((0 * table[:, :1], table[:, 1:]), dim=1)),
        {TI: 0.018},
    ),
    Quirk(
        "lit 4",
        "the class token's row is the first -> the last",
        values(r"stages\.4\.positions\.table", lambda table: table.roll(1, dims=1)),
        {TI: 0.026},
    ),
    Quirk(
        "lit 1",
        "GELU by erf -> tanh",
        tanh_gelu,
        {TI: 0.00048},
    ),
]


LITV2: list[Quirk] = [
    *_deformable(
        "litv2 1",
        {V2: 0.52},
        {V2: 0.23},
        {V2: 0.27},
        {V2: 0.2},
        {V2: 0.38},
        {V2: 0.79},
        {V2: 0.00051},
    ),
    Quirk(
        "litv2 8.3",
        "Hi-Fi's channels come first -> Lo-Fi's first",
        forward(r"stages\.[34]\.blocks\.\d+\.attn", _lofi_first),
        {V2: 1},
    ),
    Quirk(
        "litv2 8.6",
        "HiLo's projections have biases -> none in l_q, l_kv, h_qkv (HiLo's own default)",
        values(r"B\.attn\.(l_q|l_kv|h_qkv)\.bias", torch.zeros_like),
        {V2: 0.23},
    ),
    Quirk(
        "litv2 2.3",
        "the FFN's GELU follows the depthwise convolution -> before it",
        forward(r"B\.mlp", gelu_before_depthwise),
        {V2: 1.2},
    ),
    Quirk(
        "litv2 2.3",
        "no skip around the depthwise convolution -> with one",
        forward(r"B\.mlp\.dwconv", lambda module, own: lambda x: own(x) + x),
        {V2: 0.86},
    ),
    Quirk(
        "litv2",
        "LayerNorm eps 1e-5 -> 1e-6",
        eps(rf"stem\.norm|{BLOCK_NORMS}", 1e-6),
        {V2: 3.7e-5},
    ),
    Quirk(
        "litv2",
        "GELU by erf -> tanh",
        tanh_gelu,
        {V2: 0.0003},
    ),
    Quirk(
        "litv2 1",
        "the final LayerNorm precedes the mean -> mean, then norm",
        head_norm("after"),
        {V2: 0.12},
    ),
]


QUIRKS = [*LIT_S, *LIT_TI, *LITV2]
