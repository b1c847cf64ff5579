"""Several runs on one page: the tables and sentences of their comparison, and the figures of their trials that may be compared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from archsearch.report.comparable import ComparedRun, read_runs
from archsearch.report.compare_tables import comparison_parts
from archsearch.report.page.columns import packed
from archsearch.report.tables import Document
from archsearch.results import OBJECTIVES

_COSTS = ("params", "macs")  # exact, so that any two runs can be compared in them
_SHOWN = ("trial", "is_fixed", "paper", "architecture")


def comparison_payload(folders: Sequence[Path], document: Document) -> dict[str, Any]:
    """What the page's script reads of a comparison that `build_comparison` made of these folders."""
    names = [*document["objectives"], *(name for name in _COSTS if name not in document["objectives"])]
    return {
        "parts": [_part(part) for part in comparison_parts(document)],
        "axes": {name: OBJECTIVES[name] for name in names},
        "runs": [_run(run, list(document["objectives"]), names) for run in read_runs(folders)],
    }


def _run(run: ComparedRun, objectives: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """The complete trials of one run in the columns of the axes; speeds at the rate of the reference that all runs are given."""
    rows = run.complete(objectives)
    columns = {name: packed([row[name] for row in rows]) for name in (*_SHOWN, *names)}
    return {"label": run.label, "run": run.folder.resolve().name, "rows": len(rows), "columns": columns}


def _part(part: RenderableType) -> dict[str, Any]:
    """`{"lines": [...]}` of a text, `{"title", "columns", "left", "rows"}` of a table; a table alone has no title."""
    if isinstance(part, Group):
        title, table = part.renderables
        return {**_part(table), "title": str(title)}
    if not isinstance(part, Table):
        return {"lines": str(part).splitlines()}
    cells = [[str(cell) for cell in column.cells] for column in part.columns]
    return {
        "title": None,
        "columns": [str(column.header) for column in part.columns],
        "left": [column.justify == "left" for column in part.columns],
        "rows": [list(row) for row in zip(*cells, strict=True)],
    }
