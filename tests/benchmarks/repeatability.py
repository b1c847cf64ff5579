"""Whether a throughput can be repeated: the ten fixed trials benched twice, minutes apart, each time in an order of its own.

    python tests/benchmarks/repeatability.py [--pause 5] [--load | --busy 4] [--drawn 8]

Each time in a fresh process, by `archsearch.throughput.throughput` between two timings of the reference, as in a run. `--load` has
another process multiply matrices on one core during the second time, `--busy N` N of them both times. `--drawn N` takes N candidates of
the default space of about the same cost in place of the fixed trials. Prints the change of each ratio to the reference, the median of
their sizes, and Kendall's tau between the two orders: by the ratio, which a run ranks, and by images/s as timed.
"""

import argparse
import contextlib
import math
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from clock import CPU, Row, arguments, fresh_process, quiet_device, write

from archsearch import build, paper
from archsearch.device import use_cpu
from archsearch.metrics import kendall_tau
from archsearch.report import make_console, make_table, show
from archsearch.space import Arch, Band, Bounds, choose_papers, draw, load_space, reference_arch
from archsearch.throughput import Protocol, measure

BUDGET = 4_500_000_000
SMOKE_PAPERS = ("van_b0", "pvt_tiny")
KEPT = (
    *("throughput_img_s", "throughput_iqr", "latency_ms", "num_blocks", "iterations", "warmup_iterations", "noisy"),
    *("reference_img_s", "ratio_to_reference", "drift", "drifted", "peak_memory_bytes", "measure_s"),
    *("batch_size", "image_size", "dtype", "mode", "device"),
)
COLUMNS = ("model", "img/s", "again", "ratio", "again", "change", "drift", "again")
# Ends with the process that started it, however that ends.
LOAD = """
import os
import numpy
parent, a = os.getppid(), numpy.random.rand(768, 768).astype("float32")
while os.getppid() == parent:
    a @ a
"""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def make_protocol(options: argparse.Namespace) -> Protocol:
    """That of a run on a CPU."""
    protocol = Protocol.for_device(CPU, batch_size=options.batch_size, dtype=options.dtype)
    if not options.smoke:
        return protocol
    short = replace(protocol, batch_size=1, image_size=64, warmup_s=0.0, block_s=0.0, min_blocks=2, max_s=0.0)
    return replace(short, min_warmup_iterations=1, min_slow_warmup_iterations=1)


def chosen(options: argparse.Namespace) -> dict[str, Arch]:
    """The networks by name: the fixed trials, or candidates drawn within 5 % of the budget."""
    if options.drawn:
        space, rng = load_space("hybrid"), random.Random(options.seed)
        band = Band.around(BUDGET, 0.05)
        return {f"drawn {number}": draw(space, Bounds(macs=band), rng)[1] for number in range(options.drawn)}
    names = SMOKE_PAPERS if options.smoke else choose_papers("nearest", BUDGET, 224)
    return {name: paper(name) for name in names}


def bench(models: Sequence[tuple[str, dict[str, Any]]], protocol: Protocol, threads: int) -> list[Row]:
    """A row for each model, given as a document, in this order; for a process of its own."""
    use_cpu(threads)
    size = protocol.image_size
    reference = build(reference_arch(), image_size=size)
    rows = []
    for name, document in models:
        model = build(Arch.from_dict(document), image_size=size)
        with quiet_device():
            figures = measure(model, protocol, CPU, reference=reference)
        rows.append({"model": name, **{key: getattr(figures, key) for key in KEPT}})
        print(f"{name}: {figures.throughput_img_s:.2f} img/s, ratio {figures.ratio_to_reference:.4f}", flush=True)
    return rows


@contextlib.contextmanager
def loaded_cores(number: int) -> Iterator[None]:
    """So many other processes that each keep a core busy."""
    loads = [subprocess.Popen([sys.executable, "-c", LOAD], env=os.environ | ONE_THREAD) for _ in range(number)]
    try:
        yield
        assert all(load.poll() is None for load in loads), "a load ended by itself"
    finally:
        for load in loads:
            load.kill()
            load.wait()


def bench_twice(options: argparse.Namespace) -> Iterator[Row]:
    """Rows of both times, the second after the pause."""
    models = [(name, arch.to_dict()) for name, arch in chosen(options).items()]
    shuffler, protocol = random.Random(options.seed), make_protocol(options)
    for number in (1, 2):
        if number == 2:
            time.sleep(60 * options.pause)
        shuffler.shuffle(models)
        busy = options.busy or int(options.load and number == 2)
        with loaded_cores(busy), fresh_process() as pool:
            rows = pool.submit(bench, models, protocol, options.threads).result()
        for place, row in enumerate(rows, start=1):
            yield {"time": number, "place": place, "is_loaded": busy > 0, **row}


def report(rows: Sequence[Row]) -> None:
    """The table and the two figures."""
    first, second = ({row["model"]: row for row in rows if row["time"] == number} for number in (1, 2))
    pairs = [(first[name], second[name]) for name in sorted(first)]
    changes = [after["ratio_to_reference"] / before["ratio_to_reference"] - 1 for before, after in pairs]
    cells = [_cells(before, after, change) for (before, after), change in zip(pairs, changes, strict=True)]
    show(make_console(), make_table(COLUMNS, cells, left=("model",)))
    orders = [[row["ratio_to_reference"] for row in side] for side in zip(*pairs, strict=True)]
    rates = [[math.log(row["throughput_img_s"]) for row in side] for side in zip(*pairs, strict=True)]
    median_rate = statistics.median(abs(math.expm1(b - a)) for a, b in zip(*rates, strict=True))
    print(
        f"\nmedian change of the ratio {statistics.median(map(abs, changes)):.2%}, largest {max(map(abs, changes)):.2%}"
    )
    print(f"median change of images/s as such {median_rate:.2%}")
    print(f"Kendall's tau between the two orders, by the ratio: {kendall_tau(*orders):.3f}")
    print(f"Kendall's tau between the two orders, by images/s as timed: {kendall_tau(*rates):.3f}")
    noisy = sum(row["noisy"] for row in rows)
    print(f"{noisy} of {len(rows)} timings noisy")


def _cells(before: Row, after: Row, change: float) -> list[str]:
    def each(key: str, pattern: str) -> list[str]:
        return [format(side[key], pattern) for side in (before, after)]

    drifts = [drift + "!" * side["drifted"] for side, drift in zip((before, after), each("drift", ".1%"), strict=True)]
    rates = [
        rate + "~" * side["noisy"] for side, rate in zip((before, after), each("throughput_img_s", ".2f"), strict=True)
    ]
    return [before["model"], *rates, *each("ratio_to_reference", ".4f"), f"{change:+.2%}", *drifts]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pause", type=float, default=5.0, help="minutes between the two times (default 5)")
    parser.add_argument("--load", action="store_true", help="keep one core busy during the second time")
    parser.add_argument("--busy", type=int, default=0, help="keep so many processes busy both times")
    parser.add_argument("--drawn", type=int, default=0, help="so many drawn candidates in place of the fixed trials")
    parser.add_argument("--batch-size", type=int, default=2, help="a run's own on a CPU by default")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "amp_bfloat16"])
    parser.add_argument("--seed", type=int, default=0, help="of the two orders")


def main() -> None:
    """Measure, print, write."""
    options = arguments(__doc__ or "", add=_options)
    if options.smoke:
        options.pause = 0.0
    rows = list(bench_twice(options))
    report(rows)
    name = "repeatability-busy" if options.busy else "repeatability-loaded" if options.load else "repeatability"
    write(options.out, name, rows, pause_minutes=options.pause, busy=options.busy)


if __name__ == "__main__":
    main()
