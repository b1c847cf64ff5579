"""The listener of a run: callbacks for its events, such as a display implements."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from archsearch.results import Row
from archsearch.search.engine.workers.base import Event

# How a run stands: `timeout` ended by its time limit with work left, `interrupted` by Ctrl-C or SIGTERM, `failed` by an error.
State = Literal["running", "complete", "timeout", "interrupted", "failed"]


@dataclass(frozen=True, kw_only=True)
class Tally:
    """The progress of a run: trials that ended (failed, stopped and reused ones included) out of `total`, fixed ones included; the front so far."""

    ended: int
    failed: int
    total: int
    front_size: int
    stopped: int = 0
    front: Sequence[Row] = ()
    workers: int = 1  # how many trials may be under way at once, and how many are
    under_way: int = 0


class Listener(Protocol):
    """Receives the events of a run, in the driver's process and thread; those of several trials come in turn where there are several workers."""

    def trial_started(self, row: Row, tally: Tally) -> None:
        """A trial is about to be evaluated or, with `reused_from`, to take over the figures of an earlier one."""

    def progress(self, event: Event) -> None:
        """An event of the evaluation: `progress`, or `phase` with its `values`, which are stored already."""

    def trial_finished(self, row: Row, tally: Tally) -> None:
        """A trial ended as complete, stopped or failed."""

    def remeasure_started(self, row: Row, place: int, total: int) -> None:
        """A kept trial is about to be timed anew here (`--remeasure`), the `place`-th of `total`."""

    def remeasure_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """It was timed and the files are up to date, or it failed for `reason`."""

    def again_started(self, row: Row, place: int, total: int) -> None:
        """The throughput of a front member is about to be measured again, the `place`-th of `total`."""

    def again_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """It was measured, or it failed for `reason`."""

    def seed_started(self, row: Row, place: int, total: int) -> None:
        """A trial of the front or near it is about to be trained with another seed, the `place`-th of `total` such trainings."""

    def seed_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """It was trained, or it failed for `reason`."""

    def finished(self, state: State, tally: Tally) -> None:
        """The run ended, and its files are written."""
