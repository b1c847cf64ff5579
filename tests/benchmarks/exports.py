"""Every paper's model and 50 hybrids within 5 % of 4.5 GMACs, written as ONNX and pt2 files and checked against torch.

    python tests/benchmarks/exports.py [--hybrids 50] [--format onnx]

Each for any batch, with random numbers in every vector of the network, on 64 images. Prints the files written of those tried, the largest
difference, seconds and bytes, and every failure by name. Ctrl-C ends it early with what was done.
"""

import argparse
import contextlib
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from clock import Row, arguments, write
from support.shaken import shaken

from archsearch import paper, paper_names
from archsearch.errors import ArchsearchError
from archsearch.models.export.check import Check
from archsearch.models.export.onnx import write_onnx
from archsearch.models.export.torch_export import write_pt2
from archsearch.space import Arch, Band, Bounds, draw, load_space

BUDGET = 4_500_000_000
WRITERS: dict[str, Callable[..., Check]] = {"onnx": write_onnx, "pt2": write_pt2}


def chosen(options: argparse.Namespace) -> Iterator[tuple[str, Arch]]:
    """Papers' models and hybrids in turn, the cheap papers first, so that a run that ends early has both."""
    space, rng, band = load_space("hybrid"), random.Random(0), Bounds(macs=Band.around(BUDGET, 0.05))
    papers = sorted(map(paper, paper_names()), key=lambda arch: arch.cost().macs)[: 1 if options.smoke else None]
    hybrids = [draw(space, band, rng)[1] for _ in range(0 if options.smoke else options.hybrids)]
    for model, hybrid in zip_longest(papers, enumerate(hybrids)):
        if model is not None:
            yield str(model.name), model
        if hybrid is not None:
            yield f"hybrid {hybrid[0]}", hybrid[1]


def row_of(name: str, arch: Arch, kind: str, folder: Path) -> Row:
    """One file."""
    network, file = shaken(arch), folder / f"network.{kind}"
    cost, began = arch.cost(), time.perf_counter()
    row: Row = {"model": name, "arch_id": arch.arch_id, "format": kind, "macs": cost.macs, "params": cost.params}
    try:
        check = WRITERS[kind](network, file, image_size=arch.image_size, in_chans=arch.in_chans, batch=None)
    except ArchsearchError as error:
        return row | {"error": str(error), "seconds": time.perf_counter() - began}
    figures = {name: getattr(check, name) for name in ("relative_difference", "images", "equal_top1")}
    return row | figures | {"seconds": time.perf_counter() - began, "bytes": file.stat().st_size, "error": None}


def report(rows: Sequence[Row]) -> None:
    """A line for each format, and the failures."""
    for kind in WRITERS:
        tried = [row for row in rows if row["format"] == kind]
        done = [row for row in tried if not row["error"]]
        if done:
            seconds, weight = (statistics.median(row[name] for row in done) for name in ("seconds", "bytes"))
            over = statistics.median(row["bytes"] / (4 * row["params"]) for row in done)
            print(
                f"{kind}: {len(done)} of {len(tried)} written, largest difference {max(row['relative_difference'] for row in done):.2g} of the largest logit, "
                f"top-1 equal on {sum(row['equal_top1'] for row in done)} of {sum(row['images'] for row in done)} images; "
                f"medians {seconds:.0f} s, {weight / 1e6:.1f} MB, {over:.3f} of the bytes of the parameters"
            )
        for row in tried:
            if row["error"]:
                print(f"{kind}: {row['model']}: {row['error']}")


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hybrids", type=int, default=50, help="how many hybrids (default 50)")
    parser.add_argument("--format", choices=list(WRITERS), help="one format alone (default both)")


def main() -> None:
    """Write, check, print."""
    options = arguments(__doc__ or "", add=_options)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        for name, arch in chosen(options):
            for kind in [options.format] if options.format else WRITERS:
                row = row_of(name, arch, kind, Path(folder))
                rows.append(row)
                print(
                    {
                        key: row.get(key)
                        for key in ("model", "format", "relative_difference", "seconds", "bytes", "error")
                    },
                    flush=True,
                )
    report(rows)
    write(options.out, "exports", rows)


if __name__ == "__main__":
    main()
