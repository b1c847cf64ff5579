"""What an ask of the known-cost sampler costs with many trials, on the default space (about 60 conditional names) and three objectives.

    python tests/benchmarks/ask_time.py [--trials 100 500] [--asks 10]

For one and two unknown objectives, and for the two ways to come by candidates: learned from the study's trials, and the pool of a space inside a
band. Times are the processor's, so that other work on the machine does not count. `first` is the first ask of a fresh sampler, with everything to
be fitted and drawn; the others have their memory of it.
"""

import argparse
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import optuna
from clock import Row, Spread, arguments, write
from optuna.distributions import CategoricalDistribution
from optuna.trial import create_trial

from archsearch import load_space
from archsearch.report import make_console, make_table, show
from archsearch.samplers import KnownCostSampler
from archsearch.samplers.pool import Params
from archsearch.samplers.space_pool import SpacePool
from archsearch.space import Band

NAME = "ask_time"
BUDGET = 4_500_000_000
COLUMNS = ("trials", "unknown", "pool", "front", "first ms", "median ms", "IQR", "largest ms")
DIRECTIONS: tuple[Literal["maximize", "minimize"], ...] = ("maximize", "maximize", "minimize")


class Objectives:
    """A score, a speed and the parameters of architectures: the last two are functions of the architecture, the first adds noise."""

    def __init__(self, pool: SpacePool) -> None:
        self._pool = pool

    def speed(self, params: Params) -> float:
        """Falls with MACs and with the number of attention blocks."""
        cost = self._pool.arch(params).cost()
        mixers = sum(params.get(f"stages.{stage}.block") != "mlp" for stage in range(1, 5))
        return float(1e12 / (cost.macs * (1 + 0.15 * mixers)))

    def size(self, params: Params) -> float:
        """Parameters."""
        return float(self._pool.arch(params).cost().params)

    def score(self, params: Params, rng: random.Random) -> float:
        """Something with effects of most names."""
        effects = sum(random.Random(f"{name}={value}").gauss(0, 1) for name, value in params.items())
        return effects + self.size(params) / 1e7 + rng.gauss(0, 0.3)


def make_study(pool: SpacePool, objectives: Objectives, trials: int) -> optuna.Study:
    """Complete trials of uniform draws."""
    rng = random.Random(0)
    study = optuna.create_study(directions=DIRECTIONS)
    for params in pool.draw(trials, rng)[:trials]:
        distributions: dict[str, Any] = {name: CategoricalDistribution(_choices(pool, name)) for name in params}
        values = [objectives.score(params, rng), objectives.speed(params), objectives.size(params)]
        study.add_trial(create_trial(params=params, distributions=distributions, values=values))
    return study


def _choices(pool: SpacePool, name: str) -> tuple[Any, ...]:
    found = pool.distributions[name]
    assert isinstance(found, CategoricalDistribution), "a space has nothing else"
    return found.choices


def measure(trials: int, asks: int) -> Iterator[Row]:
    """One row for each number of unknown objectives and each pool."""
    space = load_space("hybrid")
    pool = SpacePool(space, Band.around(BUDGET, 0.05), 1)
    objectives = Objectives(pool)
    study = make_study(pool, objectives, trials)
    known: dict[int, Callable[[Params], float]] = {1: objectives.speed, 2: objectives.size}
    for unknown in (1, 2):
        functions = known if unknown == 1 else {2: objectives.size}
        for name in ("space", "learned"):
            ours = SpacePool(space, Band.around(BUDGET, 0.05), 0) if name == "space" else None
            sampler = KnownCostSampler(functions, seed=0, pool=ours)
            seconds = [_seconds(sampler, study, trials + index) for index in range(asks + 1)]
            spread = Spread.of(seconds[1:])
            yield {
                "trials": trials,
                "unknown": unknown,
                "pool": name,
                "front": len(study.best_trials),
                "first_ms": 1e3 * seconds[0],
                "median_ms": 1e3 * spread.median,
                "iqr": spread.iqr,
                "max_ms": 1e3 * max(seconds[1:]),
                "asks": asks,
            }


def _seconds(sampler: KnownCostSampler, study: optuna.Study, number: int) -> float:
    start = time.process_time()
    assert sampler.propose(study, number) is not None
    return time.process_time() - start


def _times(row: Row) -> list[str]:
    return [f"{row['first_ms']:.0f}", f"{row['median_ms']:.0f}", f"{row['iqr']:.0%}", f"{row['max_ms']:.0f}"]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trials", nargs="+", type=int, default=[100, 500])
    parser.add_argument("--asks", type=int, default=10)


def main() -> None:
    """Measure, print, write."""
    options = arguments(__doc__ or "", add=_options)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if options.smoke:
        options.trials, options.asks = [100], 2
    rows = [row for trials in options.trials for row in measure(trials, options.asks)]
    cells = [[str(row[key]) for key in ("trials", "unknown", "pool", "front")] + _times(row) for row in rows]
    show(make_console(), make_table(COLUMNS, cells, left=("pool",)))
    write(options.out, NAME, rows)


if __name__ == "__main__":
    main()
