"""Train a candidate on a proxy task for a fixed number of steps, and score it on the validation images."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from archsearch.data import ProxyData
from archsearch.device import peak_memory_bytes, reset_peak_memory
from archsearch.errors import RunError
from archsearch.metrics import binomial_standard_error
from archsearch.models import GivenNetwork, build
from archsearch.proxy.scale import Scale, shrink
from archsearch.proxy.training.batches import Loader
from archsearch.proxy.training.compiled import compiled_forwards, in_place
from archsearch.proxy.training.determinism import (
    deterministic,
    own_random_numbers,
    read_random_state,
    write_random_state,
)
from archsearch.proxy.training.memory import choose_micro_batch
from archsearch.proxy.training.rates import StepClock, loader_images_s
from archsearch.proxy.training.recipe import Recipe
from archsearch.proxy.training.step import Step
from archsearch.proxy.training.top1 import NotFiniteError, top1
from archsearch.space import Arch

# How often losses are read back: each time waits for the device, and a diverged training is noticed this much later.
_REPORT_EVERY_S = 0.5


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """How far a training is; images a second since the last report, loss of the latest step."""

    step: int
    steps: int
    images_s: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class ProxyScore:
    """Top-1 share of `num_val` images and its cost; after a retry, images and seconds are those of the second training alone."""

    score: float
    standard_error: float
    num_val: int
    train_loss: float  # mean of the last tenth of the steps, with label smoothing
    train_images: int
    train_s: float
    eval_s: float
    retried: bool
    learning_rate: float  # peak; half the recipe's after a retry
    loader_images_s: float  # of batches alone, on the training's device; `recipe.is_starved` compares it with the next
    step_images_s: float  # of the training's first steps, without the wait for batches
    micro_batch: int | None  # images a part where memory was too short for whole batches
    peak_memory_bytes: int | None  # of the steps since the last pause, on CUDA


def train_and_score(
    model: nn.Module,
    data: ProxyData,
    recipe: Recipe,
    *,
    device: torch.device | str,
    progress: Callable[[TrainingProgress], None] | None = None,
) -> ProxyScore:
    """Train `model` in place, from its present weights, and score it: a `Training` without a pause."""
    return Training(model, data, recipe, device=device, progress=progress).advance(recipe.steps)


class Training:
    """One training that may pause: `advance` to a step, read the score there, continue or drop it.

    Pausing changes nothing: after all steps weights and score are bit by bit those of a training without a pause. A score
    before the last step is that of the weights at that step, at the learning rate of the full schedule.

    Where a loss or an output is not finite, training starts once more from the same weights at half the rate; RunError when
    that fails too. Where memory is too short for a batch, its gradients are summed up in parts (`choose_micro_batch`, `Gradients`).

    With the recipe's `mode` steps run compiled, which they are once for both attempts; RunError where they cannot be. Scores are
    always computed eager: they are those of the trained weights, and need no compiling for other batches.

    Data order, augmentation and dropout depend on the recipe only. On a CPU a training gives the same bits each time; on CUDA
    as far as PyTorch does (`deterministic` lists what does not).
    """

    def __init__(
        self,
        model: nn.Module,
        data: ProxyData,
        recipe: Recipe,
        *,
        device: torch.device | str,
        progress: Callable[[TrainingProgress], None] | None = None,
    ) -> None:
        self.model, self.data, self.progress = model, data, progress
        # Called before each step: lets others have the device, and gives the seconds that took, which count as no time of the training.
        self.step_aside: Callable[[], float] | None = None
        self.device = torch.device(device)
        model.to(self.device)
        self.loader = Loader(data, self.device)
        self._initial = {name: value.clone() for name, value in model.state_dict().items()}
        self._first_failure: NotFiniteError | None = None
        self.recipe = replace(recipe, micro_batch=choose_micro_batch(model, recipe, self.device))
        self.forwards = compiled_forwards(model, recipe)
        self._attempt = _Attempt(self, self.recipe)

    def advance(self, step: int) -> ProxyScore:
        """Train up to `step`, at least 1 and at most the recipe's steps, and score the model there."""
        assert 0 < step <= self.recipe.steps
        rate = self.recipe.learning_rate / 2  # of a second attempt
        try:
            return self._attempt.advance(step)
        except NotFiniteError as failure:
            if self._first_failure is not None:
                where = f"{self._first_failure} at learning rate {self.recipe.learning_rate:g}"
                raise RunError(f"proxy training failed twice: {where}, {failure} at {rate:g}") from failure
            self._first_failure = failure
        self.model.load_state_dict(self._initial)
        halved = replace(self.recipe, learning_rate=rate, micro_batch=self._attempt.step.gradients.micro_batch)
        self._attempt = _Attempt(self, halved, is_retry=True)
        return self.advance(step)


class _Attempt:
    """A training at one learning rate, paused between steps."""

    def __init__(self, training: Training, recipe: Recipe, *, is_retry: bool = False) -> None:
        self.training, self.recipe, self.is_retry = training, recipe, is_retry
        self.device = training.device
        self.step = Step(training.model, recipe, self.device)
        self.batches = training.loader.train_batches(recipe)
        self.clock = StepClock(recipe, self.device)
        self.done, self.train_s = 0, 0.0
        # For dropout: its random numbers pause and continue with the training.
        with own_random_numbers(self.device):
            torch.manual_seed(recipe.seed)
            self._random_state = read_random_state(self.device)

    def advance(self, step: int) -> ProxyScore:
        """As `Training.advance`; raises NotFiniteError."""
        loader_rate = loader_images_s(self.training.loader, self.recipe)  # before the clock starts
        # Elsewhere the peak is the whole process's, and forgetting an earlier one takes 0.1 s.
        is_cuda = self.device.type == "cuda"
        if is_cuda:
            reset_peak_memory(self.device)
        started = time.perf_counter()
        with own_random_numbers(self.device), deterministic(self.device), in_place(self.training.forwards):
            write_random_state(self._random_state, self.device)
            self._train(step)
            self._random_state = read_random_state(self.device)
        train_loss = self.step.losses[step - max(1, step // 10) : step].mean().item()
        self.train_s += time.perf_counter() - started
        peak_memory = peak_memory_bytes(self.device) if is_cuda else None
        scored = time.perf_counter()
        with deterministic(self.device):
            score = top1(self.training.model, self.training.loader, self.recipe)
        num_val = len(self.training.data.val_labels)
        return ProxyScore(
            score=score,
            standard_error=binomial_standard_error(score, num_val),
            num_val=num_val,
            train_loss=train_loss,
            train_images=step * self.recipe.batch_size,
            train_s=self.train_s,
            eval_s=time.perf_counter() - scored,
            retried=self.is_retry,
            learning_rate=self.recipe.learning_rate,
            loader_images_s=loader_rate,
            step_images_s=self.clock.images_s,
            micro_batch=self.step.gradients.micro_batch,
            peak_memory_bytes=peak_memory,
        )

    def _train(self, until: int) -> None:
        """The steps up to `until`."""
        self.training.model.train()
        reporter = _Reporter(self.recipe, self.step.losses, self.training.progress, start=self.done, stop=until)
        for step in range(self.done, until):
            if self.training.step_aside is not None and (aside_s := self.training.step_aside()):
                self.train_s -= aside_s
                reporter.read_at += aside_s
            images, labels = next(self.batches)
            self.clock.run(partial(self.step.run, step, images, labels))
            self.done = step + 1
            reporter.after(step)


class _Reporter:
    """Reads losses back every half second, since every time waits for the device."""

    def __init__(
        self,
        recipe: Recipe,
        losses: Tensor,
        progress: Callable[[TrainingProgress], None] | None,
        *,
        start: int,
        stop: int,
    ) -> None:
        self.recipe, self.losses, self.progress, self.stop = recipe, losses, progress, stop
        self.num_read, self.read_at = start, time.perf_counter()

    def after(self, step: int) -> None:
        """Report after `step` if it is time to; raises NotFiniteError if a loss since the last report is not finite."""
        now, done = time.perf_counter(), step + 1
        if done < self.stop and now - self.read_at < _REPORT_EVERY_S:
            return
        new = self.losses[self.num_read : done].tolist()
        for number, loss in enumerate(new, start=self.num_read + 1):
            if not math.isfinite(loss):
                raise NotFiniteError(f"the loss of step {number} of {self.recipe.steps} was {loss}")
        now = time.perf_counter()  # after the wait for the device
        if self.progress is not None:
            images_s = len(new) * self.recipe.batch_size / max(now - self.read_at, 1e-9)
            self.progress(TrainingProgress(step=done, steps=self.recipe.steps, images_s=images_s, loss=new[-1]))
        self.num_read, self.read_at = done, now


def start_training(
    network: Arch | GivenNetwork, data: ProxyData, scale: Scale, recipe: Recipe, device: torch.device | str
) -> Training:
    """A training of an architecture's small copy, or of a given network as it is, before its first step.

    Weights, order and augmentation follow from `recipe.seed`. Used by searches and audits alike, so that their scores are the same. Raises UserError
    where the copy is impossible at this scale.
    """
    num_classes = len(data.classes)
    if isinstance(network, GivenNetwork):
        given = network.build_for(scale.image_size, num_classes, seed=recipe.seed)
        return Training(given, data, recipe, device=device)
    small = shrink(network, scale, num_classes)
    torch.manual_seed(recipe.seed)
    return Training(build(small), data, recipe, device=device)  # grey images come as three equal channels
