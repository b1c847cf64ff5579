"""How a throughput is measured: number format, mode, task, sizes, and when a network is warmed up and a figure final. No torch."""

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self, get_args

from archsearch.errors import UserError
from archsearch.units import DType, ImageSize, sides

if TYPE_CHECKING:  # a report reads the limits below, and must start without torch
    import torch

# Compiled by torch.compile with its defaults, or into CUDA graphs, which take the launches out of small batches.
Mode = Literal["eager", "compile", "reduce-overhead"]
# A forward pass in inference mode, or a training step: forward, cross-entropy, backward, AdamW.
Task = Literal["forward", "train"]
# What runs the network. All but torch take it as an ONNX file, in a number format of their own.
Runtime = Literal["torch", "onnxruntime", "openvino", "tensorrt"]
Precision = Literal["float32", "float16", "int8"]

# An iteration this long fills a block by itself, and ten of them would take most of a measurement.
_SLOW_ITERATION_S = 0.1
# A model whose warm-up times never agree is timed after this many times `warmup_s`; its spread then shows it.
_MAX_WARMUP_FACTOR = 2
# Of `iqr_limit`, within which the first blocks of a round are settled.
_SETTLED_SHARE = 1 / 3
_ALLOWED = {
    "dtype": get_args(DType),
    "mode": get_args(Mode),
    "task": get_args(Task),
    "runtime": get_args(Runtime),
    "precision": (*get_args(Precision), None),
}
# Smallest whole numbers that a protocol allows; a spread needs two blocks.
_LEAST = {
    "batch_size": 1,
    "in_chans": 1,
    "min_warmup_iterations": 1,
    "min_slow_warmup_iterations": 1,
    "min_blocks": 2,
    "settled_blocks": 2,
}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a throughput is measured. Times in seconds, limits as fractions, the image's side or height and width in pixels; UserError for a value out of range.

    Warm-up lasts `warmup_s`, `min_warmup_iterations`, and until the last medians lie within `agree` of each other or twice
    `warmup_s` is over. Then rounds of `min_blocks` blocks are timed, each block at least `block_s` long: the first round
    whose relative interquartile range (IQR) is within `iqr_limit` gives the figure. When no further round fits into `max_s`
    of timing, all rounds together give it, marked noisy. A round ends after `settled_blocks` where their IQR is within a
    third of the limit: more blocks would not move the median.

    `precision` is the number format of a runtime other than torch, whose `dtype` and `mode` are then float32 and eager; `calibration_data`
    the folder of images for its int8.

    Where an iteration takes over 0.1 s, `min_slow_warmup_iterations` are enough once the medians agree. `for_device` sets
    3 on a CPU: caches and clocks have had 1 s to settle by then, and ten passes of a 0.4 s model would add 2.4 s a
    candidate. A model whose medians do not agree still gets its ten.
    """

    batch_size: int
    image_size: ImageSize = 224
    in_chans: int = 3
    dtype: DType = "float32"
    mode: Mode = "eager"
    task: Task = "forward"
    warmup_s: float
    min_warmup_iterations: int = 10
    min_slow_warmup_iterations: int = 10
    block_s: float = 0.05
    min_blocks: int = 15
    settled_blocks: int | None = None
    max_s: float = 15.0
    iqr_limit: float = 0.03
    agree: float = 0.02
    drift_limit: float = 0.03
    runtime: Runtime = "torch"
    precision: Precision | None = None
    calibration_data: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in _ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"throughput {name}: got {getattr(self, name)!r}, allowed are {', '.join(map(str, allowed))}"
                )
        for name, least in _LEAST.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise UserError(f"throughput {name}: got {value}, allowed is {least} or more")
        sides(self.image_size, "throughput image_size")
        for name in ("warmup_s", "block_s", "max_s", "iqr_limit", "agree", "drift_limit"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"throughput {name}: got {getattr(self, name)}, allowed is a finite number, 0 or more")

    @classmethod
    def for_device(
        cls,
        device: "torch.device",
        *,
        batch_size: int,
        image_size: ImageSize = 224,
        in_chans: int = 3,
        dtype: DType = "float32",
        mode: Mode = "eager",
        task: Task = "forward",
        runtime: Runtime = "torch",
        precision: Precision | None = None,
        calibration_data: str | None = None,
    ) -> Self:
        """The defaults for a device; on a quiet CPU 2 s for a model that takes 30 ms a batch, 5 s for one that takes 0.4 s."""
        is_cpu = device.type == "cpu"
        return cls(
            batch_size=batch_size,
            image_size=image_size,
            in_chans=in_chans,
            dtype=dtype,
            mode=mode,
            task=task,
            runtime=runtime,
            precision=precision,
            calibration_data=calibration_data,
            warmup_s=1.0 if is_cpu else 2.0,
            min_slow_warmup_iterations=3 if is_cpu else 10,
            min_blocks=9 if is_cpu else 20,
            settled_blocks=5 if is_cpu else None,
            max_s=4.0 if is_cpu else 15.0,
        )

    @property
    def is_compiled(self) -> bool:
        """Whether torch.compile makes what is timed."""
        return self.mode != "eager"

    def iterations_per_block(self, seconds_each: float) -> int:
        """Iterations of `seconds_each` that fill a block."""
        return max(1, math.ceil(self.block_s / seconds_each))

    def is_settled(self, rates: list[float]) -> bool:
        """Whether a round may end early, after blocks of these rates."""
        return len(rates) == self.settled_blocks and relative_iqr(rates) <= self.iqr_limit * _SETTLED_SHARE

    def is_warm(self, done: int, spent_s: float, seconds_each: list[float]) -> bool:
        """Whether the warm-up may end after `done` iterations and `spent_s` seconds; `seconds_each` is the time of an iteration in each block."""
        if spent_s < self.warmup_s or len(seconds_each) < 2:
            return False
        # Does the median of the last blocks, up to five, agree with that of as many blocks before them?
        window = min(5, max(1, len(seconds_each) // 3))
        last = statistics.median(seconds_each[-window:])
        previous = statistics.median(seconds_each[-2 * window : -window])
        agreed = abs(last - previous) <= self.agree * previous
        is_slow = seconds_each[-1] > _SLOW_ITERATION_S
        needed = self.min_slow_warmup_iterations if is_slow and agreed else self.min_warmup_iterations
        return done >= needed and (agreed or spent_s >= _MAX_WARMUP_FACTOR * self.warmup_s)


def relative_iqr(rates: list[float]) -> float:
    """Interquartile range over the median, of at least two rates."""
    quartiles = statistics.quantiles(rates, n=4, method="inclusive")
    return (quartiles[2] - quartiles[0]) / quartiles[1]
