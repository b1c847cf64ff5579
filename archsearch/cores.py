"""How much of the processor other processes use: what is busy on the cores, less what this run uses itself. No torch."""

import contextlib
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

# Of a line `cpu3` in /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal. Time that a host took from a virtual machine counts as others'.
_BUSY, _IDLE = (0, 1, 2, 5, 6, 7), (3, 4)
_PROC = Path("/proc")
# Cores that other processes may use beside a run without being called busy: a desktop, a log.
TOLERATED_CORES = 0.25
# A training is slow below this share of the run's usual rate: architectures of one band differ by less; threads that share a core lose
# a factor of 5 to 100.
SLOW_SHARE = 1 / 3


class OthersLoad:
    """Core-seconds that processes other than `own` have used on the cores `cpus` (None: all that this process may run on now).

    They stay these cores when the process is bound to others later: what its own processes used is known of all cores together only.
    Linux counts them exactly, by core and process. Elsewhere, and where a container hides the counters, they are the load average
    less the threads that this run computes with, which follows a change within a minute. None on Windows, which has neither.
    """

    def __init__(self, cpus: Sequence[int] | None = None) -> None:
        self._cpus = sorted(os.sched_getaffinity(0)) if cpus is None and sys.platform == "linux" else cpus
        self._own: dict[int, float] = {}
        self._last: tuple[float, float] | None = None  # time, busy seconds of all cores together
        self._total_s = 0.0
        self._began: float | None = None

    def mean_cores(self, own: Iterable[int | None] = (), *, own_threads: int = 0) -> float | None:
        """Cores that others used on average since the first call, as `total_s`; None at the first call."""
        now = time.monotonic()
        began, self._began = self._began, self._began or now
        total_s = self.total_s(own, own_threads=own_threads)
        return None if began is None or total_s is None else total_s / max(now - began, 1e-3)

    @property
    def cores(self) -> int:
        """Number of cores looked at."""
        return len(self._cpus) if self._cpus is not None else usable_cores() or 1

    def total_s(self, own: Iterable[int | None] = (), *, own_threads: int = 0) -> float | None:
        """Core-seconds that others used since the first call; `own` are this run's processes, `own_threads` the threads they compute with now."""
        now, busy_s = time.monotonic(), _busy_s(self._cpus)
        own_s = self._own_s({os.getpid(), *(pid for pid in own if pid is not None)})
        before, self._last = self._last, (now, busy_s or 0.0)
        if before is None:
            return 0.0
        elapsed_s = now - before[0]
        if busy_s is not None:
            # The counters tick at 100 Hz, so a short span may seem to hold a little less than nothing.
            self._total_s += max(0.0, min(busy_s - before[1] - own_s, self.cores * elapsed_s))
        elif (load := _load_average()) is not None:
            self._total_s += max(0.0, load - own_threads) * elapsed_s
        else:
            return None
        return self._total_s

    def _own_s(self, pids: set[int]) -> float:
        """Processor seconds that these processes used since the last call; of one that is new, since it began."""
        used = {pid: seconds for pid in pids if (seconds := _process_s(pid)) is not None}
        grown = sum(seconds - self._own.get(pid, 0.0) for pid, seconds in used.items())
        self._own |= used
        return grown


def is_busy(other_cores: float, cores: int, threads: int) -> bool:
    """Whether others use more than the cores that a run of so many threads leaves idle."""
    return other_cores > max(0, cores - threads) + TOLERATED_CORES


def busy_advice(threads: int) -> str:
    """What a busy machine does to a run of so many threads, and what helps."""
    if threads == 1:
        return "Timings vary and trainings take longer; a quiet machine helps."
    return (
        "Threads that share a core wait for each other: trainings may take ten times as long, and timings vary. "
        "A run with --threads 1 suffers far less; a quiet machine is best."
    )


def cpu_name() -> str:
    """Model name of the host's processor, or its instruction set where the model name is unknown."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
            return done.stdout.strip() or platform.machine()
        return platform.machine()
    return platform.processor() or platform.machine()


def usable_cores() -> int | None:
    """Logical cores this process may run on, which a container or taskset can make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()


def _busy_s(cpus: Sequence[int] | None) -> float | None:
    """Seconds that these cores were busy since the machine's start; None where the system does not count them."""
    try:
        lines = (_PROC / "stat").read_text().splitlines()
    except OSError:
        return None
    names = None if cpus is None else {f"cpu{number}" for number in cpus}
    busy, idle = 0, 0
    for name, *ticks in (line.split() for line in lines if line.startswith("cpu")):
        if name != "cpu" and (names is None or name in names) and len(ticks) >= len(_BUSY) + len(_IDLE):
            busy += sum(int(ticks[place]) for place in _BUSY)
            idle += sum(int(ticks[place]) for place in _IDLE)
    return busy / os.sysconf("SC_CLK_TCK") if busy + idle else None  # some containers show zeros


def _process_s(pid: int) -> float | None:
    """Processor seconds of a process, its threads, and its children that have ended; None where that is unknown."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        with_children = pid != os.getpid()  # whose children, the workers, are counted by themselves
        return sum(map(int, fields[11 : 15 if with_children else 13])) / os.sysconf("SC_CLK_TCK")
    return None


def child_pids(pid: int) -> list[int]:
    """The processes that a process has started and that have not ended; none where the system does not tell."""
    found: list[int] = []
    for path in (_PROC / str(pid) / "task").glob("*/children"):
        with contextlib.suppress(OSError, ValueError):
            found += map(int, path.read_text().split())
    return found


def _load_average() -> float | None:
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None
