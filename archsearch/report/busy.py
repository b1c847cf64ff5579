"""What else was at work on the machine: trials beside which other processes used the cores, and trainings far below the run's own rate."""

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from archsearch.cores import SLOW_SHARE, TOLERATED_CORES, busy_advice, is_busy
from archsearch.report.tables import Document
from archsearch.results import Row
from archsearch.units import format_names

_FEWEST_TRAININGS = 4
_TRIALS_SHOWN = 6


def busy_document(rows: Sequence[Row]) -> Document | None:
    """The trials beside which others used more than the cores that the run left idle; None without one, or where no CPU was timed."""
    known = _known(rows)
    loud = [row for row in known if row["other_cores"] > TOLERATED_CORES]  # of thousands of rows few are parsed
    found = [(row, json.loads(row["conditions"])) for row in loud if row["conditions"]]
    found = [
        (row, where)
        for row, where in found
        if where.get("host_cores") and where.get("threads")
        if is_busy(row["other_cores"], where["host_cores"], where["threads"])
    ]
    if not found:
        return None
    return {
        "trials": [row["trial"] for row, _ in found],
        "of": len(known),
        "other_cores": statistics.median(row["other_cores"] for row, _ in found),
        "cores": found[-1][1]["host_cores"],
        "threads": found[-1][1]["threads"],
    }


def _known(rows: Sequence[Row]) -> list[Row]:
    return [
        row for row in rows if row["reused_from"] is None and row["device"] == "cpu" and row["other_cores"] is not None
    ]


def slow_document(rows: Sequence[Row]) -> Document | None:
    """The trials whose trainings took images at less than a third of the run's median rate; None without one.

    On a CPU beside others alone: an architecture may be slow of itself.
    """
    if all(map(_is_alone, rows)):
        return None
    rates = _images_s(rows)
    if len(rates) < _FEWEST_TRAININGS:
        return None
    usual = statistics.median(rates.values())
    slow = [row["trial"] for row in rows if rates.get(row["trial"], usual) < SLOW_SHARE * usual and not _is_alone(row)]
    return {"trials": slow, "images_s": [rates[trial] for trial in slow], "usual_images_s": usual} if slow else None


def _images_s(rows: Sequence[Row]) -> dict[int, float]:
    """Images a second of each trial's training, judging included; without trials whose rate is not known."""
    trained = [row for row in rows if row["reused_from"] is None and row["train_images"] and row["learning_curve"]]
    curves = json.loads(f"[{','.join(row['learning_curve'] for row in trained)}]")  # at once, which is twice as quick
    seconds = [sum(point["seconds"] or 0.0 for point in curve) for curve in curves]
    return {row["trial"]: row["train_images"] / taken for row, taken in zip(trained, seconds, strict=True) if taken}


def _is_alone(row: Row) -> bool:
    return row["device"] == "cpu" and row["other_cores"] is not None and row["other_cores"] <= TOLERATED_CORES


def busy_sentence(document: Mapping[str, Any]) -> str:
    """`The machine was busy beside 14 of 22 trials: ...`."""
    threads = document["threads"]
    return (
        f"The machine was busy beside {len(document['trials'])} of {document['of']} trials: other processes used {document['other_cores']:.1f} "
        f"of {document['cores']} cores (median), and the run computed with {threads} thread{'s' * (threads != 1)}. {busy_advice(threads)}"
    )


def slow_sentence(document: Mapping[str, Any]) -> str:
    """`Trainings of trials 3, 7 took images at less than a third of ...`."""
    names = format_names([str(trial) for trial in document["trials"]], _TRIALS_SHOWN)
    low, high = min(document["images_s"]), max(document["images_s"])
    return (
        f"Far slower than the run's other trainings ({document['usual_images_s']:.0f} img/s) were those of trial"
        f"{'s' * (len(document['trials']) != 1)} {names}: {low:.0f} to {high:.0f} img/s. Their scores stay right."
    )
