"""What every tracker does, and what it hears of a run."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from archsearch.results import MEASURED_COLUMNS, OBJECTIVES, SCHEMA, Row
from archsearch.search.engine.listener import State
from archsearch.search.study.shown import shown_attrs

# Figures of a trial by the names of the run's columns, and words about it.
FIGURES = tuple(
    dict.fromkeys((*OBJECTIVES, "proxy_score_se", "rung_score", "throughput_iqr", "activations", "seconds_total"))
)
WORDS = ("state", "paper", "architecture", "arch_id", "reason")
assert {*FIGURES, *WORDS} <= set(SCHEMA.names) | MEASURED_COLUMNS


@dataclass(frozen=True, kw_only=True)
class About:
    """A run as its trackers know it. `run_id` is one of its own, and stays the same when it goes on; `settings` are flat."""

    folder: Path
    name: str
    run_id: str
    objectives: tuple[str, ...]
    settings: Mapping[str, Any]


class Tracker(Protocol):
    """Keeps the figures of one run. Any method may raise: the run goes on without this tracker."""

    def start(self, about: About) -> Collection[int]:
        """Begin, or go on with the same run; returns the trials that it has from before, which are not logged again."""

    def log(self, row: Row, front_size: int | None) -> None:
        """A trial has ended; the size of the front since then, None of one that ended before this tracker began."""

    def finish(self, state: State, front: Sequence[Row]) -> None:
        """The run ends, whole or not; the members of its front by the latest figures."""


def figures(row: Row, front_size: int | None) -> dict[str, float]:
    """The figures of a trial that it has."""
    found = {name: float(value) for name, value in shown_attrs(row, FIGURES).items()}
    return found if front_size is None else {**found, "front_size": float(front_size)}


def front_table(front: Sequence[Row], objectives: Sequence[str]) -> str:
    """The front as a table in Markdown."""
    names = ["trial", *objectives, "paper", "architecture"]
    lines = [names, ["---"] * len(names), *([_cell(row[name]) for name in names] for row in front)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)
