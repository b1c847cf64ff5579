"""MSG-Transformer's quirks: every figure is the measured effect of undoing one on the logits of the fixture, or (measured, as msg_transformer.md has it)."""

import math
from typing import Any

import pytest
import torch
from support.quirks_base import (
    BLOCK_NORMS,
    PATCH_NORMS,
    Case,
    Forward,
    Quirk,
    attribute,
    both,
    edited,
    eps,
    forward,
    mean_of_all,
    skipped,
    tanh_gelu,
    values,
)
from torch import Tensor, nn

from archsearch.blocks.common import to_map, to_tokens

TINY = "msg_transformer_tiny@224x224"


def _exchanged_last(module: Any, own: Forward) -> Forward:
    """For `forward` of MSG's block: the exchange after the FFN."""

    def changed(x: Tensor) -> Tensor:
        tokens = to_tokens(x)
        tokens = tokens + module.attn(module.norm1(tokens))
        return to_map(module._exchange(tokens + module.mlp(module.norm2(tokens))))

    return changed


def _interleaved(module: Any, own: Forward) -> Forward:
    """For `_exchange`: window g takes every G-th channel of each messenger, sorted by channel before messenger."""

    def changed(tokens: Tensor) -> Tensor:
        places, count = tokens.shape[:-1], module.shuffle**2
        strided = tokens.reshape(*places, -1, count).transpose(-1, -2).flatten(-2)
        mixed = own(strided).reshape(*places, count, -1).transpose(-1, -2).flatten(-2)
        return torch.cat((mixed[:, :, :1], tokens[:, :, 1:]), dim=2)

    return changed


def _exchange(wrap: Any) -> Any:
    """Another exchange of messengers in every block."""

    def undo(patch: pytest.MonkeyPatch, model: nn.Module, case: Case) -> None:
        for module in model.modules():
            if hasattr(module, "_exchange"):
                patch.setattr(module, "_exchange", wrap(module, module._exchange))

    return undo


def _by_columns(token: Tensor) -> Tensor:
    """Messengers of a region counted column by column."""
    side = math.isqrt(token.shape[1])
    return token.view(1, side, side, 1, -1).transpose(1, 2).flatten(1, 2)


def _stem_padding(document: dict[str, Any]) -> None:
    document["stem"]["patch"]["padding"] = 3


def _messenger_scalar(*order: int) -> Any:
    return lambda scalars: scalars[:, list(order)]


QUIRKS: list[Quirk] = [
    Quirk(
        "msg 9.9",
        "messengers exchange channels -> no exchange",
        _exchange(skipped),
        {TINY: (0.44, 0.44)},
    ),
    Quirk(
        "msg 9.9",
        "window g takes chunk g of each messenger -> every G-th channel",
        _exchange(_interleaved),
        {TINY: (0.58, 0.58)},
    ),
    Quirk(
        "msg 9.6",
        "stage 1 exchanges in four regions of 4x4 windows -> sixteen of 2x2",
        both(
            attribute(r"stages\.1\.blocks\.\d+", "shuffle", lambda own: 2),
            attribute(r"stages\.1\.blocks\.\d+", "regions", lambda own: (4, 4)),
        ),
        {TINY: 0.19},
    ),
    Quirk(
        "msg 3",
        "the exchange precedes the FFN, on the stream itself -> after the FFN",
        forward("B", _exchanged_last),
        {TINY: 0.42},
    ),
    Quirk(
        "msg 9.10",
        "LayerNorm eps 1e-5 -> 1e-6",
        eps(rf"{PATCH_NORMS}|{BLOCK_NORMS}", 1e-6),
        {TINY: (0.00055, 0.0005)},
    ),
    Quirk(
        "msg 2.5",
        "the head reads the messenger -> mean of all positions",
        forward("head", mean_of_all),
        {TINY: 0.54},
    ),
    Quirk(
        "msg 2.1",
        "the stem pads 2 pixels -> 3",
        edited(_stem_padding),
        {TINY: 0.23},
    ),
    Quirk(
        "msg 2.3",
        "messengers of a region are counted row by row -> column by column",
        values(r"stages\.1\.messengers\.token", _by_columns),
        {TINY: 0.097},
    ),
    Quirk(
        "msg 3.1",
        "patch queries add rel_pos_msg[:, 0] to the messenger's logit -> nothing",
        values(r"B\.attn\.rel_pos_msg", lambda scalars: scalars * torch.tensor([0.0, 1.0])[:, None, None]),
        {TINY: 0.048},
    ),
    Quirk(
        "msg 3.1",
        "rel_pos_msg is (to, from) the messenger -> (from, to)",
        values(r"B\.attn\.rel_pos_msg", _messenger_scalar(1, 0)),
        {TINY: 0.088},
    ),
    Quirk(
        "msg 9.3",
        "rel_pos_msg[:, 1] cancels in the softmax -> zero",
        values(r"B\.attn\.rel_pos_msg", lambda scalars: scalars * torch.tensor([1.0, 0.0])[:, None, None]),
        {TINY: (0, 0)},
    ),
    Quirk(
        "msg 3.1",
        "relative position bias -> none",
        values(r"B\.attn\.relative_position_bias_table", torch.zeros_like),
        {TINY: 0.027},
    ),
    Quirk(
        "msg 3.1",
        "bias row is query minus key -> key minus query",
        values(r"B\.attn\.relative_position_index", torch.t),
        {TINY: 0.029},
    ),
    Quirk(
        "msg 1",
        "GELU by erf -> tanh",
        tanh_gelu,
        {TINY: 0.00022},
    ),
]
