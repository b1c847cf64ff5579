"""What runs on the nodes of a Ray cluster: the actor that evaluates jobs, and the one that hands out the prepared images. No torch."""

import contextlib
import json
import os
import queue
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from archsearch.cores import cpu_name
from archsearch.data.prepared import FILES, MANIFEST, check_prepared, fingerprint, is_prepared, read_manifest
from archsearch.errors import ArchsearchError, UserError, one_line
from archsearch.lock import machine_lock
from archsearch.search.engine.workers.base import Job
from archsearch.search.engine.workers.process import evaluate_job, load_evaluator

_CHUNK_BYTES = 16 << 20
# Progress is handed on at most this often, since each time costs the cluster a message; the end of a phase at once.
_EVERY_S = 0.2


class NodeWorker:
    """An actor that evaluates one job at a time in its own process; what the evaluation prints goes to Ray's log of the actor."""

    def __init__(self, evaluator: str, device: str) -> None:
        if device == "cuda":
            # Ray sets one thread for an actor without `num_cpus`; beside a GPU the threads are PyTorch's own choice, as without Ray.
            os.environ.pop("OMP_NUM_THREADS", None)
        self._evaluator, self._device = evaluator, device
        # One thread for all jobs: PyTorch's threads on a CPU belong to the one that calls them.
        self._thread = ThreadPoolExecutor(1)
        self._folder: str | None = None

    def start(self, folder: str | None, digits: str | None, shelf: Any) -> dict[str, Any]:
        """What this worker is: `device_name`, `log`; or `refusal`, why it cannot work here. Fetches the prepared images where they are missing."""
        try:
            if folder is not None and digits is not None:
                self._folder = str(_local_copy(Path(folder), digits, shelf))
            return {"device_name": self._thread.submit(_device_name, self._device).result(), "log": _log()}
        except ArchsearchError as error:
            return {"refusal": str(error)}

    def conditions(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """`device.conditions` here, as a timing with these settings would have them."""
        return self._thread.submit(_conditions, settings).result()

    def evaluate(self, text: str) -> Iterator[str]:
        """The events of a job, both as JSON, in lists of those that came together."""
        job = Job(**json.loads(text))
        if self._folder is not None:
            source = {**job.settings["proxy"]["source"], "prepared": self._folder}
            job.settings["proxy"] = {**job.settings["proxy"], "source": source}
        events: queue.Queue[str] = queue.Queue()
        self._thread.submit(self._evaluate, job, events)
        is_over = False
        while not is_over:
            sent, deadline = [json.loads(events.get())], time.monotonic() + _EVERY_S
            while sent[-1]["event"] == "progress" and (left := deadline - time.monotonic()) > 0:
                with contextlib.suppress(queue.Empty):
                    sent.append(json.loads(events.get(timeout=left)))
            yield json.dumps(sent)
            is_over = sent[-1]["event"] in ("done", "failed")

    def _evaluate(self, job: Job, events: "queue.Queue[str]") -> None:
        last = evaluate_job(load_evaluator(self._evaluator), job, lambda event: events.put(event.decode()))
        events.put(json.dumps({"trial": job.trial, **last}))


class Shelf:
    """An actor beside the driver that hands out the files of a prepared folder, the one that was there when the run began."""

    def __init__(self, folder: str) -> None:
        self._directory = os.open(folder, os.O_RDONLY)

    def read(self, name: str, offset: int) -> bytes:
        """The next bytes of a file; none at its end."""
        assert name in (MANIFEST, *FILES)
        with open(name, "rb", opener=lambda path, flags: os.open(path, flags, dir_fd=self._directory)) as file:
            file.seek(offset)
            return file.read(_CHUNK_BYTES)


def _local_copy(folder: Path, digits: str, shelf: Any) -> Path:
    """The prepared folder, or where this node has none a copy in its cache, fetched once; UserError where it holds other images."""
    if is_prepared(folder):
        _check_same(folder, digits)
        return folder
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "archsearch" / "ray" / digits
    with machine_lock(f"images-{digits}", exclusive=True):
        if not is_prepared(cache):
            _fetch(shelf, cache)
    _check_same(cache, digits)
    return cache


def _check_same(folder: Path, digits: str) -> None:
    found = fingerprint(read_manifest(folder))
    if found != digits:
        raise UserError(
            f"{folder} holds other images there ({found}) than this run trains on ({digits}); "
            "copy the folder to this node, or delete it there and it is fetched"
        )


def _fetch(shelf: Any, target: Path) -> None:
    """Copy the files of the shelf, check their hashes, and only then give the folder its name."""
    import ray

    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        for name in (MANIFEST, *FILES):
            with open(temporary / name, "wb") as file:
                while chunk := ray.get(shelf.read.remote(name, file.tell())):
                    file.write(chunk)
        check_prepared(temporary)
        with contextlib.suppress(FileExistsError):  # another node that shares this cache was faster
            temporary.rename(target)
    except OSError as error:
        raise UserError(f"{target}: the images cannot be fetched: {one_line(error.strerror or str(error))}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _device_name(device: str) -> str:
    """As `device.conditions` has it; torch is imported only for a GPU."""
    if device == "cpu":
        return cpu_name()
    import torch

    return torch.cuda.get_device_name()


def _conditions(settings: Mapping[str, Any]) -> dict[str, Any]:
    from archsearch.device import conditions
    from archsearch.throughput import Measurement

    measurement = Measurement.from_dict(settings)
    measurement.use_device()
    return {**conditions(measurement.torch_device), "threads": measurement.num_threads}


def _log() -> str:
    """The file that this process prints to."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/fd/1")
    return "Ray's logs"
