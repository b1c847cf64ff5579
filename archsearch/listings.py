"""What the commands that only look print: layers, costs and papers, as plain documents and as tables."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from rich.console import Group
from rich.table import Table

from archsearch.blocks.base import Layer, Role, Shape, layers_of
from archsearch.blocks.cost import Cost
from archsearch.space.arch import Arch, Placed
from archsearch.space.papers import paper_names, paper_space
from archsearch.tables import make_table, signed_percent, text, titled
from archsearch.units import format_count

_ROLES: dict[Role, str] = {
    "block": "Blocks",
    "stem": "Stems",
    "downsample": "Downsamples",
    "positions": "Positions (of a stage; none unless written)",
    "extra": "Extras (placed by their blocks)",
    "head": "Heads",
}
LAYERS_NOTE = """`a/b` as a stage's block alternates two blocks, as in sda/lda, lsa/gsa, window/channel and wmsa/swmsa; any two may be paired.
A field that a space leaves out takes the choices listed here; the value of the papers' models comes first."""
PAPERS_NOTE = """MACs are multiply-adds, attention products and norms included; published FLOPs often leave some of these out (the paper's file says which).
Published top-1 is ImageNet-1K accuracy in percent after full training."""
_WIDE = 110  # columns of a terminal that has room for every layer's fields


def layer_list() -> list[dict[str, Any]]:
    """Every registered layer: role, kind, paper, what it is, fields with meaning, the papers' value and own choices."""
    return [
        {
            "role": role,
            "kind": kind,
            "paper": layer.paper or None,
            "description": (layer.__doc__ or "").strip().splitlines()[0],
            "fields": _field_list(layer),
        }
        for role in _ROLES
        for kind, layer in layers_of(role).items()
    ]


def _field_list(layer: type[Layer]) -> list[dict[str, Any]]:
    """The fields a space may write, searchable or not; width and num_classes belong to the stage and the top level."""
    return [
        {
            "name": item.name,
            "meaning": item.metadata.get("doc"),
            "default": item.default,
            "choices": list(item.metadata.get("choices", (item.default,))),
        }
        for item in fields(layer)
        if item.default is not MISSING
    ]


def layer_tables() -> Iterator[Group]:
    """One table a role."""
    documents = layer_list()
    for role, title in _ROLES.items():
        rows = [row for document in documents if document["role"] == role for row in _layer_rows(document)]
        columns = ["kind", "paper", "field", "choices", "meaning"]
        yield titled(title, make_table(columns, rows, left=columns))


def _layer_rows(document: Mapping[str, Any]) -> Iterator[list[str]]:
    """A layer's fields, one a row; kind and paper stand in the first."""
    head = [document["kind"], document["paper"] or "-"]
    for item in document["fields"] or [
        {"name": "-", "choices": ["-"], "default": "-", "meaning": document["description"]}
    ]:
        others = [choice for choice in item["choices"] if choice != item["default"]]
        yield [*head, item["name"], ", ".join(map(_short, [item["default"], *others])), item["meaning"] or ""]
        head = ["", ""]


def _short(value: object) -> str:
    """A value as a space file writes it."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def cost_document(arch: Arch) -> dict[str, Any]:
    """Exact totals and every layer in order of execution; shapes are [channels, height, width], `tokens` stand beside the input, shares are of the MACs."""
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
    """Equal layers of one stage: where they stand, and the first of them."""

    paths: tuple[str, ...]
    first: Placed


def _groups(placed: Iterable[Placed]) -> list[_Group]:
    """Layers that are equal at equal shapes, in the order in which each first appears; only blocks repeat."""
    groups: dict[tuple[Layer, Shape, str], list[Placed]] = {}
    for item in placed:
        groups.setdefault((item.layer, item.shape, item.path.rpartition(".")[0]), []).append(item)
    return [_Group(paths=tuple(item.path for item in items), first=items[0]) for items in groups.values()]


def cost_table(arch: Arch, width: int) -> Group:
    """Groups of equal layers with the MACs and parameters of each group together; the layers' fields where `width` columns allow."""
    total = arch.cost()
    columns = ["path", "layer", "input", "layers", "MACs", "params", "share"]
    rows = [_cost_row(group, total) for group in _groups(arch.layers())]
    is_wide = width >= _WIDE
    if is_wide:
        columns.append("fields")
        rows = [
            [*row, _fields_text(group.first.layer)] for row, group in zip(rows, _groups(arch.layers()), strict=True)
        ]
    totals = [
        "total",
        "",
        "",
        str(len(list(arch.layers()))),
        format_count(total.macs),
        format_count(total.params),
        "100.0%",
        *([""] if is_wide else []),
    ]
    title = f"{arch.name or arch.arch_id}: {arch.describe()}"
    table = make_table(columns, rows, left=["path", "layer", "fields"])
    table.rows[-1].end_section = True
    table.add_row(*totals, style="bold")
    return titled(title, table)


def _cost_row(group: _Group, total: Cost) -> list[str]:
    layer, shape = group.first.layer, group.first.shape
    cost = layer.cost(shape) * len(group.paths)
    return [
        _joined(group.paths),
        layer.kind,
        f"{shape.channels}x{shape.height}x{shape.width}" + (f"+{shape.tokens}" if shape.tokens else ""),
        str(len(group.paths)),
        format_count(cost.macs),
        format_count(cost.params),
        f"{cost.macs / total.macs:.1%}",
    ]


def _fields_text(layer: Layer) -> str:
    return " ".join(f"{name}={_short(value)}" for name, value in _layer_fields(layer).items())


def _joined(paths: Sequence[str]) -> str:
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


def paper_document(name: str) -> dict[str, Any]:
    """A paper's model: our figures, the published ones, and how far apart they are (fractions)."""
    space = paper_space(name)
    arch, published = space.arch(), space.paper
    cost = arch.cost()
    params_m, flops_g = published.get("params_m"), published.get("flops_g")
    return {
        "name": name,
        "family": published.get("family"),
        "title": published.get("title"),
        "arxiv": published.get("arxiv"),
        "image_size": arch.image_size,
        "arch_id": arch.arch_id,
        "macs": cost.macs,
        "params": cost.params,
        "published": {
            **{key: published.get(key) for key in ("params_m", "flops_g", "top1", "source")},
            "throughput": published.get("throughput", []),
        },
        "difference": {
            "macs": cost.macs / (flops_g * 1e9) - 1 if flops_g else None,
            "params": cost.params / (params_m * 1e6) - 1 if params_m else None,
        },
    }


def paper_list(checks: Mapping[str, Mapping[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Every shipped paper's model by family, the cheapest first; with what `recount` found where it was counted anew."""
    documents = [paper_document(name) for name in paper_names()]
    for document in documents if checks else ():
        document["check"] = (checks or {})[document["name"]]
    return sorted(documents, key=lambda document: (str(document["family"]), document["macs"]))


def paper_table(documents: Sequence[Mapping[str, Any]]) -> Table:
    """One model a row; models that were counted anew say whether they came out equal."""
    columns = ["name", "px", "MACs", "paper's", "diff", "params", "paper's", "diff", "top-1"]
    is_checked = any("check" in document for document in documents)
    rows = []
    for document in documents:
        published, difference = document["published"], document["difference"]
        rows.append(
            [
                document["name"],
                str(document["image_size"]),
                format_count(document["macs"]),
                _unit(published["flops_g"], "G"),
                signed_percent(difference["macs"]),
                format_count(document["params"]),
                _unit(published["params_m"], "M"),
                signed_percent(difference["params"]),
                text(published["top1"], "g"),
                *([_check_words(document)] if is_checked else []),
            ]
        )
    return make_table([*columns, *(["built and counted"] if is_checked else [])], rows, left=["name"])


def _check_words(document: Mapping[str, Any]) -> str:
    check = document["check"]
    if check["is_equal"]:
        return "equal"
    return f"{check['macs_fvcore']} MACs, {check['params_built']} params"


def check_sentence(documents: Sequence[Mapping[str, Any]], seconds: float) -> str:
    """How many models came out equal, and in what time."""
    equal = sum(document["check"]["is_equal"] for document in documents)
    return (
        f"{equal} of {len(documents)} models, built and counted anew in {seconds:.0f} s: fvcore's MACs and the built parameters equal "
        "the exact costs to the unit."
    )


def _unit(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:g}{unit}"
