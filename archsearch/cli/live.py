"""The display of a run on stderr: a live panel on a terminal; anywhere else a line for each trial, and at least one a minute."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from archsearch.cli.progress import Heartbeat
from archsearch.results import OBJECTIVES, Row
from archsearch.search import Listener, Pace, State, Tally, TimeLeft
from archsearch.units import format_bytes, format_count, format_seconds

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
# The front so far is shown from this trial on, as so many rows; without a terminal when it has changed, and this often at most.
_FRONT_FROM, _FRONT_ROWS, _FRONT_EVERY_S = 3, 5, 300.0
_COLUMNS = {
    "proxy_score": "score",
    "throughput_img_s": "img/s",
    "latency_ms": "ms/batch",
    "peak_memory_bytes": "memory",
    "macs": "MACs",
}


@contextlib.contextmanager
def watching(console: Console, folder: str, what: str, clock: TimeLeft) -> Iterator[Listener]:
    """The listener for this console: a panel that is gone at the end, or plain lines."""
    if not console.is_terminal:
        console.print(f"{folder}: {what}", soft_wrap=True)
        plain = PlainListener(console, clock)
        with Heartbeat(plain.describe, lambda line: console.print(line, soft_wrap=True)) as plain.heartbeat:
            yield plain
        return
    panel = LiveListener(folder, what, clock)
    with Live(console=console, get_renderable=panel.render, refresh_per_second=_REFRESH_PER_S, transient=True):
        yield panel


class _Watch:
    """What both displays know of a run: its trial, phase, pace and front."""

    def __init__(self, clock: TimeLeft) -> None:
        self.clock, self.pace = clock, Pace()
        self.tally: Tally | None = None
        self.row: Row | None = None
        self.event: Mapping[str, Any] = {}
        self.front_work = ""

    def trial_started(self, row: Row, tally: Tally) -> None:
        """The trial is the current one."""
        self.clock.trial_started(row)
        self.row, self.tally, self.event = row, tally, {}

    def progress(self, event: Mapping[str, Any]) -> None:
        """How far the current trial is."""
        self.clock.progress(event)
        self.pace.progress(event)
        if (
            event["event"] == "progress"
            and self.row is not None
            and event.get("trial", self.row["trial"]) == self.row["trial"]
        ):
            self.event = event

    def trial_finished(self, row: Row, tally: Tally) -> None:
        """There is no current trial."""
        self.clock.trial_finished(row)
        self.row, self.tally = None, tally

    def remeasure_started(self, row: Row, place: int, total: int) -> None:
        """The kept trial is the current one."""
        self.clock.remeasure_started(row, place, total)
        self._member_started(row, f"timing kept trials anew {place}/{total}: ")

    def remeasure_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """There is no current trial."""
        self.clock.member_finished()
        self.row, self.front_work = None, ""

    def again_started(self, row: Row, place: int, total: int) -> None:
        """The member of the front is the current one."""
        self.clock.again_started(row, place, total)
        self._member_started(row, f"measuring the front again {place}/{total}: ")

    def again_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """There is no current member."""
        self.clock.member_finished()
        self.row = None

    def seed_started(self, row: Row, place: int, total: int) -> None:
        """The member of the front is the current one."""
        self.clock.seed_started(row, place, total)
        self._member_started(row, f"training the front with other seeds {place}/{total}: ")

    def seed_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """There is no current member."""
        self.clock.member_finished()
        self.row = None

    def _member_started(self, row: Row, work: str) -> None:
        self.row, self.event, self.front_work = row, {}, work

    def finished(self, state: State, tally: Tally) -> None:
        """The last state of the run."""
        self.row, self.tally = None, tally

    def now(self) -> str:
        """The trial at work: `trial 7, 4.60G MACs, lka 64x3`."""
        row = self.row
        if row is None:
            return "starting the worker" if self.tally is None else "choosing the next candidate"
        paper = f"{row['paper']}: " if row["paper"] else ""
        predicted = row.get("throughput_predicted_img_s")
        speed = f"predicted {predicted:.1f} img/s, " if predicted is not None and not self.front_work else ""
        return f"{self.front_work}trial {row['trial']}, {format_count(row['macs'])} MACs, {speed}{paper}{row['architecture']}"

    def phase(self) -> str:
        """What is done with it; who is waited for; whether it is slow."""
        if self.row is None:
            return ""
        waiting = self.clock.waiting
        if waiting is not None:
            return f"waiting for the device since {format_seconds(waiting[1])}: {waiting[0]} has it"
        slow = self.pace.slow_words()
        return describe_phase(self.event) + (f"; {slow}" if slow else "")

    def time(self) -> str:
        """`5m12s, about 12m left`."""
        left = self.clock.left_s(self.tally)
        words = format_seconds(self.clock.elapsed_s) + (
            f", about {format_seconds(left)} left" if left is not None else ""
        )
        return words + (", the wait not counted" if left is not None and self.clock.waiting else "")

    def front(self) -> Sequence[Row]:
        """The front so far, once enough trials have ended."""
        return self.tally.front if self.tally is not None and self.tally.ended >= _FRONT_FROM else ()


class PlainListener(_Watch):
    """One line a trial, the front now and then, and a line a minute."""

    def __init__(self, console: Console, clock: TimeLeft) -> None:
        super().__init__(clock)
        self._console = console
        self.heartbeat: Heartbeat | None = None
        self._shown: tuple[int, ...] = ()
        self._shown_at = -_FRONT_EVERY_S

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)
        if self.heartbeat is not None:
            self.heartbeat.rest()

    def describe(self) -> str:
        """`now: trial 7, ...; training the small copy, step 120 of 200; 5m12s, about 12m left`."""
        return "; ".join(filter(None, (f"now: {self.now()}", self.phase(), self.time())))

    def trial_finished(self, row: Row, tally: Tally) -> None:
        """The trial's line, and the front where it has changed."""
        super().trial_finished(row, tally)
        self._print(f"[{tally.ended}/{tally.total}] {describe_trial(row)}; front {tally.front_size}; {self.time()}")
        members = tuple(row["trial"] for row in self.front())
        if members and members != self._shown and time.monotonic() - self._shown_at >= _FRONT_EVERY_S:
            self._shown, self._shown_at = members, time.monotonic()
            self._console.print(
                front_table(
                    self.front(), self.clock.objectives, f"front so far, {len(members)} of {tally.ended} trials"
                )
            )

    def remeasure_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """The kept trial's line."""
        super().remeasure_finished(row, place, total, reason)
        self._print(f"[timed anew {place}/{total}] {describe_remeasured(row, reason)}; {self.time()}")

    def again_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """The member's line."""
        super().again_finished(row, place, total, reason)
        self._print(f"[front again {place}/{total}] {describe_recheck(row, reason)}; {self.time()}")

    def seed_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """The training's line."""
        super().seed_finished(row, place, total, reason)
        self._print(f"[seeds {place}/{total}] {describe_seeds(row, reason)}; {self.time()}")


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


class LiveListener(_Watch):
    """A few lines that are redrawn several times a second."""

    def __init__(self, folder: str, what: str, clock: TimeLeft) -> None:
        super().__init__(clock)
        self._folder, self._what = folder, what
        self._last = ""

    def trial_finished(self, row: Row, tally: Tally) -> None:
        """Show the trial as the last one."""
        super().trial_finished(row, tally)
        self._last = describe_trial(row)

    def remeasure_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """Show its new figure."""
        super().remeasure_finished(row, place, total, reason)
        self._last = describe_remeasured(row, reason)

    def again_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """Show the change of its figure."""
        super().again_finished(row, place, total, reason)
        self._last = describe_recheck(row, reason)

    def seed_finished(self, row: Row, place: int, total: int, reason: str | None) -> None:
        """Show its scores over the seeds so far."""
        super().seed_finished(row, place, total, reason)
        self._last = describe_seeds(row, reason)

    def render(self) -> Table:
        """The panel; every line is cut at the terminal's width."""
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(style="dim", no_wrap=True, min_width=_LABEL_WIDTH)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        grid.add_row("run", self._folder)
        grid.add_row("search", self._what)
        grid.add_row("trials", self._trials())
        grid.add_row("now", self.now())
        grid.add_row("", self.phase())
        grid.add_row("last", self._last or "-")
        grid.add_row("time", self.time())
        if self.front():
            grid.add_row("front", front_table(self.front(), self.clock.objectives))
        return grid

    def _trials(self) -> Table | str:
        tally = self.tally
        if tally is None:
            return "starting"
        counts = {"stopped": tally.stopped, "failed": tally.failed}
        words = f"{tally.ended} of {tally.total}, front {tally.front_size}"
        words += "".join(f", {state} {count}" for state, count in counts.items() if count)
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_row(ProgressBar(total=max(tally.total, 1), completed=tally.ended, width=_BAR_WIDTH), words)
        return line


def front_table(front: Sequence[Row], objectives: Sequence[str], title: str = "architecture") -> Table:
    """The first members of the front, best in the first objective; every line is cut at the terminal's width, no figure is."""
    first = objectives[0]
    rows = sorted(front, key=lambda row: float(row[first]), reverse=OBJECTIVES[first] == "maximize")
    cells = [["trial", *(_COLUMNS.get(name, name) for name in objectives)]]
    cells += [[str(row["trial"]), *(_figure(name, row[name]) for name in objectives)] for row in rows[:_FRONT_ROWS]]
    more = f" ({len(rows) - _FRONT_ROWS} more)" if len(rows) > _FRONT_ROWS else ""
    names = [title + more, *(row["paper"] or row["architecture"] for row in rows[:_FRONT_ROWS])]
    table = Table.grid(padding=(0, 2, 0, 0))
    for column in zip(*cells, strict=True):
        table.add_column(justify="right", no_wrap=True, min_width=max(map(len, column)))
    table.add_column(no_wrap=True, overflow="ellipsis")
    for figures, name in zip(cells, names, strict=True):
        table.add_row(*figures, name)
    return table


def _figure(name: str, value: float) -> str:
    if name == "proxy_score":
        return f"{value:.3f}"
    if name == "peak_memory_bytes":
        return format_bytes(value)
    return format_count(value) if name in ("params", "macs") else f"{value:.1f}"


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
