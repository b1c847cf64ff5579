"""Whether the known-cost sampler gains when half of its pool is drawn towards high spectral capacity, on simulated scores.

    python tests/benchmarks/tilted_pool.py [--seeds 0-9] [--evaluations 50]

Nothing is trained. The score of an architecture of the default space inside 4.5G is a sum of random effects of its choices and of its spectral capacity,
mixed to the rank correlation with the capacity that the ways are run at (0.68 is a good training-free score, 0 says nothing, -0.68 misleads); parameters
are the known objective, to be minimised. The sampler has the spectral capacity as its input in every way, as in a run.
"""

import argparse
import hashlib
import random
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import optuna
from clock import Row, arguments, write
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState, create_trial
from samplers import parse_seeds

from archsearch.metrics import hypervolume, is_dominated
from archsearch.report import make_console, make_table, show
from archsearch.samplers import KnownCostSampler
from archsearch.samplers.encoding import numeric_values
from archsearch.samplers.space_pool import SpacePool
from archsearch.space import Arch, Band, Bounds, InBand, Params, layer_spectral_capacity, load_space, spectral_capacity

NAME = "tilted_pool"
CORRELATIONS = (0.68, 0.0, -0.68)
MARKS = (10, 25, 50, 100)
SHARES = {"uniform": 0.0, "half tilted": 0.5}
DRAWS = 400  # for the means and deviations of the scores' parts
COLUMNS = ("correlation", "pool", "seeds", *(f"@{mark}" for mark in MARKS), "@50 to uniform")


class TiltedPool(SpacePool):
    """Of whose draws a share is in proportion to exp(capacity / its deviation), which moves the mean by about one deviation."""

    def __init__(self, in_band: InBand, bounds: Bounds, seed: int, share: float, deviation: float) -> None:
        super().__init__(in_band.space, bounds, seed)
        self._in_band, self._share = in_band, share
        self._tilt = lambda placed: layer_spectral_capacity(placed) / deviation

    def _draw_fresh(self, number: int, rng: random.Random) -> list[Params]:
        tilted = round(self._share * number)
        return super()._draw_fresh(number - tilted, rng) + [
            self._keep(*self._in_band.draw(rng, self._tilt)) for _ in range(tilted)
        ]


class Capacity:
    """The spectral capacity as an input that is taken for an estimate of the score."""

    names = ("capacity",)
    estimates = frozenset(names)

    def __init__(self, pool: SpacePool) -> None:
        self._pool = pool

    def __call__(self, candidates: Sequence[Params]) -> np.ndarray[Any, Any]:
        return np.array([[capacity(self._pool.arch(params))] for params in candidates])


@cache
def capacity(arch: Arch) -> float:
    """In nats."""
    return spectral_capacity(arch)


def effects(params: Params, seed: int) -> float:
    """The sum of a normal number for each choice, the same wherever it is made."""
    return sum(
        float(np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}/{item}".encode()).digest()[:8])).normal())
        for item in params.items()
    )


class Scores:
    """Simulated scores of one seed at one correlation, about standard normal over uniform draws."""

    def __init__(self, drawn: Sequence[tuple[Params, Arch]], seed: int, correlation: float) -> None:
        self._seed, self._correlation = seed, correlation
        parts = np.array([(capacity(arch), effects(params, seed)) for params, arch in drawn])
        self._centre, self._unit = parts.mean(axis=0), parts.std(axis=0)

    def __call__(self, params: Params, arch: Arch) -> float:
        part = (np.array([capacity(arch), effects(params, self._seed)]) - self._centre) / self._unit
        return float(part @ (self._correlation, (1 - self._correlation**2) ** 0.5))


def search(pool: SpacePool, scores: Scores, seed: int, evaluations: int) -> list[tuple[float, float]]:
    """Minus score, and parameters, of the trials of one search."""
    sampler = KnownCostSampler(
        {1: lambda params: pool.cost(params).params},
        seed=seed,
        pool=pool,
        inputs=Capacity(pool),
        ordered={name: True for name, found in pool.distributions.items() if numeric_values(found) is not None},
    )
    study = optuna.create_study(directions=("maximize", "minimize"), sampler=sampler)
    found = []
    for number in range(evaluations):
        params = sampler.propose(study, number)
        assert params is not None
        arch = pool.arch(params)
        values = (scores(params, arch), float(arch.cost().params))
        distributions: dict[str, BaseDistribution] = {name: pool.distributions[name] for name in params}
        study.add_trial(
            create_trial(state=TrialState.COMPLETE, params=params, distributions=distributions, values=values)
        )
        found.append((-values[0], values[1]))
    return found


def volume(points: Sequence[tuple[float, float]], low: Any, span: Any) -> float:
    """Hypervolume of scaled points, reference 1.1."""
    scaled = (np.array(points) - low) / span
    inside = scaled[np.all(scaled < 1.1, axis=1)]
    return hypervolume(inside[~is_dominated(inside)], np.full(2, 1.1)) if len(inside) else 0.0


def rows_of(in_band: InBand, bounds: Bounds, seed: int, evaluations: int) -> Iterator[Row]:
    """One row for each correlation, way and mark; shares of the front of everything tried at this seed and correlation."""
    drawn = in_band.draw_many(DRAWS, random.Random(0))
    deviation = statistics.stdev(capacity(arch) for _, arch in drawn)
    for correlation in CORRELATIONS:
        scores = Scores(drawn, seed, correlation)
        found = {
            way: search(TiltedPool(in_band, bounds, seed, share, deviation), scores, seed, evaluations)
            for way, share in SHARES.items()
        }
        every = np.array([point for points in found.values() for point in points])
        base = np.array([(-scores(params, arch), arch.cost().params) for params, arch in drawn])
        low, span = every.min(axis=0), base.max(axis=0) - every.min(axis=0)
        full = volume([tuple(point) for point in every], low, span)
        for way, points in found.items():
            for mark in (mark for mark in MARKS if mark <= evaluations):
                share = volume(points[:mark], low, span) / full
                yield {"correlation": correlation, "pool": way, "seed": seed, "evaluations": mark, "share": share}


def summary(rows: Sequence[Row]) -> Iterator[list[str]]:
    """A line for each correlation and pool: means and standard errors over seeds."""
    groups: dict[tuple[float, str], dict[int, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        groups[row["correlation"], row["pool"]][row["evaluations"]][row["seed"]] = row["share"]
    for (correlation, way), found in groups.items():
        uniform = groups[correlation, "uniform"].get(50, {})
        gains = [share - uniform[seed] for seed, share in found.get(50, {}).items()]
        yield [
            f"{correlation:g}",
            way,
            str(max(len(shares) for shares in found.values())),
            *(_spread(list(found[mark].values())) if mark in found else "-" for mark in MARKS),
            _spread(gains) if gains else "-",
        ]


def _spread(values: Sequence[float]) -> str:
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.4f} +-{error:.4f}"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=parse_seeds, default=range(10), metavar="A-B", help="both ends (default 0-9)")
    parser.add_argument("--evaluations", type=int, default=50, help="of a search (default 50)")


def main() -> None:
    """Search, write, print."""
    options = arguments(__doc__ or "", add=_options)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if options.smoke:
        options.seeds, options.evaluations = range(1), 10
    space = load_space("hybrid")
    bounds = Bounds(macs=Band.around(4_500_000_000, 0.05))
    in_band = InBand(space, bounds.macs)
    rows: list[Row] = []
    for seed in options.seeds:
        rows += rows_of(in_band, bounds, seed, options.evaluations)
        write(options.out, NAME, rows)
    show(make_console(), make_table(COLUMNS, summary(rows), left=("pool",)))


if __name__ == "__main__":
    main()
