"""Expressivity and progressivity of AZ-NAS (Lee and Ham, AZ-NAS: Assembling Zero-Cost Proxies for Network Architecture Search, CVPR 2024, section 3)."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
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


_OF_AZ_NAS = ("expressivity", "progressivity", "trainability", "macs")


def aggregate(candidates: Sequence[Mapping[str, float]], names: Sequence[str] = _OF_AZ_NAS) -> NDArray[np.float64]:
    """Sum over scores of log(rank / N), rank N for the best: a candidate that is poor in one score cannot make up for it (Lee and Ham, CVPR 2024, section 3).

    Ties share their mean rank. `candidates` as `scores` gives them; the values (N,) compare within these alone, higher is better.
    """
    from scipy.stats import rankdata  # here: it takes most of a second to import, and every worker imports this package

    values = np.array([[candidate[name] for name in names] for candidate in candidates]).reshape(-1, len(names))
    return np.asarray(np.log(rankdata(values, axis=0) / max(len(values), 1)).sum(axis=1))


def trainability(network: nn.Module, names: Sequence[Sequence[str]], images: Tensor, seed: int = 0) -> float:
    """Mean over blocks of 2 - s - 1/s, s the largest gain a block gives a gradient: 0 where it keeps its size, else below.

    As in the paper, random numbers stand for the gradient at a block's output, and its gain is that of the linear map by channels that explains the gradient
    at the input best. Changed: they are orthogonal columns (rows, where samples are fewer than channels) instead of independent signs, with which few samples
    a channel take even the identity for an amplifier, and a least squares fit takes a plain residual block for one of gain 100 where there
    are as many samples as channels; and it is asked of blocks, which keep shapes, not of what stands between stages.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = _inputs(network, [name for stage in names for name in stage], images)
    return math.fsum(_of_block(network.get_submodule(name), at, generator) for name, at in inputs.items()) / len(inputs)


def _inputs(network: nn.Module, names: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """What each block is given."""
    found: dict[str, Tensor] = {}
    handles = []
    for name in names:

        def keep(module: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
            found[name] = given[0].detach().clone()

        handles.append(network.get_submodule(name).register_forward_pre_hook(keep))
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return found


def _of_block(block: nn.Module, given: Tensor, generator: torch.Generator) -> float:
    at = given.requires_grad_()
    out: Tensor = block(at)
    batch, channels, *_ = out.shape
    before = _orthogonal(out.numel() // channels, channels, generator).to(out.device)
    probe = before.reshape(batch, -1, channels).transpose(1, 2).reshape(out.shape).to(out.dtype)
    (back,) = torch.autograd.grad(out, at, probe)
    gain = largest_gain(before, samples_of(back))
    return 2 - gain - 1 / gain if gain > 0 else -math.inf


def _orthogonal(samples: int, channels: int, generator: torch.Generator) -> Tensor:
    """(samples, channels) at random: all singular values the same, entries of variance 1."""
    long, short = max(samples, channels), min(samples, channels)
    columns: Tensor = torch.linalg.qr(torch.randn(long, short, generator=generator, dtype=torch.float64)).Q * math.sqrt(
        long
    )
    return columns if samples >= channels else columns.t()


def largest_gain(before: Tensor, after: Tensor) -> float:
    """Spectral norm of the least squares A in after = before A, both (N, C), `before` as `_orthogonal` gives it; the smallest A where N < C."""
    return float(torch.linalg.matrix_norm(before.t() @ after.to(before) / max(before.shape), 2))
