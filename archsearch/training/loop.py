"""The epochs of a training: steps, checkpoints between them, and what the weights do on the validation images after each."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from archsearch.device import conditions
from archsearch.errors import RunError, UserError
from archsearch.system import Interrupt, Progress, Say
from archsearch.training.folder import STATE_FILE, write_metrics, write_state
from archsearch.training.images import (
    EpochOrder,
    InOrder,
    PlacedPictures,
    TrainingImages,
    batches_of,
    make_loader,
    train_transform,
    val_transform,
)
from archsearch.training.judge import judge
from archsearch.training.steps import Steps
from archsearch.units import format_seconds

_READ_EVERY_S = 0.5  # how often a loss is read back: each time waits for the device
_AGREE_EVERY = 10  # steps after which several processes ask each other whether one was interrupted
_CONDITIONS = ("device", "device_name", "torch", "python", "threads")


class Loop:
    """A training in its folder, from where it is to its end; several processes run it in step, and the first one writes."""

    def __init__(
        self,
        folder: Path,
        steps: Steps,
        images: TrainingImages,
        *,
        size: tuple[int, int],
        crop_share: float,
        dtype: str,
        mode: str,
        workers: int,
        checkpoint_every: int,
        tensorboard: bool,
        say: Say,
        progress: Progress,
    ) -> None:
        self.folder, self.steps, self.processes, self.dtype = folder, steps, steps.processes, dtype
        self.checkpoint_every, self._say, self._progress = checkpoint_every, say, progress
        recipe, seed = steps.recipe, steps.seed
        self.epochs = recipe.epochs + recipe.cooldown_epochs
        part = {"rank": self.processes.rank, "world": self.processes.world}
        self.order = EpochOrder(len(images.train.labels), recipe.batch_size, seed=seed, repeats=recipe.repeats, **part)
        pinned = self.processes.device.type == "cuda"
        train = PlacedPictures(images.train, train_transform(images, recipe, size), seed, replace=True)
        val = PlacedPictures(images.val, val_transform(images, crop_share, size), seed, replace=False)
        self._images_each = each = recipe.batch_size // self.processes.world
        self._train = make_loader(train, self.order, workers=workers, pinned=pinned)
        in_order = InOrder(len(images.val.labels), each, **part)
        self._val = make_loader(val, in_order, workers=workers, pinned=pinned)
        self.conditions = {
            **{key: value for key, value in conditions(self.processes.device).items() if key in _CONDITIONS},
            "dtype": dtype,
            "mode": mode,
            "processes": self.processes.world,
        }
        self.step_aside: Callable[[], float] = lambda: 0.0
        self.rows: list[dict[str, Any]] = []
        self.unreadable: set[str] = set()
        self._loss_sum = torch.zeros((), dtype=torch.float64)
        self._losses: list[torch.Tensor] = []
        self._seconds, self._read_at = 0.0, time.perf_counter()
        self._interrupt = Interrupt()  # asked for between steps, so a checkpoint holds whole steps
        self._board = _open_board(folder) if tensorboard and self.processes.is_first else None

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.steps.restore(state["steps"])
        self.rows, self.unreadable = list(state["rows"]), set(state["unreadable"])
        self._loss_sum, self._seconds = state["loss_sum"], state["seconds"]
        if len(self.rows) < self.epochs:
            epoch = len(self.rows)
            step = self.steps.done - epoch * len(self.order)
            self._say(f"going on in epoch {epoch + 1} of {self.epochs}, after step {step} of {len(self.order)}")

    def run(self) -> None:
        """All epochs that are left. Raises RunError where a loss is not finite, KeyboardInterrupt after Ctrl-C, with a checkpoint written."""
        self._progress(self.steps.done, self.epochs * len(self.order), "starting")
        with self._interrupt.deferred():
            for epoch in range(len(self.rows), self.epochs):
                self._train_epoch(epoch)
                self._finish_epoch(epoch)
        if self._board is not None:
            self._board.close()

    def _train_epoch(self, epoch: int) -> None:
        """The steps that are left of an epoch."""
        self.order.epoch, self.order.start = epoch, self.steps.done - epoch * len(self.order)
        started, before, self._read_at = time.perf_counter(), self._seconds, time.perf_counter()
        for images, labels, unread in batches_of(self._train):
            for sentence in unread:
                self._note(sentence)
            if len(images) < self._images_each:
                raise RunError(
                    f"{unread[0]} cannot be read, nor can those after it that would take its place; mend these pictures, or remove them"
                )
            started += self.step_aside()
            self._losses.append(self.steps.run(images, labels))
            self._seconds = before + time.perf_counter() - started
            is_due = self.steps.done % self.checkpoint_every == 0
            if is_due or time.perf_counter() - self._read_at > _READ_EVERY_S:
                self._read_losses(epoch)
            if is_due:
                self._write()
            self._stop_if_asked()
        self._read_losses(epoch)
        self._write()

    def _read_losses(self, epoch: int) -> None:
        """Wait for the losses since the last time, and add them up. Raises RunError for one that is not finite."""
        if not self._losses:
            return
        losses = [loss.item() for loss in self._losses]
        first = self.steps.done - len(losses)
        self._losses.clear()
        for number, loss in enumerate(losses, start=first + 1):
            self._loss_sum += loss
            if not math.isfinite(loss):
                self._fail(number, loss)
        self._read_at = time.perf_counter()
        done = self.steps.done - epoch * len(self.order)
        rate = done * self.steps.recipe.batch_size / max(self._seconds, 1e-9)
        words = f"epoch {epoch + 1} of {self.epochs}, loss {losses[-1]:.3f}, {rate:.0f} img/s"
        self._progress(self.steps.done, self.epochs * len(self.order), words)

    def _fail(self, number: int, loss: float) -> None:
        """Raise RunError for a loss that is no finite number."""
        path = self.folder / STATE_FILE
        kept = f"the checkpoint before it is kept in {path}" if path.exists() else "no checkpoint was written before"
        raise RunError(
            f"the loss of step {number} was {loss}: the training diverged at learning rate {self.steps.learning_rate:.3g}; {kept}: "
            "take a smaller --lr in a new folder"
        )

    def _finish_epoch(self, epoch: int) -> None:
        """Judge the weights and their average, and write down the epoch."""
        self._progress(self.steps.done, self.epochs * len(self.order), f"epoch {epoch + 1}: validating")
        networks = (self.steps.network, self.steps.average.module)
        for network in networks:
            self.processes.share_buffers(network)
        raw, average = judge(networks, batches_of(self._val), self.processes, self.dtype, self._note)
        row: dict[str, Any] = {
            "epoch": epoch + 1,
            "steps": self.steps.done,
            "train_loss": self.processes.mean(self._loss_sum).item() / len(self.order),
            "val_images": raw.images,
        }
        for prefix, judged in (("", raw), ("ema_", average)):
            row |= {
                f"{prefix}val_loss": judged.loss,
                f"{prefix}top1": judged.top1,
                f"{prefix}top1_se": judged.top1_se,
                f"{prefix}top5": judged.top5,
            }
        row["learning_rate"] = self.steps.learning_rate
        row["images_s"] = len(self.order) * self.steps.recipe.batch_size / max(self._seconds, 1e-9)
        row["seconds"] = self._seconds
        self.rows.append(row | self.conditions)
        self._loss_sum, self._seconds = torch.zeros((), dtype=torch.float64), 0.0
        self._write()
        self._tell(row)

    def _tell(self, row: dict[str, Any]) -> None:
        """Say an epoch's loss, accuracies and speed."""
        if not self.processes.is_first:
            return
        self._say(
            f"epoch {row['epoch']} of {self.epochs}: loss {row['train_loss']:.3f}, top-1 {100 * row['top1']:.2f} "
            f"(average of weights {100 * row['ema_top1']:.2f}), {row['images_s']:.0f} img/s, {format_seconds(row['seconds'])}"
        )
        if self._board is not None:
            for name in ("train_loss", "val_loss", "top1", "top5", "ema_top1", "ema_top5", "learning_rate", "images_s"):
                self._board.add_scalar(name, row[name], row["epoch"])

    def _note(self, sentence: str) -> None:
        """Say once of a picture that it cannot be read."""
        if sentence not in self.unreadable:
            self.unreadable.add(sentence)
            self._say(
                f"note: {sentence} cannot be read; training takes the next one in its place, validation leaves it out"
            )

    def _write(self) -> None:
        """The checkpoint and the table of epochs, by the first process; all come here together."""
        for sentence in self.processes.union(self.unreadable):
            self._note(sentence)
        loss_sum = self.processes.mean(self._loss_sum)
        if not self.processes.is_first:
            return
        state = {
            "steps": self.steps.state(),
            "rows": self.rows,
            "unreadable": sorted(self.unreadable),
            "loss_sum": loss_sum,  # each process goes on with the mean of all
            "seconds": self._seconds,
        }
        write_state(self.folder, state)
        if self.rows:
            write_metrics(self.folder, self.rows)

    def _stop_if_asked(self) -> None:
        """After Ctrl-C in any process: write a checkpoint and raise KeyboardInterrupt."""
        world = self.processes.world
        if world > 1 and self.steps.done % _AGREE_EVERY:
            return
        if self.processes.any(self._interrupt.is_asked):
            self._read_losses(len(self.rows))
            self._write()
            raise KeyboardInterrupt


def _open_board(folder: Path) -> Any:
    """TensorBoard's writer. Raises UserError where its package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "--tensorboard: the package tensorboard is not installed; pip install 'archsearch[tensorboard]', or leave the option out"
        ) from error
    return SummaryWriter(folder / "tensorboard")
