"""Several workers as one: a job goes to the first that is free and may do it, and back to the same one where a training goes on there."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from archsearch.search.engine.workers.base import Event, Job, Workers
from archsearch.search.rungs import AGAIN_PHASE, PHASES, RUNG_PHASE, TIMING_PHASE

_TIMED = (TIMING_PHASE, AGAIN_PHASE)


class Member(Workers, Protocol):
    """A worker of a pool: evaluates one job at a time, or none for now (`capacity` 0)."""

    @property
    def name(self) -> str:
        """What the displays call it, such as `cuda:1`."""

    @property
    def can_time(self) -> bool:
        """Whether its device is of the class that the run ranks throughput on; a worker of another one only trains."""


AnyMember = TypeVar("AnyMember", bound=Member)


class Pool(Generic[AnyMember]):
    """`Workers` (see `base`) made of others; `wait_for` returns when one of the members may have events, or after some seconds.

    Only members that can time get jobs with timings. Where others only train, such a job is done in two: the phases up to the last timing,
    then the rest, which may go to another member. Members that can time leave trainings to the others while they are the fewer, since
    nobody else can do what they do.
    """

    def __init__(self, members: Sequence[AnyMember], wait_for: Callable[[Sequence[AnyMember], float], object]) -> None:
        self.members = list(members)
        self._wait_for = wait_for
        self._waiting: deque[Job] = deque()
        self._rests: dict[int, Job] = {}  # by trial: what is to be done after the part under way
        self._at_work: dict[int, AnyMember] = {}  # by trial
        self._last: dict[int, AnyMember] = {}  # where a trial was evaluated last
        self._at_rung: set[int] = set()  # trials at work whose last phase was a rung
        # They hold a training that their trial's next job goes on with, if it comes at once.
        self._paused: list[AnyMember] = []
        self._ended: list[Event] = []  # last events of jobs that were ended before they began

    @property
    def capacity(self) -> int:
        """One job for each member."""
        return sum(member.capacity for member in self.members)

    def submit(self, job: Job) -> None:
        """Start a job where a member is free, else when one is."""
        first, rest = self._split(job)
        if rest is not None:
            self._rests[job.trial] = rest
        before = self._last.get(job.trial)
        if before in self._paused:  # kept for this job: no other one may take it now
            self._paused.remove(before)
            self._waiting.appendleft(first)
        else:
            self._waiting.append(first)
        self._start_waiting()

    def _split(self, job: Job) -> tuple[Job, Job | None]:
        """The part of a job that only some members may do, and the rest; the whole job where all may do all of it."""
        phases = _left(job)
        end = max((place for place, phase in enumerate(phases, start=1) if phase in _TIMED), default=0)
        if end in (0, len(phases)) or all(member.can_time for member in self.members):
            return job, None
        first = replace(job, settings={**job.settings, "phases": phases[:end]})
        settings = {name: value for name, value in job.settings.items() if name != "ahead"}
        return first, replace(job, settings={**settings, "phases": phases[end:]})

    def _start_waiting(self) -> None:
        """Give the waiting jobs to free members, in order."""
        if not self._waiting:
            return
        busy = [*self._at_work.values(), *self._paused]
        free = [member for member in self.members if member.capacity and member not in busy]
        for job in list(self._waiting):
            member = self._choose(job, free)
            if member is not None:
                free.remove(member)
                self._waiting.remove(job)
                member.submit(job)
                self._at_work[job.trial] = self._last[job.trial] = member

    def _choose(self, job: Job, free: Sequence[AnyMember]) -> AnyMember | None:
        """The free member to do a job: the one that did the trial's last, else one that only trains, where that is enough."""
        allowed = [member for member in free if member.can_time]
        if not is_timed(job):
            only_train = [member for member in free if not member.can_time]
            timers = sum(bool(member.capacity) for member in self.members if member.can_time)
            are_fewer = timers < sum(bool(member.capacity) for member in self.members if not member.can_time)
            allowed = [*only_train, *([] if are_fewer else allowed)]
        before = self._last.get(job.trial)
        return before if before in allowed else next(iter(allowed), None)

    def events(self, timeout: float) -> list[Event]:
        """The events of all members since the last call, with the `worker` they came from."""
        self._paused.clear()  # a trial that goes on has been submitted by now
        self._start_waiting()
        events, self._ended = self._ended, []
        if not events:
            self._wait_for(list(self._at_work.values()), timeout)
        for trial, member in list(self._at_work.items()):
            for event in member.events(0):
                if heard := self._hear(trial, member, event):
                    events.append({**heard, "worker": member.name})
        self._start_waiting()
        return events

    def _hear(self, trial: int, member: AnyMember, event: Event) -> Event | None:
        """An event as it is passed on; the end of a part that has a rest is not one of the job."""
        rest = self._rests.get(trial)
        if event["event"] == "phase":
            if rest is not None:
                self._rests[trial] = replace(rest, done={**rest.done, event["phase"]: event["values"]})
            if event["phase"].startswith(RUNG_PHASE):
                self._at_rung.add(trial)
        if event["event"] not in ("done", "failed"):
            return event
        del self._at_work[trial]
        self._rests.pop(trial, None)
        if trial in self._at_rung:
            self._at_rung.remove(trial)
            self._paused.append(member)
        if rest is None or event["event"] == "failed":
            return event
        del self._last[trial]  # nothing of the rest is begun there
        self._waiting.appendleft(rest)
        return None

    def end(self, trial: int, reason: str) -> None:
        """End a trial's job, whether it waits or is at work."""
        if trial in self._at_work:
            self._at_work[trial].end(trial, reason)
        waiting = [job for job in self._waiting if job.trial == trial]
        for job in waiting:
            self._waiting.remove(job)
            self._ended.append({"event": "failed", "trial": trial, "reason": reason})

    def close(self) -> None:
        """Close all members."""
        self._waiting.clear()
        self._rests.clear()
        self._at_work.clear()
        for member in self.members:
            member.close()


def _left(job: Job) -> list[str]:
    """The phases of a job that have not been measured."""
    return [phase for phase in job.settings.get("phases", PHASES) if phase not in job.done]


def is_timed(job: Job) -> bool:
    """Whether a job has throughput to time."""
    return any(phase in _TIMED for phase in _left(job))
