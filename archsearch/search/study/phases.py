"""What each phase of a trial measured, read back from the trial's row."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from archsearch.results import SCHEMA, SEED_COLUMNS, Row
from archsearch.search.config import RunConfig
from archsearch.search.rungs import FREE_PHASE, FULL_PHASE

# Worked out from others.
_FOLLOWING = (*SEED_COLUMNS, "throughput_predicted_img_s", "throughput_change", "throughput_id")


def _columns_of(prefix: str) -> list[str]:
    """The columns of this prefix that a phase measured."""
    return sorted(name for name in SCHEMA.names if name.startswith(prefix) and name not in _FOLLOWING)


AGAIN_COLUMNS = _columns_of("throughput_again_")
_SHORTEST_S = 1e-6  # less is rounding
_TIMED = ("latency_ms", "peak_memory_bytes", "compile_s", "device_name", "conditions")


def phases_of_row(config: RunConfig, row: Row) -> dict[str, dict[str, Any]]:
    """What each phase measured: phase -> column -> value."""
    throughput = [*_TIMED, *(name for name in _columns_of("throughput_") if name not in AGAIN_COLUMNS)]
    if row["mode"] != config.settings["mode"]:  # a network that does not compile
        throughput.append("mode")
    columns = {
        "count": ["macs_fvcore", "train_memory_bytes"],
        "throughput": throughput,
        FREE_PHASE: _columns_of(f"{FREE_PHASE}_"),
    }
    phases = {phase: pick_values(row, names) for phase, names in columns.items()}
    for point, rung in zip(json.loads(row["learning_curve"] or "[]"), config.trainings, strict=False):
        score = {
            "proxy_score": point["score"],
            "proxy_score_se": point["standard_error"],
            "proxy_id": point["proxy_id"],
        }
        phases[rung.phase] = {**score, "seconds": point["seconds"] or 0.0, "seconds_proxy": point["seconds"]}
    if row["proxy_score"] is not None:
        seconds = {"seconds": row["seconds_proxy"] or 0.0, "seconds_proxy": row["seconds_proxy"]}
        phases[FULL_PHASE] = {**pick_values(row, _columns_of("proxy_")), **phases.get(FULL_PHASE, seconds)}
    for phase in ("count", "throughput"):
        if row[f"seconds_{phase}"] is not None:
            phases[phase] |= {"seconds": row[f"seconds_{phase}"], f"seconds_{phase}": row[f"seconds_{phase}"]}
    found = {phase: values for phase, values in phases.items() if values}
    # What took time and has no column of its own: the training-free scores, and what a phase did besides its work.
    left = (row["seconds_total"] or 0.0) - sum(values.get("seconds", 0.0) for values in found.values())
    if found and row["reused_from"] is None and left > _SHORTEST_S:
        last = found.get(FREE_PHASE) or found[next(iter(found))]
        last["seconds"] = last.get("seconds", 0.0) + left
    return found


def pick_values(row: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The columns of these names that are not empty."""
    return {name: row[name] for name in names if row[name] is not None}
