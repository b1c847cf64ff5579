"""Quirks of the official code: their definition, ways to undo one in our network, and the float64 logits with and without it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.official import fill_official, official_input
from torch import Tensor, nn
from torch.nn import functional

from archsearch import Arch, build, paper
from archsearch.blocks.kernels import layers

Undo = Callable[[pytest.MonkeyPatch, nn.Module, "Case"], nn.Module | None]
Forward = Callable[..., Tensor]
Effects = Mapping[str, float | tuple[float, float]]
PATCH_NORMS = r"(stem|stages\.\d\.downsample)\.norm"
BLOCK_NORMS = r"B\.norm[12]|head\.norm"
LOGITS = np.load(Path(__file__).parents[1] / "data" / "logits_float64.npz")


@dataclass(frozen=True)
class Case:
    """A fixture: model and input size."""

    name: str
    height: int
    width: int

    @staticmethod
    def parse(text: str) -> "Case":
        """`davit_tiny@192x256`."""
        name, size = text.split("@")
        height, width = map(int, size.split("x"))
        return Case(name, height, width)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.height, self.width

    def __str__(self) -> str:
        return f"{self.name}@{self.height}x{self.width}"


@dataclass(frozen=True)
class Quirk:
    """A peculiarity of the official code, `what it does -> what undoing it means`, and the effect of undoing it on our logits.

    effects: for each fixture, max|a - b| / max|b| measured to two digits, 0 where the fixture does not show it; or (measured, the specification's own figure).
    """

    source: str  # specification and section
    what: str
    undo: Undo
    effects: Effects


@lru_cache(maxsize=1)  # tests come grouped by fixture; ten models in float64 would be 2 GB
def filled(case: Case) -> tuple[nn.Module, NDArray[np.float64]]:
    """The model with the convention's weights in float64, and its logits."""
    model = build(paper(case.name), image_size=case.size)
    fill_official(model, case.name)
    model = model.double().eval()
    return model, logits(model, case)


def logits(model: nn.Module, case: Case) -> NDArray[np.float64]:
    """(1000,) on the convention's image."""
    with torch.inference_mode():
        out: NDArray[np.float64] = model(image(case)).numpy()[0]
    return out


@cache
def image(case: Case) -> Tensor:
    """The convention's image in float64."""
    return official_input(*case.size).double()


def difference(ours: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """max|a - b| / max|b|."""
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


def undone_effect(quirk: Quirk, case: Case) -> float:
    """Relative difference of the logits from the fixture with the quirk undone; with it they must agree within 1e-9.

    At a size without a fixture the reference is our own network with the quirk.
    """
    model, ours = filled(case)
    reference = LOGITS.get(str(case), ours)
    assert difference(ours, reference) <= 1e-9
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        changed = quirk.undo(patch, model, case) or model
        return difference(logits(changed, case), reference)


def specified(name: str) -> str:
    """A module's or parameter's name as the quirks say it: stages and blocks count from 1, as in the specifications, and the last norm is the head's."""
    first, *rest = name.split(".")
    if first == "norm":
        return f"head.{name}"
    counted = [
        str(1 + int(part)) if part.isdecimal() and before in ("stages", "blocks") else part
        for before, part in pairwise((first, *rest))
    ]
    if first == "stages" and counted[1:2] == ["norm"]:
        counted[1] = "stage-norm"
    return ".".join((first, *counted))


def named(model: nn.Module, pattern: str) -> dict[str, nn.Module]:
    """Modules whose whole path matches, at least one. `B` stands for any block."""
    full = re.compile(pattern.replace("B", r"stages\.\d\.blocks\.\d+"))
    found = {name: module for name, module in model.named_modules() if full.fullmatch(specified(name))}
    assert found, pattern
    return found


def both(*undos: Undo) -> Undo:
    """Several at once; none of them may build another model."""

    def undo(patch: pytest.MonkeyPatch, model: nn.Module, case: Case) -> None:
        for each in undos:
            assert each(patch, model, case) is None

    return undo


def eps(pattern: str, value: float) -> Undo:
    """Another epsilon in the norms of that name."""

    def undo(patch: pytest.MonkeyPatch, model: nn.Module, case: Case) -> None:
        for norm in named(model, pattern).values():
            if isinstance(norm, nn.Identity):  # on the side of the mean where this head has none
                continue
            assert norm.eps != value
            patch.setattr(norm, "eps", value)

    return undo


def values(pattern: str, change: Callable[[Tensor], Tensor]) -> Undo:
    """Other values in the parameters or buffers of that name: what loading them in another order, sign or not at all would give."""

    def undo(patch: pytest.MonkeyPatch, model: nn.Module, case: Case) -> None:
        full = re.compile(pattern.replace("B", r"stages\.\d\.blocks\.\d+"))
        tensors = (*model.named_parameters(), *model.named_buffers())
        found = [tensor for name, tensor in tensors if full.fullmatch(specified(name))]
        assert found, pattern
        for tensor in found:
            patch.setattr(tensor, "data", change(tensor.data))

    return undo


def forward(pattern: str, wrap: Callable[[Any, Forward], Forward]) -> Undo:
    """Another forward for the modules of that name, made from the module and its own forward."""

    def undo(patch: pytest.MonkeyPatch, model: nn.Module, case: Case) -> None:
        for module in named(model, pattern).values():
            patch.setattr(module, "forward", wrap(module, module.forward))

    return undo


def attribute(pattern: str, name: str, change: Callable[[Any], Any]) -> Undo:
    """Another value of an attribute of the modules of that name."""

    def undo(patch: pytest.MonkeyPatch, model: nn.Module, case: Case) -> None:
        for module in named(model, pattern).values():
            patch.setattr(module, name, change(getattr(module, name)))

    return undo


def edited(edit: Callable[[dict[str, Any]], None]) -> Undo:
    """The architecture with another setting, and the same weights wherever they still have a place."""

    def undo(patch: pytest.MonkeyPatch, model: nn.Module, case: Case) -> nn.Module:
        document = paper(case.name).to_dict()
        edit(document)
        other = build(Arch.from_dict(document), image_size=case.size).double().eval()
        state, given = other.state_dict(), {specified(key): tensor for key, tensor in model.state_dict().items()}
        for key, own in state.items():
            tensor = given.get(specified(key), own)
            if own.shape == tensor.shape:
                state[key] = tensor
        other.load_state_dict(state)
        return other

    return undo


def skipped(module: Any, own: Forward) -> Forward:
    """For `forward`: the module does nothing."""
    return lambda x: x


def tanh_gelu(patch: pytest.MonkeyPatch, model: nn.Module, case: Case) -> None:
    """GELU by its tanh approximation everywhere."""
    own = functional.gelu
    patch.setattr(layers, "is_inference", lambda x: False)  # where GELU is written over its input by another call
    patch.setattr(functional, "gelu", lambda x: own(x, approximate="tanh"))


def gelu_before_depthwise(module: Any, own: Forward) -> Forward:
    """For `forward` of a ConvMlp: the activation between fc1 and the depthwise convolution."""

    def changed(tokens: Tensor) -> Tensor:
        hidden = functional.gelu(module.fc1(tokens)).permute(0, 3, 1, 2)
        out: Tensor = module.fc2(module.dwconv(hidden).permute(0, 2, 3, 1))
        return out

    return changed


def rows(*order: int) -> Callable[[Tensor], Tensor]:
    """For `values`: the rows in another order."""
    return lambda tensor: tensor[list(order)]


def mean_of_all(module: Any, own: Forward) -> Forward:
    """For `forward` of a token head: the mean of all positions instead of the token."""
    return lambda x: module.fc(x.permute(0, 2, 3, 1).mean((1, 2)))


def head_norm(place: str) -> Undo:
    """The head's LayerNorm on the other side of the mean."""

    def edit(document: dict[str, Any]) -> None:
        assert document["head"]["pool"]["norm"] != place
        document["head"]["pool"]["norm"] = place

    return edited(edit)
