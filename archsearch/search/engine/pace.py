"""Whether the training at work is far below the rate of this run's other trainings, or of its own beginning: a sign of a busy machine."""

import statistics
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from archsearch.cores import SLOW_SHARE, TOLERATED_CORES
from archsearch.search.rungs import FULL_PHASE, RUNG_PHASE, SEED_PHASE

_LATELY_S = 5.0
_REPORTS = 1000
_FEWEST = 3  # trainings, or seconds of this one, before anything is said


class Pace:
    """Hears the events of a run's workers."""

    def __init__(self) -> None:
        self._others: list[float] = []  # images/s of the trainings that have ended
        self._training: tuple[int, str] = (-1, "")
        self._own: deque[float] = deque(maxlen=_REPORTS)  # images/s of the current one, by report
        self._lately: deque[tuple[float, float]] = deque()
        self._batch = 0.0
        self._other_cores: float | None = None

    def progress(self, event: Mapping[str, Any]) -> None:
        """An event of a worker; only those of trainings matter."""
        name = str(event.get("phase"))
        if not (name == FULL_PHASE or name.startswith((RUNG_PHASE, SEED_PHASE))):
            return
        if event["event"] == "phase":
            if len(self._own) >= _FEWEST:
                self._others.append(statistics.median(self._own))
            self._begin(-1, "")
        elif event.get("images_s") and event.get("step"):
            self._report(event, time.monotonic())

    def _begin(self, trial: int, name: str) -> None:
        self._training, self._batch = (trial, name), 0.0
        self._own.clear()
        self._lately.clear()

    def _report(self, event: Mapping[str, Any], now: float) -> None:
        training = (int(event.get("trial", 0)), str(event["phase"]))
        if training != self._training:
            self._begin(*training)
        if self._lately:  # images of the last step or steps, to know what a silence means
            self._batch = event["images_s"] * (now - self._lately[-1][0])
        self._own.append(event["images_s"])
        self._lately.append((now, event["images_s"]))
        while len(self._lately) > 1 and now - self._lately[0][0] > _LATELY_S:
            self._lately.popleft()
        self._other_cores = event.get("other_cores")

    @property
    def images_s(self) -> float | None:
        """Images a second lately; a silence since the last report lowers it."""
        if not self._lately:
            return None
        mean = statistics.fmean(rate for _, rate in self._lately)
        silence_s = time.monotonic() - self._lately[-1][0]
        return min(mean, self._batch / silence_s) if self._batch and silence_s > _LATELY_S else mean

    def slow_words(self) -> str | None:
        """`slow: 4 img/s, this run's other trainings had 212`, and who may be the cause; None while the rate is as it should be."""
        rate = self.images_s
        if rate is None:
            return None
        usual, what = self._usual()
        if usual is None or rate >= SLOW_SHARE * usual:
            return None
        cause = ""
        if self._other_cores is not None and self._other_cores > TOLERATED_CORES:
            cause = f", other processes use {self._other_cores:.1f} cores"
        return f"slow: {rate:.0f} img/s, {what} {usual:.0f}{cause}"

    def _usual(self) -> tuple[float | None, str]:
        """The rate to compare with: the larger of the run's and this training's own; the run's only where others may be the cause."""
        # Nearly its best, as its median would follow a slowness that lasts.
        own = sorted(self._own)[int(0.9 * len(self._own))] if len(self._own) >= 2 * _FEWEST else 0.0
        is_alone = self._other_cores is not None and self._other_cores <= TOLERATED_CORES
        run = statistics.median(self._others) if len(self._others) >= _FEWEST and not is_alone else 0.0
        if not own and not run:
            return None, ""
        return (run, "this run's other trainings had") if run >= own else (own, "it had")
