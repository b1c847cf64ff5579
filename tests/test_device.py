"""Threads and cores of a process, and the telemetry of a GPU while it is timed."""

import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import torch

from archsearch.cli.types import CpuList
from archsearch.cores import usable_cores
from archsearch.device import affinity, conditions, pick_device, use_cpu
from archsearch.errors import UserError
from archsearch.throughput.telemetry import (
    GpuReading,
    Spread,
    missing_telemetry,
    reason_names,
    sampled_telemetry,
    summarize,
)

CPU = torch.device("cpu")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux binds a process to cores")


@pytest.fixture
def _unbound() -> Iterator[None]:
    """Restores threads and cores."""
    threads, cores = torch.get_num_threads(), affinity()
    yield
    if cores is not None:
        use_cpu(cpus=cores)
    torch.set_num_threads(threads)


@linux_only
@pytest.mark.usefixtures("_unbound")
def test_all_threads_of_a_process_are_bound_to_the_cores() -> None:
    cores = affinity()
    assert cores is not None
    torch.set_num_threads(2)
    torch.ones(2**20).sin_()  # starts the pool
    use_cpu(cpus=cores[-1:])
    masks = [os.sched_getaffinity(int(thread.name)) for thread in Path("/proc/self/task").iterdir()]
    assert len(masks) > 1
    assert masks == [{cores[-1]}] * len(masks)
    noted = conditions(CPU)
    assert (noted["affinity"], noted["threads"], noted["host_cores"]) == (cores[-1:], 1, 1)
    use_cpu(cpus=cores)
    assert affinity() == cores


@pytest.mark.usefixtures("_unbound")
def test_the_number_of_threads_is_set_or_left_unchanged() -> None:
    many = usable_cores()
    assert many is not None
    use_cpu(many)
    assert torch.get_num_threads() == many
    use_cpu()
    assert torch.get_num_threads() == many
    use_cpu(1)
    assert conditions(CPU)["threads"] == 1


@pytest.mark.parametrize("threads", [0, -1, 10**9])
def test_impossible_numbers_of_threads_are_refused(threads: int) -> None:
    with pytest.raises(UserError, match=rf"threads: got {threads}, allowed are 1 to \d+"):
        use_cpu(threads)


@linux_only
@pytest.mark.parametrize("absent", [[0, 8000], [10**9], [-1], []])
def test_absent_cores_are_refused_and_nothing_changes(absent: list[int]) -> None:
    before = affinity()
    with pytest.raises(UserError, match=r"cpus: got \[.*\], but this process can run on \[\d"):
        use_cpu(cpus=absent)
    assert affinity() == before


@pytest.mark.skipif(sys.platform == "linux", reason="Linux binds")
def test_cores_are_refused_where_a_process_cannot_be_bound() -> None:
    with pytest.raises(UserError, match="cannot bind a process to cores"):
        use_cpu(cpus=[0])


@pytest.mark.parametrize(("text", "cores"), [("0", (0,)), ("0,2-3", (0, 2, 3)), ("3,1, 1-2", (1, 2, 3)), ("7-7", (7,))])
def test_lists_of_cores(text: str, cores: tuple[int, ...]) -> None:
    assert CpuList().convert(text, None, None) == cores


@pytest.mark.parametrize("text", ["", "a", "2-1", "0,,1", "-1", "0-", "1.5", "0-99999999999"])
def test_malformed_lists_of_cores_are_refused(text: str) -> None:
    option = click.Option(["--cpus"], type=CpuList())
    with pytest.raises(UserError, match=r"--cpus: got .* such as 0,2-3"):
        option.type.convert(text, option, None)


def test_throttle_bits_have_the_names_of_nvml() -> None:
    assert reason_names(0) == ()
    assert reason_names(0x1 | 0x4 | 0x40) == ("gpu_idle", "sw_power_cap", "hw_thermal_slowdown")
    assert reason_names(0x80 | 0x4000) == ("hw_power_brake_slowdown", "0x4000")
    nvml = pytest.importorskip("pynvml", reason="NVML's own table is in the extra nvml")
    for name, bit in vars(nvml).items():
        reason = name.removeprefix("nvmlClocksEventReason")
        if reason != name and reason not in ("None", "All", "UserDefinedClocks"):
            assert reason_names(bit)[0].replace("_", "") == reason.lower()


def make_reading(clock: int | None, bits: int | None, temperature: int = 50) -> GpuReading:
    return GpuReading(
        sm_clock_mhz=clock, memory_clock_mhz=2619, power_w=None, temperature_c=temperature, throttle_bits=bits
    )


def test_readings_are_summarized_as_spreads_and_the_union_of_reasons() -> None:
    telemetry = summarize(
        [make_reading(1980, 0x4, 61), make_reading(1200, 0x0, 64), make_reading(None, None), make_reading(1755, 0x1)]
    )
    assert telemetry is not None
    assert telemetry.sm_clock_mhz == Spread(min=1200, median=1755, max=1980)
    assert telemetry.memory_clock_mhz == Spread(min=2619, median=2619, max=2619)
    assert (telemetry.num_samples, telemetry.power_w, telemetry.max_temperature_c) == (4, None, 64)
    assert telemetry.throttle_reasons == ("gpu_idle", "sw_power_cap")
    assert not telemetry.is_throttled
    assert summarize([]) is None


@pytest.mark.parametrize(
    ("bits", "throttled"), [(0x4, False), (0x8, True), (0x20, True), (0x40, True), (0x80, True), (None, False)]
)
def test_heat_and_power_brake_count_as_throttling_and_the_power_limit_does_not(
    bits: int | None, throttled: bool
) -> None:
    telemetry = summarize([make_reading(1980, 0), make_reading(1500, bits)])
    assert telemetry is not None
    assert telemetry.is_throttled == throttled


def test_a_cpu_has_no_telemetry_and_none_is_missing() -> None:
    with sampled_telemetry(CPU) as readings:
        time.sleep(0.01)
    assert readings == []
    assert missing_telemetry(CPU) is None


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU: NVML has no other devices")
def test_a_gpu_is_read_while_it_works() -> None:
    device = pick_device("cuda")
    matrix = torch.randn(4096, 4096, device=device)
    with sampled_telemetry(device) as readings:
        end = time.monotonic() + 1
        while time.monotonic() < end:
            matrix @ matrix
            torch.cuda.synchronize()
    if missing_telemetry(device):
        assert readings == []
        assert conditions(device)["driver"] is None
        return
    noted = conditions(device)
    assert re.fullmatch(r"\d+(\.\d+)+", str(noted["driver"]))
    assert str(noted["sm_clock_mhz"]).isdigit()
    assert re.fullmatch(r"0x[0-9a-f]{16}", str(noted["throttle_bits"]))
    telemetry = summarize(readings)
    assert telemetry is not None
    assert 5 <= telemetry.num_samples <= 11
    assert telemetry.sm_clock_mhz is not None
    assert 100 < telemetry.sm_clock_mhz.median < 5000
    assert telemetry.max_temperature_c is None or 10 < telemetry.max_temperature_c < 120
