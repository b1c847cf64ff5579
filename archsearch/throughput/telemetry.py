"""Clocks, power, temperature and throttle reasons of an NVIDIA GPU while it is being timed, read through NVML.

NVML comes with the driver, its Python module with the optional extra `archsearch[nvml]`; without either there is no
telemetry, and `missing_telemetry` says why in one line. A thread reads ten times a second: readings at a block's end would
be of a GPU that has just become idle, and would make it wait longer and cool. The calls release Python's global lock,
so that the thread that launches kernels loses microseconds ten times a second.
"""

import statistics
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch

from archsearch.device import NvidiaGpu, find_nvidia_gpu, load_nvml

_PERIOD_S = 0.1
# From nvml.h, nvmlClocksEventReason*; older headers say ThrottleReason.
THROTTLE_REASONS = {
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
}
# hw_slowdown is NVML's sum of heat, power brake and a power draw so high that the clock is halved at once. A GPU at its
# ordinary power limit (sw_power_cap) is not throttled: it runs so under any full load.
_THROTTLED = frozenset({"hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown"})


@dataclass(frozen=True, kw_only=True)
class GpuReading:
    """One reading of a GPU: MHz, watts, degrees Celsius, bits of THROTTLE_REASONS; None where the GPU does not report a value."""

    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    power_w: float | None
    temperature_c: int | None
    throttle_bits: int | None


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Minimum, median and maximum of some readings."""

    min: float
    median: float
    max: float

    @classmethod
    def from_readings(cls, readings: Sequence[float | None]) -> Self | None:
        """Of the readings that are not None; None when all are."""
        known = [reading for reading in readings if reading is not None]
        return cls(min=min(known), median=statistics.median(known), max=max(known)) if known else None


@dataclass(frozen=True, kw_only=True)
class Telemetry:
    """State of a GPU during one timing: MHz, watts, degrees Celsius; None where the GPU does not report a value."""

    num_samples: int
    sm_clock_mhz: Spread | None
    memory_clock_mhz: Spread | None
    power_w: Spread | None
    max_temperature_c: float | None
    throttle_reasons: tuple[str, ...] | None

    @property
    def is_throttled(self) -> bool:
        """Whether heat or a power brake held the clocks down at any time."""
        return not _THROTTLED.isdisjoint(self.throttle_reasons or ())


def reason_names(bits: int) -> tuple[str, ...]:
    """Names of the throttle reasons in NVML's bit mask; a bit without a name in THROTTLE_REASONS is given in hexadecimal."""
    names = []
    while bits:
        lowest = bits & -bits
        names.append(THROTTLE_REASONS.get(lowest, f"0x{lowest:x}"))
        bits ^= lowest
    return tuple(names)


def summarize(readings: Sequence[GpuReading]) -> Telemetry | None:
    """The readings of one timing, summarized; None when there are none."""
    if not readings:
        return None
    temperature = Spread.from_readings([reading.temperature_c for reading in readings])
    bits = [reading.throttle_bits for reading in readings if reading.throttle_bits is not None]
    union = 0
    for some in bits:
        union |= some
    return Telemetry(
        num_samples=len(readings),
        sm_clock_mhz=Spread.from_readings([reading.sm_clock_mhz for reading in readings]),
        memory_clock_mhz=Spread.from_readings([reading.memory_clock_mhz for reading in readings]),
        power_w=Spread.from_readings([reading.power_w for reading in readings]),
        max_temperature_c=temperature.max if temperature else None,
        throttle_reasons=reason_names(union) if bits else None,
    )


@contextmanager
def sampled_telemetry(device: torch.device) -> Iterator[list[GpuReading]]:
    """A list that fills with readings of `device` until the end of the block; it stays empty without NVML and on other devices."""
    readings: list[GpuReading] = []
    gpu = find_nvidia_gpu(device)
    if gpu is None:
        yield readings
        return
    ended = threading.Event()

    def sample() -> None:
        # First a wait: the GPU is idle until the block has launched something.
        while not ended.wait(_PERIOD_S):
            readings.append(read_gpu(gpu))

    thread = threading.Thread(target=sample, name="archsearch-nvml", daemon=True)
    thread.start()
    try:
        yield readings
    finally:
        ended.set()
        thread.join()


def read_gpu(gpu: NvidiaGpu) -> GpuReading:
    """One reading, now."""
    milliwatts = gpu.read("nvmlDeviceGetPowerUsage")
    return GpuReading(
        sm_clock_mhz=gpu.read("nvmlDeviceGetClockInfo", gpu.nvml.NVML_CLOCK_SM),
        memory_clock_mhz=gpu.read("nvmlDeviceGetClockInfo", gpu.nvml.NVML_CLOCK_MEM),
        power_w=None if milliwatts is None else milliwatts / 1000,
        temperature_c=gpu.read("nvmlDeviceGetTemperature", gpu.nvml.NVML_TEMPERATURE_GPU),
        throttle_bits=gpu.throttle_bits(),
    )


def missing_telemetry(device: torch.device) -> str | None:
    """Why there is no telemetry of an NVIDIA GPU, in one line; None where there is, and for other devices."""
    if device.type != "cuda":
        return None
    try:
        nvml = load_nvml()
    except ImportError:
        return "no clocks, power or temperature of the GPU were read: pip install 'archsearch[nvml]'"
    return None if nvml else "no clocks, power or temperature of the GPU were read: the driver's NVML does not answer"
