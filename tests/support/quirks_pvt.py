"""PVT's quirks: every figure is the measured effect of undoing one on the logits of a fixture, or (measured, as pvt.md has it).

RESIZED and UNRESIZED have no fixture: the reference there is our own network with the quirk.
"""

from typing import Any

import pytest
import torch
from support.quirks_base import BLOCK_NORMS, PATCH_NORMS, Case, Quirk, eps, forward, mean_of_all, tanh_gelu, values
from torch import nn
from torch.nn import functional

TINY, RESIZED, UNRESIZED = "pvt_tiny@224x224", "pvt_tiny@192x256", "pvt_tiny@112x448"


def _interpolated(**settings: Any) -> Any:
    """Position tables resized in another way."""

    def undo(patch: pytest.MonkeyPatch, model: nn.Module, case: Case) -> None:
        own = functional.interpolate
        patch.setattr(functional, "interpolate", lambda x, **given: own(x, **{**given, **settings}))

    return undo


def _always_resized(patch: pytest.MonkeyPatch, model: nn.Module, case: Case) -> None:
    """A map of 3136 positions that is not 56x56 takes the resized table, not the 56x56 one as it is."""
    for number in range(1, 5):
        patch.setattr(model.get_submodule(f"stages.{number - 1}.positions"), "unresized", 0)


def _class_row(change: Any) -> Any:
    """Another row for the class token."""
    return values(
        r"stages\.4\.positions\.table",
        lambda table: torch.cat((change(table[:, :1]), table[:, 1:]), dim=1),
    )


QUIRKS: list[Quirk] = [
    Quirk(
        "pvt 8.1",
        "LayerNorm eps 1e-6 in blocks and head -> 1e-5",
        eps(BLOCK_NORMS, 1e-5),
        {TINY: (0.00039, 0.00039)},
    ),
    Quirk(
        "pvt 8.1",
        "LayerNorm eps 1e-5 in patch embedding and reduction -> 1e-6",
        eps(rf"{PATCH_NORMS}|B\.attn\.norm", 1e-6),
        {TINY: (4e-6, 4e-6)},
    ),
    Quirk(
        "pvt 8.2",
        "a map of 3136 positions takes stage 1's table as it is -> resized to the map",
        _always_resized,
        {TINY: 0, UNRESIZED: 0.00065},
    ),
    Quirk(
        "pvt 8.8",
        "tables are resized bilinearly, corners not aligned -> corners aligned",
        _interpolated(align_corners=True),
        {TINY: 0, RESIZED: (0.00011, 0.0001)},
    ),
    Quirk(
        "pvt 8.8",
        "tables are resized bilinearly -> bicubic",
        _interpolated(mode="bicubic"),
        {TINY: 0, RESIZED: (0.00025, 0.00025)},
    ),
    Quirk(
        "pvt 2.3",
        "learned positions in every stage -> none",
        values(r"stages\.\d\.positions\.table", torch.zeros_like),
        {TINY: 0.023},
    ),
    Quirk(
        "pvt 2.3",
        "the class token has a position of its own -> none for the token",
        _class_row(torch.zeros_like),
        {TINY: 0.023},
    ),
    Quirk(
        "pvt 2.3",
        "the class token's row is the first -> the last",
        values(r"stages\.4\.positions\.table", lambda table: table.roll(1, dims=1)),
        {TINY: 0.035},
    ),
    Quirk(
        "pvt 8.7",
        "the head reads the class token -> mean of all positions",
        forward("head", mean_of_all),
        {TINY: 0.64},
    ),
    Quirk(
        "pvt 1",
        "the reduced map is normed, not activated -> GELU after the norm",
        forward(r"B\.attn\.norm", lambda module, own: lambda x: functional.gelu(own(x))),
        {TINY: 0.87},
    ),
    Quirk(
        "pvt 1",
        "kv holds keys, then values -> values, then keys",
        values(r"B\.attn\.kv\.(weight|bias)", lambda tensor: torch.cat(tensor.chunk(2)[::-1])),
        {TINY: 1.6},
    ),
    Quirk(
        "pvt 1",
        "GELU by erf -> tanh",
        tanh_gelu,
        {TINY: 0.00018},
    ),
]
