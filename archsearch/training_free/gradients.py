"""ZiCo (Li et al., ICLR 2023) and the trainability of AZ-NAS (Lee and Ham, CVPR 2024): what gradients say of a network before it is trained."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from archsearch.training_free.features import samples_of


def zico(gradients: Sequence[Sequence[Tensor]]) -> float:
    """Sum over layers of log(sum over weights of mean |g| / standard deviation of |g|) across batches; `gradients[batch][layer]`.

    Li et al., ZiCo: Zero-shot NAS via Inverse Coefficient of Variation on Gradients, section 3. Weights whose gradient is the same in all
    batches have no coefficient of variation and are left out, layers without any other too.
    """
    total = 0.0
    for layer in zip(*gradients, strict=True):
        absolute = torch.stack([gradient.detach().flatten() for gradient in layer]).abs()
        mean, deviation = absolute.mean(0), absolute.std(0, correction=0)
        varies = deviation > 0
        if varies.any():
            total += math.log(float((mean[varies] / deviation[varies]).double().sum()))
    return total


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
