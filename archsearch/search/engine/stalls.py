"""Which phases under way have made no progress for so long that they are taken for stuck."""

import time
from bisect import insort
from collections import defaultdict
from dataclasses import dataclass

from archsearch.search.engine.workers.base import Event
from archsearch.search.rungs import phase_kind
from archsearch.units import format_seconds

# By default a phase may be silent for this many times the median of what such phases took in this session, and for ten minutes at least;
# for an hour before the first of them has ended.
_TIMES, _LEAST_S, _UNKNOWN_S = 20, 600.0, 3600.0


@dataclass
class _Job:
    """The job under way of a trial, from its first event on."""

    phase: str
    worker: str
    heard_at: float | None  # None while the phase waits for the device


class Stalls:
    """Hears the events of jobs under way and tells which are stuck: silent for `limit_s` seconds, `inf` for never, None for the default by phase.

    The time counts from an event on: importing and starting a worker emits none before its first. A wait for the device does not count.
    The first phase of a kind in a worker may be silent for ten minutes even where the limit is shorter: it may load data or compile.
    """

    def __init__(self, limit_s: float | None = None) -> None:
        self._limit_s = limit_s
        self._jobs: dict[int, _Job] = {}
        # Of phases that have ended, by kind, in increasing order.
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._known: dict[str, set[str]] = defaultdict(set)  # kinds of phases that a worker's process has done

    def submitted(self, trial: int) -> None:
        """A job of the trial begins, or begins again."""
        self._jobs.pop(trial, None)

    def heard(self, event: Event) -> None:
        """Any event of a job."""
        trial, worker = event["trial"], str(event.get("worker", ""))
        if event["event"] in ("done", "failed"):
            self._jobs.pop(trial, None)
            if event["event"] == "failed":  # its process may have died
                self._known.pop(worker, None)
            return
        phase = str(event.get("phase"))
        if event["event"] == "phase":
            insort(self._seconds[phase_kind(phase)], event["values"].get("seconds", 0.0))
            self._known[worker].add(phase_kind(phase))
        self._jobs[trial] = _Job(phase, worker, None if event.get("waiting") else time.monotonic())

    def stuck(self) -> list[tuple[int, str]]:
        """The trials whose phase has been silent for too long, each once, with the reason to end them for."""
        found = []
        for trial, job in list(self._jobs.items()):
            silent_s = 0.0 if job.heard_at is None else time.monotonic() - job.heard_at
            if silent_s > self.limit_s(job.phase, job.worker):
                del self._jobs[trial]
                found.append((trial, f"{job.phase}: no progress for {format_seconds(silent_s)}, ended (--stall)"))
        return found

    def limit_s(self, phase: str, worker: str = "") -> float:
        """For how many seconds a phase may be silent in a worker."""
        kind = phase_kind(phase)
        if self._limit_s is not None:
            return self._limit_s if kind in self._known[worker] else max(self._limit_s, _LEAST_S)
        seconds = self._seconds[kind]
        if not seconds:
            return _UNKNOWN_S
        # Asked for every job whenever the driver looks for events, so not sorted anew.
        median = (seconds[(len(seconds) - 1) // 2] + seconds[len(seconds) // 2]) / 2
        return max(_LEAST_S, _TIMES * median)
