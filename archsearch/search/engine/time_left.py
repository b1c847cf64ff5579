"""How long a run still takes, from how long its phases took so far and how far those under way are; waits for the device are left out."""

import heapq
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from archsearch.results import Row, is_timed
from archsearch.search.config import RunConfig
from archsearch.search.engine.listener import Tally
from archsearch.search.engine.promotion import stages
from archsearch.search.rungs import AGAIN_PHASE, FULL_PHASE, SEED_PHASE, TIMING_PHASE, phase_kind
from archsearch.search.study.donors import taken_phases

# How much of a training the history counts for beside its own steps.
_PRIOR_SHARE = 0.1
# For how many candidates the share that is taken before any has ended counts.
_PRIOR_TRIALS = 4
# The last rounds of trials are dealt out to the workers one by one, those before evenly.
_DEALT_ROUNDS = 3


@dataclass
class _Mean:
    """The mean of what was added."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.total, self.count = self.total + value, self.count + 1

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


@dataclass
class _Phase:
    """A phase in progress: when it began, how long it has waited, and the steps of its training."""

    name: str
    began: float
    waited_s: float = 0.0
    waits_since: float | None = None
    holder: str = ""
    # When its first and its latest steps were reported, by a clock that stands while it waits, and how many they were.
    first: tuple[float, int] | None = None
    last: tuple[float, int] | None = None


@dataclass
class _Work:
    """A trial or a member of the front that is under way."""

    row: Row
    phase: _Phase | None = None
    done: set[str] = field(default_factory=set)  # its phases that have ended


class TimeLeft:
    """The clock of a session of a run with these `objectives`: elapsed seconds, and those left. It hears what a `Listener` hears.

    A trial to come takes the mean of each phase so far, times the share of sampled candidates that came that far. A trial under way
    takes what its current phase still needs, and its further ones. Before any trial has ended, trainings take what their first steps
    do. Work on the front is counted by the front so far. Each worker that becomes free takes the next trial; on a CPU, where nothing
    else runs during a timing, a timing keeps all workers.
    """

    def __init__(
        self,
        config: RunConfig,
        rows: Iterable[Row] = (),
        *,
        timeout_s: float | None = None,
        rechecks: bool = False,
        num_seeds: int = 1,
    ) -> None:
        self.objectives = config.objectives
        self._began, self._timeout_s = time.monotonic(), timeout_s
        self._rechecks = rechecks and is_timed(config.objectives)
        self._num_seeds = num_seeds if "proxy_score" in config.objectives else 1
        first, *later = stages(config)
        self._first_stage = first
        self._phases = [phase for stage in (first, *later) for phase in stage]
        # Steps of the whole training at the beginning and at the end of each training phase.
        ends = [rung.steps for rung in config.trainings]
        names = [rung.phase for rung in config.trainings]
        self._spans = dict(zip(names, zip([0, *ends], ends, strict=False), strict=True))
        self._seconds: dict[str, _Mean] = defaultdict(_Mean)
        self._between = _Mean()
        # Of trainings that were watched: seconds of a step, and from the last step to the score.
        self._steps_s, self._steps, self._judging = 0.0, 0, _Mean()
        self._ended_at: float | None = None
        self._came_to: dict[str, int] = defaultdict(int)  # sampled trials that finished the phase
        self._num_sampled = 0
        self._fixed_left = config.num_fixed
        self._times_alone = config.settings.get("device") == "cpu"
        self._kind, self._left = "trials", 0  # what is under way, and how many members of the front are left after it
        # Under way, by trial, the latest last; read by a display's thread through copies.
        self._works: dict[int, _Work] = {}
        for row in rows:
            self._learn(row)

    def _learn(self, row: Row) -> None:
        """Take over what a trial of an earlier session took."""
        self._fixed_left -= row["is_fixed"] and row["state"] != "running"
        if row["reused_from"] is not None or row["state"] == "running":
            return
        points = json.loads(row["learning_curve"] or "[]")
        seconds = {"count": row["seconds_count"], "throughput": row["seconds_throughput"]}
        seconds |= {name: point["seconds"] for name, point in zip(self._spans, points, strict=False)}
        taken = taken_phases(row)
        known = {name: value for name, value in seconds.items() if value is not None and name not in taken}
        for name, value in known.items():
            self._seconds[name].add(value)
        self._count(row, set(known))

    def _count(self, row: Row, done: set[str]) -> None:
        """Note how far a sampled trial came; one that failed says nothing."""
        if row["is_fixed"] or row["state"] == "failed":
            return
        self._num_sampled += 1
        for name in done:
            self._came_to[name] += 1

    # What a listener hears

    def trial_started(self, row: Row) -> None:
        """A trial is under way."""
        self._begin("trials", row, 0)

    def trial_finished(self, row: Row) -> None:
        """A trial has ended."""
        work = self._works.get(row["trial"])
        if row["reused_from"] is None:
            self._count(row, work.done if work else set())
        self._fixed_left -= row["is_fixed"]
        self._end(row)

    def remeasure_started(self, row: Row, place: int, total: int) -> None:
        """A kept trial is timed anew."""
        self._begin("kept", row, total - place)

    def again_started(self, row: Row, place: int, total: int) -> None:
        """A member of the front is timed a second time."""
        self._begin("again", row, total - place)

    def seed_started(self, row: Row, place: int, total: int) -> None:
        """A trial of the front or near it is trained with a further seed."""
        self._begin("seeds", row, total - place)

    def member_finished(self, row: Row | None = None) -> None:
        """A member of the front has been timed or trained, the latest one where none is named."""
        self._end(row or next(reversed(self._works.values())).row)

    def _begin(self, kind: str, row: Row, left: int) -> None:
        if self._ended_at is not None:
            self._between.add(time.monotonic() - self._ended_at)
        self._ended_at = None  # the time between belongs to one of the trials that begin after it
        self._kind, self._left = kind, left
        self._works[row["trial"]] = _Work(row=row)

    def _end(self, row: Row) -> None:
        self._ended_at = time.monotonic()
        self._works.pop(row["trial"], None)

    def progress(self, event: Mapping[str, Any]) -> None:
        """An event of a worker."""
        now, name, work = time.monotonic(), str(event.get("phase")), self._work_of(event.get("trial"))
        if event["event"] == "phase":
            self._seconds[phase_kind(name)].add(event["values"].get("seconds", 0.0))
            if work is not None:
                self._learn_steps(work.phase, now)
                work.done.add(name)
                work.phase = None
            return
        if event["event"] != "progress" or work is None:
            return
        if work.phase is None or work.phase.name != name:
            work.phase = _Phase(name=name, began=now)
        self._note(work.phase, event, now)

    def _work_of(self, trial: int | None) -> _Work | None:
        """What is under way of a trial, of the latest one where none is named."""
        return next(reversed(self._works.values()), None) if trial is None else self._works.get(trial)

    def _learn_steps(self, phase: _Phase | None, now: float) -> None:
        """Part the training that has ended into its steps and the judging after the last one."""
        if phase is not None and phase.last is not None and phase.name in self._spans:
            self._steps_s += phase.last[0] - phase.began
            self._steps += max(1, phase.last[1] - self._begin_of(phase))
            self._judging.add(now - phase.waited_s - phase.last[0])

    def _begin_of(self, phase: _Phase) -> int:
        """The steps that a training had when its phase began: none where it began again from its start, as after a crash."""
        begin = self._spans.get(phase.name, (0, 0))[0]
        return 0 if phase.first is not None and phase.first[1] < begin else begin

    @staticmethod
    def _note(phase: _Phase, event: Mapping[str, Any], now: float) -> None:
        if event.get("waiting"):
            phase.waits_since, phase.holder = phase.waits_since or now, event["waiting"]
        elif phase.waits_since is not None:
            phase.waited_s, phase.waits_since, phase.holder = phase.waited_s + now - phase.waits_since, None, ""
        if event.get("step") and event.get("steps"):
            at = now if phase.waits_since is None else phase.waits_since
            phase.last = (at - phase.waited_s, event["step"])
            phase.first = phase.first or phase.last

    # What a display shows

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start of this session."""
        return time.monotonic() - self._began

    @property
    def waiting(self) -> tuple[str, float] | None:
        """Who holds the device that all under way wait for, and for how many seconds the first has; None where one does not wait."""
        waits = [self.waiting_of(trial) for trial in list(self._works)]
        found = [wait for wait in waits if wait is not None]
        return max(found, key=lambda wait: wait[1]) if found and len(found) == len(waits) else None

    def waiting_of(self, trial: int) -> tuple[str, float] | None:
        """Who holds the device that a trial under way waits for, and for how many seconds it has; None where it does not wait."""
        work = self._works.get(trial)
        if work is None or work.phase is None or work.phase.waits_since is None:
            return None
        return work.phase.holder, time.monotonic() - work.phase.waits_since

    def left_s(self, tally: Tally | None) -> float | None:
        """Seconds to the end of the run, without waits; None before the first steps of the first training, and while there is no worker.

        Of trials timed anew, to their end.
        """
        workers = 1 if tally is None else tally.workers
        if workers == 0 and not self._works:
            return None
        workers = max(1, workers)
        found = [self._rest_s(work) for work in list(self._works.values())]
        rests = [rest for rest in found if rest is not None]
        if len(rests) < len(found):
            return None
        if self._kind == "kept":
            timing = self._seconds_of(TIMING_PHASE)
            return None if timing is None else _spread(rests, workers, [(self._left, timing * self._alone(workers))])
        return None if tally is None else self._to_the_end_s(tally, rests, workers)

    def _to_the_end_s(self, tally: Tally, rests: Sequence[float], workers: int) -> float | None:
        """Seconds of the present kind of work with what is left of it, and of those that come after it."""
        again, training = self._seconds_of(AGAIN_PHASE), self._training_s()
        if (self._kind != "again" and training is None) or again is None:
            return None
        again, training = again * self._alone(workers), training or 0.0
        if self._kind == "seeds":
            return _spread(rests, workers, [(self._left, training)])
        seeds = _spread([], workers, [((self._num_seeds - 1) * tally.front_size, training)])
        if self._kind == "again":
            return _spread(rests, workers, [(self._left, again)]) + seeds
        trials = self._trials_s(tally, rests, workers)
        return (
            None
            if trials is None
            else trials + _spread([], workers, [(self._rechecks * tally.front_size, again)]) + seeds
        )

    def _trials_s(self, tally: Tally, rests: Sequence[float], workers: int) -> float | None:
        """Seconds of the trials under way and of all that are left, up to the time limit."""
        under_way = [work for work in list(self._works.values()) if self._kind == "trials"]
        waiting = max(0, tally.total - tally.ended - len(under_way))
        fixed = min(waiting, max(0, self._fixed_left - sum(bool(work.row["is_fixed"]) for work in under_way)))
        one_fixed, one_sampled = self._trial_s(workers, is_fixed=True), self._trial_s(workers, is_fixed=False)
        if one_fixed is None or one_sampled is None:
            return None
        between = self._between.value or 0.0
        left = _spread(rests, workers, [(fixed, one_fixed + between), (waiting - fixed, one_sampled + between)])
        if self._timeout_s is not None:
            left = max([0.0, *rests, min(left, self._timeout_s - self.elapsed_s)])
        return left

    def _alone(self, workers: int) -> int:
        """How many workers a timing keeps."""
        return workers if self._times_alone else 1

    def _trial_s(self, workers: int, *, is_fixed: bool) -> float | None:
        """Mean seconds of a worker that a trial to come takes."""
        seconds = [self._seconds_of(name) for name in self._phases]
        if None in seconds:
            return None
        seconds = [
            (each or 0.0) * (self._alone(workers) if name == TIMING_PHASE else 1)
            for name, each in zip(self._phases, seconds, strict=True)
        ]
        shares = [1.0 if is_fixed else self._share(name) for name in self._phases]
        return sum(share * (each or 0.0) for share, each in zip(shares, seconds, strict=True))

    def _share(self, name: str) -> float:
        """The share of sampled candidates that come to the end of a phase: of a stage after the first, half until some have ended."""
        prior = 1.0 if name in self._first_stage else 0.5
        at_it = self._num_at(name)
        return (self._came_to[name] + at_it + prior * _PRIOR_TRIALS) / (self._num_sampled + at_it + _PRIOR_TRIALS)

    def _num_at(self, name: str) -> int:
        """How many of several sampled trials under way have come to a phase: of the trials of many workers, the short ones end first."""
        works = [work for work in list(self._works.values()) if self._kind == "trials" and not work.row["is_fixed"]]
        if len(works) < 2:
            return 0
        return sum(name in work.done or (work.phase is not None and work.phase.name == name) for work in works)

    def _seconds_of(self, name: str) -> float | None:
        """Mean seconds of a phase; of a training that has not been met, by its steps; of another one that should be known, None."""
        known = self._seconds[phase_kind(name)].value
        if known is not None:
            return known
        if name == AGAIN_PHASE:
            return self._seconds["throughput"].value if self._rechecks else 0.0
        if name in self._spans:
            begin, end = self._spans[name]
            step_s = self._step_s()
            return None if step_s is None else (end - begin) * step_s + (self._judging.value or 0.0)
        # Counting takes a second; a score that needs no training a few.
        return 0.0 if name not in ("throughput", FULL_PHASE) else None

    def _training_s(self) -> float | None:
        """Seconds of a whole training."""
        seconds = [self._seconds_of(name) for name in self._spans] or [self._seconds_of(FULL_PHASE)]
        return None if None in seconds else sum(each or 0.0 for each in seconds)

    def _step_s(self) -> float | None:
        """Seconds of a training step: of the trainings that have ended, judging included in those of earlier sessions; else of the current one."""
        if self._steps:
            return self._steps_s / self._steps
        ended = [(self._seconds[name], end - begin) for name, (begin, end) in self._spans.items()]
        steps = sum(mean.count * steps for mean, steps in ended)
        if steps:
            return sum(mean.total for mean, _ in ended) / steps
        watched = [work.phase for work in list(self._works.values()) if work.phase is not None]
        own = [(phase, phase.last) for phase in watched if phase.last is not None and phase.last[1]]
        if not own:
            return None
        spent = sum(last[0] - phase.began for phase, last in own)
        return spent / sum(max(1, last[1] - self._begin_of(phase)) for phase, last in own)

    def _rest_s(self, work: _Work) -> float | None:
        """Seconds that a trial or a member of the front under way still takes."""
        row, phase = work.row, work.phase
        if row["reused_from"] is not None:
            return 0.0
        rest = 0.0 if phase is None else self._phase_left_s(phase)
        if rest is None or self._kind != "trials":
            return rest
        base = 1.0
        for name in self._phases:
            if name in work.done or (phase is not None and name == phase.name):
                base = self._share(name)
                continue
            seconds = self._seconds_of(name)
            if seconds is None:
                return None
            rest += seconds * (1.0 if row["is_fixed"] else min(1.0, self._share(name) / base))
        return rest

    def _phase_left_s(self, phase: _Phase) -> float | None:
        """Seconds that a phase in progress still takes."""
        now = time.monotonic()
        if phase.waits_since is not None:
            now = phase.waits_since
        now -= phase.waited_s
        spent = now - phase.began
        if phase.last is None:
            expected = self._training_s() if phase.name.startswith(SEED_PHASE) else self._seconds_of(phase.name)
            return None if expected is None else max(0.0, expected - spent)
        _, end = self._spans.get(phase.name, next(iter(reversed(self._spans.values())), (0, phase.last[1])))
        begin = self._begin_of(phase)
        steps, prior = phase.last[1] - begin, self._step_s() or 0.0
        own_s = phase.last[0] - phase.began
        prior_steps = _PRIOR_SHARE * (end - begin) if self._seconds[phase.name].count else 0.0
        step_s = (own_s + prior_steps * prior) / max(1.0, steps + prior_steps)
        judging_s = self._judging.value or 0.0
        return max(0.0, (end - phase.last[1]) * step_s + judging_s - (now - phase.last[0]))


def _spread(rests: Sequence[float], workers: int, jobs: Sequence[tuple[int, float]]) -> float:
    """Seconds until `workers` have done what they are at, `rests` seconds each, and then the jobs, `(number, seconds)`, each by the first free one.

    With one worker that is the sum.
    """
    loads = sorted([*rests, *[0.0] * (workers - len(rests))])
    for number, seconds in jobs:
        evenly = number if workers == 1 else max(0, number // workers - _DEALT_ROUNDS)
        loads = [load + evenly * seconds for load in loads[:workers]] + loads[workers:]
        heapq.heapify(loads)
        for _ in range(number - evenly * workers):
            heapq.heapreplace(loads, loads[0] + seconds)
    return max(loads)
