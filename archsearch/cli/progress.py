"""How far a command has come, on stderr: a bar with the time left on a terminal, a line now and then anywhere else."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from archsearch.system import Progress, Say
from archsearch.units import format_seconds

_BAR_WIDTH = 20
_PLAIN_EVERY_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Display:
    """What a service reports to: `say` prints a line that stays, `progress` moves the bar."""

    say: Say
    progress: Progress


@contextlib.contextmanager
def progress_display(console: Console) -> Iterator[Display]:
    """Nothing until the first report; then a bar that is gone at the end, or a line every half minute where there is no terminal."""
    columns = (
        BarColumn(_BAR_WIDTH),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        # Last, and the only one that a narrow terminal cuts.
        TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
    )
    is_plain = not console.is_terminal
    with Bars(*columns, console=console, transient=True, expand=True, disable=is_plain) as bars:
        yield Display(say=lambda line: console.print(line, soft_wrap=True), progress=_Bar(console, bars).update)


class _Bar:
    """The bar of one piece of work; a report with another total begins the next one."""

    def __init__(self, console: Console, bars: Bars) -> None:
        self._console, self._bars = console, bars
        self._task: TaskID | None = None
        self._total = self._before = 0.0
        self._start = self._printed = time.monotonic()

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
        if not self._console.is_terminal and now - self._printed >= _PLAIN_EVERY_S:
            self._printed = now
            times = ", ".join(filter(None, (format_seconds(elapsed), left)))
            self._console.print(f"{done:.0f}/{total:.0f}, {text}, {times}", soft_wrap=True)


@contextlib.contextmanager
def status_display(console: Console) -> Iterator[Say]:
    """One changing line on a terminal; elsewhere a line for each change."""
    if console.is_terminal:
        with console.status("starting") as status:
            yield lambda line: status.update(Text(line))
        return
    last = ""

    def say(line: str) -> None:
        nonlocal last
        if line != last:
            last = line
            console.print(line, soft_wrap=True)

    yield say
