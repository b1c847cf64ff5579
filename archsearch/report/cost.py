"""`archsearch cost`: exact MACs, parameters and activations of an architecture, layer by layer, as a document and as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from rich.console import Group

from archsearch.blocks import Cost, Layer, Shape
from archsearch.errors import UserError
from archsearch.report.tables import make_table, titled
from archsearch.space import Arch, Placed, format_value
from archsearch.units import ImageSize, format_count, format_sides, one_size


def cost_document(arch: Arch, image_size: ImageSize | None = None, in_chans: int | None = None) -> dict[str, Any]:
    """Exact totals and every layer in order of execution; shapes are [channels, height, width], shares are of the MACs.

    Size in pixels and channels of the image are by default the architecture's own. Raises UserError where a layer does not allow the size.
    """
    _check_size(arch, image_size)
    total, image = arch.cost(image_size, in_chans), arch.image(image_size, in_chans)
    return {
        "arch_id": arch.arch_id,
        "name": arch.name,
        "macs": total.macs,
        "params": total.params,
        "norm_macs": total.norm_macs,
        "activations": total.activations,
        "image_size": one_size(image.height, image.width),
        "in_chans": image.channels,
        "layers": [_layer_document(placed, total) for placed in arch.layers(image_size, in_chans)],
    }


def stage_list(arch: Arch) -> list[dict[str, Any]]:
    """Stem, stages and head in order: `kinds` are the blocks one by one, [height, width] is the map after it; MACs and parameters of all its layers."""
    total, parts = arch.cost(), dict[str, list[Placed]]()
    for placed in arch.layers():
        parts.setdefault(".".join(placed.path.split(".")[:2]), []).append(placed)
    documents = []
    for name, layers in parts.items():
        cost = sum((placed.cost for placed in layers), Cost())
        blocks = [placed.layer for placed in layers if ".blocks." in placed.path]
        out = layers[-1].out
        document: dict[str, Any] = {
            "part": name.replace("stages.", "stage "),
            "entry": layers[0].layer.kind,
            "block": "/".join(dict.fromkeys(block.kind for block in blocks)) or None,
            "kinds": [block.kind for block in blocks],
            "width": out.channels if name != "head" else None,
            "depth": len(blocks),
            "map": [out.height, out.width] if name != "head" else None,
            "macs": cost.macs,
            "params": cost.params,
            "activations": cost.activations,
            "share": cost.macs / total.macs,
        }
        documents.append(document)
    return documents


def stage_table(stages: Sequence[Mapping[str, Any]]) -> Group:
    """MACs and parameters of stem, stages and head; a stage's downsample is counted with it."""
    rows = [
        [
            each["part"],
            each["block"] or each["entry"],
            "x".join(map(str, each["map"])) if each["map"] else "-",
            format_count(each["macs"]),
            f"{each['share']:.1%}",
            format_count(each["params"]),
            format_count(each["activations"]),
        ]
        for each in stages
    ]
    columns = ["part", "block", "map", "MACs", "share", "params", "activations"]
    return titled("Costs by stage", make_table(columns, rows, left=["part", "block"]))


def _check_size(arch: Arch, image_size: ImageSize | None) -> None:
    if image_size is None:
        return
    try:
        arch.check(image_size)
    except UserError as error:
        raise UserError(f"{arch.name or arch.arch_id} at {format_sides(image_size)} px: {error}") from error


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
        "activations": cost.activations,
        "share": cost.macs / total.macs,
    }


def _layer_fields(layer: Layer) -> dict[str, Any]:
    return {item.name: getattr(layer, item.name) for item in fields(layer) if item.name not in ("width", "num_classes")}


def cost_table(arch: Arch, *, image_size: ImageSize | None = None, in_chans: int | None = None) -> Group:
    """Groups of equal layers with the MACs, parameters and activations of each group, and the layers' fields."""
    total = arch.cost(image_size, in_chans)
    groups: dict[tuple[Layer, Shape, str], list[Placed]] = {}  # equal layers of one stage at equal shapes
    for placed in arch.layers(image_size, in_chans):
        groups.setdefault((placed.layer, placed.shape, placed.path.rpartition(".")[0]), []).append(placed)
    columns = ["path", "layer", "input", "layers", "MACs", "params", "share", "activations", "fields"]
    rows = [_cost_row(group, total) for group in groups.values()]
    number = sum(len(group) for group in groups.values())
    table = make_table(columns, rows, left=["path", "layer", "fields"])
    table.rows[-1].end_section = True
    counts = [
        str(number),
        format_count(total.macs),
        format_count(total.params),
        "100.0%",
        format_count(total.activations),
    ]
    table.add_row("total", "", "", *counts, "", style="bold")
    return titled(f"{arch.name or arch.arch_id}: {arch.describe()}", table)


def _cost_row(group: Sequence[Placed], total: Cost) -> list[str]:
    layer, shape = group[0].layer, group[0].shape
    cost = layer.cost(shape) * len(group)
    return [
        _join_paths([placed.path for placed in group]),
        layer.kind,
        f"{shape.channels}x{shape.height}x{shape.width}" + (f"+{shape.tokens}" if shape.tokens else ""),
        str(len(group)),
        format_count(cost.macs),
        format_count(cost.params),
        f"{cost.macs / total.macs:.1%}",
        format_count(cost.activations),
        " ".join(f"{name}={format_value(value)}" for name, value in _layer_fields(layer).items()),
    ]


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


def cost_sentence(arch: Arch, image_size: ImageSize | None = None, in_chans: int | None = None) -> str:
    """The totals to the unit."""
    cost, image = arch.cost(image_size, in_chans), arch.image(image_size, in_chans)
    channels = f" and {image.channels} channel{'s' * (image.channels != 1)}" if image.channels != 3 else ""
    return (
        f"{arch.arch_id}: {cost.macs} MACs ({cost.norm_macs} of them in norms), {cost.params} parameters and {cost.activations} activations "
        f"for one image of {image.sides}{channels}; a MAC is one multiply-add, what vision papers call a FLOP, "
        "and activations are the elements that convolutions and linear layers write."
    )
