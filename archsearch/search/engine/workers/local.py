"""The workers on this machine: a process for each GPU; on a CPU, processes that train on cores of their own and time alone on all."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch

from archsearch.cores import usable_cores
from archsearch.device import affinity, visible_gpus
from archsearch.errors import UserError, shown
from archsearch.search.config import RunConfig
from archsearch.search.engine.workers.base import Workers
from archsearch.search.engine.workers.pool import Pool
from archsearch.search.engine.workers.process import ProcessWorker, wait_for_processes

# Of the default on a CPU: more trainings share the memory's bandwidth, and each process needs about so much memory.
_MOST_ON_CPU, _BYTES_EACH = 8, 2 * 2**30


def count_workers(asked: int | None, config: RunConfig, jobs: int) -> int:
    """The number of workers asked for; by default one for each GPU, or on a CPU one a core where the proxy is small, for `jobs` trials at most.

    Raises UserError for more than there are GPUs or cores.
    """
    device = config.measurement.device
    most = {"cuda": len(visible_gpus()) if device == "cuda" else 0, "mps": 1}.get(device, len(_cores(config)))
    if asked is not None:
        if asked > most:
            what = {"cuda": "GPUs", "mps": "GPU of this kind"}.get(device, "cores for this run")
            raise UserError(f"--workers: got {asked}, but there are {most} {what}; allowed are 1 to {most}, and auto")
        return asked
    if device == "cpu":
        threads = config.measurement.threads or most
        most = min(most, threads, _MOST_ON_CPU, _available_bytes() // _BYTES_EACH) if _has_small_proxy(config) else 1
    return max(1, min(most, jobs))


def local_workers(log: Path, config: RunConfig, number: int, *, device_class: str | None = None) -> Workers:
    """So many processes; what they print goes to the file `log`. GPUs of another name than `device_class`, by default the first one's, only train.

    Raises UserError for a class of which there is none.
    """
    if config.measurement.device == "cuda":
        gpus = visible_gpus()[:number]
        can_time = _can_time(len(gpus), device_class)
        members = [
            ProcessWorker(
                log, name=f"cuda:{index}", environment={"CUDA_VISIBLE_DEVICES": gpu}, own_settings={"workers": number}
            )
            for index, gpu in enumerate(gpus)
        ]
        for member, is_one in zip(members, can_time, strict=True):
            member.can_time = is_one
    else:
        parts = [_training_part(config, number, place) for place in range(number)]
        members = [
            ProcessWorker(log, name=_name(config, part), own_settings={"workers": number, "training": part})
            for part in parts
        ]
    return members[0] if len(members) == 1 else Pool(members, wait_for_processes)


def _can_time(number: int, device_class: str | None) -> list[bool]:
    """Which of the first GPUs are of the class."""
    names = [torch.cuda.get_device_name(index) for index in range(number)] if number > 1 or device_class else [""]
    wanted = device_class or names[0]
    if wanted not in names:
        raise UserError(f"--device-class: got {shown(wanted)}, but the GPUs here are {', '.join(dict.fromkeys(names))}")
    return [name == wanted for name in names]


def _training_part(config: RunConfig, number: int, place: int) -> dict[str, Any] | None:
    """Threads and cores that a worker trains with; None for all of the run's.

    On the embedded proxies' small networks two trainings of one thread each get through more images than one of two threads, and scores are the same
    bits for any number of workers.
    """
    cores, threads = _cores(config), config.measurement.threads
    own = [core for at, core in enumerate(cores) if at * number // len(cores) == place]
    is_single = _has_small_proxy(config) and threads is None
    if config.measurement.device != "cpu" or (number == 1 and not is_single):
        return None
    return {
        "threads": 1 if is_single else max(1, min(len(own), (threads or len(cores)) // number)),
        "cpus": own if number > 1 and affinity() is not None else None,
    }


def _name(config: RunConfig, part: dict[str, Any] | None) -> str:
    cpus = part["cpus"] if part else None
    return config.measurement.device + (f" {','.join(map(str, cpus))}" if cpus else "")


def _has_small_proxy(config: RunConfig) -> bool:
    """Whether it is an embedded or generated one, of small images."""
    kind = config.settings.get("proxy", {}).get("source", {}).get("kind")
    return kind is not None and kind != "data"


def _cores(config: RunConfig) -> list[int]:
    """The logical cores of the run."""
    return list(config.measurement.cpus or affinity() or range(usable_cores() or 1))


def _available_bytes() -> int:
    """Memory that can be used without swapping; much where the system does not tell."""
    found = sys.maxsize
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    with contextlib.suppress(OSError, ValueError):  # a container's limit
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        found = min(found, max(0, limit - used))
    return found
