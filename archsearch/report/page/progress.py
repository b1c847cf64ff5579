"""How a run's front grew: its hypervolume, scaled as the report's, after each trial that changed it, and the images trained on until then."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from archsearch.metrics import Array
from archsearch.report.tables import Document
from archsearch.report.volume import VolumeScale
from archsearch.results import ENDED, OBJECTIVES, LiveFront, Row, minimised

_MOST_POINTS = 400
_MARKS = (0.5, 0.75)  # of the trials: where the page says how much of the volume was reached

Snapshot = tuple[int, tuple[int, ...]]  # a number of ended trials, and the front's members then


def progress(rows: Sequence[Row], document: Document) -> dict[str, Any] | None:
    """Points of numbers of ended trials, images and hypervolume, a step each; of more than 400 changes some evenly between. None without a front."""
    volume = document["hypervolume"]
    if not volume:
        return None
    ended = sorted((row for row in rows if row["state"] in ENDED), key=_moment)
    images = [0, *accumulate(row["train_images"] or 0 for row in ended)]
    snapshots = _snapshots(ended, list(document["objectives"]), document["throughput_id"])
    by_trial = {row["trial"]: row for row in ended}

    def volume_at(snapshot: Snapshot) -> float:
        return _volume([by_trial[trial] for trial in snapshot[1]], list(document["objectives"]), volume)

    shown = _evenly(snapshots)
    return {
        "trials": len(ended),
        "images": images[-1],
        "changes": len(snapshots),
        "points": [{"trials": each[0], "images": images[each[0]], "hypervolume": volume_at(each)} for each in shown],
        "reached": [
            {"share": share, "trials": number, "hypervolume": volume_at(_last(snapshots, number))}
            for share in _MARKS
            if (number := int(share * len(ended))) >= snapshots[0][0]
        ],
    }


def _moment(row: Row) -> tuple[bool, Any, int]:
    """Sorts rows by their end; those of an earlier version without one by their number, after the others."""
    end = row["finished_at"]
    return end is None, end or 0, row["trial"]


def _snapshots(ended: Sequence[Row], objectives: Sequence[str], throughput_id: str | None) -> list[Snapshot]:
    """The front after each trial that joined it."""
    front, found = LiveFront(objectives, throughput_id, []), []
    for number, row in enumerate(ended, start=1):
        if row["reused_from"] is None and front.add(row) is not None:
            found.append((number, tuple(front.trials)))
    return found


def _last(snapshots: Sequence[Snapshot], number: int) -> Snapshot:
    """The front after so many trials."""
    return [each for each in snapshots if each[0] <= number][-1]


def _evenly(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    if len(snapshots) <= _MOST_POINTS:
        return list(snapshots)
    places = {round(step * (len(snapshots) - 1) / (_MOST_POINTS - 1)) for step in range(_MOST_POINTS)}
    return [snapshots[place] for place in sorted(places)]


def _volume(members: Sequence[Row], objectives: Sequence[str], volume: Mapping[str, Any]) -> float:
    """The hypervolume of these members between the bounds of the report's."""
    bounds: Array = np.array([_minimised_bounds(name, volume["bounds"][name]) for name in objectives])
    return VolumeScale.of(bounds.T).volume(minimised(members, objectives))


def _minimised_bounds(name: str, bounds: Mapping[str, float]) -> tuple[float, float]:
    if OBJECTIVES[name] == "maximize":
        return -bounds["max"], -bounds["min"]
    return bounds["min"], bounds["max"]
