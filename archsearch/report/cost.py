"""`archsearch cost`: exact MACs and parameters of an architecture, layer by layer, as a document and as a table."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from rich.console import Group

from archsearch.blocks import Cost, Layer, Shape
from archsearch.report.tables import make_table, titled
from archsearch.space import Arch, Placed, format_value
from archsearch.units import format_count

_WIDE = 110  # columns of a terminal that has room for every layer's fields


def cost_document(arch: Arch) -> dict[str, Any]:
    """Exact totals and every layer in order of execution; shapes are [channels, height, width], shares are of the MACs."""
    total = arch.cost()
    return {
        "arch_id": arch.arch_id,
        "name": arch.name,
        "macs": total.macs,
        "params": total.params,
        "norm_macs": total.norm_macs,
        "image_size": arch.image_size,
        "layers": [_layer_document(placed, total) for placed in arch.layers()],
    }


def _layer_document(placed: Placed, total: Cost) -> dict[str, Any]:
    cost = placed.layer.cost(placed.shape)
    return {
        "path": placed.path,
        "role": placed.layer.role,
        "kind": placed.layer.kind,
        "fields": _layer_fields(placed.layer),
        "input": list(placed.shape[:3]),
        "output": list(placed.out[:3]),
        "tokens": placed.shape.tokens,
        "macs": cost.macs,
        "params": cost.params,
        "norm_macs": cost.norm_macs,
        "share": cost.macs / total.macs,
    }


def _layer_fields(layer: Layer) -> dict[str, Any]:
    return {item.name: getattr(layer, item.name) for item in fields(layer) if item.name not in ("width", "num_classes")}


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Equal layers of one stage: their paths, and the first of them."""

    paths: tuple[str, ...]
    first: Placed


def _groups(placed: Iterable[Placed]) -> list[_Group]:
    """Equal layers at equal shapes together, in order of first appearance."""
    groups: dict[tuple[Layer, Shape, str], list[Placed]] = {}
    for item in placed:
        groups.setdefault((item.layer, item.shape, item.path.rpartition(".")[0]), []).append(item)
    return [_Group(paths=tuple(item.path for item in items), first=items[0]) for items in groups.values()]


def cost_table(arch: Arch, width: int) -> Group:
    """Groups of equal layers with the MACs and parameters of each group; the layers' fields where `width` columns allow."""
    total, groups = arch.cost(), _groups(arch.layers())
    columns = ["path", "layer", "input", "layers", "MACs", "params", "share"]
    rows = [_cost_row(group, total) for group in groups]
    totals = [
        "total",
        "",
        "",
        str(sum(len(group.paths) for group in groups)),
        format_count(total.macs),
        format_count(total.params),
        "100.0%",
    ]
    if width >= _WIDE:
        columns.append("fields")
        totals.append("")
        for row, group in zip(rows, groups, strict=True):
            row.append(_fields_text(group.first.layer))
    title = f"{arch.name or arch.arch_id}: {arch.describe()}"
    table = make_table(columns, rows, left=["path", "layer", "fields"])
    table.rows[-1].end_section = True
    table.add_row(*totals, style="bold")
    return titled(title, table)


def _cost_row(group: _Group, total: Cost) -> list[str]:
    layer, shape = group.first.layer, group.first.shape
    cost = layer.cost(shape) * len(group.paths)
    return [
        _join_paths(group.paths),
        layer.kind,
        f"{shape.channels}x{shape.height}x{shape.width}" + (f"+{shape.tokens}" if shape.tokens else ""),
        str(len(group.paths)),
        format_count(cost.macs),
        format_count(cost.params),
        f"{cost.macs / total.macs:.1%}",
    ]


def _fields_text(layer: Layer) -> str:
    return " ".join(f"{name}={format_value(value)}" for name, value in _layer_fields(layer).items())


def _join_paths(paths: Sequence[str]) -> str:
    """`stages.3.blocks.1-9`, or `stages.3.blocks.1,3,..,17` for every other one."""
    if len(paths) == 1:
        return paths[0]
    numbers = [int(path.rpartition(".")[2]) for path in paths]
    if numbers[-1] - numbers[0] == len(numbers) - 1:
        words = f"{numbers[0]}-{numbers[-1]}"
    else:
        words = ",".join(map(str, numbers if len(numbers) <= 3 else [numbers[0], numbers[1], "..", numbers[-1]]))
    return f"{paths[0].rpartition('.')[0]}.{words}"


def cost_sentence(arch: Arch) -> str:
    """The totals to the unit."""
    cost = arch.cost()
    return (
        f"{arch.arch_id}: {cost.macs} MACs ({cost.norm_macs} of them in norms) and {cost.params} parameters "
        f"for one image of {arch.image_size}x{arch.image_size}; a MAC is one multiply-add, what vision papers call a FLOP."
    )
