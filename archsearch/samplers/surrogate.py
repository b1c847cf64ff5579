"""One Gaussian process for each unknown objective of a study, with its scaling; fitted anew only when the data has grown by a share."""

import math
import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from archsearch.metrics import Array
from archsearch.samplers.encoding import Encoder
from archsearch.samplers.gaussian_process import Fit, Hyperparameters, Inputs, Posterior
from archsearch.samplers.observations import Row

_GROWTH = 1.15
_MOST_FITTED = 200
_MOST_REMEMBERED = 50
# Of a standardised cost beside parameters, whose distances are up to 1: two costs 2 deviations apart are 1 apart.
_FEATURE = 0.5
# Beyond this many robust deviations on the bad side a value counts by its logarithm: a failed training says "bad", not how the good ones differ.
_KNEE = 2.0


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Robust standardisation of a minimised objective, compressed where it is bad."""

    centre: float
    unit: float

    @classmethod
    def of(cls, values: Array) -> "Scale":
        """By median and interquartile range; where that is 0, by the standard deviation."""
        low, centre, high = np.quantile(values, (0.25, 0.5, 0.75))
        return cls(centre=float(centre), unit=float((high - low) / 1.349 or values.std() or 1.0))

    def __call__(self, values: Array) -> Array:
        """Standardised values; monotone."""
        scaled = (values - self.centre) / self.unit
        return np.asarray(np.where(scaled > _KNEE, _KNEE + np.log1p(np.maximum(scaled - _KNEE, 0)), scaled))


@dataclass(frozen=True, kw_only=True)
class CostScale:
    """Known objectives (N, K) as standardised features, by their logarithms where they are all positive."""

    logs: NDArray[np.bool_]
    centre: Array
    unit: Array

    @classmethod
    def of(cls, known: Array) -> "CostScale":
        """By mean and standard deviation."""
        logs = np.all(np.abs(known) > 0, axis=0) & np.all(np.sign(known) == np.sign(known[:1]), axis=0)
        raw = _logs(known, logs)
        spread = raw.std(axis=0)
        return cls(logs=logs, centre=raw.mean(axis=0), unit=np.where(spread > 0, spread, 1.0))

    def __call__(self, known: Array) -> Array:
        """(N, K)."""
        return np.asarray((_logs(known, self.logs) - self.centre) / self.unit)


def _logs(known: Array, logs: NDArray[np.bool_]) -> Array:
    tiny = np.finfo(float).tiny
    return np.where(logs, np.sign(known) * np.log(np.maximum(np.abs(known), tiny)), known)


class Surrogate:
    """Predicts one unknown objective of encoded candidates, in the units of `scale`."""

    def __init__(
        self,
        encoder: Encoder,
        rows: Sequence[Row],
        pending: Sequence[Row],
        objective: int,
        known: Sequence[int],
        cache: dict[Hashable, Hyperparameters],
    ) -> None:
        """`rows`: those with a finite value of the objective; `known`: indices of known objectives; `cache`: of hyperparameters.

        `pending` ones count as having turned out as predicted (Kriging believer); `believed` are their values.
        """
        data = _Data(encoder, rows, objective, known)
        at = _hyperparameters(encoder, rows, objective, known, cache)
        self.scale, self._data = data.scale, data
        self._posterior = Posterior(data.inputs, data.outputs, data.extra, data.groups, at)
        self.believed = np.zeros(0)
        if pending:
            more = data.inputs_of(encoder.encode(row.params for row in pending), costs_of(pending, known))
            self.believed, _ = self._posterior.predict(more)
            both = Inputs(np.vstack((data.inputs.rows, more.rows)), np.vstack((data.inputs.known, more.known)))
            outputs, extra = np.append(data.outputs, self.believed), np.append(data.extra, np.zeros(len(pending)))
            self._posterior = Posterior(both, outputs, extra, data.groups, at)

    def predict(self, encoded: Array, costs: Array) -> tuple[Array, Array]:
        """Means and deviations (P,) of candidates with known objectives `costs` (P, K)."""
        return self._posterior.predict(self._data.inputs_of(encoded, costs))


class _Data:
    """Some rows as the process takes them, on the scales of these rows."""

    def __init__(self, encoder: Encoder, rows: Sequence[Row], objective: int, known: Sequence[int]) -> None:
        values, costs = np.array([row.values[objective] for row in rows]), costs_of(rows, known)
        self.scale, self._cost_scale = Scale.of(values), CostScale.of(costs)
        self.groups = np.concatenate((encoder.groups, len(encoder.names) + np.arange(len(known))))
        self.inputs = self.inputs_of(encoder.encode(row.params for row in rows), costs)
        self.outputs = self.scale(values)
        self.extra = np.array([row.variances.get(objective, 0.0) for row in rows]) / self.scale.unit**2

    def inputs_of(self, encoded: Array, costs: Array) -> Inputs:
        """Encoded rows with the standardised costs as further numbers."""
        features = self._cost_scale(costs)
        return Inputs(np.hstack((encoded, _FEATURE * features)), features)


def _hyperparameters(
    encoder: Encoder,
    rows: Sequence[Row],
    objective: int,
    known: Sequence[int],
    cache: dict[Hashable, Hyperparameters],
) -> Hyperparameters:
    """Fitted to the first rows, as many as the schedule says, on their own scales: a function of the study's content alone."""
    first = rows[: _fitted(len(rows))]
    content = tuple((row.number, *row.values_of((objective, *known))) for row in first)
    key = (objective, *known, *encoder.names, content)
    if key not in cache:
        if len(cache) >= _MOST_REMEMBERED:
            cache.clear()
        data = _Data(encoder, first, objective, known)
        chosen = np.array(sorted(random.Random(len(first)).sample(range(len(first)), min(len(first), _MOST_FITTED))))
        part = Inputs(data.inputs.rows[chosen], data.inputs.known[chosen])
        cache[key] = Fit(part, data.outputs[chosen], data.extra[chosen], data.groups).best()
    return cache[key]


def costs_of(rows: Sequence[Row], known: Sequence[int]) -> Array:
    """The known objectives (N, K) of rows."""
    return np.array([row.values_of(known) for row in rows]).reshape(len(rows), len(known))


def _fitted(number: int) -> int:
    """The largest size of the schedule within `number`: each is the last by _GROWTH, and at least one more."""
    size = 1
    while (following := max(size + 1, math.floor(size * _GROWTH))) <= number:
        size = following
    return size
