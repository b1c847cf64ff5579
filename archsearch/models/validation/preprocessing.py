"""Preprocessing of pictures for a network, as in the papers' own evaluations.

The transform is timm's: torchvision's resize and crop of Pillow pictures, with their roundings. It returns bytes, a quarter of the float32 data that a
worker process would have to send; the normalisation is done on the device, by torchvision's arithmetic.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from PIL import Image
from torch import Tensor

from archsearch.space import ImageSize, paper_names, paper_space
from archsearch.units import sides


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a picture becomes a network's input: the `[paper.eval]` table of a paper's file.

    `centre`: the shorter side is resized to floor(input side / crop_share), and the centre is cropped. `squash`: both sides are resized to that, without
    keeping the aspect ratio. mean, std: of the channels R, G, B, in units of the range 0 to 1.
    """

    crop_share: float
    crop: Literal["centre", "squash"] = "centre"
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_paper(cls, name: str) -> Self:
        """The preprocessing of a paper's model. Raises UserError with the nearest name."""
        table = paper_space(name).paper.get("eval")
        assert table, f"{name} has no [paper.eval]"
        values = {key: value for key, value in table.items() if key != "source"}
        return cls(**{**values, "mean": tuple(table["mean"]), "std": tuple(table["std"])})

    @classmethod
    def of_weights(cls, name: str | None, provenance: Mapping[str, Any]) -> Self | None:
        """What a training wrote beside its weights, under `preprocessing`, else that of the paper's model of this name; None where neither is there."""
        try:
            stated = dict(provenance["preprocessing"])
            channels = {key: tuple(float(value) for value in stated[key]) for key in ("mean", "std")}
            return cls(**{**stated, **channels})
        except (KeyError, TypeError, ValueError, AssertionError):  # not there, or a user's own words
            return cls.from_paper(name) if name in paper_names() else None

    def __post_init__(self) -> None:
        assert 0 < self.crop_share <= 1
        assert self.crop in ("centre", "squash")
        assert len(self.mean) == len(self.std) == 3

    def resized(self, image_size: ImageSize) -> tuple[int, int]:
        """Height and width in pixels that the picture is resized to before the crop (`centre`: the least that it covers)."""
        height, width = sides(image_size)
        return math.floor(height / self.crop_share), math.floor(width / self.crop_share)

    def transform(self, image_size: ImageSize) -> Callable[[Image.Image], Tensor]:
        """A function from an RGB picture to a uint8 tensor (3, H, W); it can be pickled."""
        from timm.data.transforms_factory import create_transform  # here: timm takes seconds to import

        made: Callable[[Image.Image], Tensor] = create_transform(
            sides(image_size),
            interpolation=self.interpolation,
            crop_pct=self.crop_share,
            crop_mode="squash" if self.crop == "squash" else "center",
            normalize=False,
        )
        return made

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> normalised float32 (B, 3, H, W), in channels_last memory."""
        mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (self.mean, self.std))
        scaled = images.to(torch.float32, memory_format=torch.channels_last).div_(255)
        return scaled.sub_(mean).div_(std)

    def describe(self, image_size: ImageSize) -> str:
        """`resize 256 (short side, bicubic), centre crop 224, mean (...), std (...)`."""
        size, resized = sides(image_size), self.resized(image_size)
        if self.crop == "squash":
            how = f"resize {_pixels(resized, square='{0}x{0}')} (aspect not kept, {self.interpolation})"
        elif resized[0] == resized[1]:
            how = f"resize {resized[0]} (short side, {self.interpolation})"
        else:
            how = f"resize to cover {_pixels(resized)} ({self.interpolation})"
        cut = f", centre crop {_pixels(size)}" if resized != size or self.crop == "centre" else ", no crop"
        return f"{how}{cut}, mean {_channels(self.mean)}, std {_channels(self.std)}"


def _pixels(size: tuple[int, int], square: str = "{0}") -> str:
    return square.format(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}"


def _channels(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"
