"""archsearch/cli/progress.py."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from archsearch.data.preparation import Watch
from archsearch.models.count import recount_all
from archsearch.models.validation.accuracy import Accuracy
from archsearch.proxy.audit.plan import Task
from archsearch.proxy.audit.store import AuditStore, Key, Record
from archsearch.proxy.training.train import Progress as TrainingProgress
from archsearch.space.papers import paper_names
from archsearch.throughput.calibration import Step
from archsearch.throughput.measure import Progress as Say
from archsearch.units import format_seconds


class _AuditWatch:
    """Tells how far all processes together have come, and what this one is at."""

    def __init__(self, console: Console, bar: Progress, store: AuditStore, tasks: Sequence[Task]) -> None:
        self._console, self._bar, self._store = console, bar, store
        self._steps = {task.key: task.steps for task in tasks}
        self._line = bar.add_task("starting", total=sum(self._steps.values()) or 1, left="")
        self._start, self._had, self._done = time.monotonic(), -1, 0
        self._task: Task | None = None

    def look(self) -> dict[Key, Record]:
        """All records there are now."""
        records = self._store.records()
        self._done = sum(steps for key, steps in self._steps.items() if key in records)
        if self._had < 0:
            self._had = self._done
        self._bar.update(self._line, completed=self._done, left=self._words())
        ended = self._task and records.get(self._task.key)
        if ended and self._task and not self._console.is_terminal:
            count = sum(key in records for key in self._steps)
            result = ended.reason or f"score {ended.score:.3f}"
            self._console.print(
                f"[{count}/{len(self._steps)}] {self._task.name}, seed {ended.seed}, {ended.steps} steps, "
                f"{format_seconds(ended.seconds)}: {result}; {self._words()}",
                soft_wrap=True,
            )
        self._task = None
        return records

    def begin(self, task: Task) -> None:
        """Say what this process trains now."""
        self._task = task
        self._bar.update(self._line, description=f"{task.name:.40}, seed {task.seed}")

    def progress(self, progress: TrainingProgress) -> None:
        """A report from within a training."""
        self._bar.update(self._line, completed=self._done + progress.step, left=self._words())

    def _words(self) -> str:
        """`5m12s, about 12m03s left`, by what all processes have done since this one came."""
        elapsed, new = time.monotonic() - self._start, self._done - self._had
        if not new:
            return format_seconds(elapsed)
        left = elapsed / new * (sum(self._steps.values()) - self._done)
        return f"{format_seconds(elapsed)}, about {format_seconds(left)} left"


@contextlib.contextmanager
def audit_progress(console: Console, store: AuditStore, tasks: Sequence[Task]) -> Iterator[_AuditWatch]:
    """A bar with the time left on a terminal, a line a training elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield _AuditWatch(console, bar, store, tasks)


@contextlib.contextmanager
def bench_progress(console: Console) -> Iterator[Say]:
    """One changing line on a terminal, lines elsewhere."""
    if not console.is_terminal:
        said: list[str] = []

        def once(line: str) -> None:
            if line not in said[-1:]:
                said.append(line)
                console.print(line, soft_wrap=True)

        yield once
        return
    with console.status("starting") as status:
        yield lambda line: status.update(line)


_CALIBRATION_LINES = 20


@contextlib.contextmanager
def calibration_progress(console: Console) -> Iterator[Callable[[Step], None]]:
    """A bar with the time left on a terminal, some twenty lines elsewhere."""
    clock = _CalibrationClock()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("starting", total=1.0, left="")
        said = 0

        def tick(step: Step) -> None:
            nonlocal said
            left = clock.words(step)
            progress.update(bar, completed=step.done, total=step.total, description=f"timed {step.name}", left=left)
            if not console.is_terminal and step.is_new and step.done * _CALIBRATION_LINES // step.total > said:
                said = int(step.done * _CALIBRATION_LINES // step.total)
                console.print(f"{step.done / step.total:.0%} measured, {left}; last: {step.name}", soft_wrap=True)

        yield tick


class _CalibrationClock:
    """Time left by what this session measured; what an earlier one had measured took no time now."""

    def __init__(self) -> None:
        self._start, self._measured, self._last = time.monotonic(), 0.0, 0.0

    def words(self, step: Step) -> str:
        """`5m12s, about 12m03s left`."""
        self._measured += (step.done - self._last) * step.is_new
        self._last = step.done
        elapsed = time.monotonic() - self._start
        if not self._measured:
            return format_seconds(elapsed)
        left = elapsed / self._measured * (step.total - step.done)
        return f"{format_seconds(elapsed)}, about {format_seconds(left)} left"


_BAR_WIDTH = 30


_PLAIN_EVERY_S = 30.0


@contextlib.contextmanager
def validation_progress(console: Console) -> Iterator[Callable[[Accuracy], None]]:
    """A callback for the accuracy so far, shown as a bar on a terminal and as a line now and then elsewhere."""
    if not console.is_terminal:
        yield _PlainProgress(console)
        return
    bar, words = ProgressBar(width=_BAR_WIDTH, total=None), Text("waiting for the device and the first images")
    line = Table.grid(padding=(0, 1))
    line.add_row(bar, words)
    with Live(line, console=console, refresh_per_second=4, transient=True):

        def told(found: Accuracy) -> None:
            bar.update(found.images + len(found.unreadable), found.total)
            words.plain = progress_words(found)

        yield told


class _PlainProgress:
    """A line every half a minute."""

    def __init__(self, console: Console) -> None:
        self._console, self._said = console, time.monotonic()

    def __call__(self, found: Accuracy) -> None:
        if time.monotonic() - self._said >= _PLAIN_EVERY_S:
            self._said = time.monotonic()
            self._console.print(progress_words(found), soft_wrap=True)


def progress_words(found: Accuracy) -> str:
    """`12800 of 50000 images, 431 img/s, top-1 81.23, about 1m26s left`."""
    done = found.images + len(found.unreadable)
    left = format_seconds(found.seconds / done * (found.total - done))
    return (
        f"{done} of {found.total} images, {found.images_s:.0f} img/s, top-1 {100 * found.top1:.2f}, about {left} left"
    )


_PREPARE_LINES = 10


_UPDATE_S = 0.1


@contextlib.contextmanager
def prepare_progress(console: Console, out: Path | str) -> Iterator[Watch]:
    """A bar with images a second and the time left on a terminal, some ten lines elsewhere."""
    columns = (TextColumn("decoding"), BarColumn(), TextColumn("{task.fields[words]}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("decoding", total=1.0, words="")
        started, updated, said = time.monotonic(), 0.0, 0

        def tick(done: int, total: int, already: int) -> None:
            nonlocal updated, said
            now = time.monotonic()
            if now - updated < _UPDATE_S and done < total:
                return
            updated = now
            words = _prepare_words(done, total, already, now - started)
            progress.update(bar, completed=done, total=total, words=words)
            if not console.is_terminal and done * _PREPARE_LINES // total > said:
                said = done * _PREPARE_LINES // total
                console.print(words, soft_wrap=True, highlight=False)

        def waiting() -> None:
            console.print(f"another process prepares {out}; waiting for it", soft_wrap=True, highlight=False)

        yield Watch(progress=tick, waiting=waiting)


def _prepare_words(done: int, total: int, already: int, elapsed_s: float) -> str:
    """`1,024 of 9,000 images, 980 images/s, about 8s left`, by what this session decoded."""
    rate = (done - already) / max(elapsed_s, 1e-9)
    left = (total - done) / max(rate, 1e-9)
    return f"{done:,} of {total:,} images, {rate:,.0f} images/s, about {format_seconds(left)} left"


def recount_with_progress(console: Console) -> dict[str, dict[str, Any]]:
    """Every shipped model counted anew, with a bar on a terminal."""
    names = paper_names()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("counting models", total=len(names))
        found: dict[str, dict[str, Any]] = {}
        for name, check in recount_all(names):
            found[name] = check
            progress.update(bar, advance=1, description=f"counted {name}")
    return found
