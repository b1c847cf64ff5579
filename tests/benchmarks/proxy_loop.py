"""Training throughput of the proxy's loop against a plain one in timm's manner: same network, images, batch, loss and AdamW, in turn in one run.

    python tests/benchmarks/proxy_loop.py IMAGE_FOLDER [--papers van_b2 davit_tiny] [--pixels 64 128]

The plain loop is torch's DataLoader over the JPEGs with timm's transform for each sample (RandomResizedCrop, flip, tensor,
normalise), in the process or in one worker (the default of timm's `create_loader`; more share the one core), timm's AdamW,
no channels last; a second one reads the stored squares, decoded already. Networks are the proxy's, at a quarter of the widths.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from clock import CPU, Row, Spread, Work, arguments, interleaved, ratios, write
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler

from archsearch import build, paper
from archsearch.data import DataRequest, ProxyData, load_data
from archsearch.proxy import Recipe, Training, load_profile, shrink
from archsearch.report import make_console, make_table, show

NAME = "proxy_loop"
LOOPS = ("proxy", "plain, JPEGs", "plain, JPEGs, 1 worker", "plain, squares")
COLUMNS = ("network", "pixels", "dtype", "loop", "images/s", "proxy over it", "IQR")


class Squares(Dataset[tuple[Tensor, int]]):
    """The stored squares as pictures, each transformed by itself."""

    def __init__(self, data: ProxyData, transform: Callable[[Image.Image], Tensor]) -> None:
        self.data, self.transform = data, transform

    def __len__(self) -> int:
        return len(self.data.train_labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.data.train_images[index])), int(self.data.train_labels[index])


class PlainLoop:
    """A training in timm's manner, in blocks of a few steps; between blocks no worker reads ahead."""

    def __init__(self, model: nn.Module, images: Any, recipe: Recipe, *, steps: int, workers: int) -> None:
        from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]  # public, but without __all__; late: timm is slow to import

        self.model, self.recipe = model.train(), recipe
        self.optimizer = create_optimizer_v2(model, "adamw", lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        sampler = RandomSampler(images, replacement=True, num_samples=steps * recipe.batch_size)
        self.loader = DataLoader(
            images,
            recipe.batch_size,
            sampler=sampler,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    def __call__(self) -> None:
        """One block."""
        for images, labels in self.loader:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.recipe.dtype == "bfloat16"):
                logits = self.model(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
            self.optimizer.step()


class ProxyLoop:
    """The proxy's own training, in blocks; of the validation there is one image."""

    def __init__(self, model: nn.Module, data: ProxyData, recipe: Recipe, *, steps: int) -> None:
        self.training = Training(model, data, recipe, device=CPU)
        self.steps, self.done = steps, 0

    def __call__(self) -> None:
        """One block."""
        self.done += self.steps
        self.training.advance(self.done)


def loops(name: str, folder: Path, data: ProxyData, recipe: Recipe, steps: int) -> list[Work]:
    """One of each of LOOPS, on networks with the same weights."""
    from timm.data import (  # type: ignore[attr-defined]  # public, but without __all__
        create_dataset,
        create_transform,
    )

    scale = replace(load_profile("cpu-small").scale, image_size=recipe.image_size)

    def network() -> nn.Module:
        torch.manual_seed(0)
        return build(shrink(paper(name), scale, len(data.classes)))

    transform: Any = create_transform(
        recipe.image_size,
        is_training=True,
        scale=(0.35, 1.0),
        color_jitter=None,  # type: ignore[arg-type]  # timm itself asks whether it is None
        interpolation="bilinear",
    )
    files = create_dataset("", root=str(folder), split="train", transform=transform)
    squares = Squares(data, transform)
    return [
        ProxyLoop(network(), data, recipe, steps=steps),
        PlainLoop(network(), files, recipe, steps=steps, workers=0),
        PlainLoop(network(), files, recipe, steps=steps, workers=1),
        PlainLoop(network(), squares, recipe, steps=steps, workers=0),
    ]


def compare(name: str, folder: Path, data: ProxyData, recipe: Recipe, options: argparse.Namespace) -> list[Row]:
    """Images a second of each loop, and the proxy's over it block by block."""
    num_images = options.steps * recipe.batch_size
    times = interleaved(
        loops(name, folder, data, recipe, options.steps), seconds=options.seconds, at_least=options.rounds
    )
    rows: list[Row] = []
    for loop, seconds in zip(LOOPS, times, strict=True):
        ratio = ratios(seconds, times[0])
        rate = Spread.of([num_images / each for each in seconds]).median
        rows.append(
            {
                "network": name,
                "pixels": recipe.image_size,
                "dtype": recipe.dtype,
                "loop": loop,
                "images_s": rate,
                "proxy_over_it": ratio.median,
                "iqr": ratio.iqr,
                "blocks": ratio.number,
            }
        )
        print(
            f"  {name} {recipe.image_size} px {recipe.dtype} {loop}: {rate:.0f} images/s, {ratio.median:.2f}",
            flush=True,
        )
    return rows


def line(row: Row) -> tuple[str, ...]:
    """Of the table."""
    figures = f"{row['images_s']:.0f}", f"{row['proxy_over_it']:.2f}x", f"{row['iqr']:.1%}"
    return row["network"], str(row["pixels"]), row["dtype"], row["loop"], *figures


def add_options(parser: argparse.ArgumentParser) -> None:
    """This script's own."""
    parser.add_argument("folder", type=Path, help="an ImageFolder of JPEGs with train/ and val/")
    parser.add_argument("--papers", nargs="+", default=["van_b2", "davit_tiny"])
    parser.add_argument("--pixels", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4, help="of a block")
    parser.add_argument("--rounds", type=int, default=4, help="blocks of each loop, at least")
    parser.add_argument("--seconds", type=float, default=20, help="of timing for the loops together, at least")


def main() -> None:
    """Measure, print, write."""
    options = arguments(__doc__, add=add_options)
    if options.smoke:
        options.papers, options.pixels, options.steps, options.rounds, options.seconds = ["van_b0"], [64], 1, 2, 1
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as cache:
        for pixels in options.pixels:
            size = round(pixels * 1.125)
            request = DataRequest(text=str(options.folder), size=size, val_split="val", max_val=1, cache_dir=cache)
            data = load_data(request)
            for name in options.papers:
                for dtype in ("float32", "bfloat16"):
                    recipe = Recipe(
                        steps=100_000,
                        batch_size=options.batch,
                        learning_rate=1e-3,
                        image_size=pixels,
                        dtype=dtype,
                        augment="crop",
                    )
                    rows += compare(name, options.folder, data, recipe, options)
    show(make_console(), make_table(COLUMNS, [line(row) for row in rows]))
    write(options.out, NAME, rows, batch=options.batch, steps_a_block=options.steps)


if __name__ == "__main__":
    main()
