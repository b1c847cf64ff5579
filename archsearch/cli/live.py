"""What a run shows on stderr while it works: a live panel on a terminal, one plain line a trial anywhere else."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from archsearch.results import Row
from archsearch.search.engine.listener import Listener, State, Tally
from archsearch.units import format_count, format_seconds

_PHASES = {
    "count": "counting MACs of the built model",
    "throughput": "timing the full model",
    "proxy": "training the small copy",
    "again": "timing the full model again",
    "free": "training-free scores",
    "seed": "training the small copy with another seed",
}
_BAR_WIDTH = 30
_LABEL_WIDTH = 6
_REFRESH_PER_S = 4


@contextlib.contextmanager
def watching(
    console: Console, folder: str, what: str, timeout_s: float | None, *, rechecks: bool = False
) -> Iterator[Listener]:
    """The listener that fits the console, shown meanwhile; the live one leaves nothing behind."""
    clock = Clock(timeout_s, rechecks=rechecks)
    if not console.is_terminal:
        console.print(f"{folder}: {what}", soft_wrap=True)
        yield PlainListener(console, clock)
        return
    panel = LiveListener(folder, what, clock)
    with Live(console=console, get_renderable=panel.render, refresh_per_second=_REFRESH_PER_S, transient=True):
        yield panel


class Clock:
    """Elapsed time, and time left by the mean of the trials that this session measured; `rechecks`: then the front again."""

    def __init__(self, timeout_s: float | None = None, *, rechecks: bool = False) -> None:
        self._start, self._timeout_s, self._rechecks = time.monotonic(), timeout_s, rechecks
        self._measured = 0
        self._timing_s = 0.0

    def ended(self, row: Row) -> None:
        """Count a trial that was measured now; one that reused an older result took no time."""
        self._measured += row["reused_from"] is None
        self._timing_s += (row.get("seconds_throughput") or 0.0) if row["reused_from"] is None else 0.0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start of this session."""
        return time.monotonic() - self._start

    def left_s(self, tally: Tally) -> float | None:
        """Seconds to the end; None before the first measurement."""
        if not self._measured:
            return None
        left = self.elapsed_s / self._measured * (tally.total - tally.ended)
        if self._timeout_s is not None:
            left = max(0.0, min(left, self._timeout_s - self.elapsed_s))
        return left + self._rechecks * tally.front_size * self._timing_s / self._measured

    def words(self, tally: Tally) -> str:
        """`5m12s, about 12m left`."""
        left = self.left_s(tally)
        return format_seconds(self.elapsed_s) + (f", about {format_seconds(left)} left" if left is not None else "")


class PlainListener:
    """One line a trial."""

    def __init__(self, console: Console, clock: Clock) -> None:
        self._console, self._clock = console, clock

    def trial_started(self, row: Row, tally: Tally) -> None:
        """Nothing: the line comes when the trial ended."""

    def progress(self, event: Mapping[str, Any]) -> None:
        """Nothing: a log holds results, not steps."""

    def trial_finished(self, row: Row, tally: Tally) -> None:
        """The trial's line."""
        self._clock.ended(row)
        words = (
            f"[{tally.ended}/{tally.total}] {trial_words(row)}; front {tally.front_size}; {self._clock.words(tally)}"
        )
        self._console.print(words, soft_wrap=True)

    def again_started(self, row: Row, place: int, total: int) -> None:
        """Nothing: the line comes when it was timed."""

    def again_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """The member's line."""
        self._console.print(f"[front again {place}/{total}] {again_words(row, reason)}", soft_wrap=True)

    def seed_started(self, row: Row, place: int, total: int) -> None:
        """Nothing: the line comes when it was trained."""

    def seed_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """The training's line."""
        self._console.print(f"[seeds {place}/{total}] {seed_words(row, reason)}", soft_wrap=True)

    def finished(self, state: State, tally: Tally) -> None:
        """Nothing more: the command says how it ended."""


def trial_words(row: Row) -> str:
    """A trial that ended, in one line."""
    # Figures before the architecture, whose end a narrow terminal cuts.
    figures = [f"trial {row['trial']}", f"{format_count(row['macs'])} MACs", f"{format_count(row['params'])} params"]
    if row["throughput_img_s"] is not None:
        predicted = row.get("throughput_predicted_img_s")
        figures.append(f"{row['throughput_img_s']:.1f} img/s" + (f" (predicted {predicted:.1f})" if predicted else ""))
    if row["proxy_score"] is not None:
        figures.append(f"score {row['proxy_score']:.3f}")
    elif row.get("rung_score") is not None:
        figures.append(f"score {row['rung_score']:.3f} at rung {row['rung']}")
    if row["reused_from"] is not None:
        figures.append(f"reused from trial {row['reused_from']}")
    if row["state"] in ("failed", "stopped"):
        figures.append(f"{row['state']}: {row['reason']}")
    return f"{', '.join(figures)}: {row['paper'] or row['architecture']}"


def again_words(row: Row, reason: str | None) -> str:
    """A member of the front that was timed another time, in one line."""
    name = row["paper"] or row["architecture"]
    if reason is not None:
        return f"trial {row['trial']} could not be measured again ({reason}): {name}"
    change = row["throughput_change"]
    ratio = "" if change is None else f", {change:+.1%} against the reference"
    rates = f"{row['throughput_img_s']:.1f} img/s, now {row['throughput_again_img_s']:.1f}"
    return f"trial {row['trial']}, {rates}{ratio}: {name}"


def seed_words(row: Row, reason: str | None) -> str:
    """A member of the front that was trained with another seed, in one line."""
    name = row["paper"] or row["architecture"]
    if reason is not None:
        return f"trial {row['trial']} could not be trained with another seed ({reason}): {name}"
    spread = f"mean {row['proxy_score_mean']:.3f}, standard deviation {row['proxy_score_sd']:.3f}"
    return f"trial {row['trial']}, score {row['proxy_score']:.3f}, over {row['proxy_seeds']} seeds {spread}: {name}"


class LiveListener:
    """A few lines that are drawn anew several times a second."""

    def __init__(self, folder: str, what: str, clock: Clock) -> None:
        self._folder, self._what, self._clock = folder, what, clock
        self._tally: Tally | None = None
        self._row: Row | None = None
        self._event: Mapping[str, Any] = {}
        self._last: str = ""
        self._again = ""

    def trial_started(self, row: Row, tally: Tally) -> None:
        """The trial at work from now on."""
        self._row, self._tally, self._event = row, tally, {}

    def progress(self, event: Mapping[str, Any]) -> None:
        """Where the trial at work is."""
        if event["event"] == "progress":
            self._event = event

    def trial_finished(self, row: Row, tally: Tally) -> None:
        """The last trial's figures stay in sight."""
        self._clock.ended(row)
        self._row, self._tally, self._last = None, tally, trial_words(row)

    def again_started(self, row: Row, place: int, total: int) -> None:
        """The member of the front at work from now on."""
        self._row, self._event = row, {}
        self._again = f"measuring the front again {place}/{total}: "

    def again_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """How the figure has changed stays in sight."""
        self._row, self._last = None, again_words(row, reason)

    def seed_started(self, row: Row, place: int, total: int) -> None:
        """The member of the front at work from now on."""
        self._row, self._event = row, {}
        self._again = f"training the front with other seeds {place}/{total}: "

    def seed_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """What the seeds say by now stays in sight."""
        self._row, self._last = None, seed_words(row, reason)

    def finished(self, state: State, tally: Tally) -> None:
        """The last state of the run."""
        self._row, self._tally = None, tally

    def render(self) -> Table:
        """The panel; every line is cut at the terminal's width."""
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(style="dim", no_wrap=True, min_width=_LABEL_WIDTH)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_row("run", self._folder)
        grid.add_row("search", self._what)
        grid.add_row("trials", self._trials())
        grid.add_row("now", self._now())
        grid.add_row("", phase_words(self._event) if self._row else "")
        grid.add_row("last", self._last or "-")
        tally = self._tally
        grid.add_row(
            "time", self._clock.words(tally) if tally and not self._again else format_seconds(self._clock.elapsed_s)
        )
        return grid

    def _trials(self) -> Table | str:
        tally = self._tally
        if tally is None:
            return "starting"
        counts = {"stopped": tally.stopped, "failed": tally.failed}
        words = f"{tally.ended} of {tally.total}, front {tally.front_size}"
        words += "".join(f", {state} {count}" for state, count in counts.items() if count)
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_row(ProgressBar(total=max(tally.total, 1), completed=tally.ended, width=_BAR_WIDTH), words)
        return line

    def _now(self) -> str:
        row = self._row
        if row is None:
            return "-"
        paper = f"{row['paper']}: " if row["paper"] else ""
        predicted = row.get("throughput_predicted_img_s")
        speed = f"predicted {predicted:.1f} img/s, " if predicted is not None and not self._again else ""
        what = f"trial {row['trial']}, {format_count(row['macs'])} MACs"
        return f"{self._again}{what}, {speed}{paper}{row['architecture']}"


def phase_words(event: Mapping[str, Any]) -> str:
    """`training the small copy, step 120 of 200, 812 img/s`."""
    if not event:
        return "handed to the worker"
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
