"""What the sections of `gpu.py` share: the device and its sizes, a median time, and a row also for what failed."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from clock import Work
from gpu_rows import Row

from archsearch.device import device_seconds
from archsearch.errors import first_line
from archsearch.space import choose_papers

# Imported once for the processes of all sections, which start as copies of one that has run nothing.
PRELOADED = ("archsearch.models", "archsearch.proxy.training.train", "archsearch.throughput.throughput", "timm")
_BLOCKS = 5
_WARM_UP = 3


@dataclass(frozen=True)
class Setting:
    """Where a section runs, whether at tiny sizes, and how many seconds it has from now on."""

    device_type: str
    smoke: bool
    seconds: float
    began: float = field(default_factory=time.monotonic)  # one clock for all processes of a machine

    @cached_property
    def device(self) -> torch.device:
        """CUDA's, or with --smoke the CPU where there is none."""
        return torch.device(self.device_type)

    @property
    def is_cuda(self) -> bool:
        """Whether figures are a GPU's."""
        return self.device_type == "cuda"

    @property
    def seconds_left(self) -> float:
        """Until the section is ended."""
        return self.began + self.seconds - time.monotonic()

    @property
    def batch_size(self) -> int:
        """Images of a forward pass."""
        return 1 if self.smoke else 128

    @property
    def image_size(self) -> int:
        """Their side in pixels."""
        return 32 if self.smoke else 224

    def models(self) -> tuple[str, ...]:
        """The ten fixed trials of a run at 4.5 GFLOPs."""
        return ("swin_tiny",) if self.smoke else tuple(choose_papers("nearest", 4_500_000_000, 224))

    def median_seconds(self, work: Work) -> float:
        """Device time of one call: the median over blocks, after a warm-up."""
        for _ in range(1 if self.smoke else _WARM_UP):
            work()
        block_s = 0.0 if self.smoke else 0.08
        calls = max(1, round(block_s / max(device_seconds(work, self.device), 1e-6)))

        def block() -> None:
            for _ in range(calls):
                work()

        return (
            statistics.median(device_seconds(block, self.device) for _ in range(1 if self.smoke else _BLOCKS)) / calls
        )

    def figure(self, row: Row, measure: Callable[[], float]) -> Row:
        """The row with its value; with a note in place of it where `measure` fails, unless that left the device unusable."""
        try:
            return {**row, "value": measure()}
        except Exception as error:
            note = f"failed: {first_line(error)}"
        # Outside the handler, where nothing holds the failed work's tensors any more. A poisoned context raises here and ends the section.
        if self.is_cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        return {**row, "value": None, "note": note}
