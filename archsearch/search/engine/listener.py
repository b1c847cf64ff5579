"""Who watches a run, and what it is told."""

from dataclasses import dataclass
from typing import Literal, Protocol

from archsearch.results import Row
from archsearch.search.engine.workers.base import Event

State = Literal["running", "complete", "interrupted", "failed"]


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Where a run stands: trials ended (failed, stopped and reused ones among them) of those asked for, fixed ones included."""

    ended: int
    failed: int
    total: int
    front_size: int
    stopped: int = 0


class Listener(Protocol):
    """Who watches a run."""

    def trial_started(self, row: Row, tally: Tally) -> None:
        """A candidate goes to the worker (or, with `reused_from`, is known already)."""

    def progress(self, event: Event) -> None:
        """An event of the evaluation: `progress`, or `phase` with its `values`."""

    def trial_finished(self, row: Row, tally: Tally) -> None:
        """A trial ended, complete, stopped or failed, and the files show it."""

    def again_started(self, row: Row, place: int, total: int) -> None:
        """The `place`-th of `total` members of the front goes to the worker, to be timed another time."""

    def again_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """It was timed, and the files show it; or it could not be, for `reason`."""

    def seed_started(self, row: Row, place: int, total: int) -> None:
        """A member of the front goes to the worker, to be trained with another seed: the `place`-th of `total` such trainings."""

    def seed_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """It was trained, and the files show it; or it could not be, for `reason`."""

    def finished(self, state: State, tally: Tally) -> None:
        """The run ended, and its files are written."""
