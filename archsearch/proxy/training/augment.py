"""Augmentation: stored uint8 squares become augmented, normalised float32 batches, on their device."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from archsearch.data import ProxyData
from archsearch.proxy.training.recipe import Recipe

NUM_UNIFORMS = 5  # uniform numbers an image: mirror, area, ratio, x, y

# RandomResizedCrop as in Inception and timm, with a gentler smallest area since proxies train for few epochs.
_AREA = (0.35, 1.0)
_LOG_RATIO = (float(np.log(3 / 4)), float(np.log(4 / 3)))
_MAX_SHIFT = 2  # pixels
_STORED_OVER_IMAGE = 1.125  # squares are stored this much larger than trained on; evaluation cuts the margin off
# On a CPU, images are cropped so many at a time: intermediate results fit the cache, and the allocator gives the same
# pages again (at 256 a batch, fresh pages cost more than half of the time). Images are independent, so no bit changes.
_CPU_PIECE = 32


def augmented(images: Tensor, uniforms: Tensor, recipe: Recipe, data: ProxyData) -> Tensor:
    """uint8 (B, S, S, C) and uniform numbers (B, 5) -> float32 (B, 3, H, W), channels last, as the recipe augments."""
    augment = {"crop": _crop, "shift": _shift, "none": _plain}[recipe.augment]
    if images.device.type != "cpu" or len(images) <= _CPU_PIECE:
        return _normalise(augment(images, uniforms, recipe.image_size), data)
    size = (len(images), 3, recipe.image_size, recipe.image_size)
    made = torch.empty(size, memory_format=torch.channels_last)
    for start in range(0, len(images), _CPU_PIECE):
        part = slice(start, start + _CPU_PIECE)
        made[part] = _normalise(augment(images[part], uniforms[part], recipe.image_size), data)
    return made


def centred(images: Tensor, recipe: Recipe, data: ProxyData) -> Tensor:
    """uint8 (B, S, S, C) -> float32 (B, 3, H, W), channels last: the centre without the stored margin, as it is evaluated."""
    if recipe.augment == "crop":
        size = images.shape[1]
        side = round(size / _STORED_OVER_IMAGE)
        start = (size - side) // 2
        images = images[:, start : start + side, start : start + side]
    return _normalise(_resize(_to_float(images), recipe.image_size), data)


def _to_float(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2).float()  # (B, C, H, W) over the same channels-last memory


def _plain(images: Tensor, uniforms: Tensor, image_size: int) -> Tensor:
    """The pictures unchanged; 0..255."""
    return _resize(_to_float(images), image_size)


def _crop(images: Tensor, uniforms: Tensor, image_size: int) -> Tensor:
    """Random boxes of 35-100 % area and ratio 3/4-4/3, cut to the picture, half of them mirrored; 0..255."""
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
    # Border padding: half a pixel at the border would otherwise be mixed with black.
    return F.grid_sample(_to_float(images), grid, mode="bilinear", padding_mode="border", align_corners=False)


def _shift(images: Tensor, uniforms: Tensor, image_size: int) -> Tensor:
    """Moved by up to 2 px each way, the border repeated, half of them mirrored; 0..255."""
    size = images.shape[1]
    places = torch.arange(size, device=images.device)
    moves = torch.floor(uniforms[:, 3:] * (2 * _MAX_SHIFT + 1)).long() - _MAX_SHIFT  # (B, 2)
    columns = torch.where(uniforms[:, :1] < 0.5, places.flip(0), places) + moves[:, :1]  # (B, W)
    rows = places + moves[:, 1:]  # (B, H)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    moved = images[batch, rows.clamp(0, size - 1)[:, :, None], columns.clamp(0, size - 1)[:, None, :]]
    return _resize(_to_float(moved), image_size)


def _resize(images: Tensor, image_size: int) -> Tensor:
    if images.shape[2] == image_size:
        return images
    return F.interpolate(images, size=(image_size, image_size), mode="bilinear", antialias=True, align_corners=False)


def _normalise(images: Tensor, data: ProxyData) -> Tensor:
    """0..255 -> zero mean, unit deviation, three channels, channels last; works in place."""
    mean, std = _by_channel(data.mean, images), _by_channel(data.std, images)
    images = images.mul_(1 / (255 * std)).sub_(mean / std)
    return images.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def _by_channel(values: Sequence[float], images: Tensor) -> Tensor:
    """(1, C, 1, 1) on the images' device, without a copy from the host, which a GPU would have to wait for."""
    return torch.cat([images.new_full((1, 1, 1, 1), value) for value in values], dim=1)
