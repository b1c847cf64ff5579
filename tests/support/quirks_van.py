"""VAN's quirks: every figure is the measured effect of undoing one on the logits of the fixture, or (measured, as van.md has it)."""

from typing import Any

import torch
from support.quirks_base import (
    Forward,
    Quirk,
    attribute,
    both,
    eps,
    forward,
    gelu_before_depthwise,
    head_norm,
    skipped,
    tanh_gelu,
    values,
)
from torch import Tensor

from archsearch.blocks.common import to_map, to_tokens

B0 = "van_b0@224x224"
BATCH_NORMS = r"B\.norm[12]|(stem|stages\.\d\.downsample)\.norm"
STAGE_NORMS = r"stages\.\d\.stage-norm|head\.norm"


def _no_inner_skip(module: Any, own: Forward) -> Forward:
    return lambda tokens: own(tokens) - tokens


def _skip_from_the_input(module: Any, own: Forward) -> Forward:
    """For `forward` of VAN's block: attention's inner skip adds x instead of the normed x."""

    def changed(x: Tensor) -> Tensor:
        normed = to_tokens(module.norm1(x))
        x = x + to_map(module.layer_scale_1 * (module.attn(normed) - normed + to_tokens(x)))
        return x + to_map(module.layer_scale_2 * module.mlp(to_tokens(module.norm2(x))))

    return changed


QUIRKS: list[Quirk] = [
    Quirk(
        "van 8.1",
        "attention adds its normed input -> no inner skip",
        forward(r"B\.attn", _no_inner_skip),
        {B0: (0.31, 0.31)},
    ),
    Quirk(
        "van 8.1",
        "the inner skip starts after BatchNorm -> from the block's input",
        forward("B", _skip_from_the_input),
        {B0: (0.14, 0.14)},
    ),
    Quirk(
        "van 8.2",
        "LayerNorm closes every stage -> only the last",
        forward(r"stages\.\d\.stage-norm", skipped),
        {B0: 0.42},
    ),
    Quirk(
        "van 8.2",
        "LayerNorm eps 1e-6 -> 1e-5",
        eps(STAGE_NORMS, 1e-5),
        {B0: (3.8e-6, 4e-6)},
    ),
    Quirk(
        "van 9",
        "BatchNorm eps 1e-5 -> 1e-3",
        eps(BATCH_NORMS, 1e-3),
        {B0: (0.00044, 0.0004)},
    ),
    Quirk(
        "van 8.2",
        "the final LayerNorm precedes the mean -> mean, then norm",
        head_norm("after"),
        {B0: 1.6},
    ),
    Quirk(
        "van 8.3",
        "patch embeddings have a bias before BatchNorm -> no bias",
        values(r"(stem|stages\.\d\.downsample)\.proj\.bias", torch.zeros_like),
        {B0: 0.6},
    ),
    Quirk(
        "van 8.4",
        "layer scales, by channel -> none",
        values(r"B\.layer_scale_[12]", torch.ones_like),
        {B0: 1.8},
    ),
    Quirk(
        "van 8.6",
        "the dilated kernel stands 3 apart: 23 pixels in all -> dilation 2",
        both(
            attribute(r"B\.attn\.spatial_gating_unit\.conv_spatial", "dilation", lambda own: (2, 2)),
            attribute(r"B\.attn\.spatial_gating_unit\.conv_spatial", "padding", lambda own: (6, 6)),
        ),
        {B0: 0.063},
    ),
    Quirk(
        "van 3.2",
        "the FFN's GELU follows the depthwise convolution -> before it",
        forward(r"B\.mlp", gelu_before_depthwise),
        {B0: (0.4, 0.4)},
    ),
    Quirk(
        "van 3.1",
        "the gate has no activation -> sigmoid",
        forward(r"B\.attn\.spatial_gating_unit", lambda module, own: lambda tokens: own(tokens).sigmoid()),
        {B0: 0.13},
    ),
    Quirk(
        "van 9",
        "GELU by erf -> tanh",
        tanh_gelu,
        {B0: (6.1e-5, 6e-5)},
    ),
]
