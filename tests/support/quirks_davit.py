"""DaViT's quirks: every figure is the measured effect of undoing one on the logits of a fixture, or (measured, as davit.md has it)."""

from typing import Any

import pytest
import torch
from support.quirks_base import Case, Forward, Quirk, both, edited, eps, forward, head_norm, tanh_gelu, values
from torch import Tensor, nn

from archsearch import paper
from archsearch.blocks.common import (
    from_groups,
    grouped_attention,
    pad_tokens,
    padded_key_mask,
    to_groups,
    to_map,
    to_tokens,
)

SQUARE, PADDED = "davit_tiny@224x224", "davit_tiny@192x256"
CHANNEL = r"stages\.\d\.blocks\.\d*[02468]"  # blocks alternate: odd ones are spatial
SPATIAL = r"stages\.\d\.blocks\.\d*[13579]"


def _thirds(*order: int) -> Any:
    """qkv rows with the thirds in another order."""
    return lambda tensor: torch.cat([tensor.chunk(3)[index] for index in order])


def _length_scale(patch: pytest.MonkeyPatch, model: nn.Module, case: Case) -> None:
    """Key rows of channel attention times sqrt(d / L)."""
    for placed in paper(case.name).layers(case.size):
        if placed.layer.kind == "channel":
            qkv = model.get_submodule(f"{placed.module}.attn.qkv")
            assert isinstance(qkv, nn.Linear)
            width = placed.shape.channels
            factor = torch.ones(3 * width, dtype=torch.float64)
            factor[width : 2 * width] = (32 / placed.shape.positions) ** 0.5
            patch.setattr(qkv.weight, "data", qkv.weight.data * factor[:, None])
            patch.setattr(qkv.bias, "data", qkv.bias.data * factor)


def _masked_windows(module: Any, own: Forward) -> Forward:
    def changed(tokens: Tensor) -> Tensor:
        height, width = tokens.shape[1:3]
        padded = pad_tokens(tokens, module.window)
        qkv = module.qkv(to_groups(padded, module.window))
        mask = padded_key_mask(height, width, module.window, 1, -1e6, qkv)
        out = module.proj(grouped_attention(qkv, head_dim=module.head_dim, bias=mask))
        return from_groups(out, padded.shape[1:3], module.window)[:, :height, :width]

    return changed


def _padded_after_qkv(module: Any, own: Forward) -> Forward:
    """Padded positions are zero queries, keys and values, not the projection's bias."""

    def changed(tokens: Tensor) -> Tensor:
        height, width = tokens.shape[1:3]
        qkv = pad_tokens(module.qkv(tokens), module.window)
        out = module.proj(grouped_attention(to_groups(qkv, module.window), head_dim=module.head_dim))
        return from_groups(out, qkv.shape[1:3], module.window)[:, :height, :width]

    return changed


def _skip_before_encoding(module: Any, own: Forward) -> Forward:
    """Residuals from the block's input instead of the position encoding's output."""

    def changed(x: Tensor) -> Tensor:
        x = x + to_map(module.attn(module.norm1(to_tokens(x + module.cpe1(x)))))
        return x + to_map(module.mlp(module.norm2(to_tokens(x + module.cpe2(x)))))

    return changed


def _channel_first(document: dict[str, Any]) -> None:
    for stage in document["stages"]:
        stage["block"] = "channel/window"


QUIRKS: list[Quirk] = [
    Quirk(
        "davit 11.1",
        "the head pools, then norms -> head norm before the mean",
        head_norm("before"),
        {SQUARE: (0.63, 0.63), PADDED: (0.61, 0.61)},
    ),
    Quirk(
        "davit 11.2",
        "channel attention is softmax(k^T v) on q -> thirds of qkv as the textbook's q, k, v",
        both(*(values(rf"{CHANNEL}\.attn\.qkv\.{kind}", _thirds(2, 0, 1)) for kind in ("weight", "bias"))),
        {SQUARE: (0.58, 0.58), PADDED: (0.8, 0.8)},
    ),
    Quirk(
        "davit 11.3",
        "channel attention scales by d^-0.5 -> L^-0.5",
        _length_scale,
        {SQUARE: (0.17, 0.17), PADDED: (0.15, 0.15)},
    ),
    Quirk(
        "davit 11.4",
        "padding takes part in window attention unmasked -> padded keys masked",
        forward(rf"{SPATIAL}\.attn", _masked_windows),
        {SQUARE: (0, 0), PADDED: (0.2, 0.2)},
    ),
    Quirk(
        "davit 11.4",
        "padding is zero before the bias of qkv -> padded after qkv",
        forward(rf"{SPATIAL}\.attn", _padded_after_qkv),
        {PADDED: 0.052},
    ),
    Quirk(
        "davit 11.7",
        "two position encodings a block -> no second one",
        forward(r"B\.cpe2", lambda module, own: torch.zeros_like),
        {SQUARE: 1.2},
    ),
    Quirk(
        "davit 11.7",
        "position encodings in channel blocks too -> none in channel blocks",
        forward(rf"{CHANNEL}\.cpe[12]", lambda module, own: torch.zeros_like),
        {SQUARE: 1.2},
    ),
    Quirk(
        "davit 5, 6",
        "residuals start from the position encoding's output -> from its input",
        forward("B", _skip_before_encoding),
        {SQUARE: 1.3},
    ),
    Quirk(
        "davit 6",
        "each pair is spatial, then channel -> channel, then spatial",
        edited(_channel_first),
        {SQUARE: (0.95, 0.95), PADDED: (0.79, 0.79)},
    ),
    Quirk(
        "davit 12",
        "LayerNorm eps 1e-5 -> 1e-6",
        eps(r".*norm[^.]*", 1e-6),
        {SQUARE: (6.2e-6, 6e-6), PADDED: (6.5e-6, 6e-6)},
    ),
    Quirk(
        "davit 12",
        "GELU by erf -> tanh",
        tanh_gelu,
        {SQUARE: (0.00034, 0.0003), PADDED: (0.00027, 0.0003)},
    ),
]
