"""How far a run's order by speed can be used: which timings are left out of it, how many are noisy, and how well they were repeated and predicted."""

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from archsearch.identity import RAW_FIGURE, identity_differences, row_identity
from archsearch.metrics import kendall_tau
from archsearch.report.tables import Document
from archsearch.results import DEVICE_OBJECTIVES, Row, compile_error, is_timed, timed_front
from archsearch.throughput import Protocol
from archsearch.units import format_names


def left_out_documents(rows: Sequence[Row], objectives: Sequence[str], throughput_id: str | None) -> list[Document]:
    """The other identities among the timings of `rows`: how many trials of each are not ranked, and how each differs from the ranked one.

    None where no objective depends on the device: then all rows are ranked. Without those of `not_compiled_documents`.
    """
    if DEVICE_OBJECTIVES.isdisjoint(objectives):
        return []
    by_identity: dict[str | None, list[Row]] = {}
    for row in rows:
        if row["throughput_id"] == throughput_id or not compile_error(row):
            by_identity.setdefault(row["throughput_id"], []).append(row)
    here = by_identity.pop(throughput_id, [])
    return [
        {
            "throughput_id": other,
            "trials": len(group),
            "differences": identity_differences(row_identity(group[-1]), row_identity(here[-1]), "there", "here")
            if here
            else None,
        }
        for other, group in by_identity.items()
    ]


def not_compiled_documents(rows: Sequence[Row]) -> list[Document]:
    """The trials among `rows` whose networks do not compile, which were timed eager in a run that times compiled ones, with the reasons."""
    return [{"trial": row["trial"], "reason": reason} for row in rows if (reason := compile_error(row))]


def not_compiled_sentence(documents: Sequence[Document]) -> str:
    """That these trials were timed eager, why the first one was, and what they are ranked with."""
    trials = format_names([str(each["trial"]) for each in documents])
    return (
        f"Timed eager and ranked only among themselves, since they do not compile: trial{'s' * (len(documents) > 1)} {trials} "
        f"(the first because: {documents[0]['reason']})."
    )


def transfer_sentence(device: str, mode: str) -> str | None:
    """What an order by speed measured so tells of others, by the order of timm's published tables; None where there is nothing to warn of."""
    if device == "cpu":
        return "Timed on a CPU: this order by speed foretells little of a GPU's (Kendall tau .2 to .4 between the two in timm's tables)."
    if device == "cuda" and mode == "eager":
        return "Timed eager: compiled, as networks are deployed, their order is another (Kendall tau .43 to .66 in timm's tables)."
    return None


def noisy_document(rows: Sequence[Row], objectives: Sequence[str]) -> Document | None:
    """How many of the ranked timings are noisy; None unless most are, and an objective is timed."""
    noisy = sum(bool(row["throughput_noisy"]) for row in rows)
    return {"trials": noisy, "timed": len(rows)} if is_timed(objectives) and noisy > len(rows) / 2 else None


def figure_sentence(figure: str, command: str) -> str:
    """By which figure a run ranks speeds; `command` has one of an earlier version rank ratios."""
    if figure != RAW_FIGURE:
        return f"speed is ranked by the {figure}, shown as images/s at one rate of the reference"
    return f"speed is ranked by {figure}, as by the version that began the run; `{command}` has it ranked by ratios to the reference"


def noisy_sentence(document: Mapping[str, Any], command: str) -> str:
    """That the order by speed is not to be used, and how to get a better one."""
    return (
        f"The order by speed is not to be used: {document['trials']} of {document['timed']} timings are noisy (~), since other work ran "
        f"beside them. End that work, then give `{command}`, which times the noisy ones anew; or begin a run with --threads 1."
    )


def left_out_sentence(document: Mapping[str, Any], command: str) -> str:
    """How many trials of another identity are in no front, and what differs."""
    what = f" ({document['differences']})" if document["differences"] else ""
    return (
        f"Left out: {document['trials']} complete trials that were timed otherwise{what}; "
        f"`{command}` times them anew, and ranks all together."
    )


def again_document(rows: Sequence[Row], objectives: Sequence[str]) -> Document | None:
    """How the ranked speeds changed when the front was timed again; None when no member was.

    `tau` is Kendall's tau-b between the two orders by `throughput_img_s`, the figure that is ranked. `swapped` are pairs that changed places
    although the interquartile ranges of their blocks do not overlap either time. `changed` are trials whose ratio to the reference changed
    by more than the drift allowed.
    """
    front = timed_front(rows, objectives)
    twice = [row for row in front if row["throughput_again_img_s"] is not None]
    if not twice:
        return None
    first, second = ([row[name] for row in twice] for name in ("throughput_img_s", "throughput_again_img_s"))
    tau = kendall_tau(first, second)
    swapped = [
        [one["trial"], other["trial"]]
        for one, other in combinations(twice, 2)
        if _order(one, other, "throughput") * _order(one, other, "throughput_again") < 0
    ]
    return {
        "members": len(front),
        "measured": len(twice),
        "median_change": statistics.median(
            abs(after / before - 1) for before, after in zip(first, second, strict=True)
        ),
        "tau": None if math.isnan(tau) else tau,
        "swapped": swapped,
        "changed": [row["trial"] for row in twice if is_changed(row)],
        "limit": Protocol.drift_limit,
    }


def is_changed(row: Mapping[str, Any]) -> bool:
    """Whether the second ratio to the reference differs from the first by more than the drift allowed."""
    return bool(abs(row["throughput_change"] or 0.0) > Protocol.drift_limit)


def _order(one: Row, other: Row, timing: str) -> int:
    """1 when `one` is faster, -1 when it is slower, 0 when the spreads around the two figures overlap."""
    (low, high), (other_low, other_high) = (
        (row[f"{timing}_img_s"] * (1 - spread), row[f"{timing}_img_s"] * (1 + spread))
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
    words.append(f"median change {document['median_change']:.1%}")
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
