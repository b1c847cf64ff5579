"""All training-free scores of an architecture, from one untrained copy of it at 128 px."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from archsearch.models import build
from archsearch.proxy.scale import Scale, shrink
from archsearch.proxy.training.determinism import own_random_numbers
from archsearch.proxy.training_free.az_nas import BlockSpectra, expressivity, progressivity, trainability
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
    names = block_names(small)
    with own_random_numbers(torch.device(device)):
        torch.manual_seed(seed)
        network = build(small).to(device).train()
        stream = torch.Generator().manual_seed(seed)  # of its own, so that all architectures get the same images
        size = (_ZICO_BATCHES, batch_size, *small.image()[:3])
        images = torch.randn(size, generator=stream).to(device)
        labels = torch.randint(arch.num_classes, size[:2], generator=stream).to(device)
        with BlockSpectra(network, [name for stage in names for name in stage]) as spectra, torch.no_grad():
            network(images[0])
        entropies = [[spectra.entropy(name) for name in stage] for stage in names]
        return {
            "params": float(cost.params),
            "macs": float(cost.macs),
            "nsc": spectral_capacity(arch),
            "naswot": naswot(network, images[0]),
            "zico": _zico(network, images, labels),
            "expressivity": expressivity(entropies),
            "progressivity": progressivity(entropies),
            "trainability": trainability(network, names, images[0]),
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
