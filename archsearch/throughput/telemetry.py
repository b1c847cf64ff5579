"""Clocks, power, temperature and throttle reasons of an NVIDIA GPU while it is being timed, read through NVML.

NVML comes with the driver, its Python module with the optional extra `archsearch[nvml]`; without either there is nothing
to tell, and `why_silent` says so in one line. A thread reads ten times a second: what a block's end would show is a card
that has just gone idle, with the clocks and reasons of an idle card, and every read there would make it wait longer and
cool. The calls leave Python's lock alone, so that the thread that launches kernels loses microseconds ten times a second.
"""

import importlib
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Self

import torch

_PERIOD_S = 0.1
# Of nvml.h, nvmlClocksEventReason*; older headers say ThrottleReason.
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
# hw_slowdown is NVML's sum of heat, power brake and a power draw so high that the clock is halved at once. A card at its
# ordinary power limit (sw_power_cap) runs as it always does under load.
_BRAKES = frozenset({"hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown"})


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One reading of a GPU: MHz, watts, degrees Celsius, bits of THROTTLE_REASONS; None where the card does not tell."""

    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    power_w: float | None
    temperature_c: int | None
    throttle_bits: int | None


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Least, middle and largest of some readings."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, readings: Sequence[float | None]) -> Self | None:
        """None when nothing was read."""
        known = [reading for reading in readings if reading is not None]
        return cls(min=min(known), median=statistics.median(known), max=max(known)) if known else None


@dataclass(frozen=True, kw_only=True)
class Telemetry:
    """What a GPU did during one timing: MHz, watts, degrees Celsius; None where the card does not tell."""

    num_samples: int
    sm_clock_mhz: Spread | None
    memory_clock_mhz: Spread | None
    power_w: Spread | None
    max_temperature_c: float | None
    throttle_reasons: tuple[str, ...] | None

    @property
    def is_throttled(self) -> bool:
        """Whether heat or a power brake held the clocks down at any time."""
        return not _BRAKES.isdisjoint(self.throttle_reasons or ())


def reason_names(bits: int) -> tuple[str, ...]:
    """Names of the reasons set in NVML's bits; a bit that has no name here is given in hexadecimal."""
    names = []
    while bits:
        lowest = bits & -bits
        names.append(THROTTLE_REASONS.get(lowest, f"0x{lowest:x}"))
        bits ^= lowest
    return tuple(names)


def summarize(samples: Sequence[Sample]) -> Telemetry | None:
    """The samples of one timing as one; None when there is none."""
    if not samples:
        return None
    temperature = Spread.of([sample.temperature_c for sample in samples])
    bits = [sample.throttle_bits for sample in samples if sample.throttle_bits is not None]
    union = 0
    for some in bits:
        union |= some
    return Telemetry(
        num_samples=len(samples),
        sm_clock_mhz=Spread.of([sample.sm_clock_mhz for sample in samples]),
        memory_clock_mhz=Spread.of([sample.memory_clock_mhz for sample in samples]),
        power_w=Spread.of([sample.power_w for sample in samples]),
        max_temperature_c=temperature.max if temperature else None,
        throttle_reasons=reason_names(union) if bits else None,
    )


@contextmanager
def watching(device: torch.device) -> Iterator[list[Sample]]:
    """Fill the list with samples of `device` until the end of the block; it stays empty where NVML has nothing to tell."""
    samples: list[Sample] = []
    read = _reader(str(torch.cuda.get_device_properties(device).uuid)) if device.type == "cuda" else None
    if read is None:
        yield samples
        return
    ended = threading.Event()

    def sample() -> None:
        # First a wait: the card is idle until the block has launched something.
        while not ended.wait(_PERIOD_S):
            samples.append(read())

    thread = threading.Thread(target=sample, name="archsearch-nvml", daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def why_silent(device: torch.device) -> str | None:
    """Why nothing is told of an NVIDIA GPU, in one line; None where something is, and on other devices."""
    if device.type != "cuda":
        return None
    try:
        nvml = _nvml()
    except ImportError:
        return "no clocks, power or temperature of the GPU were read: pip install 'archsearch[nvml]'"
    return None if nvml else "no clocks, power or temperature of the GPU were read: the driver's NVML does not answer"


@cache
def _nvml() -> ModuleType | None:
    """NVML, started once a process; None when the driver has none. ImportError without its Python module."""
    nvml = importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml


@cache
def _reader(uuid: str) -> Callable[[], Sample] | None:
    """Reads the GPU of torch's uuid: by identity, as NVML's numbers do not follow CUDA_VISIBLE_DEVICES."""
    try:
        nvml = _nvml()
    except ImportError:
        return None
    handle = _handle(nvml, uuid) if nvml else None
    if nvml is None or handle is None:
        return None

    def ask(name: str, *arguments: int) -> Any:
        try:
            return getattr(nvml, name)(handle, *arguments)
        except nvml.NVMLError:
            return None

    def read() -> Sample:
        milliwatts = ask("nvmlDeviceGetPowerUsage")
        return Sample(
            sm_clock_mhz=ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            memory_clock_mhz=ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            power_w=None if milliwatts is None else milliwatts / 1000,
            temperature_c=ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            # The old name of the call: old and new drivers have it.
            throttle_bits=ask("nvmlDeviceGetCurrentClocksThrottleReasons"),
        )

    return read


def _handle(nvml: ModuleType, uuid: str) -> Any:
    """NVML's handle of the card; of the whole card for a MIG slice, which has no clocks of its own. None when unknown."""
    for prefix in ("GPU-", "MIG-"):
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(prefix + uuid)
        except nvml.NVMLError:
            continue
        try:
            return nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
        except nvml.NVMLError:  # no slice
            return handle
    return None
