"""How fast batches come, and how fast the fastest network of the papers takes them: whether a training ever waits for images.

    python tests/benchmarks/loading.py [--images 20000] [--papers NAME ...]

Batches at 128 px come from a memory map of 144 px squares, as `archsearch prepare` makes it, that lies in the page cache:
gathered as uint8, and gathered and augmented (crop, mirror, normalise), by the processor's time. Trainings are those of
the proxy, on the papers' models nearest to 4.5 GMACs at a quarter and at the whole of their widths, all at 64 px and the
fastest at 128; rates are those that the proxy score stores of them.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from clock import CPU, Row, Spread, arguments, write

from archsearch import build, paper
from archsearch.data import ProxyData
from archsearch.proxy import Loader, Recipe, Scale, load_profile, shrink, train_and_score
from archsearch.report import make_console, make_table, show
from archsearch.space import choose_papers

NAME = "loading"
STORED, NUM_VAL, NUM_CLASSES = 144, 32, 10
BATCHES = (32, 256, 1024)
FASTEST = 2  # at 64 px; they alone train at 128, where a step takes four times as long
COLUMNS = ("fastest training", "pixels", "width", "step images/s", "loader images/s", "loader over step")
RECIPE = Recipe(steps=4, batch_size=32, learning_rate=1e-3, image_size=128, dtype="float32", augment="crop")


def make_data(folder: Path, num_images: int) -> ProxyData:
    """Squares of noise in a memory map that was written and is read, as a prepared folder's."""
    path, shape = folder / "images.npy", (num_images, STORED, STORED, 3)
    written = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    rng = np.random.default_rng(0)
    for start in range(0, num_images, 500):
        part = written[start : start + 500]
        part[...] = rng.integers(0, 256, part.shape, dtype=np.uint8)
    written.flush()
    images = np.load(path, mmap_mode="r")
    images.max()  # into the page cache
    labels = rng.integers(0, NUM_CLASSES, num_images)
    classes = tuple(map(str, range(NUM_CLASSES)))
    return ProxyData("noise", images, labels, images[:NUM_VAL], labels[:NUM_VAL], classes)


def rates(data: ProxyData, rounds: int) -> list[Row]:
    """Images a second of the processor's time for both kinds of stream and each batch size."""
    loader, rows = Loader(data, CPU), []
    for batch in BATCHES:
        recipe = replace(RECIPE, batch_size=batch, steps=1 << 30)
        # Many a block where they are quick: one of them was read ahead, between blocks.
        gather, augment = 32, max(1, 512 // batch)
        works = {
            "gather": (gather, take(loader.raw_batches(recipe), gather)),
            "gather and augment": (augment, take(loader.train_batches(recipe), augment)),
        }
        for what, (number, work) in works.items():
            spread = Spread.of([number * batch / processor_seconds(work) for _ in range(rounds)])
            rows.append({"what": what, "batch": batch, "images_s": spread.median, "iqr": spread.iqr})
    return rows


def processor_seconds(work: Callable[[], None]) -> float:
    """Of all threads, after one time of warm-up: other processes on the core do not count."""
    work()
    started = time.process_time()
    work()
    return time.process_time() - started


def take(stream: Iterable[object], number: int) -> Callable[[], None]:
    """The work of taking that many batches."""
    batches = iter(stream)

    def work() -> None:
        for _ in range(number):
            next(batches)

    return work


def steps(data: ProxyData, names: Iterable[str], image_size: int, divisor: int) -> list[Row]:
    """What the proxy's training says of its own rates, the fastest network first."""
    scale = replace(load_profile("cpu-small").scale, image_size=image_size, width_divisor=divisor)
    # At the whole width a step of 32 takes seconds; images a second are nearly those of eight.
    recipe = replace(RECIPE, image_size=image_size, batch_size=32 if divisor > 1 else 8)
    rows = [training(data, name, scale, recipe) for name in names]
    return sorted(rows, key=lambda row: -row["step"])


def training(data: ProxyData, name: str, scale: Scale, recipe: Recipe) -> Row:
    """One of a few steps."""
    started = time.perf_counter()
    torch.manual_seed(0)
    score = train_and_score(build(shrink(paper(name), scale, NUM_CLASSES)), data, recipe, device="cpu")
    print(f"  {name} at {scale}: {score.step_images_s:.0f} images/s, {time.perf_counter() - started:.0f} s", flush=True)
    return {
        "what": "training",
        "network": name,
        "pixels": recipe.image_size,
        "width": f"1/{scale.width_divisor}",
        "batch": recipe.batch_size,
        "step": score.step_images_s,
        "loader": score.loader_images_s,
        "ratio": score.loader_images_s / score.step_images_s,
    }


def fastest(row: Row) -> tuple[str, ...]:
    """A training's line of the table."""
    figures = f"{row['step']:,.0f}", f"{row['loader']:,.0f}", f"{row['ratio']:.0f}x"
    return row["network"], str(row["pixels"]), row["width"], *figures


def add_options(parser: argparse.ArgumentParser) -> None:
    """This script's own."""
    parser.add_argument("--images", type=int, default=20_000, help="in the memory map, 62 kB each")
    parser.add_argument("--papers", nargs="+", help="by default the ten nearest to 4.5 GMACs")


def main() -> None:
    """Measure, print, write."""
    options = arguments(__doc__, add=add_options)
    names = options.papers or choose_papers("nearest", 4_500_000_000, 224)
    names = names[:1] if options.smoke else names
    trainings: list[list[Row]] = []
    console = make_console()
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder), 500 if options.smoke else options.images)
        loading = rates(data, 2 if options.smoke else 5)
        for divisor in (4,) if options.smoke else (4, 1):
            ranked = steps(data, names, 64, divisor)
            again = [row["network"] for row in ranked[:FASTEST]]
            trainings += [ranked] if options.smoke else [ranked, steps(data, again, 128, divisor)]
    cells = [(row["what"], str(row["batch"]), f"{row['images_s']:,.0f}", f"{row['iqr']:.1%}") for row in loading]
    show(console, make_table(("batch at 128 px", "batch", "images/s a core", "IQR"), cells))
    show(console, make_table(COLUMNS, [fastest(rows[0]) for rows in trainings]))
    write(options.out, NAME, [*loading, *(row for rows in trainings for row in rows)], images=len(data.train_labels))


if __name__ == "__main__":
    main()
