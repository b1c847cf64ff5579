"""Training a candidate on a proxy for a fixed number of steps, and its accuracy on the validation images after them."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archsearch.errors import RunError
from archsearch.proxy.batches import train_batches, val_batches
from archsearch.proxy.data import ProxyData
from archsearch.proxy.recipe import Recipe

__all__ = ["Progress", "ProxyScore", "Recipe", "train_and_score"]

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
    """Top-1 share of `num_val` images and what it cost; seconds are those of the training that gave the score."""

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
    """Trains `model` in place, from the weights it comes with, and scores it.

    Where numbers stop being finite, training starts once more from the same weights at half the rate; RunError when
    that fails too. Data order, augmentation and dropout depend on the recipe only.
    """
    device = torch.device(device)
    model.to(device)
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        return _attempt(model, data, recipe, device, progress)
    except _DivergedError as first:
        halved = replace(recipe, learning_rate=recipe.learning_rate / 2)
        model.load_state_dict(initial)
        try:
            return replace(_attempt(model, data, halved, device, progress), retried=True)
        except _DivergedError as second:
            raise RunError(
                f"proxy training failed twice: {first} at learning rate {recipe.learning_rate:g},"
                f" {second} at {halved.learning_rate:g}"
            ) from second


def _attempt(
    model: nn.Module,
    data: ProxyData,
    recipe: Recipe,
    device: torch.device,
    progress: Callable[[Progress], None] | None,
) -> ProxyScore:
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(recipe.seed)  # for the model's own dropout
        losses = _train(model, data, recipe, device, progress)
    train_loss = losses[-max(1, recipe.steps // 10) :].mean().item()
    trained = time.perf_counter()
    score = _top1(model, data, recipe, device)
    return ProxyScore(
        score=score,
        standard_error=math.sqrt(score * (1 - score) / len(data.val_labels)),
        num_val=len(data.val_labels),
        train_loss=train_loss,
        train_images=recipe.steps * recipe.batch_size,
        train_s=trained - started,
        eval_s=time.perf_counter() - trained,
        retried=False,
        learning_rate=recipe.learning_rate,
    )


def _train(
    model: nn.Module,
    data: ProxyData,
    recipe: Recipe,
    device: torch.device,
    progress: Callable[[Progress], None] | None,
) -> Tensor:
    """All steps; the loss of each (steps,)."""
    from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]  # public, but without __all__; late: timm is slow to import

    model.train()
    groups = param_groups_weight_decay(model, recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
    losses = torch.zeros(recipe.steps, device=device)
    reporter = _Reporter(recipe, losses, progress)
    for step, (images, labels) in enumerate(train_batches(data, recipe, device)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step)
        with _autocast(recipe, device):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=recipe.label_smoothing)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses[step] = loss.detach()
        reporter.after(step)
    return losses


class _Reporter:
    """Reads losses back now and then, so that a device is not waited for at every step."""

    def __init__(self, recipe: Recipe, losses: Tensor, progress: Callable[[Progress], None] | None) -> None:
        self.recipe, self.losses, self.progress = recipe, losses, progress
        self.num_read, self.read_at = 0, time.perf_counter()

    def after(self, step: int) -> None:
        """Reports after `step` if it is time to; raises _DivergedError for a loss since the last report."""
        now, done = time.perf_counter(), step + 1
        if done < self.recipe.steps and now - self.read_at < _REPORT_EVERY_S:
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
