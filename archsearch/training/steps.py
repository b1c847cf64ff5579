"""One update of the weights, from timm's parts: optimizer, schedule, mixing, losses, average of the weights; and what a checkpoint holds of them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from archsearch.device import is_out_of_memory
from archsearch.errors import RunError
from archsearch.models import Network
from archsearch.training.images import seed_of
from archsearch.training.processes import Processes
from archsearch.training.recipe import TrainingRecipe
from archsearch.training.teacher import SHARE, Teacher

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # images, labels -> images, shares of the classes

_OFFSETS = "conv_offset.weight"  # of deformable convolutions, by which samples move


def make_optimizer(network: nn.Module, recipe: TrainingRecipe) -> torch.optim.Optimizer:
    """timm's AdamW: decay on matrices alone, not on what the network's `no_weight_decay` names; offsets at their own share of the rate."""
    from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]  # public, but without __all__; late: timm is slow to import

    def groups(model: nn.Module) -> list[dict[str, Any]]:
        undecayed = model.no_weight_decay()  # type: ignore[operator]  # every network has it
        found: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            decay = 0.0 if parameter.ndim <= 1 or name in undecayed else recipe.weight_decay
            share = recipe.offset_rate if name.endswith(_OFFSETS) else 1.0
            found.setdefault((decay, share), []).append(parameter)
        return [
            # timm's schedule multiplies by `lr_scale`.
            {"params": found[key], "weight_decay": key[0], "lr_scale": key[1]}
            for key in sorted(found)
        ]

    return create_optimizer_v2(
        network, opt="adamw", lr=recipe.learning_rate, weight_decay=recipe.weight_decay, param_group_fn=groups
    )


def make_schedule(optimizer: torch.optim.Optimizer, recipe: TrainingRecipe, steps_per_epoch: int) -> Any:
    """timm's cosine with warm-up, by updates."""
    from timm.scheduler import create_scheduler_v2  # type: ignore[attr-defined]  # as above

    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=recipe.epochs,
        cooldown_epochs=recipe.cooldown_epochs,
        warmup_epochs=recipe.warmup_epochs,  # type: ignore[arg-type]  # a part of an epoch is a number of updates
        warmup_lr=min(recipe.warmup_learning_rate, recipe.learning_rate),
        min_lr=min(recipe.min_learning_rate, recipe.learning_rate),
        step_on_epochs=False,
        updates_per_epoch=steps_per_epoch,
    )
    return schedule


def make_targets(recipe: TrainingRecipe, num_classes: int) -> tuple[Mix | None, nn.Module]:
    """timm's Mixup, where images are mixed, and the loss for its targets; else None and that for labels, smoothed."""
    from timm.data.mixup import Mixup
    from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy  # type: ignore[attr-defined]  # as above

    untyped: Any = Mixup, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
    make_mix, make_smoothed, make_soft = untyped
    if not recipe.is_mixing:
        return None, make_smoothed(recipe.label_smoothing)
    mix = make_mix(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        prob=recipe.mix_probability,
        switch_prob=recipe.mix_switch,
        label_smoothing=recipe.label_smoothing,
        num_classes=num_classes,
    )
    return mix, make_soft()


class Steps:
    """Network, optimizer, schedule and average of a training. `done` updates were made; random numbers of a step follow from seed, step and process.

    `forward` is the network compiled or as it is, with gradients that are the mean over all processes.
    """

    def __init__(
        self,
        network: Network,
        recipe: TrainingRecipe,
        processes: Processes,
        *,
        steps_per_epoch: int,
        seed: int,
        dtype: str,
        mode: str,
        teacher: Teacher | None,
    ) -> None:
        from timm.utils.model_ema import ModelEmaV3  # late, as above

        self.network, self.recipe, self.processes, self.seed = network, recipe, processes, seed
        self.device, self._is_half, self._teacher = processes.device, dtype == "bfloat16", teacher
        network.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks this form
        self.average = ModelEmaV3(network, decay=recipe.ema_decay, use_warmup=True)
        self.optimizer = make_optimizer(network, recipe)
        self.schedule = make_schedule(self.optimizer, recipe, steps_per_epoch)
        wrapped = processes.wrap(network)
        self.forward: Callable[[Tensor], Tensor] = torch.compile(wrapped) if mode == "compile" else wrapped
        self._mix, self._criterion = make_targets(recipe, network.num_classes)
        self.done = 0

    @property
    def learning_rate(self) -> float:
        """Of the next update, of most weights."""
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def run(self, images: Tensor, labels: Tensor) -> Tensor:
        """One update on a batch of this process; gives its loss before the update, on the device. Raises RunError where memory is too short."""
        try:
            return self._run(images, labels)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise RunError(
                f"out of memory on {self.device.type} in a step of {self.recipe.batch_size} images, {len(images)} in this process; take a smaller "
                "--batch-size, the learning rate goes with it, or more processes by torchrun"
            ) from error

    def _run(self, images: Tensor, labels: Tensor) -> Tensor:
        self._draw()
        self.network.train()
        images = images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        targets = labels.to(self.device, non_blocking=True)
        if self._mix is not None:
            images, targets = self._mix(images, targets)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._is_half):
            logits = self.forward(images)
        logits = logits.float()
        loss: Tensor = self._criterion(logits, targets)
        if self._teacher is not None:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._is_half):
                followed = self._teacher.loss(images, logits)
            loss = (1 - SHARE) * loss + SHARE * followed
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.done += 1
        self.average.update(self.network, step=self.done)
        self.schedule.step_update(num_updates=self.done)
        return loss.detach()

    def _draw(self) -> None:
        """Begin this step's random numbers: mixing is the same in all processes, dropout is each one's own."""
        np.random.seed(seed_of(self.seed, self.done))  # timm's Mixup draws from the global generator
        torch.manual_seed(seed_of(self.seed, self.done, self.processes.rank))

    def state(self) -> dict[str, Any]:
        """Weights, their average, optimizer and schedule, for `torch.save`."""
        return {
            "step": self.done,
            "model": self.network.state_dict(),
            "ema": self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            # What the next step draws follows from these; both are set again when it begins.
            "seed": self.seed,
            "random": torch.get_rng_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.network.load_state_dict(state["model"])
        self.average.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"])
        self.done = state["step"]
