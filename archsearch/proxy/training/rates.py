"""Whether batches come faster than a training takes them: loader-only and step-only images a second."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch

from archsearch.data.dataset import ProxyData
from archsearch.device import device_seconds
from archsearch.proxy.training.batches import Loader
from archsearch.proxy.training.recipe import Recipe

STARVED_UNDER = 1.2

_LOADER_S = 0.15
_LOADER_BATCHES = 200  # at most
_OTHER_STREAM = (
    1_000_003  # added to the seed: the batches timed are not those trained on, so memory maps are no warmer for it
)
_WARM_UP_STEPS, _TIMED_STEPS = 2, 16

_measured: WeakKeyDictionary[ProxyData, dict[tuple[object, ...], float]] = WeakKeyDictionary()


def is_starved(loader_images_s: float, step_images_s: float) -> bool:
    """Whether batches come less than 1.2 times as fast as they are trained on: then waits slow the training down."""
    return loader_images_s < STARVED_UNDER * step_images_s


def starvation(loader_images_s: float, step_images_s: float) -> str | None:
    """A sentence for the report where a training is starved, else None."""
    if not is_starved(loader_images_s, step_images_s):
        return None
    return (
        f"Batches came at {loader_images_s:,.0f} images/s, the network can train on {step_images_s:,.0f}: "
        f"trainings wait for images (under {STARVED_UNDER} times as fast); scores stay right, but take longer than they need."
    )


def loader_images_s(loader: Loader, recipe: Recipe) -> float:
    """Images a second of gathering, transfer and augmentation alone: measured once a process for data, recipe and device, in 0.15 s."""
    key = (recipe.batch_size, recipe.image_size, recipe.augment, str(loader.device), loader.is_whole)
    known = _measured.setdefault(loader.data, {})
    if key not in known:
        known[key] = _measure_loader(loader, recipe)
    return known[key]


def _measure_loader(loader: Loader, recipe: Recipe) -> float:
    stream = loader.train_batches(replace(recipe, steps=_LOADER_BATCHES, seed=recipe.seed + _OTHER_STREAM))
    next(stream)  # its thread and its buffers
    num_batches, started = 0, time.perf_counter()
    synchronize(loader.device)
    for _ in stream:
        num_batches += 1
        synchronize(loader.device)  # or a queue on the device would be timed
        if time.perf_counter() - started > _LOADER_S:
            break
    return num_batches * recipe.batch_size / (time.perf_counter() - started)


class StepClock:
    """Times the first steps of a training after two of warm-up; between them the device is waited for, which changes no number."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.batch_size, self.device = recipe.batch_size, device
        self.seconds: list[float] = []

    def run(self, work: Callable[[], object]) -> None:
        """Does the work of one step, whose batch is there."""
        if len(self.seconds) == _WARM_UP_STEPS + _TIMED_STEPS:
            work()
            return
        synchronize(self.device)
        self.seconds.append(device_seconds(work, self.device))

    @property
    def images_s(self) -> float:
        """By the median step; of a training of one or two steps the warm-up is all there is."""
        return self.batch_size / statistics.median(self.seconds[_WARM_UP_STEPS:] or self.seconds)


def synchronize(device: torch.device) -> None:
    """Waits for what was given to the device to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
