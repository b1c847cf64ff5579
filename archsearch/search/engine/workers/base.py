"""The interface between a run's driver and its workers: a job goes in, events come out.

The driver submits jobs, at most `Workers.capacity` at once and one of a trial, and calls `Workers.events` until each job's last event has
come. A worker may evaluate in another process or on another machine, so jobs and events are plain values that JSON can carry, in both
directions. Every event of several workers also has `worker`, the name of the one that sent it, such as `cuda:1`. Events:

- `{"event": "progress", "trial": 7, "phase": "proxy", ...}`: only for displays; further keys depend on the phase. `waiting` says who has
  the device that the phase waits for, and is empty when the wait is over; `step` and `steps` are of a training; `other_cores` are the cores
  that other processes used in the last seconds
- `{"event": "phase", "trial": 7, "phase": "proxy", "values": {...}}`: a phase has ended with these columns, checked by
  `results.check_measured`, and `seconds`, its duration without the `waited_s` that it waited for the device, and `other_cores`, those
  that other processes used meanwhile; the driver stores it at once, and never has it measured again
- `{"event": "done", "trial": 7}`: the last event of a job that succeeded
- `{"event": "failed", "trial": 7, "reason": "..."}`: the last event of one that did not, with the reason in one line

The reason of a process that was ended from outside begins with `KILLED`: then it is not the trial's fault, and the driver tries once more.

A job has exactly one last event, unless the workers are closed first. A crash of the evaluation, or of the process or machine it runs in, is
a `failed` event and never an exception; afterwards the worker accepts the next job. So it does after a CUDA error, which leaves a process
unusable: the next job is done by another one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Event = dict[str, Any]
Emit = Callable[[Event], None]
KILLED = "the worker process was killed"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One evaluation of a trial, as plain values.

    `arch` is what `to_dict` of an architecture or of an included network gave. `settings` are those of the run with its `seed`, the texts
    of its files of `blocks` by name, the columns that it `limits`, where not the default ones are meant the `phases` to measure, and in a
    run that compiles the architectures that come next, as `ahead`.
    `done` has the phases measured before (phase -> column -> value), which are not measured again.
    """

    trial: int
    arch: dict[str, Any]
    settings: dict[str, Any]
    done: dict[str, dict[str, Any]]


class Evaluator(Protocol):
    """The function that a worker calls with the parts of a job, `search.evaluate.evaluate` in every real run."""

    def __call__(
        self, arch: Mapping[str, Any], settings: Mapping[str, Any], done: Mapping[str, Mapping[str, Any]], emit: Emit, /
    ) -> None:
        """Emit `progress` and `phase` events without their `trial` and `seconds`; raise to fail the trial."""


class Workers(Protocol):
    """Evaluate jobs, up to `capacity` at once."""

    @property
    def capacity(self) -> int:
        """How many jobs may be under way now; it changes where machines join and leave, and may be 0 for a while."""

    def submit(self, job: Job) -> None:
        """Start a job, or keep it until a worker is free, and return at once. The last event of the trial's job before must have been read."""

    def events(self, timeout: float) -> list[Event]:
        """The events since the last call, those of a job in order; where there are none yet, wait up to `timeout` seconds for the first."""

    def end(self, trial: int, reason: str) -> None:
        """End a trial's job wherever it stands: its last event is `failed` with this reason. Nothing where it has no job under way."""

    def close(self) -> None:
        """Stop at once and free everything, also in the middle of jobs, whose last events then never come. A second call does nothing."""
