"""What an ask costs with many trials, on the default space (about 60 conditional names) and three objectives.

    python tests/benchmarks/ask_time.py [--trials 100 500] [--asks 10] [--under-way 60] [--batches 1 8 64] [--only known-cost ...]

`run` is a run's own sampler inside its band, asked for batches while other trials are under way: known-cost with one and two unknown objectives, and
Optuna's samplers, to which all three are unknown. `space` and `learned` are KnownCostSampler for any study, asked for one candidate, with the pool of a
space inside a band, whose known objectives are functions of another pool, and with candidates learned from the study's trials. Times are the processor's,
for each candidate, so that other work on the machine hardly counts. `first` is the first ask of a fresh sampler, with everything to be fitted and
drawn; the others have their memory of it.
"""

import argparse
import random
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import optuna
from clock import Row, Spread, arguments, write
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from archsearch import load_space
from archsearch.report import make_console, make_table, show
from archsearch.samplers import SAMPLERS, KnownCostSampler, make_sampler
from archsearch.samplers.in_band import InBandSampler
from archsearch.samplers.pool import Params
from archsearch.samplers.space_pool import SpacePool
from archsearch.space import Arch, Band, Bounds, Space

NAME = "ask_time"
BUDGET = 4_500_000_000
KEYS = ("trials", "under_way", "sampler", "unknown", "pool", "batch", "front")
COLUMNS = (*(key.replace("_", " ") for key in KEYS), "first ms", "median ms", "IQR", "largest ms")
ASKED = ("known-cost", "nsga2", "tpe", "random")  # gp takes about 20 s a candidate
OBJECTIVES = ("proxy_score", "throughput_img_s", "params")
DIRECTIONS: tuple[Literal["maximize", "minimize"], ...] = ("maximize", "maximize", "minimize")


class Objectives:
    """A score, a speed and the parameters of architectures: the last two are functions of the architecture, the first adds noise."""

    def __init__(self, pool: SpacePool) -> None:
        self._pool = pool

    def speed(self, params: Params) -> float:
        """Of the architecture."""
        return speed_of(self._pool.arch(params))

    def size(self, params: Params) -> float:
        """Parameters."""
        return float(self._pool.arch(params).cost().params)

    def score(self, params: Params, rng: random.Random) -> float:
        """Something with effects of most names."""
        effects = sum(random.Random(f"{name}={value}").gauss(0, 1) for name, value in params.items())
        return effects + self.size(params) / 1e7 + rng.gauss(0, 0.3)


def speed_of(arch: Arch) -> float:
    """Falls with MACs and with the number of stages that mix tokens."""
    mixers = sum(stage.block != "mlp" for stage in arch.stages)
    return float(1e12 / (arch.cost().macs * (1 + 0.15 * mixers)))


def make_study(pool: SpacePool, objectives: Objectives, trials: int, under_way: int = 0) -> optuna.Study:
    """Complete trials of uniform draws, then running ones."""
    rng = random.Random(0)
    study = optuna.create_study(directions=DIRECTIONS)
    for place, params in enumerate(pool.draw(trials + under_way, rng)[: trials + under_way]):
        distributions: dict[str, Any] = {name: CategoricalDistribution(_choices(pool, name)) for name in params}
        values = [objectives.score(params, rng), objectives.speed(params), objectives.size(params)]
        ending: dict[str, Any] = {"values": values} if place < trials else {"state": TrialState.RUNNING}
        study.add_trial(create_trial(params=params, distributions=distributions, **ending))
    return study


def _choices(pool: SpacePool, name: str) -> tuple[Any, ...]:
    found = pool.distributions[name]
    assert isinstance(found, CategoricalDistribution), "a space has nothing else"
    return found.choices


def measure(trials: int, asks: int) -> Iterator[Row]:
    """One row for each number of unknown objectives and each pool of KnownCostSampler."""
    space = load_space("hybrid")
    pool = SpacePool(space, Bounds(macs=Band.around(BUDGET, 0.05)), 1)
    objectives = Objectives(pool)
    study = make_study(pool, objectives, trials)
    known: dict[int, Callable[[Params], float]] = {1: objectives.speed, 2: objectives.size}
    for unknown in (1, 2):
        functions = known if unknown == 1 else {2: objectives.size}
        for name in ("space", "learned"):
            ours = SpacePool(space, Bounds(macs=Band.around(BUDGET, 0.05)), 0) if name == "space" else None
            sampler = KnownCostSampler(functions, seed=0, pool=ours)
            seconds = [
                _seconds(partial(sampler.propose_many, study, trials + index, 1), 1) for index in range(asks + 1)
            ]
            facts = (trials, 0, "known-cost", unknown, name, 1, len(study.best_trials))
            yield {**dict(zip(KEYS, facts, strict=True)), **_figures(seconds)}


def measure_run(trials: int, asks: int, under_way: int, batches: Sequence[int], names: Sequence[str]) -> Iterator[Row]:
    """One row for each of a run's samplers and each size of a batch."""
    space, band = load_space("hybrid"), Band.around(BUDGET, 0.05)
    pool = SpacePool(space, Bounds(macs=band), 1)
    study = make_study(pool, Objectives(pool), trials, under_way)
    stored = frozenset(pool.arch(trial.params).arch_id for trial in study.trials)
    for name in names:
        for unknown in (1, 2) if name == "known-cost" else (3,):
            for batch in batches:
                sampler = _make(name, space, band, stored, None if unknown == 2 else speed_of)
                first = trials + under_way
                calls = [partial(sampler.propose_many, study, first + index, batch) for index in range(asks + 1)]
                facts = (trials, under_way, name, unknown, "run", batch, len(study.best_trials))
                yield {**dict(zip(KEYS, facts, strict=True)), **_figures([_seconds(call, batch) for call in calls])}


def _make(
    name: str, space: Space, band: Band, stored: frozenset[str], predict: Callable[[Arch], float] | None
) -> InBandSampler:
    return make_sampler(name, space, Bounds(macs=band), 0, lambda: stored, objectives=OBJECTIVES, predict=predict)


def _seconds(ask: Callable[[], Sequence[object]], number: int) -> float:
    """The processor's seconds of each of the `number` candidates."""
    start = time.process_time()
    assert len(ask()) == number
    return (time.process_time() - start) / number


def _figures(seconds: Sequence[float]) -> Row:
    spread = Spread.of(seconds[1:])
    return {
        "first_ms": 1e3 * seconds[0],
        "median_ms": 1e3 * spread.median,
        "iqr": spread.iqr,
        "max_ms": 1e3 * max(seconds[1:]),
        "asks": len(seconds) - 1,
    }


def _times(row: Row) -> list[str]:
    return [f"{row['first_ms']:.0f}", f"{row['median_ms']:.0f}", f"{row['iqr']:.0%}", f"{row['max_ms']:.0f}"]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trials", nargs="+", type=int, default=[100, 500])
    parser.add_argument("--asks", type=int, default=10)
    parser.add_argument("--under-way", type=int, default=60, help="running trials beside the others, for batches")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--only", nargs="+", choices=SAMPLERS, default=ASKED, help="the run's samplers")


def main() -> None:
    """Measure, print, write."""
    options = arguments(__doc__ or "", add=_options)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if options.smoke:
        options.trials, options.asks, options.batches, options.only = [100], 2, [1, 8], ["known-cost", "random"]
    rows: list[Row] = []
    for trials in options.trials:
        rows += measure_run(trials, options.asks, options.under_way, options.batches, options.only)
        rows += measure(trials, options.asks) if "known-cost" in options.only else ()
    cells = [[str(row[key]) for key in KEYS] + _times(row) for row in rows]
    show(make_console(), make_table(COLUMNS, cells, left=("sampler", "pool")))
    write(options.out, NAME, rows)


if __name__ == "__main__":
    main()
