"""One order of networks in each runtime: torch eager, torch compile, ONNX Runtime and OpenVINO on this CPU.

    python tests/benchmarks/runtimes.py [--papers 10] [--hybrids 20] [--int8 FOLDER] [--busy] [--without "torch compile"]

The papers' models nearest 4.5 GMACs and hybrids within 5 % of it, each in all runtimes before the next, beside the same reference, by a
protocol of a few seconds. Prints the images per second, Kendall's tau between the orders of each pair of runtimes by the ratio to the
reference, and with `--int8` what eight bits gain for the first three, calibrated with pictures of the folder. `--busy` is written
into the file: other work ran beside it. Ctrl-C ends it early with the networks that were done.
"""

import argparse
import contextlib
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, zip_longest
from pathlib import Path
from typing import Any

from clock import CPU, Row, arguments, quiet_device, write
from torch import Tensor, nn

from archsearch import build, paper
from archsearch.errors import RunError
from archsearch.metrics import kendall_tau
from archsearch.report import make_console, make_table, show
from archsearch.space import Arch, Band, Bounds, choose_papers, draw, load_space, reference_arch
from archsearch.throughput import Protocol, measure
from archsearch.throughput.backends import load

BUDGET = 4_500_000_000
SMOKE_PAPERS = ("van_b0", "pvt_tiny")
WAYS: dict[str, dict[str, Any]] = {
    "torch eager": {},
    "torch compile": {"mode": "compile"},
    "onnxruntime": {"runtime": "onnxruntime", "precision": "float32"},
    "openvino": {"runtime": "openvino", "precision": "float32"},
}
KEPT = ("throughput_img_s", "throughput_iqr", "ratio_to_reference", "noisy", "drifted", "difference_from_torch")


def chosen(options: argparse.Namespace) -> dict[str, Arch]:
    """By name; papers' models and hybrids in turn, so that a run that ends early has both."""
    space, rng, band = load_space("hybrid"), random.Random(options.seed), Bounds(macs=Band.around(BUDGET, 0.05))
    papers = SMOKE_PAPERS if options.smoke else choose_papers("nearest", BUDGET, 224)[: options.papers]
    drawn = {f"hybrid {number}": draw(space, band, rng)[1] for number in range(options.hybrids)}
    both = zip_longest([(name, paper(name)) for name in papers], drawn.items())
    return dict(pair for pairs in both for pair in pairs if pair is not None)


def make_protocol(options: argparse.Namespace, **how: Any) -> Protocol:
    """Shorter than that of a run: a warm-up of half a second and one round, of five blocks at most."""
    made = Protocol.for_device(CPU, batch_size=options.batch_size, **how)
    short = replace(made, warmup_s=0.5, min_warmup_iterations=3, min_blocks=5, settled_blocks=None, max_s=0.0)
    return replace(short, image_size=64, warmup_s=0.0, min_blocks=2) if options.smoke else short


def share_files() -> None:
    """Give all runtimes one and the same file of a network: writing it takes most of the time of a measurement."""
    write_file, kept = load.__dict__["export_onnx"], dict[Any, bytes]()

    def shared(network: nn.Module, file: Path, images: Tensor, *, is_dynamic: bool) -> None:
        key = (network.arch_id, images.shape, images.dtype)
        if key not in kept:
            write_file(network, file, images, is_dynamic=is_dynamic)
            kept.clear()
            kept[key] = file.read_bytes()
        file.write_bytes(kept[key])

    load.__dict__["export_onnx"] = shared


def measured(options: argparse.Namespace) -> Iterator[Row]:
    """A row for each network and runtime; those in eight bits for the first three."""
    protocols = {way: make_protocol(options, **how) for way, how in WAYS.items() if way not in options.without}
    reference = build(reference_arch(), image_size=next(iter(protocols.values())).image_size)
    for number, (name, arch) in enumerate(chosen(options).items()):
        model = build(arch, image_size=next(iter(protocols.values())).image_size)
        these = dict(protocols)
        if options.int8 and number < 3:
            for runtime in ("onnxruntime", "openvino"):
                how = {"runtime": runtime, "precision": "int8", "calibration_data": options.int8}
                these[f"{runtime} int8"] = make_protocol(options, **how)
        for way, protocol in these.items():
            began = time.perf_counter()
            row: Row = {"model": name, "arch_id": arch.arch_id, "runtime": way}
            try:
                with quiet_device():
                    figures = measure(model, protocol, CPU, reference=reference)
                row |= {key: getattr(figures, key) for key in KEPT} | {"error": None}
            except RunError as error:
                row |= {"error": str(error)}
            row |= {"precision": protocol.precision or protocol.dtype, "prepare_s": time.perf_counter() - began}
            print(
                {
                    key: row.get(key)
                    for key in ("model", "runtime", "throughput_img_s", "ratio_to_reference", "prepare_s", "error")
                },
                flush=True,
            )
            yield row


def report(rows: Sequence[Row]) -> None:
    """Images per second of networks that were measured in all runtimes, the taus, and the gain of eight bits."""
    ways = [way for way in WAYS if any(row["runtime"] == way for row in rows)]
    figures = {(row["model"], row["runtime"]): row for row in rows if not row["error"]}
    names = [
        name for name in dict.fromkeys(row["model"] for row in rows) if all((name, way) in figures for way in ways)
    ]
    cells = [
        [name, *(f"{figures[name, way]['throughput_img_s']:.2f}{'~' * figures[name, way]['noisy']}" for way in ways)]
        for name in names
    ]
    show(make_console(), make_table(["network", *(f"{way}, img/s" for way in ways)], cells, left=("network",)))
    for one, other in combinations(ways, 2):
        sides = [[figures[name, way]["ratio_to_reference"] for name in names] for way in (one, other)]
        print(f"Kendall's tau, {one} against {other}: {kendall_tau(*sides):.2f}")
    for (name, way), row in figures.items():
        if way.endswith("int8"):
            gain = row["throughput_img_s"] / figures[name, way.removesuffix(" int8")]["throughput_img_s"]
            print(
                f"{name}: {way} is {gain:.2f} times as fast as float32, logits {row['difference_from_torch']:.2g} of the largest apart"
            )
    for row in rows:
        if row["error"]:
            print(f"{row['model']}, {row['runtime']}: {row['error']}")


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--papers", type=int, default=10, help="so many of the fixed trials (default 10)")
    parser.add_argument("--hybrids", type=int, default=20, help="so many hybrids (default 20)")
    parser.add_argument("--batch-size", type=int, default=2, help="a run's own on a CPU by default")
    parser.add_argument("--int8", metavar="FOLDER", help="pictures to calibrate eight bits with (default no int8)")
    parser.add_argument("--without", nargs="*", default=[], choices=list(WAYS), help="runtimes to leave out")
    parser.add_argument("--busy", action="store_true", help="write into the file that other work ran beside it")
    parser.add_argument("--seed", type=int, default=0, help="of the hybrids")


def main() -> None:
    """Measure, print, write."""
    options = arguments(__doc__ or "", add=_options)
    if options.smoke:
        options.hybrids = 0
    share_files()
    rows: list[Row] = []
    with contextlib.suppress(KeyboardInterrupt):
        for row in measured(options):
            rows.append(row)  # one by one: what is done is kept
    report(rows)
    write(options.out, "runtimes", rows, busy=options.busy)


if __name__ == "__main__":
    main()
