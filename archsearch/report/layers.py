"""`archsearch blocks`: the layers that a space can name, and what the checks of a file of them found, as documents and as tables."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.table import Table

from archsearch.blocks import Layer, Role, registered_layers
from archsearch.report.tables import make_table, titled
from archsearch.space import format_value

if TYPE_CHECKING:  # a list of layers counts nothing
    from archsearch.models import Finding

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


def layer_list() -> list[dict[str, Any]]:
    """Every registered layer: role, kind, paper, description, and fields with meaning, default and choices."""
    return [
        {
            "role": role,
            "kind": kind,
            "paper": layer.paper or None,
            "description": (layer.__doc__ or "").strip().splitlines()[0],
            "fields": _field_list(layer),
        }
        for role in _ROLES
        for kind, layer in registered_layers(role).items()
    ]


def _field_list(layer: type[Layer]) -> list[dict[str, Any]]:
    """The fields that a space may write: all that have a default, unlike the stage's width and the head's num_classes."""
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
    """One table for each role."""
    documents = layer_list()
    for role, title in _ROLES.items():
        rows = [row for document in documents if document["role"] == role for row in _layer_rows(document)]
        columns = ["kind", "paper", "field", "choices", "meaning"]
        yield titled(title, make_table(columns, rows, left=columns))


def _layer_rows(document: Mapping[str, Any]) -> Iterator[list[str]]:
    """One row for each field of a layer; the first row has kind and paper."""
    head = [document["kind"], document["paper"] or "-"]
    none = {"name": "-", "choices": ["-"], "default": "-", "meaning": document["description"]}
    for item in document["fields"] or [none]:
        others = [choice for choice in item["choices"] if choice != item["default"]]
        yield [*head, item["name"], ", ".join(map(format_value, [item["default"], *others])), item["meaning"] or ""]
        head = ["", ""]


def finding_list(findings: Sequence["Finding"]) -> list[dict[str, Any]]:
    """What each check of each layer found."""
    return [
        {**finding._asdict(), "problem": finding.problem or None, "is_passed": not finding.problem}
        for finding in findings
    ]


def finding_table(findings: Sequence["Finding"]) -> Table:
    """One row for each check of each layer."""
    rows = [[f"{item.role} {item.kind}", item.check, item.result, item.problem] for item in findings]
    columns = ["layer", "check", "result", "problem"]
    return make_table(columns, rows, left=columns)
