"""One training of an audit, exactly as a search would do it."""

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from archsearch.audit.records import Record
from archsearch.audit.work import AuditPlan, Task
from archsearch.data.dataset import ProxyData
from archsearch.device import conditions, device_lock, is_out_of_memory
from archsearch.errors import RunError, UserError
from archsearch.proxy.candidate import start_training
from archsearch.proxy.profile import Profile
from archsearch.proxy.recipe import Recipe
from archsearch.proxy.train import Progress
from archsearch.settings import load_proxy


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
