"""Every paper's model and 50 hybrids within 5 % of 4.5 GMACs, written in each format and compared with torch.

    python tests/benchmarks/exports.py [--hybrids 50] [--formats timm safetensors toml onnx pt2]

Random numbers are in every vector of the networks. ONNX and pt2 are for any batch. Prints the files written of those tried, the largest difference,
seconds and bytes, and every failure by name. Ctrl-C ends it early with what was done.
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
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
from clock import Row, arguments, write
from support.shaken import shaken

from archsearch import build, paper, paper_names
from archsearch.errors import ArchsearchError
from archsearch.models.export.check import Check
from archsearch.models.export.onnx import write_onnx
from archsearch.models.export.own_formats import write_safetensors, write_timm, write_toml
from archsearch.models.export.torch_export import write_pt2
from archsearch.space import Arch, Band, Bounds, draw, load_space

BUDGET = 4_500_000_000
PROVENANCE = {"weights": "random numbers of a benchmark"}


def _timm(network: Any, path: Path, **_: Any) -> Check:
    path.mkdir()
    return write_timm(network, path, provenance=PROVENANCE)


def _safetensors(network: Any, path: Path, **_: Any) -> Check:
    return write_safetensors(network, path, provenance=PROVENANCE)


def _toml(network: Any, path: Path, **_: Any) -> None:
    write_toml(network.arch, path)  # raises where it is read as another architecture


WRITERS: dict[str, Callable[..., Check | None]] = {
    "timm": _timm,
    "safetensors": _safetensors,
    "toml": _toml,
    "onnx": write_onnx,
    "pt2": write_pt2,
}


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


def drawn(arch: Arch) -> Any:
    """A shaken network in eval mode, as near to its initial weights as a deep one must be for finite logits."""
    network, images = (
        shaken(arch).eval(),
        torch.randn(1, *arch.image().tensor, generator=torch.Generator().manual_seed(0)),
    )
    torch.manual_seed(0)
    initial = build(arch)
    with torch.no_grad():
        while not network(images).isfinite().all():
            for parameter, start in zip(network.parameters(), initial.parameters(), strict=True):
                parameter.lerp_(start, 0.6)
    return network


def row_of(name: str, arch: Arch, kind: str) -> Row:
    """One file, or timm's folder."""
    network, cost = drawn(arch), arch.cost()
    row: Row = {"model": name, "arch_id": arch.arch_id, "format": kind, "macs": cost.macs, "params": cost.params}
    with tempfile.TemporaryDirectory() as folder:
        path, began = Path(folder, f"network.{kind}"), time.perf_counter()
        try:
            check = WRITERS[kind](network, path, image_size=arch.image_size, in_chans=arch.in_chans, batch=None)
        except ArchsearchError as error:
            check, row["error"] = None, str(error)
        else:
            row["error"] = None
        seconds = time.perf_counter() - began
        weight = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    figures = {name: getattr(check, name, None) for name in ("relative_difference", "images", "equal_top1")}
    return row | figures | {"seconds": seconds, "bytes": weight}


def report(rows: Sequence[Row]) -> None:
    """A line for each format, and the failures."""
    for kind in WRITERS:
        tried = [row for row in rows if row["format"] == kind]
        done = [row for row in tried if not row["error"]]
        if done:
            seconds, weight = (statistics.median(row[name] for row in done) for name in ("seconds", "bytes"))
            over = statistics.median(row["bytes"] / (4 * row["params"]) for row in done)
            print(
                f"{kind}: {len(done)} of {len(tried)} written, {_differences(done)}; "
                f"medians {seconds:.1f} s, {weight / 1e6:.3f} MB, {over:.3f} of the bytes of the parameters"
            )
        for row in tried:
            if row["error"]:
                print(f"{kind}: {row['model']}: {row['error']}")


def _differences(rows: Sequence[Row]) -> str:
    """How far the logits are apart, in words."""
    if rows[0]["images"] is None:
        return "each read as the same arch_id"
    return (
        f"largest difference {max(row['relative_difference'] for row in rows):.2g} of the largest logit, "
        f"top-1 equal on {sum(row['equal_top1'] for row in rows)} of {sum(row['images'] for row in rows)} images"
    )


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hybrids", type=int, default=50, help="how many hybrids (default 50)")
    parser.add_argument("--formats", nargs="+", choices=list(WRITERS), help="some formats alone (default all)")


def main() -> None:
    """Write, check, print."""
    options = arguments(__doc__ or "", add=_options)
    rows: list[Row] = []
    with contextlib.suppress(KeyboardInterrupt):
        for name, arch in chosen(options):
            for kind in options.formats or WRITERS:
                row = row_of(name, arch, kind)
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
