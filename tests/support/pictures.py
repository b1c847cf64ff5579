"""Folders of generated pictures, networks with known answers and their checkpoints, for tests of the validation."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.models import build, save_official
from archsearch.space import paper

# Sorted names have neither the order of creation nor of numbers: capitals come first, and "c10" before "c9".
CLASSES = ("c9", "c10", "B", "a", "d", "e", "f", "g", "h", "i")
SORTED = ("B", "a", "c10", "c9", "d", "e", "f", "g", "h", "i")


def picture(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Noise: every rounding of a resize or a cut shows in it."""
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "CMYK": (4,), "LA": (2,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    return Image.fromarray(pixels, mode=mode) if mode in ("CMYK", "LA") else Image.fromarray(pixels)


def make_folder(root: Path, counts: dict[str, int]) -> Path:
    """CLASS/IMAGE with `counts` small pictures in each class, JPEG and PNG by turns."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            image = picture(40 + i, 45 - i, seed=100 * number + i)
            image.save(root / name / (f"{i}.JPEG" if i % 2 else f"{i}.png"))
    return root


def ten_classes(root: Path) -> Path:
    """Ten classes with 1, 2, 3, 4, 1, ... images, 23 in all."""
    return make_folder(root, {name: 1 + number % 4 for number, name in enumerate(CLASSES)})


def expected_labels(folder: Path) -> list[int]:
    """Labels in the order of a validation pass, from the names of the folders alone."""
    return [label for label, name in enumerate(SORTED) for _ in (folder / name).iterdir()]


class Recorder(nn.Module):
    """Records its inputs and outputs; logits are a linear map of the picture's coarse pixels, so that every picture has other ones."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.weight = nn.Parameter(torch.randn(num_classes, 48, generator=generator), requires_grad=False)
        self.seen: list[Tensor] = []
        self.answers: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        logits = F.adaptive_avg_pool2d(x, 4).flatten(1) @ self.weight.T
        self.seen.append(x.clone())
        self.answers.append(logits)
        return logits

    @property
    def inputs(self) -> Tensor:
        """All inputs after the first, blank image."""
        return torch.cat(self.seen[1:])

    @property
    def logits(self) -> NDArray[np.float64]:
        return torch.cat(self.answers[1:]).double().numpy()


def rigged(*winners: int, num_classes: int = 10) -> nn.Module:
    """A van_b0 whose classifier ranks `winners` first, in this order, for every picture."""
    model = build(paper("van_b0"), num_classes=num_classes)
    bias = model.get_parameter("head.fc.bias")
    with torch.no_grad():
        for place, winner in enumerate(winners):
            bias[winner] = 1000.0 - 100 * place
    return model


def save(model: nn.Module, tmp_path: Path) -> Path:
    """An official checkpoint of the model."""
    path = tmp_path / "van_b0.pth"
    save_official(model, path)
    return path
