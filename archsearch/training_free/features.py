"""Expressivity and progressivity of AZ-NAS (Lee and Ham, AZ-NAS: Assembling Zero-Cost Proxies for Network Architecture Search, CVPR 2024, section 3)."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn


class BlockFeatures:
    """What the named blocks of a network put out, as spectra of their channel covariance; a context that hooks in and out."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        self._network, self._names = network, names
        self._entropies: dict[str, float] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        self._handles = [
            self._network.get_submodule(name).register_forward_hook(self._hook(name)) for name in self._names
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self._entropies[name] = spectral_entropy(samples_of(output.detach()))

        return keep

    def entropy(self, name: str) -> float:
        """Of the block's last output, in nats."""
        return self._entropies[name]


def samples_of(features: Tensor) -> Tensor:
    """(B, C, ...) -> (samples, C): every position of every image, class and messenger tokens among them."""
    return features.flatten(2).transpose(1, 2).flatten(0, 1)


def spectral_entropy(samples: Tensor) -> float:
    """Entropy in nats of the eigenvalues, scaled to sum 1, of the channels' covariance over samples (N, C): log C at most, 0 for rank one or a constant."""
    centred = (samples - samples.mean(0)).double()
    eigenvalues = torch.linalg.eigvalsh(centred.t() @ centred).clamp_min(0)
    total = eigenvalues.sum()
    if total <= 0:
        return 0.0
    shares = eigenvalues / total
    return float(torch.special.entr(shares).sum())


def expressivity(entropies: Sequence[Sequence[float]]) -> float:
    """Sum over all blocks, given stage by stage."""
    return math.fsum(value for stage in entropies for value in stage)


def progressivity(entropies: Sequence[Sequence[float]]) -> float:
    """Smallest difference between the last blocks of two stages that follow each other; 0 for a single stage."""
    ends = [stage[-1] for stage in entropies]
    return min((after - before for before, after in pairwise(ends)), default=0.0)
