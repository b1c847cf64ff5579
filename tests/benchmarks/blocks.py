"""Every block, stem and merging at each stage's usual size, against what this machine can do at best.

    python tests/benchmarks/blocks.py [--only KIND] [--quick]

A layer stands where its paper has it (224 px; blocks also at stages where the default space offers them). Per layer, dtype
(bfloat16: weights and inputs) and pass: median milliseconds; GFLOP/s of 2 x the MACs of the layer's own `cost` without norms,
forward + backward counted as three forwards (stems as two, images take no gradient); bytes, the inputs and outputs of every
operation of one eager pass, views free. Shares are of the best GEMM and memory figures of the same run, measured before and
after; `roofline` is the larger one. A map that stays in a cache can move more bytes a second than memory gives: above 100 %.
Drift: how much a GEMM of fixed size changed between just before and just after the layer.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import torch
from clock import DTYPES, Row, Spread, Work, arguments, interleaved, quiet_device, write
from roofline import PROBE, SMOKE_GEMMS, MovedBytes, Peaks, gemm_gflop_s
from torch import Tensor, nn

from archsearch import paper
from archsearch.blocks import Layer, Role, registered_layers
from archsearch.report import make_console, make_table, show
from archsearch.space import Placed, choose_papers, load_space

ROLES: tuple[Role, ...] = ("stem", "downsample", "block")
PASSES = ("forward", "forward+backward")
# Twins' and DaViT's layers are theirs where others use them too; CrossFormer's widths are those of most others.
FIRST = ("crossformer_small", "davit_tiny", "lit_s", "litv2_s", "twins_svt_small")
COLUMNS = (
    "layer",
    "stage",
    "map",
    "dtype",
    "pass",
    "ms",
    "IQR",
    "GFLOP/s",
    "MB",
    "GB/s",
    "gemm",
    "memory",
    "roofline",
    "drift",
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A layer at one stage of one model."""

    model: str
    stage: int
    placed: Placed

    @property
    def name(self) -> str:
        """Kind, and role where it is no block."""
        layer = self.placed.layer
        return layer.kind if layer.role == "block" else f"{layer.kind} {layer.role}"


def cases(only: str | None) -> Iterator[Case]:
    """Registered layers in order of role, kind and stage."""
    names = dict.fromkeys((*FIRST, *choose_papers("nearest", 4_500_000_000, 224)))
    walks = {name: list(paper(name).layers()) for name in names}
    offered = [set(stage.blocks) for stage in load_space("hybrid").plan.stages]
    for role in ROLES:
        for kind in registered_layers(role):
            if only not in (None, kind):
                continue
            found = {case.stage: case for name in reversed(walks) for case in _in_walk(name, walks[name], role, kind)}
            assert found, f"no model has the {role} {kind!r}; name one that does in FIRST"
            if role == "block":
                found |= _elsewhere(kind, found, offered, walks)
            yield from (found[stage] for stage in sorted(found))


def _in_walk(model: str, walk: list[Placed], role: Role, kind: str) -> Iterator[Case]:
    """The layer where this model has it, later ones of a stage first: what is read last stays."""
    for placed in reversed(walk):
        if (placed.layer.role, placed.layer.kind) == (role, kind):
            yield Case(model=model, stage=_stage(placed), placed=placed)


def _stage(placed: Placed) -> int:
    return 1 if placed.path == "stem" else int(placed.path.split(".")[1])


def _elsewhere(
    kind: str, found: Mapping[int, Case], offered: list[set[str]], walks: Mapping[str, list[Placed]]
) -> dict[int, Case]:
    """Stages in which the paper has other blocks and the default space this one too: the layer of the nearest stage."""
    more: dict[int, Case] = {}
    for stage, kinds in enumerate(offered, start=1):
        if stage in found or kind not in kinds:
            continue
        near = found[min(found, key=lambda number: abs(number - stage))]
        shape = next(placed.shape for placed in walks[near.model] if placed.path == f"stages.{stage}.blocks.1")
        near.placed.layer.check_at(shape)
        more[stage] = Case(model=near.model, stage=stage, placed=near.placed._replace(shape=shape, out=shape))
    return more


def _passes(layer: Layer, module: nn.Module, x: Tensor) -> dict[str, Work]:
    """The two passes over a module; in eval and inference mode, and in training mode with new gradients."""
    image = layer.role == "stem"
    leaf = x.clone().requires_grad_(not image)
    gradient = torch.randn_like(module.eval()(x))

    def forward() -> None:
        with torch.inference_mode():
            module(x)

    def backward() -> None:
        module.zero_grad()
        leaf.grad = None
        module(leaf).backward(gradient)

    return dict(zip(PASSES, (forward, backward), strict=True))


def _moved_bytes(module: nn.Module, x: Tensor, work: Work, name: str) -> int:
    """Bytes of one eager pass; the forward's without gradients instead of in inference mode, see MovedBytes."""
    moved = MovedBytes()
    with moved:
        if name == "forward":
            with torch.no_grad():
                module(x)
        else:
            work()
    return moved.total


def time_case(case: Case, dtype: str, options: argparse.Namespace) -> Iterator[Row]:
    """A row for each pass, the shares still to come."""
    layer, shape = case.placed.layer, case.placed.shape
    module = layer.build(shape).to(memory_format=torch.channels_last).to(DTYPES[dtype])
    x = torch.randn(options.batch_size, *shape.tensor).to(DTYPES[dtype]).contiguous(memory_format=torch.channels_last)
    cost = layer.cost(shape)
    macs = (cost.macs - cost.norm_macs) * options.batch_size
    for name, work in _passes(layer, module, x).items():
        module.train(name != "forward")
        size = SMOKE_GEMMS[0] if options.smoke else PROBE
        before = gemm_gflop_s(size, DTYPES[dtype], repeats=2)
        times = interleaved([work], seconds=options.seconds, at_least=options.at_least)[0]
        after = gemm_gflop_s(size, DTYPES[dtype], repeats=2)
        times_forward = 1 if name == "forward" else 2 if layer.role == "stem" else 3
        yield {
            "role": layer.role,
            "kind": layer.kind,
            "name": case.name,
            "stage": case.stage,
            "model": case.model,
            "layer": repr(layer),
            "channels": shape.channels,
            "height": shape.height,
            "width": shape.width,
            "out_channels": case.placed.out.channels,
            "batch_size": options.batch_size,
            "dtype": dtype,
            "pass": name,
            **_figures(times, 2 * macs * times_forward, _moved_bytes(module, x, work, name)),
            "drift": after / before - 1,
        }


def _figures(times: list[float], flops: int, moved: int) -> Row:
    median, iqr, number = Spread.of(times)
    return {
        "median_ms": 1000 * median,
        "iqr": iqr,
        "repeats": number,
        "flops": flops,
        "gflop_s": flops / median / 1e9,
        "moved_bytes": moved,
        "gb_s": moved / median / 1e9,
    }


def with_shares(row: Row, peaks: Peaks) -> Row:
    """The row against the machine's peaks."""
    gemm = row["gflop_s"] / peaks.gemm_gflop_s[row["dtype"]]
    memory = row["gb_s"] / peaks.memory_gb_s
    return {**row, "gemm_share": gemm, "memory_share": memory, "roofline_share": max(gemm, memory)}


def _cells(row: Row) -> list[str]:
    size = f"{row['channels']}x{row['height']}x{row['width']}"
    figures = (
        f"{row['median_ms']:.2f}",
        f"{row['iqr']:.1%}",
        f"{row['gflop_s']:.1f}",
        f"{row['moved_bytes'] / 1e6:.1f}",
    )
    shares = (f"{row[name]:.0%}" for name in ("gemm_share", "memory_share", "roofline_share"))
    passed = "fwd" if row["pass"] == "forward" else "fwd+bwd"
    return [
        row["name"],
        str(row["stage"]),
        size,
        row["dtype"],
        passed,
        *figures,
        f"{row['gb_s']:.1f}",
        *shares,
        f"{row['drift']:+.1%}",
    ]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", metavar="KIND", help="one kind of layer, as `archsearch blocks` lists them")
    parser.add_argument("--stage", type=int, help="one stage, from 1")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="a third of the time, for a first look")


def main() -> None:
    """Measure, print, write."""
    options = arguments(__doc__ or "", add=_options)
    options.seconds, options.at_least = (0.1, 3) if options.quick else (0.4, 7)
    if options.smoke:
        options.seconds, options.at_least, options.batch_size = 0.0, 2, 1
    rows: list[Row] = []
    with quiet_device():
        first = Peaks.measure(smoke=options.smoke)
    for case, dtype in product(list(cases(options.only)), DTYPES):
        if options.stage in (None, case.stage):
            with quiet_device():
                rows.extend(time_case(case, dtype, options))
    with quiet_device():
        last = Peaks.measure(smoke=options.smoke)
    peaks = first.best_of(last)
    rows = [with_shares(row, peaks) for row in rows]
    show(make_console(), make_table(COLUMNS, map(_cells, rows), left=("layer",)))
    print(f"\npeaks before: {first}\npeaks after:  {last}")
    write(options.out, "blocks", rows, peaks_before=vars(first), peaks_after=vars(last))


if __name__ == "__main__":
    main()
