"""The gradients of one batch, in parts where memory is too short for the whole."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.device import is_out_of_memory
from archsearch.proxy.training.determinism import read_random_state, write_random_state
from archsearch.proxy.training.recipe import Recipe

_MOST_PARTS = 64  # of a batch; then the memory is too little


class Gradients:
    """Forward and backward of batches; one that runs out of memory is done again in halves of its parts, and so are those after it.

    Without batch normalisation the gradients are those of the whole batch, up to rounding, as long as nothing in the model
    is random; with it, statistics are those of the parts (`micro_batch` images each).
    """

    def __init__(self, model: nn.Module, recipe: Recipe, device: torch.device) -> None:
        self.model, self.recipe, self.device = model, recipe, device
        self._part = min(recipe.micro_batch or recipe.batch_size, recipe.batch_size)
        self._has_fitted = False

    @property
    def micro_batch(self) -> int | None:
        """Images a part, None where batches are whole."""
        return None if self._part == self.recipe.batch_size else self._part

    def add(self, images: Tensor, labels: Tensor) -> Tensor:
        """Set the weights' gradients, which must be None, to those of the batch's mean loss, and return that loss, detached.

        Raises the out-of-memory error when a 64th of the batch does not fit.
        """
        while (loss := self._try(images, labels)) is None:
            self._part = (self._part + 1) // 2
        return loss

    def _try(self, images: Tensor, labels: Tensor) -> Tensor | None:
        """The loss; None where memory was too little, with random numbers, gradients and buffers as they were before."""
        random_state = read_random_state(self.device)
        # Running averages that were updated before the failure are put back. Once a step has fitted, another hardly fails
        # unless something else takes the memory; the one extra update then is not worth a copy at every step.
        buffers = [] if self._has_fitted else [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        try:
            loss = self.in_parts(images, labels)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or self._part <= max(1, self.recipe.batch_size // _MOST_PARTS):
                raise
        else:
            self._has_fitted = True
            return loss
        # After the handler: its traceback holds on to what was computed.
        self.model.zero_grad()
        write_random_state(random_state, self.device)
        for buffer, before in buffers:
            buffer.copy_(before)
        release_memory(self.device)
        return None

    def in_parts(self, images: Tensor, labels: Tensor) -> Tensor:
        """As `add`, without the care for memory, and so without a question to the host."""
        total = torch.zeros((), device=self.device)
        for start in range(0, len(images), self._part):
            part = slice(start, start + self._part)
            with autocast(self.recipe, self.device):
                logits = self.model(images[part])
            loss = F.cross_entropy(logits.float(), labels[part], label_smoothing=self.recipe.label_smoothing)
            if len(logits) < len(images):
                loss = loss * (len(logits) / len(images))
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            total += loss.detach()
        return total


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The forward pass in the recipe's dtype."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.dtype == "bfloat16")


def release_memory(device: torch.device) -> None:
    """Give back the memory that PyTorch keeps for later, in pieces that may be too small for the next attempt."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
