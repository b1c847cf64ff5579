"""The trainings of an audit, exactly as a search does them, shared among processes."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from archsearch.device import conditions, device_lock, is_out_of_memory
from archsearch.errors import RunError, UserError
from archsearch.lock import waiting_line
from archsearch.proxy.audit.plan import AuditPlan, AuditTraining
from archsearch.proxy.audit.store import AuditStore, Key, Record
from archsearch.proxy.task import LoadedData
from archsearch.proxy.training.train import ProxyScore, TrainingProgress, start_training
from archsearch.system import Progress, Say, ignore
from archsearch.units import format_seconds

_POLL_S = 1.0


class Trainer:
    """Trains in this process; the data is read once, when it is first needed."""

    def __init__(self, plan: AuditPlan) -> None:
        self._proxy, self._device = plan.proxy, torch.device(plan.device)
        self._data = LoadedData()

    def train(
        self, training: AuditTraining, progress: Callable[[TrainingProgress], None], *, say: Say = ignore
    ) -> Record:
        """The record of a training, scored at its points; of one that diverges, or has no small copy, with the reason.

        `say` hears what holds the device while this waits for it. Raises RunError without enough memory.
        """
        data = self._data.of(self._proxy)
        recipe = replace(self._proxy.recipe, steps=training.steps, seed=training.seed)
        started = time.perf_counter()
        scores: list[ProxyScore] = []
        reason = None
        try:
            with device_lock(self._device, exclusive=False, on_wait=waiting_line(say)):
                small = start_training(training.subject.arch, data, self._proxy.scale, recipe, self._device)
                small.progress = progress
                scores = [small.advance(step) for step in training.points]
        except (RunError, UserError) as error:
            reason = str(error)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise RunError(f"{training.name}: out of memory on {self._device.type}") from error
            raise
        seconds = time.perf_counter() - started
        found = zip(training.points, scores, strict=False)  # none where it failed
        curve = {str(step): [score.score, score.standard_error] for step, score in found}
        return training.record(curve, seconds=seconds, conditions=conditions(self._device), reason=reason)


def train_all(
    plan: AuditPlan, store: AuditStore, *, say: Say = ignore, progress: Progress = ignore
) -> dict[Key, Record]:
    """Train what neither this folder nor the run has, together with the other processes that do; then all records.

    `progress` counts the training steps of all processes, `say` hears of each training that this one has finished, and what it waits for.
    """
    known = {record.key: record for record in plan.measured}
    trainings = [training for training in plan.trainings() if training.key not in known]
    total = sum(training.steps for training in trainings)
    trainer = Trainer(plan)
    trained: AuditTraining | None = None
    while True:
        records = store.records()
        if trained is not None and trained.key in records:
            finished, record = sum(training.key in records for training in trainings), records[trained.key]
            words = f"{trained.name}, seed {record.seed}, {record.steps} steps, {format_seconds(record.seconds)}"
            say(f"[{finished}/{len(trainings)}] {words}: {record.reason or f'score {record.score:.3f}'}")
        left = [training for training in trainings if training.key not in records]
        if not left:
            return {**known, **records}
        done = total - sum(training.steps for training in left)
        progress(done, total, "starting")
        trained = None
        for training in left:
            with store.claimed(training.key) as is_ours:
                if is_ours:
                    report = partial(_report, progress, done, total, training)
                    store.append(trainer.train(training, report, say=say))
                    trained = training
                    break
        if trained is None:
            time.sleep(_POLL_S)  # other processes do the last ones; should they die, we take over


def _report(progress: Progress, done: int, total: int, training: AuditTraining, at: TrainingProgress) -> None:
    """Steps of all finished trainings and of the current one."""
    progress(done + at.step, total, f"{training.name:.40}, seed {training.seed}")
