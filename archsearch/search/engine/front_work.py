"""What is measured of a run's front after its trials: a second timing of its members, and trainings with further seeds."""

import json
import statistics

from archsearch.results import Row, is_timed
from archsearch.search.config import RunConfig
from archsearch.search.study.store import RunStore

_LATEST = 50  # the trials by which the seconds are estimated


class FrontWork:
    """What is left to measure of the front as it stands: with `recheck` second timings, with `num_seeds` above 1 further trainings."""

    def __init__(self, config: RunConfig, store: RunStore, *, recheck: bool, num_seeds: int) -> None:
        self._store = store
        self._is_timed_again = recheck and is_timed(config.objectives)
        self._num_seeds = num_seeds if "proxy_score" in config.objectives else 1

    def again_members(self) -> list[Row]:
        """The members of the front that are timed a second time: before the first trial is timed here the front may be of another identity."""
        members = self._store.front() if self._is_timed_again else []
        return [row for row in members if row["throughput_id"] == self._store.throughput_id]

    def again_left(self) -> list[Row]:
        """Those of them that have not been, in order."""
        left = [row for row in self.again_members() if row["throughput_again_img_s"] is None]
        return sorted(left, key=lambda row: int(row["trial"]))

    def seeds_left(self) -> list[tuple[Row, int]]:
        """The members of the front and the further seeds they are to be trained with, all of one seed before the next."""
        if self._num_seeds == 1:
            return []
        members, numbers = self._store.front(), range(1, self._num_seeds)
        return [(row, number) for number in numbers for row in members if (row["proxy_seeds"] or 1) <= number]

    def seconds(self) -> float:
        """How long what is left will take, by what the latest trials took."""
        latest = self._store.latest(_LATEST)
        timed = [row["seconds_throughput"] for row in latest if row["seconds_throughput"] is not None]
        curves = [
            json.loads(row["learning_curve"]) for row in latest if row["state"] == "complete" and row["learning_curve"]
        ]
        trained = [sum(point["seconds"] or 0.0 for point in curve) for curve in curves]
        again_s = len(self.again_left()) * statistics.fmean(timed) if timed else 0.0
        return again_s + (len(self.seeds_left()) * statistics.fmean(trained) if trained else 0.0)
