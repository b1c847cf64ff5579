"""Training steps of a proxy compiled, whole and block by block, against eager ones: seconds of compiling, time of a step, equality of the losses.

    python tests/benchmarks/compiled_training.py [--models van_b0 davit_tiny] [--profiles fashion-mnist cpu-small] [--steps 16]

Each model is trained as the profile of the same place says, on generated images of its size. A compiled training is timed step by step in turn with an
eager one of the same weights and batches, in a fresh process: with an empty compiler's cache, then with the one that this filled.
"""

import argparse
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from clock import CPU, Row, Spread, arguments, ratios, seconds_of, write
from torch import Tensor

from archsearch import build, paper
from archsearch.data import make_constellation
from archsearch.proxy import Loader, Recipe, load_profile, shrink
from archsearch.proxy.training.compiled import compiled_forwards, in_place
from archsearch.proxy.training.step import Step
from archsearch.report import make_console, make_table, show

NAME = "compiled_training"
COLUMNS = ("model", "profile", "mode", "cache", "compiling", "step", "over eager", "losses differ", "repeated")
MODES: tuple[Literal["compile", "compile-blocks"], ...] = ("compile", "compile-blocks")
NUM_CLASSES = 16


class Trainer:
    """Steps of a model from weights that are the same for all modes; keeps the seconds of each."""

    def __init__(self, model: str, profile: str, recipe: Recipe) -> None:
        torch.manual_seed(0)
        network = build(shrink(paper(model), load_profile(profile).scale, NUM_CLASSES)).train()
        self._step, self._forwards = Step(network, recipe, CPU), compiled_forwards(network, recipe)
        self.seconds: list[float] = []

    def run(self, images: Tensor, labels: Tensor) -> None:
        """One step; the first compiles."""
        with in_place(self._forwards):
            self.seconds.append(seconds_of(partial(self._step.run, len(self.seconds), images, labels)))

    @property
    def losses(self) -> list[float]:
        """Of all steps."""
        losses: list[float] = self._step.losses.tolist()
        return losses


def train(model: str, profile: str, recipe: Recipe, folder: str) -> Row:
    """Figures of compiled steps, with the compiler's cache in a folder, in turn with eager ones; for a process of its own."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
    torch.set_num_threads(1)
    trainers = [Trainer(model, profile, each) for each in (recipe, replace(recipe, mode="eager"))]
    data = make_constellation(recipe.batch_size * recipe.steps, NUM_CLASSES, recipe.image_size)
    for batch in Loader(data, CPU).train_batches(recipe):
        for trainer in trainers:
            trainer.run(*batch)
    (first_s, *compiled), (_, *eager) = (trainer.seconds for trainer in trainers)
    losses, eager_losses = (trainer.losses for trainer in trainers)
    step_s, over_eager = Spread.of(compiled).median, ratios(eager, compiled)
    return {
        "compile_s": first_s - step_s,
        "step_ms": 1000 * step_s,
        "over_eager": over_eager.median,
        "iqr": over_eager.iqr,
        "loss_difference": max(abs(one / other - 1) for one, other in zip(losses, eager_losses, strict=True)),
        "losses": losses,
    }


def measure(model: str, profile: str, steps: int) -> Iterator[Row]:
    """A row for each mode and state of the compiler's cache."""
    recipe = replace(load_profile(profile).recipe, steps=steps)
    known = {"model": model, "profile": profile, "batch_size": recipe.batch_size, "image_size": recipe.image_size}
    for mode in MODES:
        with tempfile.TemporaryDirectory() as folder:
            cold, warm = (_fresh(model, profile, replace(recipe, mode=mode), folder) for _ in range(2))
        is_repeated = cold.pop("losses") == warm.pop("losses")
        for cache, figures in (("cold", cold), ("warm", warm)):
            yield {**known, "mode": mode, "cache": cache, **figures, "is_repeated": is_repeated}


def _fresh(*arguments: Any) -> Row:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(train, *arguments).result()


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", default=["van_b0", "pvt_tiny"])
    parser.add_argument("--profiles", nargs="+", default=["fashion-mnist", "cpu-small"], help="one for each model")
    parser.add_argument("--steps", type=int, default=20)


def main() -> None:
    """Measure, print, write."""
    options = arguments(__doc__ or "", add=_options)
    if options.smoke:
        options.models, options.profiles, options.steps = ["van_b0"], ["fashion-mnist"], 3
    rows: list[Row] = []
    for model, profile in zip(options.models, options.profiles, strict=True):
        rows += measure(model, profile, options.steps)
    show(make_console(), make_table(COLUMNS, map(_cells, rows), left=("model", "profile", "mode", "cache", "repeated")))
    write(options.out, NAME, rows)


def _cells(row: Row) -> list[str]:
    return [
        *(row[name] for name in ("model", "profile", "mode", "cache")),
        f"{row['compile_s']:.1f} s",
        f"{row['step_ms']:.0f} ms",
        f"{row['over_eager']:.2f} ({100 * row['iqr']:.0f} %)",
        f"{row['loss_difference']:.1e}",
        "yes" if row["is_repeated"] else "no",
    ]


if __name__ == "__main__":
    main()
