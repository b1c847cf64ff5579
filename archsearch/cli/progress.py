"""How far a command has come, on stderr: a bar with the time left on a terminal, a line now and then anywhere else."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from archsearch.system import Progress, Say
from archsearch.units import format_seconds

_PLAIN_EVERY_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Display:
    """What a service reports to: `say` prints a line that stays, `progress` moves the bar."""

    say: Say
    progress: Progress


class _TimeLeft:
    """Time left by what this session has done; what was done before it took no time now."""

    def __init__(self) -> None:
        self._start, self._before = time.monotonic(), -1.0

    def words(self, done: float, total: float) -> str:
        """`5m12s, about 12m03s left`; the first call says what was done before."""
        if self._before < 0:
            self._start, self._before = time.monotonic(), done
        elapsed, new = time.monotonic() - self._start, done - self._before
        if not new:
            return format_seconds(elapsed)
        return f"{format_seconds(elapsed)}, about {format_seconds(elapsed / new * (total - done))} left"


@contextlib.contextmanager
def progress_display(console: Console) -> Iterator[Display]:
    """Nothing until the first report; then a bar that is gone at the end, or a line every half minute where there is no terminal."""
    time_left, printed = _TimeLeft(), time.monotonic()
    columns = (BarColumn(), TextColumn("{task.description}"), TextColumn("{task.fields[left]}"))
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("", total=None, left="", visible=False)

        def progress(done: float, total: float, text: str) -> None:
            nonlocal printed
            left = time_left.words(done, total)
            bars.update(bar, completed=done, total=total, description=text, left=left, visible=True)
            if not console.is_terminal and time.monotonic() - printed >= _PLAIN_EVERY_S:
                printed = time.monotonic()
                console.print(f"{done / total:.0%}, {text}, {left}", soft_wrap=True)

        yield Display(say=lambda line: console.print(line, soft_wrap=True), progress=progress)


@contextlib.contextmanager
def status_display(console: Console) -> Iterator[Say]:
    """One changing line on a terminal, one line each elsewhere, none twice in a row."""
    if console.is_terminal:
        with console.status("starting") as status:
            yield status.update
        return
    last = ""

    def say(line: str) -> None:
        nonlocal last
        if line != last:
            last = line
            console.print(line, soft_wrap=True)

    yield say
