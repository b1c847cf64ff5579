"""Whole models in turn in one process, A-B-B-A...: medians of the ratios pair by pair, above 1 where ours is faster or smaller.

    python tests/benchmarks/against_timm.py [--tasks forward train memory own dilated] [--seconds 6]

forward  eval, inference mode, 224 px, batch 4, in float32, bfloat16 (weights and all) and amp_bfloat16, against timm
train    forward, backward and AdamW at 112 px, batch 16, in float32 and amp_bfloat16, against timm. Swin at 224 px, batch 4,
         which is as many pixels: 112 px would bring its merging to a map of 7x7, which both pad
memory   peak of both in float32, each in fresh processes, against timm
own      bfloat16 and amp_bfloat16 forward against our own float32, the papers' models nearest to 4.5 G, one a family
dilated  VAN against itself with torch's own dilated convolution, in float32 and bfloat16, and that layer alone at each stage

timm has davit, twins and swin; of PVT it has only v2, which is another network than our pvt_small. Both sides get the same
images, no stochastic depth, and do the same work: MACs are compared first.
"""

import argparse
import copy
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from clock import Row, Spread, Work, arguments, geometric_mean, interleaved, quiet_device, ratios, write
from peak_memory import peak_bytes
from rivals import DTYPES, TIMM, WORKS, check_same_work, forward_of, images, make
from torch import nn

from archsearch import paper
from archsearch.blocks.van import DilatedDepthwise
from archsearch.report import make_console, make_table, show
from archsearch.space import choose_papers

TASK_DTYPES = {"forward": DTYPES, "train": ("float32", "amp_bfloat16")}
SIZES = {"forward": (224, 4), "train": (112, 16)}
PADDED_AT_112 = ("swin_tiny",)
PLAIN = "plain dilated convolution"
COLUMNS = ("task", "model", "dtype", "px", "batch", "ours", "other", "unit", "ratio", "IQR", "n", "against")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared, and for how long."""

    models: tuple[str, ...]
    own: tuple[str, ...]
    dilated: tuple[str, ...]
    seconds: float
    at_least: int
    threads: int
    memory_repeats: int = 3
    smoke: bool = False

    def size(self, task: str, name: str) -> tuple[int, int]:
        """Pixels and batch."""
        if self.smoke:
            return 64, 2
        return SIZES["forward" if name in PADDED_AT_112 else task]

    def timed(self, *works: Work, longest: float = math.inf) -> list[list[float]]:
        """Seconds of each work."""
        with quiet_device():
            return interleaved(works, seconds=min(self.seconds, longest), at_least=self.at_least)


def against_timm(plan: Plan, task: str) -> Iterator[Row]:
    """`forward` and `train`."""
    for name in plan.models:
        image_size, batch_size = plan.size(task, name)
        macs, theirs_macs = check_same_work(name, image_size)
        x = images(batch_size, image_size)
        for dtype in TASK_DTYPES[task]:
            ours, theirs = (WORKS[task](make(side, name, image_size), x, dtype) for side in ("ours", "timm"))
            times = plan.timed(ours, theirs)
            row = _row(task, name, dtype, image_size, batch_size, TIMM[name], times)
            yield {**row, "macs": macs, "other_macs": theirs_macs}


def memory(plan: Plan) -> Iterator[Row]:
    """Peaks of both tasks; medians over processes."""
    for task in WORKS:
        for name in plan.models:
            image_size, batch_size = plan.size(task, name)
            peaks = [
                [peak_bytes(side, name, task, image_size, batch_size, plan.threads) for _ in range(plan.memory_repeats)]
                for side in ("ours", "timm")
            ]
            ours, theirs = (statistics.median(figures) / 2**20 for figures in peaks)
            row = _bare(f"memory {task}", name, "float32", image_size, batch_size, TIMM[name])
            yield {**row, "ours": ours, "other": theirs, "unit": "MiB", "ratio": theirs / ours, "pairs": len(peaks[0])}


def own(plan: Plan) -> Iterator[Row]:
    """Our own dtypes, all three in turn."""
    for name in plan.own:
        image_size, batch_size = plan.size("forward", name)
        model, x = make("ours", name, image_size), images(batch_size, image_size)
        pure = copy.deepcopy(model)
        models = {"float32": model, "amp_bfloat16": model, "bfloat16": pure}
        times = dict(
            zip(models, plan.timed(*(forward_of(each, x, dtype) for dtype, each in models.items())), strict=True)
        )
        for dtype in ("bfloat16", "amp_bfloat16"):
            pair = [times[dtype], times["float32"]]
            yield _row("own", name, dtype, image_size, batch_size, "our float32", pair)


def dilated(plan: Plan) -> Iterator[Row]:
    """VAN's dilated convolution as it is against torch's own: the whole model, and the layer alone at each stage."""
    for name in plan.dilated:
        image_size, batch_size = plan.size("forward", name)
        model, x = make("ours", name, image_size).eval(), images(batch_size, image_size)
        plain = with_plain_convolution(model)
        with torch.inference_mode():
            torch.testing.assert_close(model(x), plain(x), rtol=1e-3, atol=1e-3)
        for dtype in ("float32", "bfloat16"):  # which turns both models for good
            times = plan.timed(forward_of(model, x, dtype), forward_of(plain, x, dtype))
            yield _row("dilated", name, dtype, image_size, batch_size, PLAIN, times)
            for path, shape in _dilated_layers(name, image_size).items():
                inner = torch.randn(batch_size, *shape).contiguous(memory_format=torch.channels_last)
                pair = (forward_of(whole.get_submodule(path), inner, dtype) for whole in (model, plain))
                size = "x".join(map(str, shape))
                yield _row(
                    "dilated layer",
                    f"{name} {size}",
                    dtype,
                    image_size,
                    batch_size,
                    PLAIN,
                    plan.timed(*pair, longest=0.5),
                )


def _dilated_layers(name: str, image_size: int) -> dict[str, tuple[int, ...]]:
    """Path and map (C, H, W) of the dilated convolution in the first block of every stage."""
    return {
        f"{placed.module}.attn.spatial_gating_unit.conv_spatial": placed.shape.tensor
        for placed in paper(name).layers(image_size)
        if placed.path.endswith(".blocks.1")
    }


def with_plain_convolution(model: nn.Module) -> nn.Module:
    """A copy in which every dilated depthwise convolution is an nn.Conv2d."""
    plain = copy.deepcopy(model)
    found = {name: module for name, module in plain.named_modules() if isinstance(module, DilatedDepthwise)}
    assert found, "the model has no dilated convolution"
    for name, module in found.items():
        convolution = nn.Conv2d(
            module.in_channels,
            module.out_channels,
            module.kernel_size,  # type: ignore[arg-type]  # always a pair
            padding=module.padding,  # type: ignore[arg-type]  # as above
            dilation=module.dilation,  # type: ignore[arg-type]  # as above
            groups=module.groups,
        )
        convolution.load_state_dict(module.state_dict())
        plain.set_submodule(name, convolution.to(memory_format=torch.channels_last))
    return plain.train(model.training)


def _bare(task: str, name: str, dtype: str, image_size: int, batch_size: int, other: str) -> Row:
    """A row's first columns, the others empty: every row has the same."""
    row: Row = {
        "task": task,
        "model": name,
        "against": other,
        "dtype": dtype,
        "image_size": image_size,
        "batch_size": batch_size,
    }
    return row | dict.fromkeys(("ours", "other", "unit", "ratio", "ratio_iqr", "pairs", "macs", "other_macs"))


def _row(
    task: str, name: str, dtype: str, image_size: int, batch_size: int, other: str, times: list[list[float]]
) -> Row:
    """Images per second of both sides by their medians, and the median of the ratios."""
    ours, theirs = (batch_size / Spread.of(each).median for each in times)
    ratio = ratios(times[1], times[0])
    figures = {"ours": ours, "other": theirs, "unit": "img/s", "ratio": ratio.median, "ratio_iqr": ratio.iqr}
    return _bare(task, name, dtype, image_size, batch_size, other) | figures | {"pairs": ratio.number}


TASKS: dict[str, Callable[[Plan], Iterator[Row]]] = {
    "forward": lambda plan: against_timm(plan, "forward"),
    "train": lambda plan: against_timm(plan, "train"),
    "memory": memory,
    "own": own,
    "dilated": dilated,
}


def _cells(row: Row) -> list[str]:
    first = [row["task"], row["model"], row["dtype"], str(row["image_size"]), str(row["batch_size"])]
    iqr = "-" if row["ratio_iqr"] is None else f"{row['ratio_iqr']:.1%}"
    figures = [f"{row['ours']:.1f}", f"{row['other']:.1f}", row["unit"], f"{row['ratio']:.3f}", iqr, str(row["pairs"])]
    return [*first, *figures, row["against"]]


def means(rows: list[Row]) -> Iterator[str]:
    """A line for each task and dtype."""
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        groups[row["task"], row["dtype"]].append(row["ratio"])
    for (task, dtype), found in groups.items():
        yield f"{task:14s} {dtype:13s} geometric mean {geometric_mean(found):.3f}, least {min(found):.3f}, of {len(found)}"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--models", nargs="+", choices=list(TIMM), default=list(TIMM), help="of forward, train, memory")
    parser.add_argument("--seconds", type=float, default=6.0, help="of timing for each comparison, five rounds or more")


def make_plan(options: argparse.Namespace) -> Plan:
    """What the options ask for."""
    if options.smoke:
        few = {"models": ("twins_svt_small",), "own": ("van_b0",), "dilated": ("van_b0",), "memory_repeats": 1}
        return Plan(**few, seconds=0.0, at_least=2, threads=options.threads, smoke=True)  # type: ignore[arg-type]  # a dict of several types
    return Plan(
        models=tuple(options.models),
        own=choose_papers("nearest", 4_500_000_000, 224),
        dilated=("van_b0", "van_b2"),
        seconds=options.seconds,
        at_least=5,
        threads=options.threads,
    )


def main() -> None:
    """Measure, print, write."""
    options = arguments(__doc__ or "", add=_options)
    plan, rows = make_plan(options), list[Row]()
    console = make_console()
    for task in options.tasks:
        done = list(TASKS[task](plan))
        show(console, make_table(COLUMNS, map(_cells, done), left=("task", "model", "dtype", "unit", "against")))
        rows += done
    print("\n" + "\n".join(means(rows)))
    write(options.out, "against_timm", rows)


if __name__ == "__main__":
    main()
