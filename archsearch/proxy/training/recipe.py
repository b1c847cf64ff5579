"""How candidates are trained on a proxy: all alike, by a recipe neutral between convolution and attention. No torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from archsearch.errors import UserError, shown

MOST_SIDE = 1024  # pixels of a training image, as of a prepared one
MOST_STEPS = 10**8
# Fields that are whole numbers, with the least and the most allowed; seeds are those of NumPy, with room for those counted on from them.
_WHOLE_NUMBERS = (
    ("steps", 1, MOST_STEPS),
    ("batch_size", 1, 2**20),
    ("micro_batch", 1, 2**20),
    ("image_size", 1, MOST_SIDE),
    ("seed", 0, 2**31 - 1),
)
_MOST_RATE = 1000  # learning rate and weight decay
_MOST_RUNGS, _MOST_LENGTH = 20, 10**6
STARVED_UNDER = 1.2  # batches have to come this many times as fast as they are trained on


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`steps` updates of AdamW at `batch_size`, linear warm-up, cosine to zero; `learning_rate` is the peak."""

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.05  # on matrices only
    warmup_share: float = 0.1  # of the steps
    label_smoothing: float = 0.1
    clip: float = 1.0  # largest norm of all gradients together
    image_size: int  # pixels
    seed: int = 0  # of the data order and the augmentation
    dtype: Literal["float32", "bfloat16"]  # of the autocast; weights and optimizer stay in float32
    # RandomResizedCrop for photographs, a move by 2 px for tiny pictures (both mirror), nothing where places are the classes.
    augment: Literal["crop", "shift", "none"]
    # Whether steps run compiled, the network as one graph or each block as its own; random numbers of dropout are others than eager ones.
    mode: Literal["eager", "compile", "compile-blocks"] = "eager"
    micro_batch: int | None = None  # images whose gradients are computed at once; None is the whole batch, if it fits

    def __post_init__(self) -> None:
        for name, least, most in _WHOLE_NUMBERS:
            value = getattr(self, name)
            self._check(name, value is None or least <= value <= most, f"{least} to {most}")
        self._check("learning_rate", 0 < self.learning_rate <= _MOST_RATE, f"above 0, at most {_MOST_RATE}")
        self._check("weight_decay", 0 <= self.weight_decay <= _MOST_RATE, f"0 to {_MOST_RATE}")
        self._check("clip", 0 < self.clip < math.inf, "a finite number above 0")
        for name in ("warmup_share", "label_smoothing"):
            self._check(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        self._check("dtype", self.dtype in ("float32", "bfloat16"), "'float32' or 'bfloat16'")
        self._check("augment", self.augment in ("crop", "shift", "none"), "'crop', 'shift' or 'none'")
        allowed = "'eager', 'compile' or 'compile-blocks'"
        self._check("mode", self.mode in ("eager", "compile", "compile-blocks"), allowed)

    def learning_rate_at(self, step: int) -> float:
        """For step 0, 1, ... steps-1: rises in equal parts to the peak, then half a cosine towards zero."""
        warmup = round(self.warmup_share * self.steps)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        return self.learning_rate * (1 + math.cos(math.pi * (step - warmup) / (self.steps - warmup))) / 2

    def _check(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise UserError(f"proxy recipe: {name} is {shown(getattr(self, name))}; allowed is {allowed}")


def check_rungs(lengths: Sequence[int], where: str = "--rungs") -> None:
    """Raise UserError unless these are the relative lengths of rungs: positive and increasing."""
    is_increasing = all(a < b for a, b in pairwise(lengths))
    if not 1 <= len(lengths) <= _MOST_RUNGS or not 1 <= lengths[0] <= lengths[-1] <= _MOST_LENGTH or not is_increasing:
        raise UserError(
            f"{where}: got {shown(','.join(map(str, lengths)) or 'nothing')}; write positive whole numbers that increase, such as 1,4,16, at most "
            f"{_MOST_RUNGS} and up to {_MOST_LENGTH}: where a training pauses to be judged, in parts of the last number, which is its end"
        )


def rung_steps(full: int, lengths: Sequence[int]) -> list[int]:
    """Steps of the rungs below the full training of `full` steps, shortest first; those that would be no shorter are left out."""
    steps = {max(1, round(full * length / lengths[-1])) for length in lengths[:-1]}
    return sorted(steps - {full})


def is_starved(loader_images_s: float, step_images_s: float) -> bool:
    """Whether a training waits for images: batches come less than 1.2 times as fast as they are trained on."""
    return loader_images_s < STARVED_UNDER * step_images_s
