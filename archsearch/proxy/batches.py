"""The stream of batches: one order and one set of random numbers for every candidate, applied on the device."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from archsearch.proxy.data import ProxyData
from archsearch.proxy.recipe import Recipe

# RandomResizedCrop as in Inception and timm, with a gentler smallest area since proxies train for few epochs.
_AREA = (0.35, 1.0)
_LOG_RATIO = (float(np.log(3 / 4)), float(np.log(4 / 3)))
_MAX_SHIFT = 2  # pixels
_STORED_OVER_IMAGE = 1.125  # squares are stored this much larger than trained on; evaluation cuts the margin off
_RANDOMS = 5  # uniform numbers an image: mirror, area, ratio, x, y


@dataclass(frozen=True)
class Draw:
    """One batch as drawn on the host: which images, and five uniform numbers (B, 5) for each to be augmented by."""

    indices: NDArray[np.int64]
    uniforms: Tensor


def draws(num_images: int, recipe: Recipe) -> Iterator[Draw]:
    """`recipe.steps` batches; epochs are shuffled without replacement and follow each other without a gap.

    Depends on the recipe's seed and batch size and on the number of images only, never on the model or the device.
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    queue = torch.empty(0, dtype=torch.int64)
    for _ in range(recipe.steps):
        while len(queue) < recipe.batch_size:
            queue = torch.cat((queue, torch.randperm(num_images, generator=generator)))
        uniforms = torch.rand(recipe.batch_size, _RANDOMS, generator=generator)
        yield Draw(queue[: recipe.batch_size].numpy(), uniforms)
        queue = queue[recipe.batch_size :]


def train_batches(data: ProxyData, recipe: Recipe, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented float32 images (B, 3, H, W), channels last, and labels (B,), on `device`; read one batch ahead."""

    def load(draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
        images = torch.from_numpy(np.asarray(data.train_images[draw.indices]))
        labels = torch.from_numpy(data.train_labels[draw.indices])
        return _to(images, device), _to(labels, device), _to(draw.uniforms, device)

    augment = _crop if recipe.augment == "crop" else _shift
    stream = draws(len(data.train_images), recipe)
    with ThreadPoolExecutor(1) as reader:  # a memory map that is not in memory yet would stall every step
        ahead = reader.submit(load, next(stream))
        for _ in range(recipe.steps):
            images, labels, uniforms = ahead.result()
            if (draw := next(stream, None)) is not None:
                ahead = reader.submit(load, draw)
            yield _normalise(augment(images, uniforms, recipe.image_size), data), labels


def val_batches(data: ProxyData, recipe: Recipe, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The validation images in order, their centres at the training size; the last batch may be smaller."""
    for start in range(0, len(data.val_images), recipe.batch_size):
        part = slice(start, start + recipe.batch_size)
        # Copied: a read-only memory map cannot become a tensor.
        images = _to(torch.from_numpy(np.array(data.val_images[part])), device)
        labels = _to(torch.from_numpy(np.array(data.val_labels[part])), device)
        if recipe.augment == "crop":
            images = _centre(images)
        yield _normalise(_resize(_to_float(images), recipe.image_size), data), labels


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _to_float(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).float()  # (B, C, H, W) over the same channels-last memory


def _crop(images: Tensor, uniforms: Tensor, image_size: int) -> Tensor:
    """Random boxes of 35-100 % area and ratio 3/4-4/3, cut to the picture, mirrored by halves; 0..255."""
    mirror, area, ratio, across, down = uniforms.unbind(1)
    area = _AREA[0] + (_AREA[1] - _AREA[0]) * area
    ratio = torch.exp(_LOG_RATIO[0] + (_LOG_RATIO[1] - _LOG_RATIO[0]) * ratio)
    # In units of the picture, which spans -1..1 for the sampling grid; boxes too long for it are cut.
    width, height = (area * ratio).sqrt().clamp(max=1.0), (area / ratio).sqrt().clamp(max=1.0)
    # Pixel centres of the output; boxes are upright, so rows and columns need no affine_grid, which took half the time.
    places = (2 * torch.arange(image_size, device=images.device) + 1) / image_size - 1
    columns = torch.outer(torch.where(mirror < 0.5, -width, width), places) + ((1 - width) * (2 * across - 1))[:, None]
    rows = torch.outer(height, places) + ((1 - height) * (2 * down - 1))[:, None]
    grid = torch.empty(len(images), image_size, image_size, 2, device=images.device)
    grid[..., 0], grid[..., 1] = columns[:, None, :], rows[:, :, None]
    # Border padding: half a pixel at the rim would otherwise be mixed with black.
    return F.grid_sample(_to_float(images), grid, mode="bilinear", padding_mode="border", align_corners=False)


def _shift(images: Tensor, uniforms: Tensor, image_size: int) -> Tensor:
    """Moved by up to 2 px each way, the rim repeated, mirrored by halves; 0..255."""
    size = images.shape[1]
    places = torch.arange(size, device=images.device)
    moves = torch.floor(uniforms[:, 3:] * (2 * _MAX_SHIFT + 1)).long() - _MAX_SHIFT  # (B, 2)
    columns = torch.where(uniforms[:, :1] < 0.5, places.flip(0), places) + moves[:, :1]  # (B, W)
    rows = places + moves[:, 1:]  # (B, H)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    moved = images[batch, rows.clamp(0, size - 1)[:, :, None], columns.clamp(0, size - 1)[:, None, :]]
    return _resize(_to_float(moved), image_size)


def _centre(images: Tensor) -> Tensor:
    """(B, S, S, C) -> the centre without the margin that stored squares have."""
    size = images.shape[1]
    side = round(size / _STORED_OVER_IMAGE)
    start = (size - side) // 2
    return images[:, start : start + side, start : start + side]


def _resize(images: Tensor, image_size: int) -> Tensor:
    if images.shape[2] == image_size:
        return images
    return F.interpolate(images, size=(image_size, image_size), mode="bilinear", antialias=True, align_corners=False)


def _normalise(images: Tensor, data: ProxyData) -> Tensor:
    """0..255 -> zero mean, unit deviation, three channels, channels last; works in place."""
    mean = torch.tensor(data.mean, device=images.device).view(1, -1, 1, 1)
    std = torch.tensor(data.std, device=images.device).view(1, -1, 1, 1)
    images = images.mul_(1 / (255 * std)).sub_(mean / std)
    return images.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
