"""The trainings of an audit, shared among any number of processes, and how far they are: a bar on a terminal, a line a training elsewhere."""

import contextlib
import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from archsearch.audit.records import AuditStore, Key, Record
from archsearch.audit.training import Trainer
from archsearch.audit.work import AuditPlan, Task
from archsearch.proxy.train import Progress as TrainingProgress
from archsearch.units import format_seconds

_POLL_S = 1.0


def train_all(plan: AuditPlan, store: AuditStore, console: Console) -> dict[Key, Record]:
    """Train what neither this folder nor the run has, together with the other processes that do; then all records."""
    known = {record.key: record for record in plan.measured}
    tasks = [task for task in plan.tasks() if task.key not in known]
    trainer = Trainer(plan)
    with audit_progress(console, store, tasks) as watch:
        while True:
            records = watch.look()
            left = [task for task in tasks if task.key not in records]
            if not left:
                break
            if not _train_one(left, trainer, store, watch):
                time.sleep(_POLL_S)  # others are at the last ones; should they die, we take over
    return {**known, **store.records()}


def _train_one(left: Sequence[Task], trainer: Trainer, store: AuditStore, watch: "_AuditWatch") -> bool:
    """Whether there was a training that nobody had begun."""
    for task in left:
        with store.claimed(task.key) as is_ours:
            if is_ours:
                watch.begin(task)
                store.append(trainer.train(task, watch.progress))
                return True
    return False


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
