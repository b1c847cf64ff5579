"""The conditions that a calibration holds for; throughput under others is never predicted from it."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch

from archsearch.device import conditions, pick_device
from archsearch.throughput.measurement import Measurement
from archsearch.units import ImageSize, format_sides, one_size, plain_size, sides


@dataclass(frozen=True, kw_only=True)
class CalibrationKey:
    """Device, number format, mode, sizes and versions of a calibration; `threads` is None where the model does not run on the CPU."""

    device_name: str
    device: str
    dtype: str
    mode: str
    batch_size: int
    image_size: ImageSize
    threads: int | None
    torch: str
    in_chans: int = 3

    @classmethod
    def for_this_machine(cls, measurement: Measurement) -> Self:
        """The key of measurements on this machine under these conditions; UserError for an absent device."""
        device = pick_device(measurement.device)
        return cls(
            device_name=str(conditions(device)["device_name"]),
            device=device.type,
            dtype=measurement.dtype,
            mode=measurement.mode,
            batch_size=measurement.batch_size,
            image_size=measurement.image_size,
            threads=measurement.num_threads if device.type == "cpu" else None,
            torch=str(torch.__version__),
            in_chans=measurement.in_chans,
        )

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """The key that `to_dict` wrote; KeyError or TypeError for missing or unknown fields."""
        return cls(**{**document, "image_size": one_size(*sides(document["image_size"]))})

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; without the channels where they are three, as in files from before they were a part."""
        document = {**asdict(self), "image_size": plain_size(self.image_size)}
        return document if self.in_chans != 3 else {key: document[key] for key in document if key != "in_chans"}

    @property
    def file_name(self) -> str:
        """`cpu-intel-xeon-float32-eager-batch2-224px-1threads-torch2.14.1.parquet`."""
        name = re.sub(r"[^a-z0-9]+", "-", self.device_name.lower()).strip("-")
        parts = [
            self.device,
            name,
            self.dtype,
            self.mode,
            f"batch{self.batch_size}",
            f"{format_sides(self.image_size)}px",
        ]
        if self.in_chans != 3:
            parts.append(f"{self.in_chans}channels")
        if self.threads is not None:
            parts.append(f"{self.threads}threads")
        return "-".join([*parts, f"torch{re.sub(r'[^A-Za-z0-9.]+', '_', self.torch)}"]) + ".parquet"
