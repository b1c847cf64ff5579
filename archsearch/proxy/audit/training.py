"""One training of an audit, exactly as a search would do it."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from archsearch.data.dataset import ProxyData
from archsearch.device import conditions, device_lock, is_out_of_memory
from archsearch.errors import RunError, UserError
from archsearch.proxy.audit.plan import AuditPlan, Task
from archsearch.proxy.audit.store import AuditStore, Key, Record
from archsearch.proxy.shrink import Profile
from archsearch.proxy.task import load_proxy
from archsearch.proxy.training.recipe import Recipe
from archsearch.proxy.training.train import Progress, start_training
from archsearch.proxy.training.train import Progress as TrainingProgress
from archsearch.units import format_seconds


class Trainer:
    """Trains in this process; the data is read once, when it is first needed."""

    def __init__(self, plan: AuditPlan) -> None:
        self._plan, self._device = plan, torch.device(plan.device)
        self._data: ProxyData | None = None

    def train(self, task: Task, progress: Callable[[Progress], None]) -> Record:
        """The training, scored at its points. One that diverges or does not fit the profile is a record with its reason; RunError without memory."""
        self._data = self._data or load_proxy(self._plan.proxy["source"])
        started = time.perf_counter()
        curve, reason = {}, None
        try:
            with device_lock(self._device, exclusive=False):
                curve = self._curve(task, self._data, progress)
        except (RunError, UserError) as error:
            reason = str(error)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise RunError(f"{task.name}: out of memory on {self._device.type}") from error
            raise
        seconds = time.perf_counter() - started
        return task.record(curve, seconds=seconds, conditions=conditions(self._device), reason=reason)

    def _curve(self, task: Task, data: ProxyData, progress: Callable[[Progress], None]) -> dict[str, list[float]]:
        recipe = replace(Recipe(**self._plan.proxy["recipe"]), steps=task.steps, seed=task.seed)
        profile = Profile(**self._plan.proxy["profile"])
        training = start_training(task.subject.arch, data, profile, recipe, self._device)
        training.progress = progress
        scores = {str(step): training.advance(step) for step in task.points}
        return {step: [score.score, score.standard_error] for step, score in scores.items()}


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
