"""One trial of a run as a document: its figures, its place among the others, its learning curve, its costs, and what one choice more or less would change."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from archsearch.errors import UserError
from archsearch.metrics import dominates
from archsearch.report.noise import Noise
from archsearch.report.run import build_report, published
from archsearch.report.tables import Document
from archsearch.results import Row, comparable, is_unscored, minimised, ranked, read_manifest, read_rows

_MOST_BETTER = 1000  # trials that dominate this one


def build_candidate(folder: Path, number: int) -> Document:
    """Everything that is known of a trial, as plain values; `unknown` says what is not, and why.

    Raises UserError where the run has no such trial. Loads torch, which the costs of layers need, unless the network has no architecture.
    """
    manifest, rows = read_manifest(folder), read_rows(folder)
    row = next((row for row in rows if row["trial"] == number), None)
    if row is None:
        raise UserError(f"{folder}: no trial {number}; it has {len(rows)}, counted from 0")
    report = build_report(folder)
    stored = json.loads(row["arch"])
    document: dict[str, Any] = {
        "run": report["run"],
        "folder": str(folder),
        "trial": number,
        "name": row["paper"],
        "state": "unscored" if is_unscored(row) else row["state"],
        "figures": {name: value for name, value in row.items() if name not in ("arch", "conditions", "learning_curve")},
        "score": report["score"],
        "objectives": report["objectives"],
        "band": report["band"],
        "published": published(row["paper"]) if row["is_fixed"] else None,
        "conditions": json.loads(row["conditions"] or "{}"),
        "place": _place(row, rows, report),
        "learning_curve": json.loads(row["learning_curve"] or "[]"),
        "seed_scores": json.loads(row["proxy_seed_scores"] or "[]"),
        "unknown": _unknown(row, stored),
        "arch": None,
        "image": None,
        "stages": [],
        "layers": [],
        "changes": None,
    }
    if "given" not in stored:
        document |= _of_architecture(folder, manifest, rows, row, stored)
    return document


def _of_architecture(
    folder: Path, manifest: Mapping[str, Any], rows: Sequence[Row], row: Row, stored: Mapping[str, Any]
) -> Document:
    """What follows from the architecture by arithmetic alone."""
    from archsearch.report.changes import changes_document  # these load torch
    from archsearch.report.cost import cost_document, stage_list
    from archsearch.space import Arch, register_files, stored_block_files
    from archsearch.units import format_image

    register_files(stored_block_files(folder, manifest))
    arch = Arch.from_dict(stored, f"{folder}: trial {row['trial']}")
    return {
        "arch": dict(stored),
        "image": format_image(arch.image_size, arch.in_chans),
        "stages": stage_list(arch),
        "layers": cost_document(arch)["layers"],
        "changes": changes_document(folder, manifest, rows, arch),
    }


def _place(row: Row, rows: Sequence[Row], report: Document) -> Document:
    """Where the trial stands among those that it can be compared with; `reason` says why it cannot be."""
    number, objectives = row["trial"], list(report["objectives"])
    member = next((each for each in report["front"] if each["trial"] == number), None)
    near = next((each for each in report["near_front"] if each["trial"] == number), None)
    ranks = {each["trial"]: each["front"] for each in ranked(rows, objectives, report["throughput_id"])}
    originals = [each for each in rows if each["state"] == "complete" and each["reused_from"] is None]
    complete = comparable(originals, objectives, report["throughput_id"])
    is_compared = any(each["trial"] == number for each in complete)
    found: dict[str, Any] = {
        "is_on_front": member is not None,
        "front": ranks.get(number),
        "front_size": len(report["front"]),
        "front_chance": (member or near or {}).get("front_chance"),
        "score_ties": member["score_ties"] if member else [],
        "unresolved_by": member["unresolved_by"] if member else [],
        "reason": None if is_compared else _why_not_compared(row),
        "dominates_papers": [],
        "dominated_by_papers": [],
        "num_compared": len(complete),
        "num_dominates": 0,
        "num_dominated_by": 0,
        "dominated_by": [],
    }
    if is_compared:
        found |= _dominance(row, complete, objectives)
    return found


def _why_not_compared(row: Row) -> str:
    if row["reused_from"] is not None:
        return f"it repeats trial {row['reused_from']}, which stands in its place"
    if is_unscored(row):
        return "it has no score, which the front needs"
    if row["state"] == "complete":
        return "it was timed otherwise than the trials that are ranked"
    words = {"failed": "it failed", "stopped": "it was stopped early", "running": "it is still at work"}
    return words.get(row["state"], str(row["state"]))


def _dominance(row: Row, complete: Sequence[Row], objectives: Sequence[str]) -> Document:
    """The fixed trials that it dominates and that dominate it, with ties of the scores, and all trials that dominate it."""
    noise, values, own = Noise.from_rows(complete), minimised(complete, objectives), minimised([row], objectives)[0]
    is_over, is_under = dominates(values, own), dominates(own, values)

    def papers(places: Any) -> list[Document]:
        fixed = [each for each, is_one in zip(complete, places, strict=True) if is_one and each["is_fixed"]]
        return [
            {"paper": each["paper"], "trial": each["trial"], "score_tie": noise.is_tie(row, each)} for each in fixed
        ]

    over = [each["trial"] for each, is_one in zip(complete, is_over, strict=True) if is_one]
    return {
        "num_dominates": int(is_under.sum()),
        "dominates_papers": papers(is_under),
        "dominated_by_papers": papers(is_over),
        "num_dominated_by": len(over),
        "dominated_by": over[:_MOST_BETTER],
    }


def _unknown(row: Row, stored: Mapping[str, Any]) -> list[str]:
    """What the run does not know of this trial, and why."""
    words = []
    if "given" in stored:
        words.append(
            f"{stored['given']} was included as it is: its layers are not archsearch's, so there is no drawing, no cost by layer and no choice to change"
        )
        if stored.get("uncounted"):
            words.append(f"its MACs lack what was not counted: {', '.join(map(str, stored['uncounted']))}")
    if row["proxy_score"] is None:
        words.append("it has no score of a whole training")
    if row["throughput_img_s"] is None:
        words.append("it was not timed")
    if not row["learning_curve"]:
        words.append("it has no learning curve")
    return words
