"""Devices of this machine: choosing one, locking it, its clock and memory peak, threads and cores, and the conditions to record with a figure."""

import contextlib
import ctypes
import functools
import hashlib
import importlib
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from archsearch.cores import cpu_name, usable_cores
from archsearch.errors import UserError, shown
from archsearch.lock import Held, machine_lock
from archsearch.system import ignore, utc_now

# Not on Windows: there the memory peak is unknown.
if sys.platform != "win32":
    import resource

DEVICE_NAMES = ("auto", "cpu", "cuda", "mps")

# PyTorch has an exception class for CUDA only; on a CPU and on Metal the message has to be searched.
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")

Condition = str | int | float | bool | list[int] | None


def pick_device(name: str) -> torch.device:
    """Device for a name in DEVICE_NAMES; `auto` is cuda, else mps, else cpu. UserError for another name and an absent device.

    `cuda:1,cuda:3` is cuda too: this process and those it starts see only these GPUs from now on, if it has not used CUDA yet.
    """
    if name.startswith("cuda:"):
        _see_only(name)
        name = "cuda"
    present = ["cuda"] if torch.cuda.is_available() else []  # the fastest first
    if torch.backends.mps.is_available():
        present.append("mps")
    present.append("cpu")
    if name not in DEVICE_NAMES:
        raise UserError(f"device: got {name!r}, allowed are {', '.join(DEVICE_NAMES)}")
    if name == "auto":
        return torch.device(present[0])
    if name not in present:
        raise UserError(
            f"device: got {name!r}, but PyTorch {torch.__version__} finds only {' and '.join(present)} here; "
            f"use {present[0]!r} or 'auto'"
        )
    return torch.device(name)


def visible_gpus() -> list[str]:
    """The GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them; CUDA is not initialised."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    number = torch.cuda.device_count()
    return [word.strip() for word in named.split(",")][:number] if named else [str(index) for index in range(number)]


@functools.cache  # the second time the numbers would count among those chosen
def _see_only(text: str) -> None:
    """Have CUDA show only the GPUs of `cuda:1,cuda:3`. Raises UserError for what is none of that form, and for absent ones."""
    words = [word.strip() for word in text.split(",")]
    there = visible_gpus()
    allowed = [f"cuda:{index}" for index in range(len(there))]
    for word in words:
        if word not in allowed:
            here = f"this machine has {', '.join(allowed)}" if allowed else "PyTorch finds no GPU here"
            raise UserError(
                f"device: got {shown(word)} in {shown(text)}, but {here}; write one or several such as cuda:1,cuda:3"
            )
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(there[allowed.index(word)] for word in dict.fromkeys(words))


def conditions(device: torch.device) -> dict[str, Condition]:
    """What a timing on `device` depends on besides the model, as plain values; None where a value is unknown.

    `driver`, `sm_clock_mhz` and `throttle_bits` of an NVIDIA GPU come from NVML: None without the optional extra `archsearch[nvml]`.
    """
    is_cuda = device.type == "cuda"
    return {
        "device": device.type,
        # On Apple silicon CPU and GPU are one chip.
        "device_name": torch.cuda.get_device_name(device) if is_cuda else cpu_name(),
        **_nvidia_conditions(device),
        "cuda": torch.version.cuda if is_cuda else None,
        "cudnn": torch.backends.cudnn.version() if is_cuda else None,  # type: ignore[no-untyped-call]  # torch leaves it untyped
        "torch": str(torch.__version__),
        "torchvision": importlib.metadata.version("torchvision"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host_cpu": cpu_name(),
        "host_cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "affinity": affinity(),
        # The per-operator settings: the older allow_tf32 flags raise an error once the newer ones were used.
        "tf32_matmul": torch.backends.cuda.matmul.fp32_precision == "tf32",
        "tf32_convolution": torch.backends.cudnn.conv.fp32_precision == "tf32",  # type: ignore[attr-defined]  # torch sets it at run time
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "date": utc_now(),
    }


def _nvidia_conditions(device: torch.device) -> dict[str, Condition]:
    """Driver version, SM clock in MHz and throttle bits as strings in the format of nvidia-smi, which older results used."""
    gpu = find_nvidia_gpu(device)
    clock = gpu.read("nvmlDeviceGetClockInfo", gpu.nvml.NVML_CLOCK_SM) if gpu else None
    bits = gpu.throttle_bits() if gpu else None
    return {
        "driver": str(gpu.nvml.nvmlSystemGetDriverVersion()) if gpu else None,
        "sm_clock_mhz": None if clock is None else str(clock),
        "throttle_bits": None if bits is None else f"0x{bits:016x}",
    }


class NvidiaGpu:
    """An NVIDIA GPU as seen by NVML, the management library of its driver; `nvml` is NVML's Python module."""

    def __init__(self, nvml: ModuleType, handle: Any) -> None:
        self.nvml, self._handle = nvml, handle

    def read(self, function: str, *arguments: int) -> Any:
        """Result of an NVML function for this GPU; None where the GPU or its driver does not support it."""
        try:
            return getattr(self.nvml, function)(self._handle, *arguments)
        except self.nvml.NVMLError:
            return None

    def throttle_bits(self) -> int | None:
        """Current reasons for lowered clocks, as NVML's bit mask; None where unknown."""
        # The old name of the function: old and new drivers have it.
        bits: int | None = self.read("nvmlDeviceGetCurrentClocksThrottleReasons")
        return bits


def find_nvidia_gpu(device: torch.device) -> NvidiaGpu | None:
    """The GPU behind `device`; None for other devices, without NVML, and where NVML does not know the GPU."""
    if device.type != "cuda":
        return None
    return _find_nvidia_gpu(str(torch.cuda.get_device_properties(device).uuid))


@functools.cache
def _find_nvidia_gpu(uuid: str) -> NvidiaGpu | None:
    """By torch's uuid, as NVML's numbers ignore CUDA_VISIBLE_DEVICES; a MIG slice has no clocks of its own, so the whole GPU is given for it."""
    try:
        nvml = load_nvml()
    except ImportError:
        return None
    for prefix in ("GPU-", "MIG-") if nvml else ():
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(prefix + uuid)
        except nvml.NVMLError:
            continue
        with contextlib.suppress(nvml.NVMLError):  # not a MIG slice
            handle = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
        return NvidiaGpu(nvml, handle)
    return None


@functools.cache
def load_nvml() -> Any:
    """NVML's Python module, initialised once a process; None when the driver has no working NVML. ImportError when the module is not installed."""
    nvml = importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    return nvml


def affinity() -> list[int] | None:
    """Numbers of the logical cores this process may run on; None on systems other than Linux."""
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else None


def use_cpu(threads: int | None = None, cpus: Sequence[int] | None = None) -> None:
    """Compute with so many threads, only on these logical cores; None leaves either as it is.

    Without `threads`, their number is lowered to that of the cores: threads that share a core wait for each other.
    Raises UserError as `check_cpu` does.
    """
    check_cpu(threads, cpus)
    if cpus is not None:
        # Every thread of the process: the call binds a single one, and torch's pool may have started by now.
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                os.sched_setaffinity(int(thread.name), cpus)
        threads = threads or min(torch.get_num_threads(), len(cpus))
    if threads is not None:
        torch.set_num_threads(threads)


def allow_tf32() -> None:
    """Let this process compute float32 matrix products and convolutions on CUDA in TF32, as deployed networks do."""
    # The per-operator settings, as in `conditions`.
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]  # torch sets it at run time


def check_cpu(threads: int | None, cpus: Sequence[int] | None) -> None:
    """Raise UserError for an absent core, for more threads than cores, and for any cores on a system that cannot bind a process (macOS, Windows)."""
    available = affinity()
    if cpus is not None and available is None:
        raise UserError(
            f"--cpus: got {list(cpus)}, but {platform.system()} cannot bind a process to cores; leave it out"
        )
    if cpus is not None and not _can_bind(cpus):
        raise UserError(f"--cpus: got {sorted(cpus)}, but this process can run on {available}")
    most = len(set(cpus)) if cpus is not None else usable_cores() or 1
    if threads is not None and not 1 <= threads <= most:
        raise UserError(f"--threads: got {threads}, allowed are 1 to {most}, the cores this process may run on")


def _can_bind(cpus: Sequence[int]) -> bool:
    """Whether the system lets this process run on `cpus`; found out by trying, since a process may be allowed more cores than it has now."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cpus)
        # It ignores absent cores without an error.
        return os.sched_getaffinity(0) == set(cpus)
    except (OSError, ValueError, OverflowError):
        return False
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def device_lock(device: torch.device, *, exclusive: bool, on_wait: Callable[[str], None] = ignore) -> Iterator[Held]:
    """Wait for `device` and hold it: exclusively to time on it, shared with others to train on it.

    One lock for each physical device of the machine, a `machine_lock`, which says what `on_wait` gets, and where it cannot lock.
    """
    identity = "0"
    if device.type == "cuda":  # by uuid, as a GPU's index depends on CUDA_VISIBLE_DEVICES
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        identity = hashlib.sha256(uuid.encode()).hexdigest()[:12]
    with machine_lock(f"{device.type}-{identity}", exclusive=exclusive, on_wait=on_wait) as held:
        yield held


def reset_peak_memory(device: torch.device) -> None:
    """Forget earlier memory peaks for `peak_memory_bytes`, where the system allows it (CUDA; CPU on Linux)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu" and sys.platform == "linux":
        # Give back what glibc keeps for later, 20 ms: it made van_b0's peak at batch 1 after davit_tiny at 16 822 MiB, not 691.
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
        # Some containers mount /proc read-only: then the peak stays that of the process's whole life, an upper bound.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(device: torch.device) -> int | None:
    """Most memory held since `reset_peak_memory`, in bytes; None where unknown (Windows' CPU).

    CUDA: what PyTorch allocated. CPU: resident memory of the whole process, interpreter and libraries included. MPS:
    what the driver has allocated to the process now, since Metal keeps no peak.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return None
    # Kibibytes everywhere but on macOS, where it is bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that a device or the host had no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def seconds_between_events(work: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """Do `work` on a CUDA device without waiting for it; what comes back waits for its end and gives the seconds.

    Time on the device between two events leaves out how long the host takes to notice the end.
    """
    with torch.cuda.device(device):
        first = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        last = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        first.record()
        work()
        last.record()

    def seconds() -> float:
        last.synchronize()
        return float(first.elapsed_time(last)) / 1000

    return seconds


def device_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that `work` keeps `device` busy, up to a synchronize at its end; the device must be idle before."""
    if device.type == "cuda":
        return seconds_between_events(work, device)()
    # On MPS host time between two synchronizations: its events are unreliable.
    synchronize = torch.mps.synchronize if device.type == "mps" else lambda: None
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start
