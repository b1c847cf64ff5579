"""Runs that differ by their seed alone, as mean and spread, and which differences between such groups the spread resolves."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from scipy.special import stdtrit

from archsearch.report.comparable import ComparedRun
from archsearch.report.tables import Document

_TAIL = 0.025  # of a 95 % interval, either side


def seed_groups(runs: Sequence[ComparedRun], volumes: Mapping[str, float | None]) -> list[Document]:
    """The requests among the runs, seeds left out: labels and seeds of their runs, mean and standard deviation of these hypervolumes by label.

    `differs` has the settings in which the requests differ.
    """
    by_request: dict[str, list[ComparedRun]] = {}
    for run in runs:
        by_request.setdefault(json.dumps(_without_seed(run), sort_keys=True), []).append(run)
    asked = [_without_seed(group[0]) for group in by_request.values()]
    names = dict.fromkeys(name for each in asked for name in each)
    varying = [name for name in names if len({json.dumps(each.get(name)) for each in asked}) > 1]
    return [
        {
            "runs": [run.label for run in group],
            "seeds": [run.manifest.get("seed") for run in group],
            "differs": {name: own.get(name) for name in varying},
            "hypervolume": _spread([volume for run in group if (volume := volumes[run.label]) is not None]),
        }
        for group, own in zip(by_request.values(), asked, strict=True)
    ]


def _without_seed(run: ComparedRun) -> dict[str, Any]:
    return {name: value for name, value in run.request.items() if name != "seed"}


def _spread(values: Sequence[float]) -> Document:
    """Number, mean and standard deviation; None for those of too few."""
    return {
        "n": len(values),
        "mean": statistics.fmean(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
    }


def group_differences(groups: Sequence[Document]) -> list[Document]:
    """Of each two requests with several seeds: the difference of their mean hypervolumes with its 95 % interval, and whether that leaves out 0.

    The interval is Welch's, which does not take the two spreads as equal (Biometrika 34, 1947).
    """
    known = [
        (place, group["hypervolume"]) for place, group in enumerate(groups) if group["hypervolume"]["sd"] is not None
    ]
    return [
        {"groups": [place, other_place], **_welch(one, other)}
        for (place, one), (other_place, other) in combinations(known, 2)
    ]


def _welch(one: Document, other: Document) -> dict[str, Any]:
    """The second mean less the first; without an interval where neither has a spread."""
    difference = other["mean"] - one["mean"]
    parts = [each["sd"] ** 2 / each["n"] for each in (one, other)]
    variance = math.fsum(parts)
    if not variance:
        return {"difference": difference, "low": None, "high": None, "is_resolved": False}
    freedom = variance**2 / math.fsum(part**2 / (each["n"] - 1) for part, each in zip(parts, (one, other), strict=True))
    half = float(stdtrit(freedom, 1 - _TAIL)) * math.sqrt(variance)
    low, high = difference - half, difference + half
    return {"difference": difference, "low": low, "high": high, "is_resolved": not low <= 0 <= high}
