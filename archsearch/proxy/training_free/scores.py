"""All training-free scores of an architecture, from one untrained copy of it at 128 px."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from archsearch.models import build
from archsearch.proxy.scale import Scale, shrink
from archsearch.proxy.training.determinism import own_random_numbers
from archsearch.proxy.training_free.az_nas import BlockSpectra, ChannelDims, expressivity, progressivity, trainability
from archsearch.proxy.training_free.naswot import naswot
from archsearch.proxy.training_free.zico import zico
from archsearch.space import Arch, spectral_capacity

# What each score is and its source; more is better in all of them.
SCORES = {
    "params": "parameters: the baseline that every other score has to beat",
    "macs": "multiply-adds of one image, AZ-NAS's complexity",
    "nsc": "log det(1 + W W^T) of random weights in closed form, summed over weight matrices (a reading of the abstract of arXiv 2609.23087)",
    "naswot": "log-determinant of the kernel of activation signs (Mellor et al., ICML 2021, section 3)",
    "zico": "mean over deviation of gradients across batches (Li et al., ICLR 2023, section 3)",
    "expressivity": "entropy of the feature covariances' spectra, summed over blocks (Lee and Ham, CVPR 2024, section 3)",
    "progressivity": "smallest growth of that entropy from stage to stage (Lee and Ham, CVPR 2024, section 3)",
    "trainability": "how near to 1 blocks keep the largest gain of a gradient, mean over blocks (Lee and Ham, CVPR 2024, section 3)",
}
# The full widths, since scores at a quarter of them are those of another network. 128 px is allowed by all papers' models, with windows scaled with the map.
_SCALE = Scale(image_size=128, stem_stride=4, width_divisor=1)
_ZICO_BATCHES = 2
_BATCH_SIZE = 8
_SECOND: ChannelDims = MappingProxyType({})


def scores(
    arch: Arch,
    *,
    scale: Scale = _SCALE,
    batch_size: int = _BATCH_SIZE,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """The values of `SCORES` by name, higher is better for all; params, macs and nsc are exact, of the architecture as it is.

    The others are of a copy at `scale`, with its paper's own initialisation and standard normal images; a seed gives the same values again, and
    the caller's random state does not change. Raises UserError for an architecture of which there is no such copy.
    """
    cost = arch.cost()
    small = shrink(arch, scale, arch.num_classes)
    with own_random_numbers(torch.device(device)):
        torch.manual_seed(seed)
        network = build(small).to(device)
        batches = draw_batches(small.image().tensor, arch.num_classes, batch_size=batch_size, seed=seed, device=device)
        exact = {"params": float(cost.params), "macs": float(cost.macs), "nsc": spectral_capacity(arch)}
        return {**exact, **network_scores(network, block_names(small), batches)}


class Batches(NamedTuple):
    """Standard normal images (2, B, C, H, W) and random labels (2, B)."""

    images: Tensor
    labels: Tensor


def draw_batches(
    image: tuple[int, int, int], num_classes: int, *, batch_size: int, seed: int, device: torch.device | str = "cpu"
) -> Batches:
    """The same for all networks of a seed, which have random numbers of their own."""
    stream = torch.Generator().manual_seed(seed)
    images = torch.randn((_ZICO_BATCHES, batch_size, *image), generator=stream).to(device)
    return Batches(images, torch.randint(num_classes, (_ZICO_BATCHES, batch_size), generator=stream).to(device))


def network_scores(
    network: nn.Module, names: Sequence[Sequence[str]], batches: Batches, channel_dims: ChannelDims = _SECOND
) -> dict[str, float]:
    """The scores of `SCORES` that need a network; `names` are its blocks, stage by stage. The network is in training mode afterwards."""
    network.train()
    images = batches.images[0]
    blocks = [name for stage in names for name in stage]
    with BlockSpectra(network, blocks, channel_dims) as spectra, torch.no_grad():
        network(images)
    entropies = [[spectra.entropy(name) for name in stage] for stage in names]
    return {
        "naswot": naswot(network, images),
        "zico": _zico(network, *batches),
        "expressivity": expressivity(entropies),
        "progressivity": progressivity(entropies),
        "trainability": trainability(network, names, images, channel_dims=channel_dims),
    }


def block_names(arch: Arch) -> list[list[str]]:
    """Dotted names of a network's blocks, stage by stage."""
    stages: dict[str, list[str]] = {}
    for placed in arch.layers():
        if placed.layer.role == "block":
            stages.setdefault(placed.module.partition(".blocks")[0], []).append(placed.module)
    return list(stages.values())


def _zico(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    gradients: list[Sequence[Tensor]] = []
    weights = [module.weight for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    for batch, classes in zip(images, labels, strict=True):
        loss = functional.cross_entropy(network(batch), classes)
        gradients.append(torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True))
    return zico(gradients)
