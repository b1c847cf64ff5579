"""AZ-NAS: expressivity, progressivity and trainability of an untrained network, and how scores are combined.

Lee and Ham, "AZ-NAS: Assembling Zero-Cost Proxies for Network Architecture Search", CVPR 2024, arXiv 2403.19232, section 3. Its fourth score,
complexity, is `Cost.macs`. Changed against the paper: the random gradients of trainability, and where they are applied; `trainability` says how.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_COMBINED = ("expressivity", "progressivity", "trainability", "macs")
# The dimension of the channels in a block's tensors, by name; 1 for blocks that it lacks.
ChannelDims = Mapping[str, int]
_SECOND: ChannelDims = MappingProxyType({})


class BlockSpectra:
    """A context that hooks into the named blocks of a network and keeps the spectral entropy of what they put out."""

    def __init__(self, network: nn.Module, names: Sequence[str], channel_dims: ChannelDims = _SECOND) -> None:
        self._network, self._names, self._channel_dims = network, names, channel_dims
        self._entropies: dict[str, float] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        for name in self._names:

            def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Any, name: str = name) -> None:
                features = first_tensor(output).detach()
                self._entropies[name] = spectral_entropy(to_samples(features, self._channel_dims.get(name, 1)))

            self._handles.append(self._network.get_submodule(name).register_forward_hook(keep))
        return self

    def __exit__(self, *failure: object) -> None:
        for handle in self._handles:
            handle.remove()

    def entropy(self, name: str) -> float:
        """Of the block's last output, in nats."""
        return self._entropies[name]


def first_tensor(value: Any) -> Tensor:
    """What a block puts out, or the first of several things."""
    found: Tensor = value[0] if isinstance(value, (tuple, list)) else value
    return found


def to_samples(features: Tensor, channel_dim: int = 1) -> Tensor:
    """(B, C, ...) -> (samples, C): every position of every image, with class and messenger tokens."""
    return features.movedim(channel_dim, -1).flatten(0, -2)


def spectral_entropy(samples: Tensor) -> float:
    """Entropy in nats of the eigenvalues, scaled to sum 1, of the channels' covariance over samples (N, C): log C at most, 0 for rank one or a constant."""
    centred = (samples - samples.mean(0)).double()
    eigenvalues = torch.linalg.eigvalsh(centred.t() @ centred).clamp_min(0)
    total = eigenvalues.sum()
    if total <= 0:
        return 0.0
    return float(torch.special.entr(eigenvalues / total).sum())


def expressivity(entropies: Sequence[Sequence[float]]) -> float:
    """Sum over all blocks, given stage by stage."""
    return math.fsum(value for stage in entropies for value in stage)


def progressivity(entropies: Sequence[Sequence[float]]) -> float:
    """Smallest difference between the last blocks of two stages that follow each other; 0 for a single stage."""
    ends = [stage[-1] for stage in entropies]
    return min((after - before for before, after in pairwise(ends)), default=0.0)


def aggregate(candidates: Sequence[Mapping[str, float]], names: Sequence[str] = _COMBINED) -> NDArray[np.float64]:
    """Sum over scores of log(rank / N), rank N for the best: a candidate that is poor in one score cannot make up for it in the others.

    Ties share their mean rank. `candidates` are dicts as `scores` returns them; the values (N,) can be compared among these candidates only, higher is better.
    """
    from scipy.stats import rankdata  # here: it takes most of a second to import, and every worker imports this package

    values = np.array([[candidate[name] for name in names] for candidate in candidates]).reshape(-1, len(names))
    found = np.log(rankdata(values, axis=0) / max(len(values), 1)).sum(axis=1)
    return np.asarray(np.round(found, 9))  # ranks 2 and 6 equal 3 and 4, whatever the last digits of their logarithms


def trainability(
    network: nn.Module,
    names: Sequence[Sequence[str]],
    images: Tensor,
    seed: int = 0,
    channel_dims: ChannelDims = _SECOND,
) -> float:
    """Mean over blocks of 2 - s - 1/s, s the largest gain that a block gives a gradient: 0 where it keeps its size, else below 0.

    As in the paper, random numbers stand for the gradient at a block's output, and the gain is that of the linear map of channels that best explains the
    gradient at its input. Changed: the random numbers are orthogonal columns (rows, where samples are fewer than channels) instead of independent signs.
    With independent signs and few samples a channel even the identity looks like an amplifier, and with as many samples as channels a least squares fit
    gives a plain residual block a gain of 100. And only blocks are scored, which keep shapes, not the downsamples between stages.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = _block_inputs(network, [name for stage in names for name in stage], images)
    values = [
        _block_trainability(network.get_submodule(name), call, channel_dims.get(name, 1), generator)
        for name, call in inputs.items()
    ]
    return math.fsum(values) / len(values)


class _Call(NamedTuple):
    """The arguments of a block: its map, and what some blocks of timm get besides."""

    given: Tensor
    rest: tuple[Any, ...]
    named: dict[str, Any]


def _block_inputs(network: nn.Module, names: Sequence[str], images: Tensor) -> dict[str, _Call]:
    """The arguments of each block, in the order of the forward pass."""
    found: dict[str, _Call] = {}
    handles = []
    for name in names:

        def keep(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], name: str = name) -> None:
            found[name] = _Call(args[0].detach().clone(), args[1:], named)

        handles.append(network.get_submodule(name).register_forward_pre_hook(keep, with_kwargs=True))
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return found


def _block_trainability(block: nn.Module, call: _Call, channel_dim: int, generator: torch.Generator) -> float:
    given = call.given.requires_grad_()
    out = first_tensor(block(given.clone(), *call.rest, **call.named))  # a clone, which a block may write into
    moved = out.movedim(channel_dim, -1)
    before = _orthogonal(moved.numel() // moved.shape[-1], moved.shape[-1], generator).to(out.device)
    probe = before.reshape(moved.shape).movedim(-1, channel_dim).to(out.dtype)
    (back,) = torch.autograd.grad(out, given, probe)
    gain = largest_gain(before, to_samples(back, channel_dim))
    return 2 - gain - 1 / gain if gain > 0 else -math.inf


def _orthogonal(samples: int, channels: int, generator: torch.Generator) -> Tensor:
    """A random matrix (samples, channels) whose singular values are all equal, with entries of variance 1."""
    long, short = max(samples, channels), min(samples, channels)
    gaussian = torch.randn(long, short, generator=generator, dtype=torch.float64)
    columns: Tensor = torch.linalg.qr(gaussian).Q * math.sqrt(long)
    return columns if samples >= channels else columns.t()


def largest_gain(before: Tensor, after: Tensor) -> float:
    """Spectral norm of the least squares A in after = before A, both (N, C), for `before` of equal singular values; the smallest A where N < C."""
    return float(torch.linalg.matrix_norm(before.t() @ after.to(before) / max(before.shape), 2))
