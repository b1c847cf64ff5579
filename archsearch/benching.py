"""Timing single architectures one after the other: the measurements of `archsearch bench`."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from rich.console import Console, RenderableType
from torch import nn

from archsearch.arch import Arch
from archsearch.errors import RunError
from archsearch.evaluate import make_settings, reference_arch
from archsearch.machine import conditions, device_lock, pick_device
from archsearch.model import build
from archsearch.report_tables import conditions_line, memory_text
from archsearch.tables import make_table, text
from archsearch.throughput import DType, Mode, Progress, Protocol, measure
from archsearch.units import format_count


@dataclass(frozen=True, kw_only=True)
class BenchTask:
    """What to time, by the name it was asked for, and how."""

    archs: Mapping[str, Arch]
    device: torch.device
    protocols: Mapping[str, Protocol]


def bench_task(
    archs: Mapping[str, Arch], *, device: str, dtype: str, mode: str, batch_size: int | None, image_size: int | None
) -> BenchTask:
    """Checked before anything is timed; UserError for an absent device or a size that an architecture cannot take."""
    target = pick_device(device)
    settings = make_settings(device=target.type, dtype=dtype, mode=mode, batch_size=batch_size)  # a run's own defaults
    protocols = {}
    for name, arch in archs.items():
        arch.check(image_size)
        protocols[name] = Protocol.for_device(
            target,
            batch_size=settings["batch_size"],
            image_size=image_size or arch.image_size,
            dtype=cast(DType, dtype),
            mode=cast(Mode, mode),
        )
    return BenchTask(archs=archs, device=target, protocols=protocols)


def bench_document(task: BenchTask, console: Console) -> dict[str, Any]:
    """Every measurement with the conditions; one that does not fit into memory has its `error` instead of figures. Progress goes to `console`."""
    with _saying(console) as say:
        say("waiting for the device")
        with device_lock(task.device, exclusive=True):
            reference = build(reference_arch())
            results = [_result(task, name, reference, say) for name in task.archs]
            where = conditions(task.device)
    return {"conditions": {**where, "reference": reference_arch().name}, "results": results}


def _result(task: BenchTask, name: str, reference: nn.Module, say: Progress) -> dict[str, Any]:
    arch, protocol = task.archs[name], task.protocols[name]
    cost = arch.cost(protocol.image_size)
    result: dict[str, Any] = {
        "asked": name,
        "arch_id": arch.arch_id,
        "name": arch.name,
        "macs": cost.macs,
        "params": cost.params,
        "error": None,
    }
    model = build(arch, image_size=protocol.image_size)
    try:
        figures = measure(
            model, protocol, task.device, reference=reference, progress=lambda line: say(f"{name}: {line}")
        )
    except RunError as error:
        return {**result, "error": str(error), **asdict(protocol)}
    return {**result, **asdict(figures)}


@contextlib.contextmanager
def _saying(console: Console) -> Iterator[Progress]:
    """One changing line on a terminal, lines elsewhere."""
    if not console.is_terminal:
        said: list[str] = []

        def once(line: str) -> None:
            if line not in said[-1:]:
                said.append(line)
                console.print(line, soft_wrap=True)

        yield once
        return
    with console.status("starting") as status:
        yield lambda line: status.update(line)


def bench_parts(document: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The measurements as a table, failures as sentences, and the conditions."""
    results = document["results"]
    columns = ["architecture", "img/s", "IQR", "ms/batch", "ratio", "memory", "MACs", "params"]
    yield make_table(columns, [_row(result) for result in results if not result["error"]], left=["architecture"])
    for result in results:
        if result["error"]:
            yield f"{result['asked']}: {result['error']}"
    first = results[0]
    yield conditions_line(
        {**document["conditions"], **{key: first[key] for key in ("dtype", "mode", "batch_size", "image_size")}}
    )
    yield (
        "img/s is the median of timed blocks, IQR their relative spread, ratio the figure over the reference's, timed before and after. "
        "~ spread above the protocol's limit, ! reference drifted meanwhile. Figures of other conditions cannot be compared."
    )


def _row(result: Mapping[str, Any]) -> list[str]:
    marks = ("~" if result["noisy"] else "") + ("!" if result["drifted"] else "")
    return [
        str(result["name"] or result["asked"]),
        f"{result['throughput_img_s']:.1f}{marks}",
        f"{result['throughput_iqr']:.1%}",
        f"{result['latency_ms']:.1f}",
        text(result["ratio_to_reference"], ".3f"),
        memory_text(result["peak_memory_bytes"]),
        format_count(result["macs"]),
        format_count(result["params"]),
    ]
