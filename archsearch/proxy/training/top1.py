"""Top-1 accuracy on the validation images."""

import torch
from torch import nn

from archsearch.device import is_out_of_memory
from archsearch.proxy.training.batches import Loader
from archsearch.proxy.training.gradients import autocast, release_memory
from archsearch.proxy.training.recipe import Recipe

# Pixels of a batch at least: 128 images of 32 px. Processor time of 2,000 such images in batches of 32 / 128 / 500, quarter-width davit_tiny and van_b2 on
# one core: 6.4 / 5.2 / 4.8 and 8.7 / 5.5 / 7.3 s; from 250 on, half of a gain goes to pages that the system has to clear.
_BATCH_PIXELS = 128 * 32**2
# On CUDA: 2,048 images of 128 px. More would exceed 32-bit indices where a block makes eight times its width (2,048 x 32 x 32 x 512 = 2^30).
_CUDA_BATCH_PIXELS = 2048 * 128**2


class NotFiniteError(Exception):
    """A loss or an output that is not a finite number."""


def top1(model: nn.Module, loader: Loader, recipe: Recipe) -> float:
    """Share of right answers, in batches of the recipe's size or, where images are small, larger ones, halved as often as memory needs it.

    Raises NotFiniteError for outputs that are not finite, and the out-of-memory error when one image does not fit.
    """
    pixels = _CUDA_BATCH_PIXELS if loader.device.type == "cuda" else _BATCH_PIXELS
    batch_size = max(recipe.batch_size, pixels // recipe.image_size**2)
    while True:
        try:
            return _share_of_right(model, loader, recipe, batch_size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or batch_size == 1:
                raise
        # After the handler: its traceback holds on to what was computed.
        batch_size //= 2
        release_memory(loader.device)


def _share_of_right(model: nn.Module, loader: Loader, recipe: Recipe, batch_size: int) -> float:
    device = loader.device
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    finite = torch.ones((), dtype=torch.bool, device=device)
    with torch.inference_mode():
        for images, labels in loader.val_batches(recipe, batch_size):
            with autocast(recipe, device):
                logits = model(images)
            correct += (logits.argmax(1) == labels).sum()
            finite &= logits.isfinite().all()
    if not finite:
        raise NotFiniteError("the outputs after training were not finite")
    return int(correct) / len(loader.data.val_labels)
