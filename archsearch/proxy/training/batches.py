"""The stream of batches: one order and one set of random numbers for every candidate, read ahead or gathered on the device."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from archsearch.data import ProxyData
from archsearch.proxy.training.augment import NUM_UNIFORMS, augmented, centred
from archsearch.proxy.training.recipe import Recipe

_DEVICE_SHARE = 1 / 3  # of the free CUDA memory that the whole set may take
_UPLOAD = 4096  # images a copy when the whole set goes to the device
# One buffer is read while the next is filled: a fresh one a batch costs ten times the copy, in pages the system has to clear.
_NUM_BUFFERS = 2


@dataclass(frozen=True)
class DrawnBatch:
    """One batch as drawn on the host: which images, and for each the five uniform numbers (B, 5) of its augmentation."""

    indices: NDArray[np.int64]
    uniforms: Tensor


def draw_batches(num_images: int, recipe: Recipe) -> Iterator[DrawnBatch]:
    """`recipe.steps` batches; epochs are shuffled without replacement and follow each other without a gap.

    Depends on the recipe's seed and batch size and on the number of images only, never on the model or the device.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    queue = torch.empty(0, dtype=torch.int64)
    for _ in range(recipe.steps):
        while len(queue) < recipe.batch_size:
            queue = torch.cat((queue, torch.randperm(num_images, generator=generator)))
        uniforms = torch.rand(recipe.batch_size, NUM_UNIFORMS, generator=generator)
        yield DrawnBatch(queue[: recipe.batch_size].numpy(), uniforms)
        queue = queue[recipe.batch_size :]


class Loader:
    """Batches of one set for one device; on CUDA the whole set goes there as uint8 when it takes up to a third of the free memory.

    `whole` overrules that. What lies on the device stays as long as the loader, so drop it before memory is measured.
    """

    def __init__(self, data: ProxyData, device: torch.device, *, whole: bool | None = None) -> None:
        self.data, self.device = data, device
        self.is_whole = _fits(data, device) if whole is None else whole
        store = _DeviceImages if self.is_whole else _HostImages
        self._train = store(data.train_images, data.train_labels, device)
        self._val = store(data.val_images, data.val_labels, device)

    def raw_batches(self, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Stored uint8 images (B, S, S, C), labels (B,) and uniform numbers (B, 5), on the device; read one batch ahead.

        Images are valid until the next batch is taken.
        """

        def load(drawn: DrawnBatch) -> tuple[Tensor, Tensor, Tensor]:
            return *split.take(drawn.indices), _to(drawn.uniforms, self.device)

        split = self._train.for_one_stream()
        stream = draw_batches(len(self.data.train_images), recipe)
        with ThreadPoolExecutor(1) as reader:  # a memory map that is not in memory yet would stall every step
            ahead = reader.submit(load, next(stream))
            for _ in range(recipe.steps):
                batch = ahead.result()
                if (drawn := next(stream, None)) is not None:
                    ahead = reader.submit(load, drawn)
                yield batch

    def train_batches(self, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented float32 images (B, 3, H, W), channels last, and labels (B,), on the device."""
        for images, labels, uniforms in self.raw_batches(recipe):
            yield augmented(images, uniforms, recipe, self.data), labels

    def val_batches(self, recipe: Recipe, batch_size: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The validation images in order, their centres at the training size; the last batch may be smaller. By default of the recipe's batch size."""
        num_images, batch_size = len(self.data.val_images), batch_size or recipe.batch_size
        split = self._val.for_one_stream()
        for start in range(0, num_images, batch_size):
            images, labels = split.take(np.arange(start, min(start + batch_size, num_images)))
            yield centred(images, recipe, self.data), labels


class _DeviceImages:
    """A split that lies on the device; gathering it moves indices alone."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], device: torch.device) -> None:
        self.device, self.labels = device, torch.from_numpy(np.array(labels)).to(device)
        self.images = torch.empty(images.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(images), _UPLOAD):
            part = slice(start, start + _UPLOAD)
            self.images[part] = torch.from_numpy(np.array(images[part])).to(device)

    def for_one_stream(self) -> "_DeviceImages":
        """All streams share it."""
        return self

    def take(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """uint8 (B, S, S, C) and int64 (B,)."""
        places = _to(torch.from_numpy(indices), self.device)
        return self.images.index_select(0, places), self.labels.index_select(0, places)


class _HostImages:
    """A split in host memory or a memory map, gathered into buffers that are used in turn; pinned ones for CUDA.

    On the host, images stay valid until the next but one are taken.
    """

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64], device: torch.device) -> None:
        self.images, self.labels, self.device = images, labels, device
        self.buffers: list[Tensor] = []
        self.copied: list[torch.cuda.Event | None] = [None] * _NUM_BUFFERS
        self.turn = 0

    def for_one_stream(self) -> "_HostImages":
        """The same images with buffers of its own."""
        return _HostImages(self.images, self.labels, self.device)

    def take(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """uint8 (B, S, S, C) and int64 (B,), on the device."""
        labels = _to(torch.from_numpy(self.labels[indices]), self.device)
        buffer = self._next_buffer(len(indices))
        if self.images.flags.c_contiguous:
            # "clip", since "raise" would gather into another buffer first; our indices are always inside.
            np.take(self.images, indices, axis=0, out=buffer.numpy(), mode="clip")
        else:  # numpy would copy the whole array
            buffer.numpy()[...] = self.images[indices]
        if self.device.type != "cuda":
            return buffer.to(self.device), labels
        with torch.cuda.device(self.device):  # a new thread is on the first device
            images = buffer.to(self.device, non_blocking=True)
            self.copied[self.turn] = copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            copied.record()
        return images, labels

    def _next_buffer(self, size: int) -> Tensor:
        """Memory for so many images, which no copy to the device still reads."""
        self.turn = (self.turn + 1) % _NUM_BUFFERS
        if (copied := self.copied[self.turn]) is not None:
            copied.synchronize()
        if not self.buffers or len(self.buffers[0]) < size:
            shape, pinned = (size, *self.images.shape[1:]), self.device.type == "cuda"
            # The old ones are held by running copies alone, which PyTorch's pool of pinned memory waits for.
            self.buffers = [torch.empty(shape, dtype=torch.uint8, pin_memory=pinned) for _ in range(_NUM_BUFFERS)]
        return self.buffers[self.turn][:size]


def _fits(data: ProxyData, device: torch.device) -> bool:
    """Whether the whole set may stay in the device's memory."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return data.train_images.nbytes + data.val_images.nbytes <= free * _DEVICE_SHARE


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
