"""`archsearch papers`: the papers' models, counted here and as published, as documents and as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from archsearch.report.tables import Document, make_table, signed_percent, text
from archsearch.space import paper_names, paper_space
from archsearch.units import format_count, format_sides

PAPERS_NOTE = """MACs are multiply-adds, attention products and norms included; published FLOPs often leave some of these out (the paper's file says which).
Published top-1 is ImageNet-1K accuracy in percent after full training."""


def paper_document(name: str) -> dict[str, Any]:
    """A paper's model: our figures, the published ones, and their relative difference."""
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


def paper_list(checks: Mapping[str, Document] | None = None) -> list[dict[str, Any]]:
    """Every shipped model by family, the cheapest first; with the recount of `--check` where there is one."""
    documents = [paper_document(name) for name in paper_names()]
    for document in documents if checks else ():
        document["check"] = (checks or {})[document["name"]]
    return sorted(documents, key=lambda document: (str(document["family"]), document["macs"]))


def paper_table(documents: Sequence[Document]) -> Table:
    """One row for each model; with a column for the recount of `--check` where there is one."""
    columns = ["name", "px", "MACs", "paper's", "diff", "params", "paper's", "diff", "top-1"]
    rows = []
    for document in documents:
        published, difference, check = document["published"], document["difference"], document.get("check")
        row = [
            document["name"],
            format_sides(document["image_size"]),
            format_count(document["macs"]),
            text(published["flops_g"], "g", "G"),
            signed_percent(difference["macs"]),
            format_count(document["params"]),
            text(published["params_m"], "g", "M"),
            signed_percent(difference["params"]),
            text(published["top1"], "g"),
        ]
        if check:
            differs = f"{check['macs_fvcore']} MACs, {check['params_built']} params"
            row.append("equal" if check["is_equal"] else differs)
        rows.append(row)
    is_checked = any("check" in document for document in documents)
    return make_table([*columns, *(["built and counted"] if is_checked else [])], rows, left=["name"])


def check_sentence(documents: Sequence[Document], seconds: float) -> str:
    """How many models are equal to their exact costs, and in what time they were built and counted."""
    equal = sum(document["check"]["is_equal"] for document in documents)
    return (
        f"{equal} of {len(documents)} models, built and recounted in {seconds:.0f} s: fvcore's MACs and the built parameters equal "
        "the exact costs to the unit."
    )
