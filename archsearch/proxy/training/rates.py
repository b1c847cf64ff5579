"""Images a second of loading alone and of training steps alone: whether a training waits for images (`recipe.is_starved`)."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch

from archsearch.data import ProxyData
from archsearch.device import device_seconds, seconds_between_events
from archsearch.proxy.training.batches import Loader
from archsearch.proxy.training.recipe import Recipe

_LOADER_S = 0.15
_LOADER_BATCHES = 200  # at most
# Added to the seed: the batches timed are not those trained on, so that timing warms no memory map for the training.
_OTHER_STREAM = 1_000_003
_WARM_UP_STEPS, _TIMED_STEPS = 2, 16

_measured: WeakKeyDictionary[ProxyData, dict[tuple[object, ...], float]] = WeakKeyDictionary()


def loader_images_s(loader: Loader, recipe: Recipe) -> float:
    """Images a second of gathering, transfer and augmentation alone: measured once a process for data, recipe and device, in 0.15 s."""
    key = (recipe.batch_size, recipe.image_size, recipe.augment, str(loader.device), loader.is_whole)
    known = _measured.setdefault(loader.data, {})
    if key not in known:
        known[key] = _measure_loader(loader, recipe)
    return known[key]


def _measure_loader(loader: Loader, recipe: Recipe) -> float:
    stream = loader.train_batches(replace(recipe, steps=_LOADER_BATCHES, seed=recipe.seed + _OTHER_STREAM))
    next(stream)  # starts the thread and fills the buffers
    num_batches, started = 0, time.perf_counter()
    synchronize(loader.device)
    for _ in stream:
        num_batches += 1
        synchronize(loader.device)  # or a queue on the device would be timed
        if time.perf_counter() - started > _LOADER_S:
            break
    return num_batches * recipe.batch_size / (time.perf_counter() - started)


class StepClock:
    """Times the first steps of a training after two of warm-up: on CUDA between two events, which no step waits for, elsewhere on the host."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.batch_size, self.device = recipe.batch_size, device
        self._steps: list[Callable[[], float]] = []  # seconds each

    def run(self, work: Callable[[], object]) -> None:
        """Do the work of one step, whose batch is loaded."""
        if len(self._steps) == _WARM_UP_STEPS + _TIMED_STEPS:
            work()
        elif self.device.type == "cuda":
            self._steps.append(seconds_between_events(work, self.device))
        else:
            synchronize(self.device)
            seconds = device_seconds(work, self.device)
            self._steps.append(lambda: seconds)

    @property
    def images_s(self) -> float:
        """By the median step; a training of one or two steps has its warm-up alone."""
        return self.batch_size / statistics.median(seconds() for seconds in self._steps[_WARM_UP_STEPS:] or self._steps)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
