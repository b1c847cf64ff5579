"""What the page shows, as plain values: for each run the document of `report --json`, its sentences, and its rows in short forms."""

import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from archsearch.report.page.columns import columns
from archsearch.report.page.comparison import comparison_payload
from archsearch.report.page.networks import networks
from archsearch.report.page.progress import progress
from archsearch.report.page.words import sentences
from archsearch.report.tables import Document
from archsearch.results import OBJECTIVES, Row, damage_is_an_error, read_manifest, read_rows
from archsearch.system import utc_now
from archsearch.version import __version__

# Lists of rows in the document, whose columns the page has already: of each row these keys are left.
_OWN_KEYS = {
    "front": ("trial", "score_ties", "unresolved_by", "front_chance"),
    "near_front": ("trial", "front_chance"),
    "fixed": ("trial", "paper", "published", "num_dominated_by", "dominated_by", "num_dominates", "dominates"),
    "unscored": ("trial", "paper", "published", "compared_in", "dominated_by"),
    "stopped": ("trial",),
    "failed": ("trial",),
    "running": ("trial",),
}
# Columns that a person may put on an axis beside the objectives, with the better direction.
_AXES = {**OBJECTIVES, "activations": "minimize", "train_memory_bytes": "minimize", "trial": None}


def page_payload(reports: Sequence[tuple[Path, Document]], comparison: Document | None = None) -> dict[str, Any]:
    """What the page's script reads, of one run or several: their folders, and what `build_report` gave of each; and the comparison of several.

    Raises UserError for a damaged one.
    """
    runs = []
    for folder, document in reports:
        with damage_is_an_error(folder):
            runs.append(_run(folder, document))
    compared = comparison and comparison_payload([folder for folder, _ in reports], comparison)
    return {"made_at": utc_now(), "version": __version__, "runs": runs, "comparison": compared}


def _run(folder: Path, document: Document) -> dict[str, Any]:
    rows = read_rows(folder)  # after the document: a run at work then has rows for all that it names, and perhaps more
    before, _, after = shlex.quote(f"{folder}:TRIAL").rpartition("TRIAL")
    return {
        "document": {**document, **{name: _without_columns(document, name) for name in _OWN_KEYS}},
        "sentences": sentences(document),
        "rows": len(rows),
        "columns": columns(rows),
        "axes": {name: direction for name, direction in _AXES.items() if any(row[name] is not None for row in rows)},
        "networks": networks(folder, read_manifest(folder), rows, _important(document)),
        "curves": _curves(rows),
        "progress": progress(rows, document),
        # Words of commands, as a shell reads them; a trial's number joins the parts of a list.
        "shell": {
            "folder": shlex.quote(str(folder)),
            "cost": [f"archsearch cost {before}", after],
            "export": [f"archsearch export {before}", f"{after} {shlex.quote(document['run'])}-", ""],
        },
    }


def _without_columns(document: Document, name: str) -> list[dict[str, Any]]:
    return [{key: row.get(key) for key in _OWN_KEYS[name]} for row in document[name]]


def _important(document: Document) -> Iterable[int]:
    """The trials whose stages are priced: the picks, then the front, fixed trials and those near the front."""
    picked = [pick["trial"] for pick in document["picks"] if pick["trial"] is not None]
    lists = (document[name] for name in ("front", "fixed", "unscored", "near_front"))
    return dict.fromkeys([*picked, *(row["trial"] for each in lists for row in each)])


def _curves(rows: Sequence[Row]) -> dict[str, Any]:
    """The learning curves: lists of steps, each once, and for each row the number of its own (None without a curve) and its scores."""
    steps: dict[tuple[int, ...], int] = {}
    numbers: list[int | None] = []
    scores: list[list[float | None]] = []
    for row in rows:
        curve = json.loads(row["learning_curve"]) if row["learning_curve"] else []
        numbers.append(steps.setdefault(tuple(each["steps"] for each in curve), len(steps)) if curve else None)
        scores.append([each.get("score") for each in curve])
    return {"steps": [list(each) for each in steps], "of": numbers, "scores": scores}
