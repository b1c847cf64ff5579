"""Pareto fronts of a run's rows."""

from collections.abc import Reversible, Sequence
from operator import itemgetter

import numpy as np

from archsearch.metrics import Array, front_ranks, is_dominated
from archsearch.results.schema import (
    CONDITION_COLUMNS,
    DEVICE_OBJECTIVES,
    OBJECTIVES,
    PAIR_FRONTS,
    RUN_FRONT,
    TIMED,
    Row,
)


def minimised(rows: Sequence[Row], objectives: Sequence[str]) -> Array:
    """The objectives of `rows` as (N, M) values to minimise: maximised ones negated."""
    values = np.empty((len(rows), len(objectives)))
    for place, name in enumerate(objectives):  # fromiter refuses None, unlike numpy.array
        column = np.fromiter(map(itemgetter(name), rows), dtype=np.float64, count=len(rows))
        values[:, place] = -column if OBJECTIVES[name] == "maximize" else column
    return values


def latest_identity(rows: Reversible[Row]) -> str | None:
    """The throughput_id of the latest timing, of a complete trial if there is one; None without any."""
    last: str | None = None
    for row in reversed(rows):
        if row["throughput_id"] is not None and row["state"] == "complete":
            return str(row["throughput_id"])
        last = last or row["throughput_id"]
    return last


def ranked(rows: Sequence[Row], objectives: Sequence[str], throughput_id: str | None = None) -> list[Row]:
    """The same rows with `front` set: 0 for the Pareto front of the complete ones that keep all limits, 1 for the next front, None for the others.

    Where an objective depends on the device only rows of this identity are ranked, by default those of the latest timing's.
    """
    by_trial = trial_ranks(rows, objectives, throughput_id)
    return [{**row, "front": by_trial.get(row["trial"])} for row in rows]


def trial_ranks(rows: Sequence[Row], objectives: Sequence[str], throughput_id: str | None = None) -> dict[int, int]:
    """The `front` of each row that is ranked, by trial."""
    rankable = _rankable(rows, objectives, throughput_id)
    ranks = front_ranks(minimised(rankable, objectives)).tolist()
    return {row["trial"]: rank for row, rank in zip(rankable, ranks, strict=True)}


class LiveFront:
    """The trials on a run's front while rows are added one by one; needs a comparison with its members for each."""

    def __init__(self, objectives: Sequence[str], throughput_id: str | None, members: Sequence[Row]) -> None:
        """The front that has these members; for rows of this identity, where an objective depends on the device."""
        self.throughput_id = throughput_id
        self.trials: list[int] = [row["trial"] for row in members]
        self._objectives = tuple(objectives)
        self._values: Array = minimised(members, self._objectives)

    def add(self, row: Row) -> list[int] | None:
        """The members that this row dominates, which are members no longer; None where it is no member itself."""
        if not _rankable([row], self._objectives, self.throughput_id):
            return None
        value = minimised([row], self._objectives)
        is_no_worse = np.all(self._values <= value, axis=1)
        if np.any(is_no_worse & np.any(self._values < value, axis=1)):
            return None
        is_out = np.all(value <= self._values, axis=1) & ~is_no_worse
        dominated = [trial for trial, out in zip(self.trials, is_out, strict=True) if out]
        self.trials = [*(trial for trial, out in zip(self.trials, is_out, strict=True) if not out), row["trial"]]
        self._values = np.vstack((self._values[~is_out], value))
        return dominated


def comparable(rows: Sequence[Row], objectives: Sequence[str], throughput_id: str | None = None) -> list[Row]:
    """The rows that these objectives can rank together: all, or where one depends on the device those of this identity."""
    if DEVICE_OBJECTIVES.isdisjoint(objectives):
        return list(rows)
    chosen = throughput_id or latest_identity(rows)
    return [row for row in rows if row["throughput_id"] == chosen]


def _rankable(rows: Sequence[Row], objectives: Sequence[str], throughput_id: str | None) -> list[Row]:
    """The complete rows of one identity that have every objective and keep all limits; asserts that they were measured under the same conditions."""
    within = comparable(rows, objectives, throughput_id)
    chosen = [
        row
        for row in within
        if row["state"] == "complete" and row["outside"] is None and None not in map(row.get, objectives)
    ]
    # A network that does not compile is timed eager, which is another identity: ranked only where no objective depends on it.
    for column in {*CONDITION_COLUMNS, "proxy_id"} - {"mode"}:
        values = {row[column] for row in chosen}
        assert len(values) <= 1, f"rows of different {column} cannot be ranked together: {values}"
    return chosen


def front_rows(rows: Sequence[Row], objectives: Sequence[str], throughput_id: str | None = None) -> list[Row]:
    """The members of the run's front and of each pairwise front, with `front_name`; every architecture once in each. As in `ranked`."""
    originals = [row for row in rows if row["reused_from"] is None]
    members: list[Row] = []
    for name, axes in {RUN_FRONT: tuple(objectives), **PAIR_FRONTS}.items():
        rankable = _rankable(originals, axes, throughput_id)
        dominated = is_dominated(minimised(rankable, axes)).tolist()
        members += [{"front_name": name, **row} for row, is_out in zip(rankable, dominated, strict=True) if not is_out]
    return members


def front_members(rows: Sequence[Row]) -> list[Row]:
    """The members of the run's front among rows that `ranked` gave; every architecture once."""
    return [row for row in rows if row["front"] == 0 and row["reused_from"] is None]


def is_unscored(row: Row) -> bool:
    """Whether a row is that of a fixed trial which the proxy cannot train, and which ended once all else was measured: no other one is stopped."""
    return row["state"] == "stopped" and bool(row.get("is_fixed"))


def is_timed(objectives: Sequence[str]) -> bool:
    """Whether one of these objectives is timed, and so varies when measured again."""
    return not TIMED.isdisjoint(objectives)


def timed_front(rows: Sequence[Row], objectives: Sequence[str]) -> list[Row]:
    """The members of the run's front among rows that `ranked` gave; none where no objective is timed."""
    return front_members(rows) if is_timed(objectives) else []
