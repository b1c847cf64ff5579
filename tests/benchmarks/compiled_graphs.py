"""What torch.compile makes of a forward pass: kernels, copies among them, and the operations called; ours and timm's.

    python tests/benchmarks/compiled_graphs.py [--models swin_tiny twins_pcpvt_small]

Float32, eval and inference mode, on the CPU. The compiler is stopped once its kernels are decided on, so that nothing is built
or run. The same code fuses and chooses layouts for a GPU; there it also fuses concatenations, and treats networks of few
convolutions otherwise.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NoReturn

import torch
from clock import Row, arguments, write
from rivals import TIMM, Side, images, make
from torch import Tensor, nn
from torch._inductor import config, scheduler
from torch._inductor.exc import InductorError

from archsearch import build, paper
from archsearch.report import make_console, make_table, show

TEN = (
    *("davit_tiny", "litv2_s", "lit_s", "twins_svt_small", "twins_pcpvt_small"),
    *("msg_transformer_tiny", "van_b2", "crossformer_small", "pvt_small", "swin_tiny"),
)
BATCH_SIZE, IMAGE_SIZE = 2, 224
# What a kernel that computes nothing consists of; padding and cropping compare positions.
MOVES = frozenset("load store output get_index index_expr constant masked where lt ge le gt and_ logical_and".split())
CALLS = {"matmuls": "mm", "convolutions": "convolution", "attentions": "scaled_dot_product"}
COUNTS = ("kernels", "copies", "kernel_mib", "copied_mib", *CALLS, "others")


class StopError(Exception):
    """Ends a compilation."""


def count_compiled(model: nn.Module, x: Tensor) -> Row:
    """Kernels of the compiled forward pass and MiB that they read and write, copies likewise, and calls of operations by kind."""
    row: Row = dict.fromkeys(COUNTS, 0)

    def count(nodes: Sequence[scheduler.BaseSchedulerNode]) -> NoReturn:
        for node in nodes:
            _add(row, node)
        raise StopError

    torch._dynamo.reset()
    with config.patch(_post_fusion_custom_pass=count, force_disable_caches=True), torch.inference_mode():
        try:
            torch.compile(model.eval(), fullgraph=True, dynamic=False)(x)
        except InductorError as error:
            if not isinstance(error.inner_exception, StopError):
                raise
    return row


def _add(row: Row, node: scheduler.BaseSchedulerNode) -> None:
    if isinstance(node, scheduler.ExternKernelSchedulerNode):
        called = getattr(node.node, "op_overload", None)
        if called is not None:  # else it is one of the outputs of such a call
            row[next((kind for kind, part in CALLS.items() if part in str(called)), "others")] += 1
    elif not isinstance(node, scheduler.NopKernelSchedulerNode):
        mib = node.get_read_write_buffers_sizes() / 2**20
        row["kernels"], row["kernel_mib"] = row["kernels"] + 1, row["kernel_mib"] + mib
        parts = [part for part in node.get_nodes() if isinstance(part, scheduler.SchedulerNode)]
        if MOVES.issuperset(name for part in parts for name in part._body.op_counts):
            row["copies"], row["copied_mib"] = row["copies"] + 1, row["copied_mib"] + mib


def rows_of(models: Sequence[str]) -> Iterator[Row]:
    """Each model, ours and then timm's where it has it."""
    for name in models:
        sides: list[Side] = ["ours", "timm"] if name in TIMM else ["ours"]
        for side in sides:
            yield row_of(name, side, make(side, name, IMAGE_SIZE))


def row_of(name: str, side: Side, model: nn.Module) -> Row:
    """The counts of one network, and the seconds that the compiler took for them."""
    start = time.perf_counter()
    counts = count_compiled(model, images(BATCH_SIZE, IMAGE_SIZE))
    seconds = time.perf_counter() - start
    conditions = {"dtype": "float32", "batch_size": BATCH_SIZE, "image_size": IMAGE_SIZE}
    return {"model": name, "side": side, **conditions, **counts, "seconds": seconds}


def smallest(name: str) -> nn.Module:
    """One block a stage."""
    arch = paper(name)
    return build(replace(arch, stages=tuple(replace(stage, depth=1) for stage in arch.stages)))


def main() -> None:
    """Prints the table and writes the file."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--models", nargs="+", default=TEN, choices=TEN, help="by default the ten fixed trials")

    options = arguments(str(__doc__), add=add)
    name = options.models[0]
    rows = [row_of(name, "ours", smallest(name))] if options.smoke else list(rows_of(options.models))
    columns = ("model", "side", *COUNTS)
    cells = [[f"{row[name]:.1f}" if name.endswith("mib") else str(row[name]) for name in columns] for row in rows]
    show(make_console(), make_table(columns, cells, left=columns[:2]))
    write(options.out, "compiled_graphs", rows)


if __name__ == "__main__":
    main()
