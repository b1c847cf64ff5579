"""How well a run's throughput figures were repeated at its end, and how well they were predicted."""

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from archsearch.metrics import kendall_tau
from archsearch.report.tables import Document
from archsearch.results import Row, timed_front
from archsearch.throughput import Protocol


def again_document(rows: Sequence[Row], objectives: Sequence[str]) -> Document | None:
    """How the ratios to the reference changed when the front was timed again; None when no member was.

    `tau` is Kendall's tau-b between the two orders. `swapped` are pairs that changed places although the interquartile
    ranges of their blocks do not overlap either time. `changed` are trials that changed by more than the drift allowed.
    """
    front = timed_front(rows, objectives)
    twice = [row for row in front if row["throughput_again_img_s"] is not None]
    if not twice:
        return None
    paired = [row for row in twice if row["throughput_change"] is not None]
    first, second = ([row[name] for row in paired] for name in ("throughput_ratio", "throughput_again_ratio"))
    tau = kendall_tau(first, second)
    swapped = [
        [one["trial"], other["trial"]]
        for one, other in combinations(paired, 2)
        if _order(one, other, "throughput") * _order(one, other, "throughput_again") < 0
    ]
    return {
        "members": len(front),
        "measured": len(twice),
        "median_change": statistics.median(abs(row["throughput_change"]) for row in paired) if paired else None,
        "tau": None if math.isnan(tau) else tau,
        "swapped": swapped,
        "changed": [row["trial"] for row in twice if is_changed(row)],
        "limit": Protocol.drift_limit,
    }


def is_changed(row: Mapping[str, Any]) -> bool:
    """Whether the second ratio to the reference differs from the first by more than the drift allowed."""
    return bool(abs(row["throughput_change"] or 0.0) > Protocol.drift_limit)


def _order(one: Row, other: Row, timing: str) -> int:
    """1 when `one` is faster, -1 when it is slower, 0 when the spreads around the two ratios to the reference overlap."""
    (low, high), (other_low, other_high) = (
        (row[f"{timing}_ratio"] * (1 - spread), row[f"{timing}_ratio"] * (1 + spread))
        for row in (one, other)
        for spread in [(row[f"{timing}_iqr"] or 0.0) / 2]
    )
    return int(low > other_high) - int(other_low > high)


def predicted_document(rows: Sequence[Row]) -> Document | None:
    """Median relative error of the throughputs predicted before building; None when nothing was predicted."""
    both = [
        (row["throughput_predicted_img_s"], row["throughput_img_s"])
        for row in rows
        if row["reused_from"] is None and row["throughput_predicted_img_s"] is not None and row["throughput_img_s"]
    ]
    if not both:
        return None
    errors = [abs(predicted / measured - 1) for predicted, measured in both]
    return {"trials": len(both), "median_error": statistics.median(errors)}


def again_sentence(document: Mapping[str, Any]) -> str:
    """`The front was timed again at the end, in another order: 6 of 6 members, ...`."""
    count = f"{document['measured']} of {document['members']} members"
    words = [f"The front was timed again at the end, in another order: {count}"]
    if document["median_change"] is not None:
        words.append(f"median change against the reference {document['median_change']:.1%}")
    if document["tau"] is not None:
        words.append(f"Kendall tau between the two orders {document['tau']:.2f}")
    swapped = ", ".join(f"{one} and {other}" for one, other in document["swapped"])
    places = f"trials {swapped}" if swapped else "no two"
    return f"{', '.join(words)}; {places} changed places beyond their spread. What is ranked is the first figure."


def predicted_sentence(document: Mapping[str, Any]) -> str:
    """`Throughput predicted before building was off by ...`."""
    return (
        f"Throughput predicted before building was off by {document['median_error']:.1%} (median of {document['trials']} "
        "trials); every figure here is measured."
    )


def calibration_sentence(source: Mapping[str, Any]) -> str:
    """`predicted by FILE: mean error 4.1%, Kendall tau 0.95 on hybrids held out`."""
    accuracy = f"mean error {source['mape']:.1%}, Kendall tau {source['kendall_tau']:.2f}"
    return f"predicted by {source['file']}: {accuracy} on hybrids held out"
