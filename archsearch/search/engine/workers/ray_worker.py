"""One actor of a Ray cluster as a member of a pool of workers."""

import contextlib
import json
import queue
import threading
from collections.abc import Callable
from typing import Any

from archsearch.errors import one_line
from archsearch.search.engine.workers.base import KILLED, Event, Job

LOOK_EVERY_S = 1.0


class RayWorker:
    """`Member` of a pool (see `pool`): one actor; `capacity` is 0 once it has died. `wake` is called when there are events, by another thread."""

    def __init__(
        self, actor: Any, name: str, device_name: str, log: str, *, can_time: bool, wake: Callable[[], None]
    ) -> None:
        self.actor, self.name, self.device_name, self.can_time = actor, name, device_name, can_time
        self._log, self._wake = log, wake
        self.is_dead = False
        self._trial: int | None = None
        self._arrived: queue.SimpleQueue[Event] = queue.SimpleQueue()  # of the job under way
        self._reader: threading.Thread | None = None
        self._unread: list[Event] = []  # of a job that was ended

    @property
    def capacity(self) -> int:
        """One job at a time."""
        return int(not self.is_dead)

    def submit(self, job: Job) -> None:
        """Start a job."""
        assert self._trial is None, f"trial {self._trial} is still being evaluated"
        self._trial, self._arrived = job.trial, queue.SimpleQueue()
        stream = self.actor.evaluate.options(num_returns="streaming").remote(json.dumps(vars(job)))
        self._reader = threading.Thread(target=self._read, args=(stream, job.trial, self._arrived), daemon=True)
        self._reader.start()

    def _read(self, stream: Any, trial: int, arrived: "queue.SimpleQueue[Event]") -> None:
        """Read each event as soon as the actor sends it, in a thread of its own: Ray loses the events of a dead node that were not read before."""
        import ray

        is_over = False
        while not is_over and self._trial == trial:  # until `close`
            if not ray.wait([stream], timeout=LOOK_EVERY_S)[0]:
                continue
            try:
                events = json.loads(ray.get(next(stream)))
            except (StopIteration, ray.exceptions.RayError) as error:
                events = [{"event": "failed", "trial": trial, "reason": self._death(error), "device_lost": True}]
            for event in events:
                arrived.put(event)
            is_over = events[-1]["event"] in ("done", "failed")
            self._wake()

    def _death(self, error: Exception) -> str:
        """Why the actor died, and where its log is, in one line."""
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        why = next((line for line in lines if line.startswith("The actor is dead because ")), lines[0])
        why = why.removeprefix("The actor is dead because ").partition(". ")[0]
        return one_line(f"{KILLED}: {self.name}: {why}; its log on that node: {self._log}")

    def events(self, timeout: float) -> list[Event]:
        """The events since the last call; an actor or node that died is a `failed` event."""
        events, self._unread = self._unread, []
        with contextlib.suppress(queue.Empty):
            while self._trial is not None:
                event = self._arrived.get(timeout=timeout) if timeout and not events else self._arrived.get_nowait()
                if event["event"] in ("done", "failed"):
                    self._trial = None
                    if event.pop("device_lost", False):
                        self.close()  # it may live on where the network broke
                events.append(event)
        return events

    def end(self, trial: int, reason: str) -> None:
        """Kill the actor where it evaluates this trial; the reason is the trial's."""
        if self._trial != trial:
            return
        unread = self.events(0)
        if self._trial is not None:  # it has not ended meanwhile
            self.close()
            unread.append({"event": "failed", "trial": trial, "reason": reason})
        self._unread = unread

    def close(self) -> None:
        """Kill the actor, also in the middle of a job."""
        import ray

        self.is_dead, self._trial = True, None
        with contextlib.suppress(ray.exceptions.RayError):
            ray.kill(self.actor)

    def join(self) -> None:
        """After `close`, wait until nothing is read any more."""
        if self._reader is not None:
            self._reader.join(2 * LOOK_EVERY_S)
