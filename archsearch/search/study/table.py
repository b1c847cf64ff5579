"""The trials of a run in memory: rows, front and learning curves, brought up to date row by row, so that reading them costs no query."""

import json
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from itertools import islice
from math import isfinite
from typing import Any

from archsearch.identity import identity_digest, row_identity
from archsearch.results import DEVICE_OBJECTIVES, OBJECTIVES, LiveFront, Row, is_unscored, latest_identity, trial_ranks
from archsearch.search.config import RunConfig
from archsearch.search.early_stopping import Curve, CurveTable, RungScore
from archsearch.search.study.timings import Timings


class TrialTable:
    """What is read of a run's trials; `RunStore` fills it."""

    def __init__(self, config: RunConfig, timings: Timings) -> None:
        self.config, self.timings = config, timings
        self._rows: dict[int, Row] = {}  # in order of their numbers
        self._scores: dict[int, tuple[RungScore, ...]] = {}
        self._curves: dict[str | None, CurveTable] = {}  # by throughput_id, where that matters
        self._fixed: set[int] = set()  # numbers of the fixed trials
        self._numbers: dict[str, list[int]] = {}  # of the trials by arch_id
        self._counts: Counter[tuple[str, bool, str | None]] = Counter()  # trials by `_kind`
        self._front: LiveFront | None = None  # None where figures of ended trials have changed

    def _put(self, row: Row, scores: tuple[RungScore, ...]) -> None:
        """Add the row of a trial, or replace it; with the scores of the rungs that it has finished."""
        number = row["trial"]
        before = self._rows.get(number)
        if before is None:
            self._numbers.setdefault(row["arch_id"], []).append(number)
        else:
            self._counts[_kind(before)] -= 1
            row["front"] = before["front"]
            self._curve_table(before["throughput_id"]).remove(number)
        self._counts[_kind(row)] += 1
        if row["is_fixed"]:
            self._fixed.add(number)
        self._rows[number], self._scores[number] = row, scores
        costs = _comparable_costs(row, self.config.objectives)
        if costs is not None:
            self._curve_table(row["throughput_id"]).set(Curve(trial=number, costs=costs, scores=scores))

    def _admit(self, row: Row) -> None:
        """Update the front by a row that has just ended."""
        if self._front is None or self._front.throughput_id != self.ranked_id:
            self._front = None
            return
        dominated = self._front.add(row)
        if dominated is not None:
            row["front"] = 0
            for number in dominated:
                self._rows[number]["front"] = 1

    def rank(self) -> None:
        """Set `front` of every row."""
        rows, ranked_id = self.rows(), self.ranked_id
        ranks = trial_ranks(rows, self.config.objectives, ranked_id)
        for row in rows:
            row["front"] = ranks.get(row["trial"])
        self._front = LiveFront(self.config.objectives, ranked_id, [row for row in rows if row["front"] == 0])

    def rows(self) -> list[Row]:
        """The rows of all trials in order; `front` is right since the last `rank`, and for the members that `front` gives."""
        return list(self._rows.values())

    def latest(self, number: int) -> list[Row]:
        """The rows of the last so many trials, in order."""
        return list(islice(reversed(self._rows.values()), number))[::-1]

    def row(self, number: int) -> Row:
        """The row of one trial."""
        return self._rows[number]

    def count(self, *states: str, is_fixed: bool | None = None) -> int:
        """The number of trials in one of these states, or in any; of fixed or of sampled ones alone where asked for."""
        return sum(
            number
            for (state, fixed, _), number in self._counts.items()
            if (not states or state in states) and is_fixed in (None, fixed)
        )

    def front(self) -> list[Row]:
        """The members of the front in order, every architecture once."""
        if self._front is None:
            self.rank()
        assert self._front is not None
        return [row for number in sorted(self._front.trials) if (row := self._rows[number])["reused_from"] is None]

    def fixed_rows(self) -> list[Row]:
        """The rows of the fixed trials in order."""
        return [self._rows[number] for number in sorted(self._fixed)]

    @property
    def throughput_id(self) -> str | None:
        """The identity of what is timed now, or was timed last."""
        return self.timings.throughput_id or self._latest_identity()

    @property
    def ranked_id(self) -> str | None:
        """The identity whose rows are ranked in the run's files: of what is timed now, or of the latest rows before the first is complete."""
        now = self.timings.throughput_id
        is_there = any(number for (state, _, one), number in self._counts.items() if state == "complete" and one == now)
        return now if is_there else self._latest_identity()

    def _latest_identity(self) -> str | None:
        is_any = any(number for (_, _, one), number in self._counts.items() if one is not None)
        return latest_identity(self._rows.values()) if is_any else None

    def left_to_remeasure(self) -> list[Row]:
        """The rows of complete trials, and of those that have no score but all else, without a quiet timing of the present identity."""
        whole = [row for row in self.rows() if row["state"] == "complete" or is_unscored(row)]
        rows = [row for row in whole if row["reused_from"] is None]
        return [row for row in rows if self._asked_id(row) != self.throughput_id or row["throughput_noisy"]]

    def _asked_id(self, row: Row) -> str | None:
        """The throughput_id of a row, or what it would be, had a network that does not compile been timed in the mode asked for."""
        if row["throughput_id"] is None or row["mode"] == self.config.settings["mode"]:
            return row["throughput_id"] and str(row["throughput_id"])
        return identity_digest({**row_identity(row), "mode": self.config.settings["mode"]})

    def arch_ids(self) -> AbstractSet[str]:
        """The ids of all architectures in the run; grows with it."""
        return self._numbers.keys()

    def arch_document(self, number: int) -> dict[str, Any]:
        """The architecture of a trial, as `Arch.to_dict` gave it."""
        document: dict[str, Any] = json.loads(self._rows[number]["arch"])
        return document

    def scores(self, number: int) -> tuple[RungScore, ...]:
        """The scores of the rungs that a trial has finished, in order."""
        return self._scores[number]

    def curves(self) -> CurveTable:
        """The curves of all trials that can be compared: of one identity, not failed, not reused from another trial, all other objectives measured."""
        return self._curve_table(self.throughput_id)

    def _curve_table(self, throughput_id: str | None) -> CurveTable:
        """The curves of trials of an identity; of all trials where no objective depends on the device."""
        key = None if DEVICE_OBJECTIVES.isdisjoint(self.config.objectives) else throughput_id
        if key not in self._curves:
            num_costs = len([name for name in self.config.objectives if name != "proxy_score"])
            self._curves[key] = CurveTable(num_costs, len(self.config.trainings))
        return self._curves[key]


def _kind(row: Row) -> tuple[str, bool, str | None]:
    """What trials are counted by: state, whether they are fixed, throughput_id."""
    return row["state"], row["is_fixed"], row["throughput_id"]


def _comparable_costs(row: Row, objectives: Sequence[str]) -> tuple[float, ...] | None:
    """The objectives but the score, minimised; None for a trial that is not to be compared with others."""
    names = [name for name in objectives if name != "proxy_score"]
    is_left_out = row["state"] == "failed" or row["reused_from"] is not None or row["outside"] is not None
    if is_left_out or any(row[name] is None for name in names):
        return None
    costs = tuple(float(-row[name] if OBJECTIVES[name] == "maximize" else row[name]) for name in names)
    return costs if all(map(isfinite, costs)) else None
