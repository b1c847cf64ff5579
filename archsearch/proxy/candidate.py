"""The one way in which an architecture becomes a training on a proxy: a search and an audit must mean the same by a score."""

import torch

from archsearch.data.dataset import ProxyData
from archsearch.models.build import build
from archsearch.proxy.profile import Profile, shrink
from archsearch.proxy.recipe import Recipe
from archsearch.proxy.train import Training
from archsearch.space.arch import Arch


def start_training(
    arch: Arch, data: ProxyData, profile: Profile, recipe: Recipe, device: torch.device | str
) -> Training:
    """The small copy of the architecture before its first step; weights, order and augmentation follow from `recipe.seed`.

    Raises UserError where the profile cannot hold the architecture.
    """
    small = shrink(arch, profile, len(data.classes))
    torch.manual_seed(recipe.seed)
    return Training(build(small), data, recipe, device=device)  # grey images are shipped as three equal channels
