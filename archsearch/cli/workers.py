"""What the displays of a run say of its workers: a line for each, and why trials failed."""

import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.text import Text

from archsearch.results import Row
from archsearch.search import Pace, TimeLeft
from archsearch.units import format_count, format_seconds

_PHASES = {
    "count": "counting MACs of the built model",
    "throughput": "timing the full model",
    "proxy": "training the small copy",
    "again": "timing the full model again",
    "free": "training-free scores",
    "seed": "training the small copy with another seed",
}
# In the line of one of several workers.
_SHORT = {
    "count": "counting",
    "throughput": "timing",
    "proxy": "training",
    "again": "timing again",
    "free": "free scores",
    "seed": "seed",
}
_STARTING = "sent to a worker"
# Kinds of failures, by what their reasons say; the first that fits.
_FAILURES = (
    ("killed", "the worker process was killed"),
    ("crashed", "the worker process crashed"),
    ("stalled", ": no progress for "),
    ("out of memory", "out of memory"),
)


@dataclass
class AtWork:
    """A trial under way: its last event, the worker that sent it, and when its phase began."""

    row: Row
    front_work: str = ""
    event: Mapping[str, Any] = field(default_factory=dict)
    worker: str = ""
    since: float = field(default_factory=time.monotonic)

    def hear(self, event: Mapping[str, Any]) -> None:
        """Note an event of the trial."""
        self.worker = str(event.get("worker", self.worker))
        if event["event"] == "progress":
            if event.get("phase") != self.event.get("phase"):
                self.since = time.monotonic()
            self.event = event

    @property
    def kind(self) -> str:
        """What is done with it, in a word or two."""
        phase = str(self.event.get("phase")).partition("@")[0]
        return "waiting" if self.event.get("waiting") else _SHORT.get(phase, phase) if self.event else _STARTING


def failure_kind(reason: str) -> str:
    """`killed`, `out of memory` and so on by the reason of a failed trial."""
    return next((kind for kind, words in _FAILURES if words in reason), "other")


def phases_of(works: Iterable[AtWork]) -> str:
    """`5 training, 2 timing, 1 waiting`."""
    return ", ".join(f"{number} {kind}" for kind, number in Counter(work.kind for work in list(works)).most_common())


def workers_lines(works: Sequence[AtWork], most: int, clock: TimeLeft, pace: Pace) -> Text:
    """A line for each of `most` workers, by name; where there are more, those whose phases have taken longest, and how many are left out."""
    shown = sorted(works, key=lambda work: work.since)
    shown = shown[: most - 1] if len(works) > most else shown
    shown.sort(key=lambda work: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", work.worker)])
    cells = [_cells(work, clock, pace) for work in shown]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    if len(works) > len(shown):
        lines.append(f"and {len(works) - len(shown)} more")
    return Text("\n".join(lines), no_wrap=True, overflow="ellipsis")


def _cells(work: AtWork, clock: TimeLeft, pace: Pace) -> list[str]:
    """Worker, phase with the share of its steps, its time so far, images/s, candidate."""
    event, waiting = work.event, clock.waiting_of(work.row["trial"])
    share = f" {event['step'] / event['steps']:.0%}" if event.get("steps") and event.get("step") is not None else ""
    rung = f" {event['rung']}/{event['rungs']}" if event.get("rungs", 1) > 1 else ""
    since = format_seconds(time.monotonic() - work.since if waiting is None else waiting[1])
    slow = "slow " if pace.slow_words(work.worker) else ""
    rate = f"{slow}{event['images_s']:.0f} img/s" if event.get("images_s") else ""
    name = work.row["paper"] or work.row["architecture"]
    candidate = f"trial {work.row['trial']}, {format_count(work.row['macs'])}, {name}"
    return [work.worker or "-", f"{work.kind}{rung}{share}", since, rate, candidate]


def describe_phase(event: Mapping[str, Any]) -> str:
    """`training the small copy, step 120 of 200, 812 img/s`."""
    if not event:
        return "sent to the worker, which may still be loading PyTorch"
    phase = str(event.get("phase")).partition("@")[0]
    parts = [_PHASES.get(phase, phase)]
    if event.get("rungs", 1) > 1:
        parts.append(f"rung {event['rung']} of {event['rungs']}")
    if event.get("text"):
        parts.append(str(event["text"]))
    if event.get("steps"):
        parts.append(f"step {event.get('step')} of {event['steps']}")
    if event.get("images_s"):
        parts.append(f"{event['images_s']:.0f} img/s")
    return ", ".join(parts)
