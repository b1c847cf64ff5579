"""One training of an audit, exactly as a search would do it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from archsearch.data.dataset import ProxyData
from archsearch.device import conditions, device_lock, is_out_of_memory
from archsearch.errors import RunError, UserError
from archsearch.proxy.audit.plan import AuditPlan, Task
from archsearch.proxy.audit.store import AuditStore, Key, Record
from archsearch.proxy.shrink import Profile
from archsearch.proxy.task import load_proxy
from archsearch.proxy.training.recipe import Recipe
from archsearch.proxy.training.train import Progress as TrainingProgress
from archsearch.proxy.training.train import start_training
from archsearch.system import Progress, Say, ignore
from archsearch.units import format_seconds


class Trainer:
    """Trains in this process; the data is read once, when it is first needed."""

    def __init__(self, plan: AuditPlan) -> None:
        self._plan, self._device = plan, torch.device(plan.device)
        self._data: ProxyData | None = None

    def train(self, task: Task, progress: Callable[[TrainingProgress], None]) -> Record:
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

    def _curve(
        self, task: Task, data: ProxyData, progress: Callable[[TrainingProgress], None]
    ) -> dict[str, list[float]]:
        recipe = replace(Recipe(**self._plan.proxy["recipe"]), steps=task.steps, seed=task.seed)
        profile = Profile(**self._plan.proxy["profile"])
        training = start_training(task.subject.arch, data, profile, recipe, self._device)
        training.progress = progress
        scores = {str(step): training.advance(step) for step in task.points}
        return {step: [score.score, score.standard_error] for step, score in scores.items()}


_POLL_S = 1.0


def train_all(
    plan: AuditPlan, store: AuditStore, *, say: Say = ignore, progress: Progress = ignore
) -> dict[Key, Record]:
    """Train what neither this folder nor the run has, together with the other processes that do; then all records.

    `progress` counts the training steps of all processes, `say` hears of each training that this one has finished.
    """
    known = {record.key: record for record in plan.measured}
    tasks = [task for task in plan.tasks() if task.key not in known]
    total = sum(task.steps for task in tasks)
    trainer = Trainer(plan)
    trained: Task | None = None
    while True:
        records = store.records()
        if trained is not None and trained.key in records:
            finished = sum(task.key in records for task in tasks)
            say(f"[{finished}/{len(tasks)}] {_describe(trained, records[trained.key])}")
        left = [task for task in tasks if task.key not in records]
        if not left:
            return {**known, **records}
        done = total - sum(task.steps for task in left)
        progress(done, total, "starting")
        trained = _train_one(left, trainer, store, partial(_report, progress, done, total))
        if trained is None:
            time.sleep(_POLL_S)  # others are at the last ones; should they die, we take over


def _report(progress: Progress, done: int, total: int, task: Task, at: TrainingProgress) -> None:
    """Steps of all finished trainings and of the one at work."""
    progress(done + at.step, total, f"{task.name:.40}, seed {task.seed}")


def _train_one(
    left: Sequence[Task], trainer: Trainer, store: AuditStore, report: Callable[[Task, TrainingProgress], None]
) -> Task | None:
    """Train the first task that no process has begun, and keep its record; None where there is none."""
    for task in left:
        with store.claimed(task.key) as is_ours:
            if is_ours:
                store.append(trainer.train(task, partial(report, task)))
                return task
    return None


def _describe(task: Task, record: Record) -> str:
    result = record.reason or f"score {record.score:.3f}"
    return f"{task.name}, seed {record.seed}, {record.steps} steps, {format_seconds(record.seconds)}: {result}"
