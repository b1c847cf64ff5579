"""How far a command has come, on stderr: a bar with the time left on a terminal, a line now and then anywhere else."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from archsearch.system import Progress, Say
from archsearch.units import format_seconds

_BAR_WIDTH = 20
_PLAIN_EVERY_S = 30.0
_BEAT_S, _SHORTEST_REST_S, _SOON_S = 50.0, 0.05, 0.3


@dataclass(frozen=True, kw_only=True)
class Display:
    """What a service reports to: `say` prints a line that stays, `progress` moves the bar."""

    say: Say
    progress: Progress


@contextlib.contextmanager
def progress_display(console: Console, first: str = "") -> Iterator[Display]:
    """`first` until the first report; then a bar that is gone at the end, or a line every half minute where there is no terminal."""
    columns = (
        BarColumn(_BAR_WIDTH),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        # Last, and the only one that a narrow terminal cuts.
        TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
    )
    is_plain = not console.is_terminal

    def say(line: str) -> None:
        console.print(line, soft_wrap=True)

    with Bars(*columns, console=console, transient=True, expand=True, disable=is_plain) as bars:
        bar = _Bar(console, bars)
        if first:
            bar.begin(first)
        with Heartbeat(bar.describe, say, soon=bool(first)) if is_plain else contextlib.nullcontext() as bar.heartbeat:
            yield Display(say=say, progress=bar.update)


class _Bar:
    """The bar of one piece of work; a report with another total begins the next one."""

    def __init__(self, console: Console, bars: Bars) -> None:
        self._console, self._bars = console, bars
        self._task: TaskID | None = None
        self._total = self._before = 0.0
        self._start = self._printed = time.monotonic()
        self._line = ""
        self.heartbeat: Heartbeat | None = None

    def begin(self, text: str) -> None:
        """Show what is done before there is anything to count."""
        self._line = text
        self._task = self._bars.add_task(text, total=None, left="")

    def describe(self) -> str:
        """The last report."""
        return _since(self._line or "starting", self._start)

    def update(self, done: float, total: float, text: str) -> None:
        """Move the bar, or print a line when the last one is half a minute old."""
        now = time.monotonic()
        if self._task is None or total != self._total:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task = self._bars.add_task(text, total=total, completed=int(done), left="")
            self._total, self._before, self._start = total, done, now
        # Not rich's TimeRemainingColumn: it forgets what is older than half a minute, and one network may take longer.
        # What was done before this session took no time now, so it does not count.
        elapsed, new = now - self._start, done - self._before
        left = f"about {format_seconds(elapsed / new * (total - done))} left" if new > 0 else ""
        self._bars.update(self._task, completed=done, description=text, left=left)
        self._line = f"{done:.0f}/{total:.0f}, {text}"
        if not self._console.is_terminal and now - self._printed >= _PLAIN_EVERY_S:
            self._printed = now
            times = ", ".join(filter(None, (format_seconds(elapsed), left)))
            self._console.print(f"{self._line}, {times}", soft_wrap=True)
            if self.heartbeat is not None:
                self.heartbeat.rest()


def _since(text: str, start: float) -> str:
    """`loading, since 12s`; without the time where that is short."""
    seconds = time.monotonic() - start
    return f"{text}, since {format_seconds(seconds)}" if seconds >= 1 else text


@contextlib.contextmanager
def loading(console: Console, text: str) -> Iterator[None]:
    """The text meanwhile on a terminal; elsewhere as a line, if it takes longer than a moment."""
    start = time.monotonic()
    if console.is_terminal:
        with console.status(Text(text)):
            yield
        return
    with Heartbeat(lambda: _since(text, start), lambda line: console.print(line, soft_wrap=True), soon=True):
        yield


class Heartbeat:
    """Says what is at work, once a minute while nothing else was said: a log without a terminal is never silent for longer.

    `soon`: says it for the first time after a moment.
    """

    def __init__(self, describe: Callable[[], str], say: Say, *, soon: bool = False) -> None:
        self._describe, self._say = describe, say
        self._said = time.monotonic() - (_BEAT_S - _SOON_S if soon else 0.0)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def rest(self) -> None:
        """Something was said just now."""
        self._said = time.monotonic()

    def _beat(self) -> None:
        while not self._is_over.wait(max(_SHORTEST_REST_S, self._said + _BEAT_S - time.monotonic())):
            if time.monotonic() - self._said >= _BEAT_S:
                self.rest()
                self._say(self._describe())


@contextlib.contextmanager
def status_display(console: Console) -> Iterator[Say]:
    """One changing line on a terminal; elsewhere a line for each change, and at least one a minute."""
    if console.is_terminal:
        with console.status("starting") as status:
            yield lambda line: status.update(Text(line))
        return
    last, since = "", time.monotonic()

    def say(line: str) -> None:
        nonlocal last, since
        if line != last:
            last, since = line, time.monotonic()
            console.print(line, soft_wrap=True)
            heartbeat.rest()

    with Heartbeat(
        lambda: _since(last or "starting", since), lambda line: console.print(line, soft_wrap=True)
    ) as heartbeat:
        yield say
