"""A search problem that is a table: every candidate with its objectives, so that an evaluation is a look-up."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import moocore
import numpy as np
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution
from optuna.trial import Trial

from archsearch.metrics import is_dominated

Params = dict[str, Any]
REFERENCE = 1.1


@dataclass(frozen=True, kw_only=True)
class TableProblem:
    """`values` (N, M) in the order of `candidates`; `known`: columns that a sampler may know beforehand.

    Where evaluations are noisy `values` are the true ones: `observe` gives those of a row's evaluation in the search of a seed, and `standard_error` the
    known part of the first one's error.

    `suggest` asks a trial for a candidate's names; by default for all of them, which is right where every candidate has the same names and every
    combination of values is in the table.
    """

    name: str
    candidates: Sequence[Params]
    values: NDArray[np.float64]
    directions: tuple[Literal["minimize", "maximize"], ...]
    known: tuple[int, ...] = ()
    suggest: Callable[[Trial], Params] | None = None
    observe: Callable[[int, int], NDArray[np.float64]] | None = None
    standard_error: Callable[[int], float] | None = None

    @cached_property
    def distributions(self) -> dict[str, CategoricalDistribution]:
        """Every name with its values in the table."""
        found: dict[str, dict[Any, None]] = {}
        for params in self.candidates:
            for name, value in params.items():
                found.setdefault(name, {})[value] = None
        return {name: CategoricalDistribution(list(values)) for name, values in found.items()}

    def ask(self, trial: Trial) -> int:
        """The row that the trial's sampler chooses."""
        if self.suggest is not None:
            return self.row(self.suggest(trial))
        return self.row({name: trial._suggest(name, found) for name, found in self.distributions.items()})

    def row(self, params: Mapping[str, Any]) -> int:
        """Place of a candidate in the table."""
        return self._rows[_key(params)]

    def known_functions(self) -> dict[int, Callable[[Params], float]]:
        """The costs that KnownCostSampler knows."""
        return {column: partial(self._value, column) for column in self.known}

    def _value(self, column: int, params: Params) -> float:
        return float(self.values[self.row(params), column])

    def evaluate(self, row: int, seed: int) -> NDArray[np.float64]:
        """What an evaluation of a row gives in the search of this seed; the same each time."""
        return np.asarray(self.values[row] if self.observe is None else self.observe(row, seed))

    def chosen(self, rows: Sequence[int], seed: int) -> list[int]:
        """Those of the rows that are on the front by their evaluations."""
        values = np.array([self.evaluate(row, seed) for row in rows]) * self._signs
        return [row for row, is_out in zip(rows, is_dominated(values), strict=True) if not is_out]

    def share(self, rows: Sequence[int]) -> float:
        """Hypervolume of these rows over that of the whole table: objectives minimised, min-max scaled over the table, reference 1.1."""
        return self._volume(self._scaled[list(rows)]) / self._full

    @cached_property
    def _rows(self) -> dict[Hashable, int]:
        return {_key(params): index for index, params in enumerate(self.candidates)}

    @cached_property
    def _scaled(self) -> NDArray[np.float64]:
        values = self.values * self._signs
        low, high = values.min(axis=0), values.max(axis=0)
        return np.asarray((values - low) / (high - low))

    @property
    def _signs(self) -> NDArray[np.float64]:
        return np.array([-1.0 if direction == "maximize" else 1.0 for direction in self.directions])

    @cached_property
    def _full(self) -> float:
        return self._volume(self._scaled)

    def _volume(self, points: NDArray[np.float64]) -> float:
        return float(moocore.hypervolume(points, ref=[REFERENCE] * points.shape[1]))


def _key(params: Mapping[str, Any]) -> Hashable:
    return tuple(sorted(params.items()))
