"""Fronts of several runs beside each other, in what may be compared."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np

from archsearch.metrics import dominates, is_dominated
from archsearch.report.comparable import (
    SCORE,
    ComparedRun,
    differences,
    read_runs,
    refusals,
    score_refusal,
    speed_refusal,
)
from archsearch.report.noise import Measured, Noise, surely_dominate
from archsearch.report.run import MOST_LISTED
from archsearch.report.seed_groups import group_differences, seed_groups
from archsearch.report.tables import Document
from archsearch.report.volume import HYPERVOLUME_REFERENCE, VolumeScale
from archsearch.results import OBJECTIVES, Row, damage_is_an_error, minimised, study_name
from archsearch.throughput import Protocol

SPEED = "throughput_img_s"
COMMON_SCALE = (
    "every objective scaled to 0..1 between the best and the worst value of all these runs' complete trials, "
    f"reference point {HYPERVOLUME_REFERENCE} in each; with other runs beside them the values are others"
)
_COSTS = ("params", "macs")
_FIGURES = (SCORE, "proxy_score_se", SPEED, "latency_ms", "peak_memory_bytes", *_COSTS)


def build_comparison(folders: Sequence[Path]) -> Document:
    """Several runs as one document: what may be compared and what not, a row for each run, the joint front, groups of seeds, what several measured.

    Raises UserError for a run that is given twice or damaged.
    """
    with damage_is_an_error(Path(" or ".join(map(str, folders)))):
        runs = read_runs(folders)
        refused = refusals(runs)
        objectives = [name for name in runs[0].objectives if name not in refused]
        complete = {run.label: run.complete(objectives) for run in runs}
        fronts = {label: _front(rows, objectives) for label, rows in complete.items()}
        rows = [(label, row) for label, own in complete.items() for row in own]
        noise = Noise.from_rows([row for _, row in rows])
        volumes = _volumes(complete, fronts, objectives)
        joint = _joint_front(rows, objectives, noise)
        groups = seed_groups(runs, volumes)
        return {
            "objectives": {name: OBJECTIVES[name] for name in objectives},
            "not_compared": refused,
            "score_refusal": score_refusal(runs),
            "speed_refusal": speed_refusal(runs),
            "proxy_id": runs[0].manifest.get("proxy_id") if score_refusal(runs) is None else None,
            "copies": _copies(runs),
            "training_seeds": {run.label: run.training_seed for run in runs},
            "reference_rates": {run.label: run.rate for run in runs},
            "differences": differences(runs),
            "hypervolume": {
                "scale": COMMON_SCALE,
                "bounds": _bounds([row for _, row in rows], objectives),
                "joint": _joint_volume(rows, objectives),
            },
            "runs": [
                _run_document(run, complete[run.label], fronts[run.label], volumes[run.label], joint) for run in runs
            ],
            "groups": groups,
            "group_differences": group_differences(groups),
            "coverage": _coverage(fronts, objectives, noise),
            "joint_front": joint,
            "measured_in_several": _measured_in_several(runs),
            "drift_limit": Protocol.drift_limit,
        }


def _copies(runs: Sequence[ComparedRun]) -> list[list[str]]:
    """The labels of runs that began as one: the same study, begun at the same moment, as in a copied folder."""
    labels: dict[tuple[str, Any], list[str]] = {}
    for run in runs:
        labels.setdefault((study_name(run.manifest), run.manifest.get("created_at")), []).append(run.label)
    return [own for own in labels.values() if len(own) > 1]


def _front(rows: Sequence[Row], objectives: Sequence[str]) -> list[Row]:
    """The rows that no other one of these dominates; none where there is no objective."""
    if not objectives:
        return []
    dominated = is_dominated(minimised(rows, objectives)).tolist()
    return [row for row, is_out in zip(rows, dominated, strict=True) if not is_out]


def _volumes(
    complete: Mapping[str, Sequence[Row]], fronts: Mapping[str, Sequence[Row]], objectives: Sequence[str]
) -> dict[str, float | None]:
    """Hypervolume of each run's front on the scale of all runs' complete trials; None of one without any."""
    everything = [row for rows in complete.values() for row in rows]
    if not everything or not objectives:
        return dict.fromkeys(complete)
    scale = VolumeScale.of(minimised(everything, objectives))
    return {label: scale.volume(minimised(front, objectives)) if front else None for label, front in fronts.items()}


def _joint_volume(rows: Sequence[tuple[str, Row]], objectives: Sequence[str]) -> float | None:
    if not rows or not objectives:
        return None
    values = minimised([row for _, row in rows], objectives)
    return VolumeScale.of(values).volume(values[~is_dominated(values)])


def _bounds(rows: Sequence[Row], objectives: Sequence[str]) -> dict[str, Any]:
    columns = {name: [float(row[name]) for row in rows] for name in objectives} if rows else {}
    return {name: {"min": min(column), "max": max(column)} for name, column in columns.items()}


def _run_document(
    run: ComparedRun, complete: Sequence[Row], front: Sequence[Row], volume: float | None, joint: Sequence[Document]
) -> Document:
    """One run: how far it has come, its front, its part of the joint one, its best figures and the range of its exact costs."""
    manifest = run.manifest
    members = [member for member in joint if any(one["run"] == run.label for one in member["on_front"])]
    measured = run.complete([])
    return {
        "label": run.label,
        "run": run.folder.resolve().name,  # of `.` too
        "folder": str(run.folder),
        "state": manifest["state"],
        "sampler": manifest.get("sampler"),
        "seed": manifest.get("seed"),
        "objectives": run.objectives,
        "proxy_id": manifest.get("proxy_id"),
        "throughput_id": run.throughput_id,
        "trials": {
            "asked": run.asked,
            "complete": sum(row["state"] == "complete" for row in run.rows),
            "compared": len(complete),
        },
        "front": len(front),
        "hypervolume": volume,
        "joint": {
            "members": len(members),
            "share": len(members) / len(joint) if joint else None,
            "alone": sum(len({one["run"] for one in member["on_front"]}) == 1 for member in members),
        },
        "best_score": _best(measured, SCORE),
        "best_speed": _best([row for row in measured if row["throughput_id"] == run.throughput_id], SPEED),
        "costs": {name: [min(values), max(values)] for name in _COSTS if (values := [row[name] for row in measured])},
    }


def _best(rows: Iterable[Row], name: str) -> Document | None:
    """The largest value of a column with its trial."""
    known = [row for row in rows if row[name] is not None]
    best = max(known, key=lambda row: row[name], default=None)
    if best is None:
        return None
    return {"value": best[name], "trial": best["trial"]} | (
        {"standard_error": best["proxy_score_se"]} if name == SCORE else {}
    )


def _joint_front(rows: Sequence[tuple[str, Row]], objectives: Sequence[str], noise: Noise) -> list[Document]:
    """The architectures that no trial of any run dominates, best in the first objective first, each with the runs and trials that put it there.

    `unresolved_by` are the trials of other architectures that may dominate it within the noise.
    """
    # One numbering for all runs, since `Measured` tells rows apart by it.
    numbered = [{**row, "trial": number} for number, (_, row) in enumerate(rows)]
    front = _front(numbered, objectives)
    if not front:
        return []
    everyone = Measured(numbered, objectives, noise)
    by_arch: dict[str, list[Row]] = {}
    for row in front:
        by_arch.setdefault(row["arch_id"], []).append(row)
    documents: list[tuple[tuple[float, ...], Document]] = []
    for arch_id, members in by_arch.items():
        first = min(members, key=lambda row: tuple(minimised([row], objectives)[0]))
        doubters = [rows[number] for number in everyone.may_dominate(first)]
        document = {
            **{name: first[name] for name in ("arch_id", "architecture", "is_fixed", "paper", *_FIGURES)},
            "on_front": [_place(*rows[row["trial"]]) for row in members],
            "unresolved_by": [_place(*each) for each in doubters if each[1]["arch_id"] != arch_id][:MOST_LISTED],
        }
        documents.append((tuple(minimised([first], objectives)[0]), document))
    return [document for _, document in sorted(documents, key=lambda pair: pair[0])]


def _place(label: str, row: Row) -> Document:
    return {"run": label, "trial": row["trial"]}


def _coverage(fronts: Mapping[str, Sequence[Row]], objectives: Sequence[str], noise: Noise) -> list[Document]:
    """Of each two runs: how many members of the one's front the other's dominates, and how many of them whatever the noise.

    A member is not dominated by another measurement of the same architecture.
    """
    found: list[Document] = []
    for by, of in permutations(fronts, 2) if objectives else ():
        rivals = minimised(fronts[by], objectives)
        dominated = surely = 0
        for row in fronts[of]:
            is_over = dominates(rivals, minimised([row], objectives)[0])
            over = [
                rival
                for rival, is_rival in zip(fronts[by], is_over.tolist(), strict=True)
                if is_rival and rival["arch_id"] != row["arch_id"]
            ]
            dominated += bool(over)
            surely += bool(over) and bool(surely_dominate(over, row, objectives, noise).any())
        members = len(fronts[of])
        found.append(
            {
                "by": by,
                "of": of,
                "members": members,
                "dominated": dominated,
                "share": dominated / members if members else None,
                "beyond_noise": surely,
            }
        )
    return found


def _measured_in_several(runs: Sequence[ComparedRun]) -> Document:
    """The architectures that several runs measured, fixed trials first: a check of the conditions, since their figures should be the same.

    `pairs` counts each two measurements of one architecture of which neither took its figures from another run.
    """
    can_score, can_time = score_refusal(runs) is None, speed_refusal(runs) is None
    by_arch: dict[str, list[tuple[ComparedRun, Row]]] = {}
    for run in runs:
        for row in run.complete([]):
            by_arch.setdefault(row["arch_id"], []).append((run, row))
    shared = [each for each in by_arch.values() if len({run.label for run, _ in each}) > 1]
    noise = Noise.from_rows([row for run in runs for row in run.complete([])])
    pairs = [
        (one, other)
        for each in shared
        for (run, one), (other_run, other) in combinations(each, 2)
        if run is not other_run and not one["taken_from"] and not other["taken_from"]
    ]
    scored = [(one, other) for one, other in pairs if can_score and None not in (one[SCORE], other[SCORE])]
    timed = [
        abs(one[SPEED] / other[SPEED] - 1)
        for one, other in pairs
        if can_time and one["throughput_id"] == other["throughput_id"] and one[SPEED] and other[SPEED]
    ]
    documents = sorted(
        (_shared_document(each, can_score=can_score, can_time=can_time) for each in shared),
        key=lambda one: (not one["is_fixed"], -len(one["measured"]), one["paper"] or one["architecture"]),
    )
    return {
        "number": len(documents),
        "architectures": documents[:MOST_LISTED],
        "pairs": len(pairs),
        "scores": _change([abs(one[SCORE] - other[SCORE]) for one, other in scored])
        | {"beyond_noise": sum(not noise.is_tie(one, other) and one[SCORE] != other[SCORE] for one, other in scored)},
        "speeds": _change(timed) | {"beyond_drift": sum(change > Protocol.drift_limit for change in timed)},
    }


def _change(values: Sequence[float]) -> dict[str, Any]:
    return {
        "pairs": len(values),
        "median": float(np.median(values)) if values else None,
        "largest": max(values, default=None),
    }


def _shared_document(each: Sequence[tuple[ComparedRun, Row]], *, can_score: bool, can_time: bool) -> Document:
    """One architecture with its figures in each run; a figure that is not comparable is None."""
    (_, first), *_ = each
    return {
        **{name: first[name] for name in ("arch_id", "architecture", "is_fixed", "paper", *_COSTS)},
        "measured": [
            {
                **_place(run.label, row),
                SCORE: row[SCORE] if can_score else None,
                "proxy_score_se": row["proxy_score_se"] if can_score else None,
                SPEED: row[SPEED] if can_time and row["throughput_id"] == run.throughput_id else None,
                "taken_from": row["taken_from"],
            }
            for run, row in each
        ],
    }
