"""Several workers as one: a job goes to the first that is free and may do it, and back to the same one where a training goes on there."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from archsearch.search.engine.workers.base import Event, Job, Workers


class Member(Workers, Protocol):
    """A worker of a pool: evaluates one job at a time."""

    @property
    def name(self) -> str:
        """What the displays call it, such as `cuda:1`."""


class Pool:
    """`Workers` (see `base`) made of others; `wait_for` returns when one of the members may have events, or after some seconds."""

    def __init__(self, members: Sequence[Member], wait_for: Callable[[Sequence[Member], float], object]) -> None:
        self.members = list(members)
        self._wait_for = wait_for
        self._waiting: deque[Job] = deque()
        self._at_work: dict[int, Member] = {}  # by trial
        self._last: dict[int, Member] = {}  # where a trial was evaluated last
        self._ended: list[Event] = []  # last events of jobs that were ended before they began

    @property
    def capacity(self) -> int:
        """One job for each member."""
        return len(self.members)

    def submit(self, job: Job) -> None:
        """Start a job where a member is free, else when one is."""
        self._waiting.append(job)
        self._start_waiting()

    def _start_waiting(self) -> None:
        """Give the waiting jobs to free members, in order."""
        if not self._waiting:
            return
        busy = list(self._at_work.values())
        free = [member for member in self.members if member not in busy]
        while self._waiting and free:
            job = self._waiting.popleft()
            before = self._last.get(job.trial)
            member = before if before in free else free[0]
            assert member is not None
            free.remove(member)
            member.submit(job)
            self._at_work[job.trial] = self._last[job.trial] = member

    def events(self, timeout: float) -> list[Event]:
        """The events of all members since the last call, with the `worker` they came from."""
        events, self._ended = self._ended, []
        if not events:
            self._wait_for(list(self._at_work.values()), timeout)
        for trial, member in list(self._at_work.items()):
            for event in member.events(0):
                events.append({**event, "worker": member.name})
                if event["event"] in ("done", "failed"):
                    del self._at_work[trial]
        self._start_waiting()
        return events

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
        self._at_work.clear()
        for member in self.members:
            member.close()
