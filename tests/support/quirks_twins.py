"""Twins' quirks: every figure is the measured effect of undoing one on the logits of a fixture, or (measured, as twins.md has it)."""

from typing import Any

import pytest
from support.quirks_base import (
    BLOCK_NORMS,
    PATCH_NORMS,
    Case,
    Forward,
    Quirk,
    eps,
    forward,
    head_norm,
    skipped,
    tanh_gelu,
)
from torch import Tensor, nn
from torch.nn import functional

SVT, SVT_WIDE, PCPVT = "twins_svt_small@224x224", "twins_svt_small@224x448", "twins_pcpvt_small@224x224"


def _whole_map(module: Any, own: Forward) -> Forward:
    """For `forward` of locally grouped attention: one group of all positions."""

    def changed(tokens: Tensor) -> Tensor:
        split = module.qkv(tokens).flatten(1, 2).unflatten(-1, (3, -1, module.head_dim))  # (B, N, 3, heads, d)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(tokens.shape)
        projected: Tensor = module.proj(out)
        return projected

    return changed


def _encoding_moved(place: str) -> Any:
    """PEG before the first block, or after the last."""

    def undo(patch: pytest.MonkeyPatch, model: nn.Module, case: Case) -> None:
        for number in range(1, 5):
            encoding = model.get_submodule(f"stages.{number - 1}.peg")
            blocks = list(model.get_submodule(f"stages.{number - 1}.blocks").children())
            encode, first, last = encoding.forward, blocks[0].forward, blocks[-1].forward
            patch.setattr(encoding, "forward", lambda x: x)
            if place == "first":
                patch.setattr(blocks[0], "forward", lambda x, encode=encode, first=first: first(encode(x)))
            else:
                patch.setattr(blocks[-1], "forward", lambda x, encode=encode, last=last: encode(last(x)))

    return undo


QUIRKS: list[Quirk] = [
    Quirk(
        "twins 9.1",
        "LayerNorm eps 1e-6 in blocks and head -> 1e-5",
        eps(BLOCK_NORMS, 1e-5),
        {SVT: 4.4e-6, PCPVT: 4.1e-6},
    ),
    Quirk(
        "twins 9.1",
        "LayerNorm eps 1e-5 in patch embedding and reduction -> 1e-6",
        eps(rf"{PATCH_NORMS}|B\.attn\.norm", 1e-6),
        {SVT: (4e-6, 4e-6), PCPVT: (3.6e-6, 4e-6)},
    ),
    Quirk(
        "twins 9.2",
        "stage 4 alternates LSA and GSA -> global attention only (paper's table)",
        forward(r"stages\.4\.blocks\.[13]\.attn", _whole_map),
        {SVT: (0, 0), SVT_WIDE: 0.0052},
    ),
    Quirk(
        "twins 9.9",
        "PEG encodes positions -> none",
        forward(r"stages\.\d\.peg", skipped),
        {SVT: 0.9, PCPVT: 1},
    ),
    Quirk(
        "twins 9.9",
        "PEG has a skip -> no skip",
        forward(r"stages\.\d\.peg", lambda module, own: lambda x: own(x) - x),
        {SVT: 1, PCPVT: 1.3},
    ),
    Quirk(
        "twins 2.4",
        "PEG follows the first block -> before it",
        _encoding_moved("first"),
        {SVT: 0.96, PCPVT: 0.97},
    ),
    Quirk(
        "twins 2.4",
        "PEG follows the first block -> after the last block",
        _encoding_moved("last"),
        {SVT: 0.84, PCPVT: 0.98},
    ),
    Quirk(
        "twins 3.2",
        "the reduced map is normed, not activated -> GELU after the norm",
        forward(r"B\.attn\.norm", lambda module, own: lambda x: functional.gelu(own(x))),
        {SVT: 0.52, PCPVT: 0.62},
    ),
    Quirk(
        "twins 3.2",
        "the reduced map is normed -> no norm",
        forward(r"B\.attn\.norm", skipped),
        {SVT: 0.21, PCPVT: 0.24},
    ),
    Quirk(
        "twins 2",
        "the final LayerNorm precedes the mean -> mean, then norm",
        head_norm("after"),
        {SVT: 0.068, PCPVT: 0.06},
    ),
    Quirk(
        "twins 1",
        "GELU by erf -> tanh",
        tanh_gelu,
        {SVT: 0.00017, PCPVT: 0.00015},
    ),
]
