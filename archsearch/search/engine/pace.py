"""Whether a training at work is far below the rate of this run's other trainings, or of its own beginning: a sign of a busy machine."""

import statistics
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from archsearch.cores import SLOW_SHARE, TOLERATED_CORES
from archsearch.search.rungs import FULL_PHASE, RUNG_PHASE, SEED_PHASE

_LATELY_S = 5.0
_REPORTS = 1000
_FEWEST = 3  # trainings, or seconds of this one, before anything is said


@dataclass
class _Training:
    """The training that a worker is at: its trial, its phase and its reports."""

    trial: int = -1
    phase: str = ""
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=_REPORTS))  # images/s, by report
    lately: deque[tuple[float, float]] = field(default_factory=deque)
    batch: float = 0.0  # images of the last step or steps, to know what a silence means
    other_cores: float | None = None


class Pace:
    """Hears the events of a run's workers; of several each has its `worker`'s name."""

    def __init__(self) -> None:
        self._others: list[float] = []  # images/s of the trainings that have ended
        self._trainings: dict[str, _Training] = defaultdict(_Training)  # by worker

    def progress(self, event: Mapping[str, Any]) -> None:
        """An event of a worker; only those of trainings matter."""
        name, worker = str(event.get("phase")), str(event.get("worker", ""))
        if not (name == FULL_PHASE or name.startswith((RUNG_PHASE, SEED_PHASE))):
            return
        if event["event"] == "phase":
            rates = self._trainings.pop(worker, _Training()).rates
            if len(rates) >= _FEWEST:
                self._others.append(statistics.median(rates))
        elif event.get("images_s") and event.get("step"):
            self._report(worker, event, time.monotonic())

    def _report(self, worker: str, event: Mapping[str, Any], now: float) -> None:
        trial, phase = int(event.get("trial", 0)), str(event["phase"])
        training = self._trainings[worker]
        if (training.trial, training.phase) != (trial, phase):
            training = self._trainings[worker] = _Training(trial=trial, phase=phase)
        if training.lately:
            training.batch = event["images_s"] * (now - training.lately[-1][0])
        training.rates.append(event["images_s"])
        training.lately.append((now, event["images_s"]))
        while len(training.lately) > 1 and now - training.lately[0][0] > _LATELY_S:
            training.lately.popleft()
        training.other_cores = event.get("other_cores")

    def images_s(self, worker: str = "") -> float | None:
        """Images a second of a worker's training lately; a silence since the last report lowers it."""
        training = self._trainings.get(worker)
        if training is None or not training.lately:
            return None
        mean = statistics.fmean(rate for _, rate in list(training.lately))
        silence_s = time.monotonic() - training.lately[-1][0]
        return min(mean, training.batch / silence_s) if training.batch and silence_s > _LATELY_S else mean

    def slow_words(self, worker: str = "") -> str | None:
        """`slow: 4 img/s, this run's other trainings had 212`, and who may be the cause; None while the worker's rate is as it should be."""
        rate, training = self.images_s(worker), self._trainings.get(worker)
        if rate is None or training is None:
            return None
        usual, what = self._usual(training)
        if usual is None or rate >= SLOW_SHARE * usual:
            return None
        cause = ""
        if training.other_cores is not None and training.other_cores > TOLERATED_CORES:
            cause = f", other processes use {training.other_cores:.1f} cores"
        return f"slow: {rate:.0f} img/s, {what} {usual:.0f}{cause}"

    def _usual(self, training: _Training) -> tuple[float | None, str]:
        """The rate to compare with: the larger of the run's and this training's own; the run's only where others may be the cause."""
        # Nearly its best, as its median would follow a slowness that lasts.
        own = (
            sorted(training.rates.copy())[int(0.9 * len(training.rates))] if len(training.rates) >= 2 * _FEWEST else 0.0
        )
        is_alone = training.other_cores is not None and training.other_cores <= TOLERATED_CORES
        run = statistics.median(self._others) if len(self._others) >= _FEWEST and not is_alone else 0.0
        if not own and not run:
            return None, ""
        return (run, "this run's other trainings had") if run >= own else (own, "it had")
