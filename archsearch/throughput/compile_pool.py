"""Processes that compile the networks of the next trials while the present one is at work, so that each finds its code in the cache on disk."""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from archsearch.blocks import BlockFile
from archsearch.cores import usable_cores
from archsearch.device import device_lock
from archsearch.models import build_for_timing
from archsearch.space import Arch, register_files
from archsearch.system import Say, ignore
from archsearch.throughput.compiler import compile_ahead, keep_progress_bars_here
from archsearch.throughput.measurement import Measurement

_MOST_PROCESSES = 4  # a network takes some hundred MB of memory, on CUDA of the device's too
_CORES_EACH = 4
_NICE = 19  # the least priority: what is trained meanwhile comes first


def pool_size(measurement: Measurement) -> int:
    """Processes that may compile beside a run: a quarter of the cores where a GPU computes, else the cores that the run leaves idle."""
    cores = len(measurement.cpus) if measurement.cpus is not None else usable_cores() or 1
    spare = cores - measurement.num_threads if measurement.device == "cpu" else cores // _CORES_EACH
    return max(0, min(spare, _MOST_PROCESSES))


class CompilePool:
    """Compiles architectures as they will be measured, at most `size` at once, each in a process of its own; on a CPU from the end of `paused` on.

    A process that fails or is killed says nothing: the measurement compiles the network itself, and reports what is wrong with it. None
    outlives this process, whose group it belongs to.
    """

    def __init__(self, measurement: Measurement, blocks: Mapping[str, str], size: int) -> None:
        self._measurement, self._blocks = measurement, dict(blocks)
        self._threads = torch.get_num_threads()  # which the compiled code of a CPU depends on
        self._waiting: dict[str, Mapping[str, Any]] = {}  # architectures by arch_id, in order
        self._at_work: set[str] = set()
        self._known: set[str] = set()
        self._is_paused = measurement.device == "cpu"  # else the first timing would wait for what was just begun
        self._changed = threading.Condition()
        for _ in range(size):
            threading.Thread(target=self._serve, daemon=True).start()

    def add(self, archs: Iterable[Mapping[str, Any]]) -> None:
        """Have these architectures, as `Arch.to_dict` gives them, compiled in order; each once."""
        with self._changed:
            for document in archs:
                arch_id = Arch.from_dict(document).arch_id
                if arch_id not in self._known:
                    self._known.add(arch_id)
                    self._waiting[arch_id] = document
            self._changed.notify_all()

    def claim(self, arch_id: str, say: Say = ignore) -> None:
        """Take over an architecture: it is not begun any more, and where it is being compiled, this says so and waits for the end."""
        with self._changed:
            self._known.add(arch_id)
            self._waiting.pop(arch_id, None)
            if arch_id in self._at_work:
                say("compiling, begun ahead")
            self._changed.wait_for(lambda: arch_id not in self._at_work)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is compiled inside: waits for what is being compiled, and begins nothing new."""
        with self._changed:
            self._is_paused = True
            self._changed.wait_for(lambda: not self._at_work)
        try:
            yield
        finally:
            with self._changed:
                self._is_paused = False
                self._changed.notify_all()

    def wait(self) -> None:
        """Until all that was added is compiled."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._at_work)

    def _serve(self) -> None:
        """Compile one architecture after another; a thread that only waits for its processes."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting and not self._is_paused)
                arch_id, document = next(iter(self._waiting.items()))
                del self._waiting[arch_id]
                self._at_work.add(arch_id)
            try:
                job = (document, self._measurement.to_dict(), self._blocks, self._threads)
                process = multiprocessing.get_context("spawn").Process(target=_compile, args=job, daemon=True)
                process.start()
                process.join()
            finally:
                with self._changed:
                    self._at_work.discard(arch_id)
                    self._changed.notify_all()


def _compile(arch: Mapping[str, Any], settings: Mapping[str, Any], blocks: Mapping[str, str], threads: int) -> None:
    """The main function of a process: compile one architecture."""
    if hasattr(os, "nice"):
        os.nice(_NICE)
    keep_progress_bars_here()
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # of several processes each takes one core
    measurement = Measurement.from_dict(settings)
    measurement.use_device()
    torch.set_num_threads(threads)
    register_files(BlockFile(name, text) for name, text in blocks.items())
    device = measurement.torch_device
    # Another run must not time on this CPU meanwhile; a GPU has nothing to do.
    held = device_lock(device, exclusive=False) if device.type == "cpu" else contextlib.nullcontext()
    with held:
        compile_ahead(build_for_timing(Arch.from_dict(arch)), measurement.protocol(), device)
