"""archsearch/search/engine/workers/base.py."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

Event = dict[str, Any]


Evaluator = Callable[[dict[str, Any], dict[str, Any], dict[str, dict[str, Any]], Callable[[Event], None]], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One evaluation: plain values only. `done` holds the phases already measured, which are not measured again."""

    trial: int
    arch: dict[str, Any]
    settings: dict[str, Any]
    done: dict[str, dict[str, Any]]


class Worker(Protocol):
    """Where evaluations happen. Events carry their `trial`; `done` or `failed` (with `reason`) is a job's last."""

    def submit(self, job: Job) -> None:
        """Start an evaluation; one at a time."""

    def events(self, timeout: float) -> list[Event]:
        """What has happened since the last call, waiting up to `timeout` seconds for something."""

    def close(self) -> None:
        """Stop at once, whatever is being evaluated. A second call does nothing."""
