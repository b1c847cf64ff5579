"""Inputs for the known-cost sampler on table problems: a donor, synthetic proxies of a given rank correlation, and what misleads."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from nas_bench_201 import nas_bench_201
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr
from table_problem import Params, TableProblem

from archsearch.space import load_space, spectral_capacity

SPACE = Path(__file__).resolve().parents[1] / "data" / "hybrid_table.toml"
SCORES = SPACE.with_name("hybrid_table_training_free.parquet")
DEAR = ("naswot", "zico", "expressivity", "progressivity", "trainability")
PROXY = 0.68  # Spearman's correlation with the objective
_HALVINGS = 40

Floats = NDArray[np.float64]


class TableInputs:
    """Numbers (N,) in the order of the table's candidates, or several (N, J), as one input or several."""

    def __init__(self, problem: TableProblem, values: Floats, *, num_estimates: int | None = None) -> None:
        """The first `num_estimates` of the J, by default all, are given as estimates."""
        self._problem, self._values = problem, values.reshape(len(problem.candidates), -1)
        self.names = tuple(f"input_{place}" for place in range(self._values.shape[1]))
        self.estimates = frozenset(self.names[:num_estimates])

    def __call__(self, candidates: Sequence[Params]) -> Floats:
        """Rows of the table."""
        return self._values[[self._problem.row(params) for params in candidates]]


def donor(problem: TableProblem, seed: int) -> TableInputs:
    """The errors on CIFAR-10 of the same networks."""
    return TableInputs(problem, nas_bench_201("cifar10").values[:, 0])


def proxy(problem: TableProblem, seed: int) -> TableInputs:
    """The objective's ranks with noise, as much as leaves a Spearman correlation of PROXY; other noise for each seed."""
    ranks = rankdata(problem.values[:, 0]) / len(problem.values)
    noise = np.random.default_rng(seed).normal(size=len(ranks))
    low, high = 0.0, 10.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_more = spearmanr(ranks + middle * noise, problem.values[:, 0]).statistic > PROXY
        low, high = (middle, high) if is_more else (low, middle)
    return TableInputs(problem, ranks + low * noise)


def noise(problem: TableProblem, seed: int) -> TableInputs:
    """Numbers that have nothing to do with the objective, given as an estimate."""
    return TableInputs(problem, np.random.default_rng(seed).normal(size=len(problem.values)))


def reversed_proxy(problem: TableProblem, seed: int) -> TableInputs:
    """The proxy with the wrong sign."""
    return TableInputs(problem, -proxy(problem, seed)(problem.candidates)[:, 0])


def counts(problem: TableProblem, seed: int) -> TableInputs:
    """How often each word stands in a candidate: the operations of a NAS-Bench-201 network. No estimate of anything."""
    words = sorted({value for params in problem.candidates for value in params.values() if isinstance(value, str)})
    found = [[list(params.values()).count(word) for word in words] for params in problem.candidates]
    return TableInputs(problem, np.array(found, dtype=np.float64), num_estimates=0)


def capacity(problem: TableProblem, seed: int) -> TableInputs:
    """The spectral capacity of our own hybrids."""
    space = load_space(SPACE)
    archs = [space.sample(lambda name, _, params=params: params[name]) for params in problem.candidates]  # type: ignore[misc]  # a default that binds
    return TableInputs(problem, np.array([spectral_capacity(arch) for arch in archs]))


def training_free(problem: TableProblem, seed: int) -> TableInputs:
    """The capacity and the training-free scores that take seconds, of all our own hybrids: more than any regression from a part of them could know."""
    return TableInputs(problem, np.column_stack((capacity(problem, seed)(problem.candidates), dear_scores(problem))))


def training_free_slopes(problem: TableProblem, seed: int) -> TableInputs:
    """The same, where nothing is believed of the dear ones' slopes."""
    values = np.column_stack((capacity(problem, seed)(problem.candidates), dear_scores(problem)))
    return TableInputs(problem, values, num_estimates=1)


def expressivity(problem: TableProblem, seed: int) -> TableInputs:
    """The capacity and the one of the dear scores that orders our own hybrids best."""
    dear = dear_scores(problem)[:, DEAR.index("expressivity")]
    return TableInputs(problem, np.column_stack((capacity(problem, seed)(problem.candidates), dear)))


def dear_scores(problem: TableProblem) -> Floats:
    """(N, 5) training-free scores of our own hybrids, in the order of the table's candidates."""
    rows = pq.read_table(SCORES).to_pylist()
    by_choices = {_key(row, problem): [row[name] for name in DEAR] for row in rows}
    return np.array([by_choices[_key(params, problem)] for params in problem.candidates])


def _key(row: Params, problem: TableProblem) -> tuple[Any, ...]:
    return tuple(row[name] for name in sorted(problem.candidates[0]))


INPUTS: dict[str, Callable[[TableProblem, int], TableInputs]] = {
    "donor": donor,
    "proxy68": proxy,
    "noise": noise,
    "reversed": reversed_proxy,
    "counts": counts,
    "capacity": capacity,
    "expressivity": expressivity,
    "training-free": training_free,
    "training-free-slopes": training_free_slopes,
}
