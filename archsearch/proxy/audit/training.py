"""One training of an audit, exactly as a search would do it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from rich.console import Console

from archsearch.cli.progress import _AuditWatch, audit_progress
from archsearch.data.dataset import ProxyData
from archsearch.device import conditions, device_lock, is_out_of_memory
from archsearch.errors import RunError, UserError
from archsearch.proxy.audit.plan import AuditPlan, Task
from archsearch.proxy.audit.store import AuditStore, Key, Record
from archsearch.proxy.shrink import Profile
from archsearch.proxy.task import load_proxy
from archsearch.proxy.training.recipe import Recipe
from archsearch.proxy.training.train import Progress, start_training


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
