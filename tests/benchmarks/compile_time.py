"""Seconds of a compiled network's first pass: with an empty compiler's cache, with a full one, and with one that a run's processes filled ahead.

    python tests/benchmarks/compile_time.py [--space hybrid] [--budget 4500000000] [--image-size 224]

One architecture, drawn from the space's band; every first pass is in a fresh process, with a cache of its own unless it is `warm`. `ahead_s` is
what one process of the pool took to fill the cache, beside which a run would be training.
"""

import argparse
import multiprocessing
import os
import random
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from clock import Row, arguments, write

from archsearch import load_space
from archsearch.models import build_for_timing
from archsearch.report import make_console, make_table, show
from archsearch.space import Arch, Band, Bounds, Space, draw
from archsearch.throughput import CompilePool, Measurement
from archsearch.throughput.timer import compiled, make_inputs, prepared

NAME = "compile_time"
COLUMNS = ("cache", "first pass", "processor", "ahead")
BATCH = 2
SMALLEST = """
image_size = 32
stem = { kind = "patch", patch = { kernel = 4 } }
[[stages]]
width = 32
depth = 1
block = "mlp"
"""


def first_pass(arch: Arch) -> tuple[float, float]:
    """Seconds, and those of the processor with the compilers that it starts."""
    torch.set_num_threads(1)
    measurement = _measurement(arch)
    protocol, device = measurement.protocol(), measurement.torch_device
    with prepared(build_for_timing(arch), protocol) as network, torch.inference_mode():
        forward, images = compiled(network, protocol), make_inputs(protocol, device)[0]
        before = os.times()
        forward(images)
        after = os.times()
    return after.elapsed - before.elapsed, sum(after[:4]) - sum(before[:4])


def _measurement(arch: Arch) -> Measurement:
    size, channels = arch.image_size, arch.in_chans
    return Measurement.resolve(
        device="cpu", mode="compile", batch_size=BATCH, image_size=size, in_chans=channels, threads=1
    )


def _fresh(arch: Arch, folder: str) -> tuple[float, float]:
    """The first pass in a process of its own, with the compiler's cache in this folder."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(first_pass, arch).result()


def _fill(arch: Arch, folder: str) -> float:
    """Have a pool of one process fill the cache in this folder; seconds."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    start = time.perf_counter()
    pool = CompilePool(_measurement(arch), {}, 1)
    with pool.paused():
        pool.add([arch.to_dict()])
    pool.wait()
    return time.perf_counter() - start


def measure(arch: Arch, folder: Path) -> Iterator[Row]:
    """One row for each state of the cache."""
    known = {"arch_id": arch.arch_id, "macs": arch.cost().macs, "image_size": arch.image_size, "batch_size": BATCH}
    for cache in ("cold", "warm", "ahead"):
        filled = str(folder / ("ahead" if cache == "ahead" else "own"))
        ahead_s = _fill(arch, filled) if cache == "ahead" else None
        first_s, processor_s = _fresh(arch, filled)
        yield {**known, "cache": cache, "first_s": first_s, "processor_s": processor_s, "ahead_s": ahead_s}


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--space", default="hybrid")
    parser.add_argument("--budget", type=int, default=4_500_000_000)
    parser.add_argument("--image-size", type=int, default=224)


def main() -> None:
    """Measure, print, write."""
    options = arguments(__doc__ or "", add=_options)
    if options.smoke:
        arch = Space(tomllib.loads(SMALLEST), source=NAME, text=SMALLEST).sample(lambda name, choices: choices[0])
    else:
        space = load_space(options.space).resized(options.image_size)
        arch = draw(space, Bounds(macs=Band.around(options.budget, 0.05)), random.Random(0))[1]
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measure(arch, Path(folder)))
    cells = [[row["cache"], *(_seconds(row[key]) for key in ("first_s", "processor_s", "ahead_s"))] for row in rows]
    show(make_console(), make_table(COLUMNS, cells, left=("cache",)))
    write(options.out, NAME, rows)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


if __name__ == "__main__":
    main()
