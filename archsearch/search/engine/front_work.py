"""What is measured of a run's front after its trials: a second timing of its members, and trainings with further seeds."""

import json
import statistics
from collections.abc import Collection, Sequence

from archsearch.results import FrontChances, Row, is_timed, number_of_seeds, trial_ranks
from archsearch.search.config import RunConfig
from archsearch.search.study.store import RunStore

_LATEST = 50  # the trials by which the seconds are estimated
_MOST_TIMES = 3  # a trial is trained with at most so many times the seeds that were asked for
_MOST_RANK = 2  # that a trial may have by the first scores: of the front, of the next front, and of the one after
# Where one more training is worth less than this share of a training's standard deviation, the order is known, and members are trained evenly.
_NEGLIGIBLE = 1e-4


def next_training(
    rows: Sequence[Row],
    objectives: Sequence[str],
    num_seeds: int,
    *,
    throughput_id: str | None = None,
    under_way: Collection[int] = (),
    without: Collection[int] = (),
) -> Row | None:
    """The trial of a run to train with one more seed: the one whose training is worth the most, see `FrontChances.gains`.

    That is one of the front or near it by the first scores. Where the order is known, it is the member that was trained least. `under_way`: trials that
    are trained now; `without`: trials not to choose. None where no trial is left.
    """
    ranks = trial_ranks(rows, objectives, throughput_id)
    ranked = [row for row in rows if row["trial"] in ranks and row["reused_from"] is None]
    near = [place for place, row in enumerate(ranked) if ranks[row["trial"]] <= _MOST_RANK]
    busy = [place for place in near if ranked[place]["trial"] in under_way]
    gains = FrontChances(ranked, objectives, near).gains(busy)

    def urgency(place: int) -> tuple[float, int, int, int]:
        row, gain = ranked[place], float(gains[place])
        return -gain if gain > _NEGLIGIBLE else 0.0, ranks[row["trial"]], number_of_seeds(row), row["trial"]

    free = [
        place
        for place in near
        if ranked[place]["trial"] not in {*under_way, *without}
        and number_of_seeds(ranked[place]) < _MOST_TIMES * num_seeds
    ]
    return ranked[min(free, key=urgency)] if free else None


class FrontWork:
    """What is left to measure of the front as it stands: with `recheck` second timings, with `num_seeds` above 1 further trainings."""

    def __init__(self, config: RunConfig, store: RunStore, *, recheck: bool, num_seeds: int) -> None:
        self._config, self._store = config, store
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

    def seeds_left(self) -> int:
        """How many further trainings are left of those asked for: so many for each trial that is or was a member of the front when they began."""
        if self._num_seeds == 1:
            return 0
        members, store = self._store.front(), self._store
        asked = (self._num_seeds - 1) * len(store.seeded | {row["trial"] for row in members})
        room = sum(max(0, _MOST_TIMES * self._num_seeds - number_of_seeds(row)) for row in members)
        return max(0, min(asked - store.num_further_trainings, room))

    def begin_seeds(self) -> int:
        """As `seeds_left`; notes the members of the front as those that further trainings are asked for."""
        left = self.seeds_left()
        if left:
            self._store.note_seeded(row["trial"] for row in self._store.front())
        return left

    def next_training(self, *, under_way: Collection[int], without: Collection[int]) -> Row | None:
        """The trial to train with one more seed, see above."""
        store, objectives = self._store, self._config.objectives
        return next_training(
            store.rows(),
            objectives,
            self._num_seeds,
            throughput_id=store.ranked_id,
            under_way=under_way,
            without=without,
        )

    def seconds(self) -> float:
        """How long what is left will take, by what the latest trials took."""
        latest = self._store.latest(_LATEST)
        timed = [row["seconds_throughput"] for row in latest if row["seconds_throughput"] is not None]
        curves = [
            json.loads(row["learning_curve"]) for row in latest if row["state"] == "complete" and row["learning_curve"]
        ]
        trained = [sum(point["seconds"] or 0.0 for point in curve) for curve in curves]
        again_s = len(self.again_left()) * statistics.fmean(timed) if timed else 0.0
        return again_s + (self.seeds_left() * statistics.fmean(trained) if trained else 0.0)
