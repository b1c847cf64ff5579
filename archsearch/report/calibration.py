"""`archsearch calibrate`: a calibration as a document, as tables and as sentences."""

import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType

from archsearch.report.tables import Document, conditions_line, make_table, titled
from archsearch.throughput import TRUSTED_TAU, Calibration, left_out_errors
from archsearch.units import format_count, format_seconds

_GROUPS = {"held_out": "hybrids held out", "paper": "papers' models"}


def calibration_document(calibration: Calibration) -> dict[str, Any]:
    """Everything that the tables say, and the figures behind it, for JSON."""
    about, key = calibration.about, calibration.key
    errors = [abs(error) for error in left_out_errors(calibration.slopes.timed).values()]
    plan = about["identity"]
    return {
        "file": str(calibration.path),
        "key": key.to_dict(),
        "conditions": about["conditions"],
        "archsearch_version": about["archsearch_version"],
        "created_at": about["created_at"],
        "seconds": about["seconds"],
        "space": plan["space"],
        "budget_macs": plan["budget_macs"],
        "tolerance": plan["tolerance"],
        "seed": plan["seed"],
        "slopes": len(calibration.slopes.timed),
        "space_settings": about["space_settings"],
        "space_settings_timed": about["space_settings_timed"],
        "interpolation_error_median": statistics.median(errors) if errors else None,
        "networks": [asdict(network) for network in calibration.networks],
        "not_measured": [row["reason"] for row in calibration.rows if row["reason"]],
        "fit": asdict(calibration.fit),
        "scores": {group: asdict(score) if score else None for group, score in calibration.scores.items()},
        "is_trusted": calibration.is_trusted,
        "trusted_from_tau": TRUSTED_TAU,
        "kinds": _kinds(calibration),
    }


def _kinds(calibration: Calibration) -> list[dict[str, Any]]:
    """Milliseconds per GMAC and image of every block kind, the fastest first."""
    rates: dict[str, list[float]] = defaultdict(list)
    for site, ms in calibration.slopes.timed.items():
        macs = site.layer.cost(site.shape).macs
        if site.layer.role == "block" and macs:
            rates[site.layer.kind].append(ms / calibration.key.batch_size / (macs / 1e9))
    medians = {kind: statistics.median(each) for kind, each in rates.items()}
    return [
        {
            "kind": kind,
            "slopes": len(rates[kind]),
            "ms_per_gmac": ms,
            "least": min(rates[kind]),
            "most": max(rates[kind]),
        }
        for kind, ms in sorted(medians.items(), key=lambda item: item[1])
    ]


def calibration_parts(document: Document) -> Iterator[RenderableType]:
    """Tables of the predictions' errors and of the block kinds; what was measured, the conditions, and whether a run uses it."""
    rows = [_score_row(_GROUPS[group], score) for group, score in document["scores"].items()]
    columns = ["predicted against measured", "networks", "MAPE", "95 %", "Kendall tau", "95 %"]
    yield make_table(columns, rows, left=columns[:1])
    columns = ["block", "slopes", "ms/GMAC", "least", "most"]
    rows = [
        [kind["kind"], str(kind["slopes"]), *(f"{kind[name]:.2f}" for name in ("ms_per_gmac", "least", "most"))]
        for kind in document["kinds"]
    ]
    yield titled(
        "Time of an image's blocks per 1e9 multiply-adds, the fastest first",
        make_table(columns, rows, left=columns[:1]),
    )
    yield _measured_sentence(document)
    yield conditions_line({**document["conditions"], **document["key"]})
    trusted = document["is_trusted"]
    tau = f"{'of' if trusted else 'below'} {document['trusted_from_tau']}{' or more' if trusted else ''}"
    band = f"within {document['tolerance']:.0%} of {format_count(document['budget_macs'])} MACs"
    use = "will use it" if trusted else "will not use it"
    yield f"`archsearch run` {use}: {document['file']} orders hybrids {band} with a Kendall tau {tau}."


def _score_row(name: str, score: Document | None) -> list[str]:
    if score is None:
        return [name, "fewer than 3", "-", "-", "-", "-"]
    error, tau = score["mape"], score["tau"]
    return [
        name,
        str(score["count"]),
        f"{error['value']:.1%}",
        f"{error['low']:.1%} to {error['high']:.1%}",
        f"{tau['value']:.3f}",
        f"{tau['low']:.3f} to {tau['high']:.3f}",
    ]


def _measured_sentence(document: Document) -> str:
    """What was timed, how long it took, and how much is interpolated."""
    timed, known = document["space_settings_timed"], document["space_settings"]
    train = sum(network["group"] == "train" for network in document["networks"])
    interpolated = ""
    if known > timed and document["interpolation_error_median"] is not None:
        interpolated = f" (median error {document['interpolation_error_median']:.1%} when a timed one is left out)"
    failed = f" {len(document['not_measured'])} networks could not be measured." if document["not_measured"] else ""
    return (
        f"{document['slopes']} slopes and {len(document['networks'])} networks ({train} hybrids to fit on) in {format_seconds(document['seconds'])}, "
        f"{document['created_at'][:10]}, archsearch {document['archsearch_version']}: repeat it after an update that changes the blocks. "
        f"Of {known} settings of layers in {document['space']}, {timed} were timed and {known - timed} are interpolated{interpolated}.{failed}"
    )
