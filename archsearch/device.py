"""The machine a figure is measured on: its devices, what to note down about them, and who may use them when."""

import contextlib
import ctypes
import errno
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from archsearch.errors import UserError
from archsearch.system import flocked, utc_now

# Not on Windows: there the memory peak is unknown.
if sys.platform != "win32":
    import resource

DEVICE_NAMES = ("auto", "cpu", "cuda", "mps")

# PyTorch has a class for CUDA's case only; the CPU's and Metal's are known by their words.
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")

Condition = str | int | float | bool | list[int] | None


def pick_device(name: str) -> torch.device:
    """Device for a name in DEVICE_NAMES; `auto` is cuda, else mps, else cpu. UserError when it is absent."""
    present = _present_devices()
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


def _present_devices() -> list[str]:
    """Device types that work here, the fastest first."""
    present = ["cuda"] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        present.append("mps")
    return [*present, "cpu"]


def conditions(device: torch.device) -> dict[str, Condition]:
    """What a timing on `device` depends on besides the model, as plain values; None where nobody can say."""
    is_cuda = device.type == "cuda"
    return {
        "device": device.type,
        "device_name": _device_name(device),
        "driver": _nvidia_smi("driver_version", device) if is_cuda else None,
        "sm_clock_mhz": _nvidia_smi("clocks.sm", device) if is_cuda else None,
        "throttle_bits": _nvidia_smi("clocks_throttle_reasons.active", device) if is_cuda else None,
        "cuda": torch.version.cuda if is_cuda else None,
        "cudnn": torch.backends.cudnn.version() if is_cuda else None,  # type: ignore[no-untyped-call]  # torch leaves it untyped
        "torch": str(torch.__version__),
        "torchvision": importlib.metadata.version("torchvision"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host_cpu": _cpu_name(),
        "host_cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "affinity": affinity(),
        # The per-operator settings: the older allow_tf32 flags raise once somebody has used the newer ones.
        "tf32_matmul": torch.backends.cuda.matmul.fp32_precision == "tf32",
        "tf32_convolution": torch.backends.cudnn.conv.fp32_precision == "tf32",  # type: ignore[attr-defined]  # torch sets it at run time
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "date": utc_now(),
    }


def _device_name(device: torch.device) -> str:
    """Marketing name of the chip behind `device`; on Apple silicon CPU and GPU are one chip."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def _cpu_name() -> str:
    """Model name of the host's processor, or its instruction set where the system does not tell the model."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        return _first_line(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.machine()
    return platform.processor() or platform.machine()


def usable_cores() -> int | None:
    """Logical cores this process may run on, which a container or taskset can make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()


def affinity() -> list[int] | None:
    """Numbers of the logical cores this process may run on; None where the system keeps no such list."""
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else None


def use_cpu(threads: int | None = None, cpus: Sequence[int] | None = None) -> None:
    """Compute with that many threads, on these logical cores alone; None leaves either as it is.

    Fewer cores than threads lower the threads, unless they are asked for: threads that take turns on a core wait for
    each other. Raises UserError as `check_cpu` does.
    """
    check_cpu(threads, cpus)
    if cpus is not None:
        _bind(cpus)
        threads = threads or min(torch.get_num_threads(), len(cpus))
    if threads is not None:
        torch.set_num_threads(threads)


def check_cpu(threads: int | None, cpus: Sequence[int] | None) -> None:
    """Raise UserError for a core that is not there, for more threads than cores, and for cores where the system cannot bind a process (macOS, Windows)."""
    here = affinity()
    if cpus is not None and here is None:
        raise UserError(
            f"--cpus: got {list(cpus)}, but {platform.system()} cannot bind a process to cores; leave it out"
        )
    if cpus is not None and not _can_bind(cpus):
        raise UserError(f"--cpus: got {sorted(cpus)}, but this process can run on {here}")
    most = len(set(cpus)) if cpus is not None else usable_cores() or 1
    if threads is not None and not 1 <= threads <= most:
        raise UserError(f"--threads: got {threads}, allowed are 1 to {most}, the cores this process may run on")


def _can_bind(cpus: Sequence[int]) -> bool:
    """Whether the system would: it alone knows, since what it grants may be more than what it grants now."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cpus)
        # It takes the cores it has and says nothing of the others.
        return os.sched_getaffinity(0) == set(cpus)
    except (OSError, ValueError, OverflowError):
        return False
    finally:
        os.sched_setaffinity(0, before)


def _bind(cpus: Sequence[int]) -> None:
    """Bind every thread of the process: the call reaches one thread, and torch's pool may have started by now."""
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            os.sched_setaffinity(int(thread.name), cpus)


def _nvidia_smi(field: str, device: torch.device) -> str | None:
    """One field of one GPU: asked singly, as nvidia-smi refuses a whole query for one name it does not know."""
    query = [f"--id={_cuda_uuid(device)}", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    return _first_line(["nvidia-smi", *query])


def _cuda_uuid(device: torch.device) -> str:
    """Identity of a GPU that, unlike its index, does not change with CUDA_VISIBLE_DEVICES."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def _first_line(command: list[str]) -> str | None:
    """First line a command prints; None when it is not installed, fails, or takes over five seconds."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.strip().splitlines()), None)


@contextlib.contextmanager
def device_lock(device: torch.device, *, exclusive: bool) -> Iterator[None]:
    """Wait for `device` and hold it: exclusively to time on it, shared with others to train on it.

    One advisory lock file per physical device in the temporary directory. The system drops the lock when the holder
    dies, however it dies (once its forked children, if it has any, are gone too). Not re-entrant: a process that holds
    the lock must not ask for it again.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = _open_lock_file(_lock_path(device))
    try:
        with flocked(descriptor, exclusive=exclusive):
            yield
    finally:
        os.close(descriptor)


def _open_lock_file(path: Path) -> int:
    """Descriptor of the lock file, read-only: another user's file serves too, and nothing can be overwritten."""
    try:
        try:
            # Without O_CREAT first: Linux refuses it on another user's file in a world-writable directory.
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CREAT, 0o644)
    except OSError as error:
        reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise UserError(
            f"device lock {path}: cannot be opened ({reason}); remove it or set TMPDIR to a directory of your own"
        ) from error


def _lock_path(device: torch.device) -> Path:
    """Lock file of the physical device, the same for every process of this machine whatever it calls the device."""
    identity = hashlib.sha256(_cuda_uuid(device).encode()).hexdigest()[:12] if device.type == "cuda" else "0"
    return Path(tempfile.gettempdir()) / f"archsearch-{device.type}-{identity}.lock"


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_bytes` start afresh, as far as the system can forget an older peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif device.type == "cpu" and sys.platform == "linux":
        _return_freed_memory()
        # Some containers mount /proc read-only: then the peak stays that of the process's whole life, an upper bound.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _return_freed_memory() -> None:
    """Give back what glibc keeps for later, 20 ms: it made van_b0's peak at batch 1 after davit_tiny at 16 822 MiB, not 691."""
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory_bytes(device: torch.device) -> int | None:
    """Most memory held since `reset_peak_memory`; None where nobody can say.

    CUDA: what PyTorch allocated. CPU: resident memory of the whole process, interpreter and libraries included. MPS:
    what the driver has allocated to the process now, since Metal keeps no peak.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if device.type == "mps":
        return int(torch.mps.driver_allocated_memory())
    return _peak_resident_bytes()


def _peak_resident_bytes() -> int | None:
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


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds `work` keeps `device` busy, with one synchronize at its end; the device must be idle before."""
    return _CLOCKS[device.type](work, device)


def _cpu_seconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _cuda_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time on the device between two events, so that the host's own time to notice the end is left out."""
    with torch.cuda.device(device):
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        stop = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        start.record()
        work()
        stop.record()
        stop.synchronize()
    return float(start.elapsed_time(stop)) / 1000


def _mps_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Host time of a synchronized block: events on MPS are not to be relied on."""
    torch.mps.synchronize()
    start = time.perf_counter()
    work()
    torch.mps.synchronize()
    return time.perf_counter() - start


_CLOCKS = {"cpu": _cpu_seconds, "cuda": _cuda_seconds, "mps": _mps_seconds}
