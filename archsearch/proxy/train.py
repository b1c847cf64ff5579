"""Training a candidate on a proxy for a fixed number of steps, and its accuracy on the validation images after them."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.errors import RunError
from archsearch.proxy.batches import train_batches, val_batches
from archsearch.proxy.data import ProxyData
from archsearch.proxy.recipe import Recipe

__all__ = ["Progress", "ProxyScore", "Recipe", "Training", "train_and_score"]

# How often losses are read back: a wait for the device, and the delay with which a lost training is noticed.
_REPORT_EVERY_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a training is; images a second since the last report, loss of the latest step."""

    step: int
    steps: int
    images_s: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class ProxyScore:
    """Top-1 share of `num_val` images and what it cost; seconds are those of the training that gave the score, `train_images` and `train_s` from its start."""

    score: float
    standard_error: float
    num_val: int
    train_loss: float  # mean of the last tenth of the steps, with label smoothing
    train_images: int
    train_s: float
    eval_s: float
    retried: bool
    learning_rate: float  # peak; half the recipe's after a retry


class _DivergedError(Exception):
    """A loss or an output that is not a finite number."""


def train_and_score(
    model: nn.Module,
    data: ProxyData,
    recipe: Recipe,
    *,
    device: torch.device | str,
    progress: Callable[[Progress], None] | None = None,
) -> ProxyScore:
    """Trains `model` in place, from the weights it comes with, and scores it: a `Training` in one go."""
    return Training(model, data, recipe, device=device, progress=progress).advance(recipe.steps)


class Training:
    """One training that may pause: `advance` to a step, read the score there, go on or drop it.

    Pausing changes nothing: after all steps weights and score are bit by bit those of a training in one go. A score before
    the last step is that of the weights as they stand, at the learning rate of the full schedule.

    Where numbers stop being finite, training starts once more from the same weights at half the rate; RunError when that
    fails too. Data order, augmentation and dropout depend on the recipe only.
    """

    def __init__(
        self,
        model: nn.Module,
        data: ProxyData,
        recipe: Recipe,
        *,
        device: torch.device | str,
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self.model, self.data, self.recipe, self.progress = model, data, recipe, progress
        self.device = torch.device(device)
        model.to(self.device)
        self._initial = {name: value.clone() for name, value in model.state_dict().items()}
        self._first_failure: _DivergedError | None = None
        self._attempt = _Attempt(self, recipe)

    def advance(self, step: int) -> ProxyScore:
        """Trains up to `step`, at least 1 and at most the recipe's steps, and scores the model there."""
        assert 0 < step <= self.recipe.steps
        try:
            return self._attempt.advance(step)
        except _DivergedError as failure:
            if self._first_failure is not None:
                raise self._failed_twice(failure) from failure
            self._first_failure = failure
        self.model.load_state_dict(self._initial)
        self._attempt = _Attempt(self, replace(self.recipe, learning_rate=self.recipe.learning_rate / 2), is_retry=True)
        return self.advance(step)

    def _failed_twice(self, failure: _DivergedError) -> RunError:
        rate = self.recipe.learning_rate
        return RunError(
            f"proxy training failed twice: {self._first_failure} at learning rate {rate:g}, {failure} at {rate / 2:g}"
        )


class _Attempt:
    """A training at one learning rate, paused between steps."""

    def __init__(self, training: Training, recipe: Recipe, *, is_retry: bool = False) -> None:
        from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]  # public, but without __all__; late: timm is slow to import

        self.training, self.recipe, self.is_retry = training, recipe, is_retry
        self.device = training.device
        groups = param_groups_weight_decay(training.model, recipe.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
        self.losses = torch.zeros(recipe.steps, device=self.device)
        self.batches = train_batches(training.data, recipe, self.device)
        self.done, self.train_s = 0, 0.0
        # Of the model's own dropout: its random numbers stop and go on with the training.
        with self._own_random_numbers():
            torch.manual_seed(recipe.seed)
            self._random_state = self._read_random_state()

    def advance(self, step: int) -> ProxyScore:
        """As `Training.advance`; raises _DivergedError."""
        started = time.perf_counter()
        with self._own_random_numbers():
            self._write_random_state()
            self._train(step)
            self._random_state = self._read_random_state()
        train_loss = self.losses[step - max(1, step // 10) : step].mean().item()
        self.train_s += time.perf_counter() - started
        scored = time.perf_counter()
        data = self.training.data
        score = _top1(self.training.model, data, self.recipe, self.device)
        return ProxyScore(
            score=score,
            standard_error=math.sqrt(score * (1 - score) / len(data.val_labels)),
            num_val=len(data.val_labels),
            train_loss=train_loss,
            train_images=step * self.recipe.batch_size,
            train_s=self.train_s,
            eval_s=time.perf_counter() - scored,
            retried=self.is_retry,
            learning_rate=self.recipe.learning_rate,
        )

    def _train(self, until: int) -> None:
        """The steps up to `until`."""
        model, recipe = self.training.model, self.recipe
        model.train()
        reporter = _Reporter(recipe, self.losses, self.training.progress, start=self.done, stop=until)
        for step in range(self.done, until):
            images, labels = next(self.batches)
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.learning_rate_at(step)
            with _autocast(recipe, self.device):
                logits = model(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.losses[step] = loss.detach()
            self.done = step + 1
            reporter.after(step)

    def _own_random_numbers(self) -> AbstractContextManager[None]:
        """The caller's random state comes back at the end."""
        return torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else [])

    def _read_random_state(self) -> tuple[Tensor, Tensor | None]:
        is_cuda = self.device.type == "cuda"
        return torch.get_rng_state(), torch.cuda.get_rng_state(self.device) if is_cuda else None

    def _write_random_state(self) -> None:
        host, device = self._random_state
        torch.set_rng_state(host)
        if device is not None:
            torch.cuda.set_rng_state(device, self.device)


class _Reporter:
    """Reads losses back now and then, so that a device is not waited for at every step."""

    def __init__(
        self, recipe: Recipe, losses: Tensor, progress: Callable[[Progress], None] | None, *, start: int, stop: int
    ) -> None:
        self.recipe, self.losses, self.progress, self.stop = recipe, losses, progress, stop
        self.num_read, self.read_at = start, time.perf_counter()

    def after(self, step: int) -> None:
        """Reports after `step` if it is time to; raises _DivergedError for a loss since the last report."""
        now, done = time.perf_counter(), step + 1
        if done < self.stop and now - self.read_at < _REPORT_EVERY_S:
            return
        new = self.losses[self.num_read : done].tolist()
        for number, loss in enumerate(new, start=self.num_read + 1):
            if not math.isfinite(loss):
                raise _DivergedError(f"the loss of step {number} of {self.recipe.steps} was {loss}")
        now = time.perf_counter()  # after the wait for the device
        if self.progress is not None:
            images_s = len(new) * self.recipe.batch_size / max(now - self.read_at, 1e-9)
            self.progress(Progress(step=done, steps=self.recipe.steps, images_s=images_s, loss=new[-1]))
        self.num_read, self.read_at = done, now


def _top1(model: nn.Module, data: ProxyData, recipe: Recipe, device: torch.device) -> float:
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    finite = torch.ones((), dtype=torch.bool, device=device)
    with torch.inference_mode():
        for images, labels in val_batches(data, recipe, device):
            with _autocast(recipe, device):
                logits = model(images)
            correct += (logits.argmax(1) == labels).sum()
            finite &= logits.isfinite().all()
    if not finite:
        raise _DivergedError("the outputs after training were not finite")
    return int(correct) / len(data.val_labels)


def _autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.dtype == "bfloat16")
