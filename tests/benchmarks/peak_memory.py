"""Peak memory of a pass, each in a process of its own: most resident memory during the second pass less that before it.

The first pass pays once for what stays (compiled kernels, an optimizer's state), on both sides alike.
"""

import ctypes
import sys
from pathlib import Path

import torch
from clock import CPU, fresh_process
from rivals import WORKS, Side, images, make

from archsearch.device import peak_memory_bytes, reset_peak_memory


def peak_bytes(side: Side, name: str, task: str, image_size: int, batch_size: int, threads: int) -> int:
    """The second pass in float32 in a fresh process; Linux alone."""
    with fresh_process("timm") as pool:
        return pool.submit(_peak_here, side, name, task, image_size, batch_size, threads).result()


def _peak_here(side: Side, name: str, task: str, image_size: int, batch_size: int, threads: int) -> int:
    torch.set_num_threads(threads)
    work = WORKS[task](make(side, name, image_size), images(batch_size, image_size), "float32")
    work()
    _give_back()
    reset_peak_memory(CPU)
    before = _resident_bytes()
    work()
    peak = peak_memory_bytes(CPU)
    assert peak is not None, f"{sys.platform} keeps no peak"
    return peak - before


def _give_back() -> None:
    """Return what building left free: kept, the pass would find it there and seem to need less."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim:
        trim(0)


def _resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS in /proc/self/status")
