"""The display of a run on stderr: a live panel on a terminal, one line for each trial anywhere else."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from archsearch.results import Row
from archsearch.search import Listener, State, Tally
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
    """The listener for this console: a panel that is gone at the end, or plain lines."""
    clock = Clock(timeout_s, rechecks=rechecks)
    if not console.is_terminal:
        console.print(f"{folder}: {what}", soft_wrap=True)
        yield PlainListener(console, clock)
        return
    panel = LiveListener(folder, what, clock)
    with Live(console=console, get_renderable=panel.render, refresh_per_second=_REFRESH_PER_S, transient=True):
        yield panel


class Clock:
    """Elapsed time, and time left by the mean of the trials that this session measured; with `rechecks` the front is timed again after them."""

    def __init__(self, timeout_s: float | None = None, *, rechecks: bool = False) -> None:
        self._start, self._timeout_s, self._rechecks = time.monotonic(), timeout_s, rechecks
        self._measured = 0
        self._timing_s = 0.0

    def ended(self, row: Row) -> None:
        """Count a finished trial, unless it reused an older result, which took no time."""
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

    def describe(self, tally: Tally) -> str:
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
        words = f"[{tally.ended}/{tally.total}] {describe_trial(row)}; front {tally.front_size}; {self._clock.describe(tally)}"
        self._console.print(words, soft_wrap=True)

    def remeasure_started(self, row: Row, place: int, total: int) -> None:
        """Nothing: the line comes when it ended."""

    def remeasure_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """The kept trial's line."""
        self._console.print(f"[timed anew {place}/{total}] {describe_remeasured(row, reason)}", soft_wrap=True)

    def again_started(self, row: Row, place: int, total: int) -> None:
        """Nothing: the line comes when it ended."""

    def again_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """The member's line."""
        self._console.print(f"[front again {place}/{total}] {describe_recheck(row, reason)}", soft_wrap=True)

    def seed_started(self, row: Row, place: int, total: int) -> None:
        """Nothing: the line comes when it ended."""

    def seed_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """The training's line."""
        self._console.print(f"[seeds {place}/{total}] {describe_seeds(row, reason)}", soft_wrap=True)

    def finished(self, state: State, tally: Tally) -> None:
        """Nothing: the command says how the run ended."""


def describe_trial(row: Row) -> str:
    """A finished trial in one line."""
    # The architecture comes last, since a narrow terminal cuts the end.
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


def describe_remeasured(row: Row, reason: str | None) -> str:
    """A kept trial that was timed anew, in one line."""
    name = row["paper"] or row["architecture"]
    if reason is not None:
        return f"trial {row['trial']} could not be timed ({reason}): {name}"
    return f"trial {row['trial']}, {row['throughput_img_s']:.1f} img/s: {name}"


def describe_recheck(row: Row, reason: str | None) -> str:
    """A member of the front that was timed again, in one line."""
    name = row["paper"] or row["architecture"]
    if reason is not None:
        return f"trial {row['trial']} could not be measured again ({reason}): {name}"
    change = row["throughput_change"]
    ratio = "" if change is None else f", {change:+.1%} against the reference"
    rates = f"{row['throughput_img_s']:.1f} img/s, now {row['throughput_again_img_s']:.1f}"
    return f"trial {row['trial']}, {rates}{ratio}: {name}"


def describe_seeds(row: Row, reason: str | None) -> str:
    """A member of the front that was trained with another seed, in one line."""
    name = row["paper"] or row["architecture"]
    if reason is not None:
        return f"trial {row['trial']} could not be trained with another seed ({reason}): {name}"
    spread = f"mean {row['proxy_score_mean']:.3f}, standard deviation {row['proxy_score_sd']:.3f}"
    return f"trial {row['trial']}, score {row['proxy_score']:.3f}, over {row['proxy_seeds']} seeds {spread}: {name}"


class LiveListener:
    """A few lines that are redrawn several times a second."""

    def __init__(self, folder: str, what: str, clock: Clock) -> None:
        self._folder, self._what, self._clock = folder, what, clock
        self._tally: Tally | None = None
        self._row: Row | None = None
        self._event: Mapping[str, Any] = {}
        self._last: str = ""
        self._front_work = ""

    def trial_started(self, row: Row, tally: Tally) -> None:
        """Show this trial as the current one."""
        self._row, self._tally, self._event = row, tally, {}

    def progress(self, event: Mapping[str, Any]) -> None:
        """Show how far the current trial is."""
        if event["event"] == "progress":
            self._event = event

    def trial_finished(self, row: Row, tally: Tally) -> None:
        """Show the trial as the last one."""
        self._clock.ended(row)
        self._row, self._tally, self._last = None, tally, describe_trial(row)

    def remeasure_started(self, row: Row, place: int, total: int) -> None:
        """Show this kept trial as the current one."""
        self._row, self._event = row, {}
        self._front_work = f"timing kept trials anew {place}/{total}: "

    def remeasure_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """Show its new figure."""
        self._row, self._front_work, self._last = None, "", describe_remeasured(row, reason)

    def again_started(self, row: Row, place: int, total: int) -> None:
        """Show this member of the front as the current one."""
        self._row, self._event = row, {}
        self._front_work = f"measuring the front again {place}/{total}: "

    def again_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """Show the change of its figure."""
        self._row, self._last = None, describe_recheck(row, reason)

    def seed_started(self, row: Row, place: int, total: int) -> None:
        """Show this member of the front as the current one."""
        self._row, self._event = row, {}
        self._front_work = f"training the front with other seeds {place}/{total}: "

    def seed_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """Show its scores over the seeds so far."""
        self._row, self._last = None, describe_seeds(row, reason)

    def finished(self, state: State, tally: Tally) -> None:
        """Show the last state of the run."""
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
        grid.add_row("", describe_phase(self._event) if self._row else "")
        grid.add_row("last", self._last or "-")
        elapsed = format_seconds(self._clock.elapsed_s)
        grid.add_row("time", self._clock.describe(self._tally) if self._tally and not self._front_work else elapsed)
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
        speed = f"predicted {predicted:.1f} img/s, " if predicted is not None and not self._front_work else ""
        what = f"trial {row['trial']}, {format_count(row['macs'])} MACs"
        return f"{self._front_work}{what}, {speed}{paper}{row['architecture']}"


def describe_phase(event: Mapping[str, Any]) -> str:
    """`training the small copy, step 120 of 200, 812 img/s`."""
    if not event:
        return "sent to the worker"
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
