"""How long it takes to set up the tables of a band, to count its architectures, to find the best, and to draw one: `python tests/benchmarks/sampling.py`.

Prints medians over several rounds, wall clock and processor time, for the path that `archsearch sample` takes for each architecture.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from archsearch.report import arch_document
from archsearch.space import Band, InBand, Placed, load_space, propose


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the wall clock and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def report(name: str, rounds: list[tuple[float, float]], scale: float, unit: str) -> None:
    """One line."""
    wall, processor = (statistics.median(column) * scale for column in zip(*rounds, strict=True))
    print(f"{name:48s} {wall:9.3f} {unit} wall {processor:9.3f} {unit} processor")


def _num_params(placed: Placed) -> float:
    return placed.cost.params


def _tilt(placed: Placed) -> float:
    """Twice the chance for each million parameters."""
    return placed.cost.params * 7e-7


def measure(name: str, options: argparse.Namespace, bands: tuple[Band | None, Band | None]) -> None:
    """All of one kind of band."""
    rounds = range(options.rounds)
    report(f"{name}: set-up", [timed(lambda: InBand(load_space(options.space), *bands)) for _ in rounds], 1, "s")
    inside, rng = InBand(load_space(options.space), *bands), random.Random(0)
    draws = [timed(lambda: inside.draw_many(options.draws, rng)) for _ in rounds]
    report(f"{name}: draw, once set up", draws, 1000 / options.draws, "ms")
    rows = [timed(lambda: [arch_document(inside.draw(rng)[1]) for _ in range(options.draws)]) for _ in rounds]
    report(f"{name}: draw and its line of sample --json", rows, 1000 / options.draws, "ms")
    report(f"{name}: count", [timed(lambda: inside.count)], 1, "s")
    most = [timed(lambda: inside.best(_num_params)) for _ in rounds]
    report(f"{name}: most parameters", most, 1, "s")
    report(
        f"{name}: set-up of a tilt",
        [timed(lambda: inside.draw(rng, lambda placed: _tilt(placed))) for _ in rounds],
        1,
        "s",
    )
    tilted = [timed(lambda: inside.draw_many(options.draws, rng, _tilt)) for _ in rounds]
    report(f"{name}: tilted draw, once set up", tilted, 1000 / options.draws, "ms")
    print(f"{name}: {inside.count} architectures, {'exact' if inside.is_exact else 'estimated'}")


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="hybrid")
    parser.add_argument("--budget", type=int, default=4_500_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=2_000)
    options = parser.parse_args()
    band, params_band = Band.around(options.budget, 0.05), Band(20_000_000, 30_000_000, "parameters")
    measure("no band", options, (None, None))
    measure("MACs", options, (band, None))
    measure("MACs and parameters", options, (band, params_band))
    space, rng = load_space(options.space), random.Random(0)
    walks = [timed(lambda: [propose(space, {}, rng) for _ in range(1000)]) for _ in range(options.rounds)]
    report("for comparison: a walk without tables", walks, 1, "ms")


if __name__ == "__main__":
    main()
