"""What a runtime does to be timed: prepare a network, run it, close it."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from archsearch.errors import UserError
from archsearch.throughput.protocol import Precision, Protocol, Runtime


class Backend(ABC):
    """A runtime that `prepare` has given one network and its inputs."""

    name: ClassVar[Runtime]
    packages: ClassVar[tuple[str, ...]]  # that it imports; the extra of the runtime's name has them all
    devices: ClassVar[tuple[str, ...]]  # the first is the default where it is there
    precisions: ClassVar[tuple[Precision, ...]] = ("float32", "float16", "int8")

    @classmethod
    def check_device(cls, device: str) -> None:
        """Raise UserError where the installed runtime cannot use the device."""
        if device not in cls.devices:
            raise UserError(
                f"--device: got {device!r}, but --runtime {cls.name} runs on {' and '.join(cls.devices)} here; leave it out"
            )

    @classmethod
    def facts(cls, device: torch.device) -> dict[str, Any]:
        """What a figure depends on besides the conditions of the device: version, threads (None on a GPU), and the parts of it that compute."""
        # Of the module: a package for GPUs has another name. OpenVINO's goes on with a commit.
        version = str(importlib.import_module(cls.packages[-1]).__version__).partition("-")[0]
        return {
            "runtime": cls.name,
            "runtime_version": version,
            "runtime_threads": torch.get_num_threads() if device.type == "cpu" else None,
            "runtime_providers": cls.providers(device),
        }

    @classmethod
    @abstractmethod
    def providers(cls, device: torch.device) -> list[str]:
        """The parts of the runtime that compute on the device."""

    @abstractmethod
    def prepare(self, file: Path, inputs: Sequence[Tensor], protocol: Protocol, calibration: Sequence[Tensor]) -> None:
        """Load an ONNX file for the inputs, contiguous (B, C, H, W) in its number format, on their device, with as many threads as torch has.

        `calibration` are batches of real images for int8. The file may be gone afterwards.
        """

    @abstractmethod
    def logits(self) -> Tensor:
        """What it makes of the first input, (B, classes), on the CPU."""

    @abstractmethod
    def run(self, iterations: int) -> None:
        """So many forward passes, the inputs in turn; they are over, or in torch's stream, when it returns."""

    @abstractmethod
    def close(self) -> None:
        """Free what `prepare` took."""
