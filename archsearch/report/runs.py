"""The list of runs: what each one is, how far it has come, what it found, and what it takes of the disk."""

import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import RenderableType

from archsearch.errors import UserError, one_line
from archsearch.metrics import Array
from archsearch.report.run import HYPERVOLUME_SCALE
from archsearch.report.tables import Document, make_table, text
from archsearch.report.volume import VolumeScale
from archsearch.results import (
    DATABASE_FILE,
    DEVICE_OBJECTIVES,
    MANIFEST_FILE,
    OBJECTIVES,
    damage_is_an_error,
    folder_bytes,
    latest_identity,
    num_fixed,
    ranked,
    read_columns,
    read_manifest,
    read_rows,
    run_folders,
    run_state,
    study_name,
)
from archsearch.units import format_bytes, format_count, format_seconds

_DAMAGED = "damaged"
# Of trials.parquet, beside the objectives; a file of 10,000 trials has a hundred times as much.
_COLUMNS = ("trial", "state", "reused_from", "front", "outside", "proxy_score", "proxy_score_se", "throughput_id")
_SHOWN_STATES = {"running": "at work"}


def run_list(root: Path) -> Document:
    """All runs under a folder, the one that was written last first; a damaged one with its `problem`."""
    return {
        "root": str(root),
        "hypervolume": HYPERVOLUME_SCALE,
        "runs": [run_document(folder) for folder in run_folders(root)],
    }


def run_document(folder: Path) -> dict[str, Any]:
    """What the list says of one run; None for what is not known."""
    found: dict[str, Any] = dict.fromkeys(_KEYS)
    found |= {"run": folder.resolve().name, "folder": str(folder), "bytes": folder_bytes(folder)}
    try:
        with damage_is_an_error(folder):
            document = found | _read(folder)
            _row(document)  # what cannot be shown is damaged
            return document
    except UserError as error:
        # A driver that has just begun has not written its manifest yet.
        is_new = not os.path.exists(folder / MANIFEST_FILE) and run_state(folder, {"state": "running"}) == "running"
        return found | ({"state": "running"} if is_new else {"state": _DAMAGED, "problem": str(error)})


_KEYS = (
    *("run", "folder", "state", "problem", "space", "budget_macs", "device", "device_name"),
    *("objectives", "sampler", "seed", "proxy_id", "study", "storage", "is_elsewhere", "trials"),
    *("best_score", "front", "hypervolume", "updated_at", "age_s", "bytes"),
)


def _read(folder: Path) -> dict[str, Any]:
    """What the manifest says, and what a few columns of the trials give."""
    manifest = read_manifest(folder)
    objectives = [name for name in manifest["objectives"] if name in OBJECTIVES]
    table = read_columns(folder, list(dict.fromkeys([*_COLUMNS, *objectives])))
    if len(table) and table["throughput_id"].null_count == len(table):
        table = _ranked_anew(folder, table, objectives)
    complete = table.filter(_is_equal(table["state"], "complete"))
    age = datetime.now(UTC) - datetime.fromisoformat(manifest["updated_at"])
    return {
        "state": run_state(folder, manifest),
        "space": str(manifest["space"]["name"]),
        "budget_macs": manifest["budget_macs"],
        "device": str(manifest["settings"]["device"]),
        "device_name": (manifest.get("conditions") or {}).get("device_name"),
        "objectives": objectives,
        **{name: manifest.get(name) for name in ("sampler", "seed", "proxy_id", "storage")},
        "study": study_name(manifest),
        # A run whose study was restored from a server's may say the server's address until it goes on.
        "is_elsewhere": "://" in str(manifest.get("storage")) and not os.path.exists(folder / DATABASE_FILE),
        "trials": {"complete": len(complete), "asked": manifest["trials"] + num_fixed(manifest)},
        "best_score": _best_score(complete),
        **_front(complete, objectives, _ranked_identity(table, manifest.get("throughput_id"))),
        "updated_at": manifest["updated_at"],
        "age_s": max(0.0, age.total_seconds()),
    }


def _best_score(complete: pa.Table) -> dict[str, Any] | None:
    """The best score of the complete trials, its standard error, and its trial."""
    scores = complete["proxy_score"].to_numpy()
    if not len(scores) or np.isnan(scores).all():
        return None
    place = int(np.nanargmax(scores))
    names = {"value": "proxy_score", "standard_error": "proxy_score_se", "trial": "trial"}
    return {key: complete[name][place].as_py() for key, name in names.items()}


def _ranked_anew(folder: Path, table: pa.Table, objectives: Sequence[str]) -> pa.Table:
    """The table with what files of earlier versions leave to be worked out from the conditions: identities, and the fronts within one of them."""
    rows = ranked(read_rows(folder, without=("arch", "learning_curve")), objectives)
    for name in ("throughput_id", "front"):
        place = table.column_names.index(name)
        column = pa.array([row[name] for row in rows], table.schema.field(name).type)
        table = table.set_column(place, table.schema.field(name), column)
    return table


def _ranked_identity(table: pa.Table, known: str | None) -> str | None:
    """The identity of the throughputs that the run ranks, as the report has it."""
    if known is not None and known in pc.unique(table["throughput_id"]).to_pylist():
        return known
    return latest_identity(table.select(["state", "throughput_id"]).to_pylist())


def _front(complete: pa.Table, objectives: Sequence[str], throughput_id: str | None) -> dict[str, Any]:
    """Size of the front, and its hypervolume on the run's own scale, as the report has them."""
    kept = pc.and_(pc.is_null(complete["reused_from"]), pc.is_null(complete["outside"]))
    if not DEVICE_OBJECTIVES.isdisjoint(objectives):
        kept = pc.and_(kept, _is_equal(complete["throughput_id"], throughput_id))
    rankable = complete.filter(kept)
    values = _minimised(rankable, objectives)
    is_front = np.asarray(_is_equal(rankable["front"], 0).to_pylist(), dtype=bool)
    if not is_front.any():
        return {"front": 0, "hypervolume": None}
    known = ~np.isnan(values).any(axis=1)
    scale = VolumeScale.of(values[known])
    return {"front": int(is_front.sum()), "hypervolume": scale.volume(values[is_front & known])}


def _is_equal(column: pa.ChunkedArray, value: Any) -> pa.ChunkedArray:
    """Whether each value is this one; None is equal to None."""
    return pc.is_in(column, value_set=pa.array([value], column.type))


def _minimised(table: pa.Table, objectives: Sequence[str]) -> Array:
    """The objectives of a table's rows as (N, M) values to minimise."""
    columns = [table[name].cast(pa.float64()).to_numpy() for name in objectives]
    signs = [-1.0 if OBJECTIVES[name] == "maximize" else 1.0 for name in objectives]
    return np.stack(columns, axis=1) * signs if columns else np.zeros((len(table), 0))


def run_list_parts(document: Document) -> Iterator[RenderableType]:
    """The list as a table, damaged runs with their problems below it."""
    runs = document["runs"]
    if not runs:
        yield f"{document['root']} holds no run; start one with `archsearch run --budget 4.5GFLOPs`."
        return
    columns = ["run", "space", "device", "trials", "score", "hypervolume", "state", "age", "size"]
    yield make_table(columns, map(_row, runs), left=("run", "space", "device", "trials", "state", "size"))
    damaged = [run["problem"] for run in runs if run["problem"]]
    if damaged:
        yield "\n".join(f"Damaged: {problem}." for problem in damaged)
    if any(run["hypervolume"] is not None for run in runs):
        yield (
            f"trials: complete of those asked for. score: the best one. hypervolume: of the run's front, {document['hypervolume']}; "
            "`archsearch report RUN RUN` compares runs on one scale."
        )


def _row(run: Mapping[str, Any]) -> list[str]:
    trials, best = run["trials"], run["best_score"]
    return [
        run["run"],
        "-" if run["space"] is None else f"{one_line(run['space'])} at {budget_text(run)}",
        one_line(" ".join(filter(None, (run["device"], run["device_name"] and f"({run['device_name']})")))) or "-",
        f"{trials['complete']} of {trials['asked']}" if trials else "-",
        text(best and best["value"], ".3f"),
        text(run["hypervolume"], ".4f"),
        _SHOWN_STATES.get(run["state"], one_line(run["state"])),
        age_text(run["age_s"]),
        format_bytes(run["bytes"]),
    ]


def removal_text(run: Document) -> str:
    """What is lost with a run, in one line."""
    trials, size = run["trials"], format_bytes(run["bytes"])
    if trials is None:
        return f"{run['folder']}: {run['state']}, {size}"
    return (
        f"{run['folder']}: {one_line(run['space'])} at {budget_text(run)}, {trials['complete']} of {trials['asked']} trials complete, "
        f"{_SHOWN_STATES.get(run['state'], run['state'])}, {size}"
    )


def budget_text(run: Document) -> str:
    """`4.50G`, or `any MACs`."""
    return "any MACs" if run["budget_macs"] is None else format_count(run["budget_macs"])


def age_text(seconds: float | None) -> str:
    """`3 d`, `5h20m`, `12m` or `40s`."""
    if seconds is None:
        return "-"
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.0f} d"
    return f"{seconds // 60:.0f}m" if 60 <= seconds < 3600 else format_seconds(seconds)
