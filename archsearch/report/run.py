"""A run as one document: its front, fixed trials beside published figures, stopped and failed trials, hypervolume, conditions, and the meaning of the score."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from archsearch.errors import UserError
from archsearch.identity import row_identity
from archsearch.metrics import TIE_SE, dominates
from archsearch.proxy import is_starved, read_audit
from archsearch.report.busy import busy_document, slow_document
from archsearch.report.expressions import Expression
from archsearch.report.fixed import against_front
from archsearch.report.noise import Measured, Noise, score_ties, unresolved
from archsearch.report.picks import Pool, build_picks
from archsearch.report.repeatability import (
    again_document,
    left_out_documents,
    noisy_document,
    not_compiled_documents,
    predicted_document,
)
from archsearch.report.scatter import scatter_document
from archsearch.report.tables import Document
from archsearch.report.volume import HYPERVOLUME_REFERENCE, VolumeScale
from archsearch.results import (
    OBJECTIVES,
    RUN_FRONT,
    SCHEMA,
    FrontChances,
    Row,
    comparable,
    front_members,
    front_rows,
    is_timed,
    is_unscored,
    latest_identity,
    limits_of,
    minimised,
    num_fixed,
    ranked,
    read_manifest,
    read_rows,
    run_state,
)
from archsearch.space import paper_table

HYPERVOLUME_SCALE = (
    "every objective scaled to 0..1 between the best and the worst value of this run's complete trials, "
    f"reference point {HYPERVOLUME_REFERENCE} in each; it grows with the front, and two runs' values are not comparable"
)
# Trials in one list of the document, but for the fronts: the last ones of a state, the first ones that a fixed trial is compared with.
MOST_LISTED = 1000
_MOST_RANK = 2  # the chance to be on the front is worked out for trials of the front, 0, and of as many fronts after it
_ROW_COLUMNS = [name for name in SCHEMA.names if name not in ("arch", "conditions")]
_AUDIT_KEYS = ("verdict", "created_at", "is_shipped", "conditions", "run", "seeds", "longer", "groups", "comparisons")
_CONDITION_KEYS = (
    "device",
    "dtype",
    "mode",
    "batch_size",
    "image_size",
    "image_width",
    "in_chans",
    "cpus",
    "runtime",
    "precision",
)
_PUBLISHED_KEYS = ("title", "arxiv", "params_m", "flops_g", "top1", "source", "throughput")


def to_csv(rows: Sequence[Row]) -> str:
    """The trials table as CSV: every column of trials.parquet, empty for none, times in ISO 8601."""
    # Not DataFrame.to_csv: it writes whole numbers beside missing ones as 2.0, and times without ISO 8601's T.
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(SCHEMA.names)
    for row in rows:
        values = (row[name] for name in SCHEMA.names)
        writer.writerow([value.isoformat() if isinstance(value, datetime) else value for value in values])
    return stream.getvalue()


def build_report(folder: Path, picks: Sequence[Expression] = ()) -> Document:
    """Everything the report says, as plain values; the run may still go on, have no finished trial, or only failed ones.

    `picks` are expressions for picks beside the default ones.
    """
    manifest = read_manifest(folder)
    objectives = [name for name in manifest["objectives"] if name in OBJECTIVES]
    every_row = read_rows(folder, without=("arch",))
    throughput_id = ranked_identity(every_row, manifest)
    rows = ranked(every_row, objectives, throughput_id)
    originals = [row for row in rows if row["state"] == "complete" and row["reused_from"] is None]
    complete = comparable(originals, objectives, throughput_id)
    front = sorted(front_members(rows), key=lambda row: tuple(minimised([row], objectives)[0]))
    noise = Noise.from_rows(complete)
    inside = [row for row in complete if row["outside"] is None]
    measured = Measured(inside, objectives, noise)
    dominated_by = unresolved(front, measured)
    chances = _front_chances(inside, objectives)
    counts = _counts(rows, manifest)
    ended_early = [row for row in rows if row["state"] == "stopped" and not is_unscored(row)]
    state, missing = _standing(folder, manifest, counts)
    audit = read_audit(folder.absolute().parent, manifest["proxy_id"])
    return {
        "run": manifest["name"],
        "folder": str(folder),
        "state": state,
        "reason": manifest.get("reason"),
        "missing": missing,
        "exhausted": manifest.get("exhausted", False),
        "updated_at": manifest["updated_at"],
        "command": manifest["command"],
        "space": manifest["space"]["name"],
        "budget_macs": manifest["budget_macs"],
        "tolerance": manifest["tolerance"],
        "band": manifest["band"],
        "limits": [str(limit) for limit in limits_of(manifest.get("limits", {}))],
        "num_outside": sum(row["outside"] is not None and not row["is_fixed"] for row in complete),
        "objectives": {name: OBJECTIVES[name] for name in objectives},
        "sampler": manifest["sampler"],
        "seed": manifest["seed"],
        "trials": counts,
        "score": {
            "proxy_id": manifest["proxy_id"],
            "meaning": score_sentence(manifest["proxy_id"], manifest["settings"]),
            "tie_standard_errors": TIE_SE,
            "training_sd": noise.training_sd,
        },
        "audit": audit and {name: audit.get(name) for name in _AUDIT_KEYS},
        "picks": build_picks(
            Pool(
                rows=inside,
                fixed=[row for row in complete if row["is_fixed"]],
                objectives=objectives,
                noise=noise,
                measured=measured,
                throughput_id=throughput_id,
                chances=chances,
            ),
            picks,
        ),
        "front": [
            {
                **_row_document(row),
                "score_ties": ties,
                "unresolved_by": dominated_by.get(row["trial"], []),
                "front_chance": chances.get(row["trial"]),
            }
            for row, ties in zip(front, score_ties(front, noise), strict=True)
        ],
        "scatter": scatter_document(inside, objectives),
        "near_front": _near_front(inside, front, chances),
        "pair_fronts": _pair_fronts(rows, objectives, throughput_id),
        "hypervolume": _hypervolume(inside, front, objectives),
        "throughput_id": throughput_id,
        "ranked_figure": next(
            (row_identity(row)["figure"] for row in rows if row["throughput_id"] == throughput_id), None
        )
        if throughput_id and is_timed(objectives)
        else None,
        "left_out": left_out_documents(originals, objectives, throughput_id),
        "not_compiled": not_compiled_documents(originals),
        "noisy": noisy_document(complete, objectives),
        "again": again_document(rows, objectives),
        "predicted": predicted_document(complete),
        "calibration": manifest.get("calibration"),
        "taken_from": manifest.get("taken_from", []),
        "training": manifest.get("training"),
        "starved": _starved(complete),
        "busy": busy_document(rows),
        "slow": slow_document(rows),
        "fixed": _fixed(complete, objectives, noise),
        "unscored": [
            {**_row_document(row), "published": None, **against_front(row, front, objectives, throughput_id)}
            for row in rows
            if is_unscored(row)
        ],
        "stopped_at": dict(sorted(Counter(row["rung"] for row in ended_early).items())),
        "stopped": [_row_document(row) for row in ended_early[-MOST_LISTED:]],
        **{
            state: [_row_document(row) for row in [row for row in rows if row["state"] == state][-MOST_LISTED:]]
            for state in ("failed", "running")
        },
        "conditions": {key: manifest["settings"].get(key) for key in _CONDITION_KEYS}
        | {"machine": manifest["conditions"]},
        "versions": manifest["versions"],
    }


def _front_chances(complete: Sequence[Row], objectives: Sequence[str]) -> dict[int, float]:
    """The chance to be on the front of each trial of the front and the next ones, by trial; none where no objective is a score."""
    if "proxy_score" not in objectives:
        return {}
    places = [place for place, row in enumerate(complete) if row["front"] is not None and row["front"] <= _MOST_RANK]
    found = FrontChances(complete, objectives, places).chances()
    return {complete[place]["trial"]: float(chance) for place, chance in zip(places, found, strict=True)}


def _near_front(complete: Sequence[Row], front: Sequence[Row], chances: Mapping[int, float]) -> list[Document]:
    """The trials beside the front whose chance to be on it is at least that of its least likely member, the likeliest first."""
    members = {row["trial"] for row in front}
    least = min((chances[trial] for trial in members if trial in chances), default=1.0)
    others = [row for row in complete if row["trial"] not in members and chances.get(row["trial"], 0.0) >= least]
    near = sorted(others, key=lambda row: (-chances[row["trial"]], row["trial"]))[:MOST_LISTED]
    return [{**_row_document(row), "front_chance": chances[row["trial"]]} for row in near]


def _row_document(row: Row) -> Row:
    return {name: row[name] for name in _ROW_COLUMNS}


def _counts(rows: Sequence[Row], manifest: Mapping[str, Any]) -> dict[str, int]:
    """Numbers of trials asked for (fixed ones included), in each state, fixed and reused; those without a score are not among the stopped ones."""
    states = ["unscored" if is_unscored(row) else row["state"] for row in rows]
    return {
        "asked": manifest["trials"] + num_fixed(manifest),
        **{state: states.count(state) for state in ("complete", "stopped", "failed", "running")},
        "fixed": sum(row["is_fixed"] for row in rows),
        "reused": sum(row["reused_from"] is not None for row in rows),
    }


def _standing(folder: Path, manifest: Mapping[str, Any], counts: Mapping[str, int]) -> tuple[str, dict[str, int]]:
    """The run's state, and what was asked for and is missing; earlier versions wrote neither what is missing nor that --timeout had ended a run."""
    state = run_state(folder, manifest)
    if "missing" in manifest:
        return state, manifest["missing"]
    left = (
        0
        if manifest.get("exhausted")
        else counts["asked"] - sum(counts[name] for name in ("complete", "stopped", "failed"))
    )
    return ("timeout" if state == "complete" and left > 0 else state), {"trials": max(0, left)}


def score_sentence(proxy_id: str | None, settings: Mapping[str, Any]) -> str:
    """What a proxy score is, and that it is no accuracy."""
    if proxy_id is None:
        return "This run has no proxy score."
    proxy, num_val = settings.get("proxy") or {}, settings.get("proxy_num_val")
    steps = proxy.get("recipe", {}).get("steps")
    profile = proxy.get("profile", {})
    what, divisor = "a small copy of the network", profile.get("width_divisor", 1)
    if profile.get("image_size") and divisor == 1:
        what = f"the network in its full widths ({profile['image_size']} px)"
    elif profile.get("image_size"):
        what = f"{what} ({profile['image_size']} px, widths 1/{divisor})"
    images = f"the {num_val} validation images" if num_val else "the validation images"
    training = f"{steps} training steps" if steps else "a short training"
    return (
        f"proxy_score is the share of {images} of {proxy_id.partition('@')[0]} that {what} gets right after {training}. "
        "It ranks the candidates of this run; it is not ImageNet accuracy, and scores of another proxy_id cannot be compared with it."
    )


def _starved(rows: Sequence[Row]) -> list[int]:
    """Trials whose trainings had to wait for images."""
    return [
        row["trial"]
        for row in rows
        if row["reused_from"] is None
        and row["proxy_loader_images_s"]
        and row["proxy_step_images_s"]
        and is_starved(row["proxy_loader_images_s"], row["proxy_step_images_s"])
    ]


def ranked_identity(rows: Sequence[Row], manifest: Mapping[str, Any]) -> str | None:
    """The identity of the throughputs that the run ranks: the manifest's, or of the latest timing in a run of an earlier version."""
    known = manifest.get("throughput_id")
    is_there = known is not None and any(row["throughput_id"] == known for row in rows)
    return known if is_there else latest_identity(rows)


def _pair_fronts(rows: Sequence[Row], objectives: Sequence[str], throughput_id: str | None) -> dict[str, list[int]]:
    """Trials on the fronts of score against one cost each."""
    fronts: dict[str, list[int]] = {}
    for row in front_rows(rows, objectives, throughput_id):
        if row["front_name"] != RUN_FRONT:
            fronts.setdefault(row["front_name"], []).append(row["trial"])
    return fronts


def _hypervolume(complete: Sequence[Row], front: Sequence[Row], objectives: Sequence[str]) -> dict[str, Any] | None:
    """The volume that the front dominates, scaled by the run's complete trials; None when there are none."""
    if not complete:
        return None
    columns = {name: [float(row[name]) for row in complete] for name in objectives}
    scale = VolumeScale.of(minimised(complete, objectives))
    return {
        "value": scale.volume(minimised(front, objectives)),
        "reference": HYPERVOLUME_REFERENCE,
        "normalisation": HYPERVOLUME_SCALE,
        "trials": len(complete),
        "bounds": {name: {"min": min(column), "max": max(column)} for name, column in columns.items()},
    }


def _fixed(complete: Sequence[Row], objectives: Sequence[str], noise: Noise) -> list[Document]:
    """The papers' models and included networks with measured and published figures, the candidates that dominate them, and those they dominate."""
    values = minimised(complete, objectives)
    is_candidate = np.array([not row["is_fixed"] for row in complete], dtype=bool)
    documents: list[Document] = []
    for row, value in zip(complete, values, strict=True):
        if row["is_fixed"]:
            over = np.flatnonzero(dominates(values, value) & is_candidate)
            under = np.flatnonzero(dominates(value, values) & is_candidate)
            documents.append(
                {
                    **_row_document(row),
                    "published": published(row["paper"]),
                    "num_dominated_by": len(over),
                    "dominated_by": [_relation(row, complete[index], noise) for index in over[:MOST_LISTED]],
                    "num_dominates": len(under),
                    "dominates": [_relation(row, complete[index], noise) for index in under[:MOST_LISTED]],
                }
            )
    return documents


def _relation(row: Row, other: Row, noise: Noise) -> dict[str, Any]:
    """The other trial, and whether the two scores are tied."""
    return {"trial": other["trial"], "arch_id": other["arch_id"], "score_tie": noise.is_tie(row, other)}


def published(name: str | None) -> dict[str, Any] | None:
    """The figures of a paper's own table; None for a model that is not shipped here."""
    try:
        table = paper_table(str(name))
    except UserError:
        return None
    return {key: table.get(key) for key in _PUBLISHED_KEYS}
