"""One Gaussian process for each unknown objective of a study, with its scaling; refitted only when the data has grown by a share."""

import math
import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from archsearch.metrics import Array
from archsearch.samplers.encoding import Encoder
from archsearch.samplers.gaussian_process import HyperparameterFit, Hyperparameters, Inputs, Posterior
from archsearch.samplers.observations import MOST_FITTED, Observation

_GROWTH = 1.15  # of the data, and one more observation at least, before hyperparameters are refitted
_MOST_REMEMBERED = 50
# Weight of a standardised cost beside parameters, whose distances are up to 1: costs that differ by 2 standard deviations have a distance of 1.
_FEATURE = 0.5
# Beyond this many robust deviations on the bad side values are compressed by a logarithm: how bad a failed training is must not set the scale of the good ones.
_KNEE = 2.0


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Robust standardisation of a minimised objective, compressed where it is bad."""

    centre: float
    unit: float

    @classmethod
    def fit(cls, values: Array) -> "Scale":
        """The scale of these values: median and interquartile range; where that is 0, the standard deviation."""
        low, centre, high = np.quantile(values, (0.25, 0.5, 0.75))
        return cls(centre=float(centre), unit=float((high - low) / 1.349 or values.std() or 1.0))

    def __call__(self, values: Array) -> Array:
        """Standardised values; monotone."""
        scaled = (values - self.centre) / self.unit
        return np.asarray(np.where(scaled > _KNEE, _KNEE + np.log1p(np.maximum(scaled - _KNEE, 0)), scaled))


@dataclass(frozen=True, kw_only=True)
class CostScale:
    """Known objectives (N, K) as standardised features; an objective whose values all have one sign by its logarithm."""

    logs: NDArray[np.bool_]
    centre: Array
    unit: Array

    @classmethod
    def fit(cls, known: Array) -> "CostScale":
        """The scale of these values: mean and standard deviation."""
        logs = np.all(np.abs(known) > 0, axis=0) & np.all(np.sign(known) == np.sign(known[:1]), axis=0)
        raw = _logs(known, logs)
        spread = raw.std(axis=0)
        return cls(logs=logs, centre=raw.mean(axis=0), unit=np.where(spread > 0, spread, 1.0))

    def __call__(self, known: Array) -> Array:
        """Standardised features (N, K)."""
        return np.asarray((_logs(known, self.logs) - self.centre) / self.unit)


def _logs(known: Array, logs: NDArray[np.bool_]) -> Array:
    tiny = np.finfo(float).tiny
    return np.where(logs, np.sign(known) * np.log(np.maximum(np.abs(known), tiny)), known)


class Surrogate:
    """Predicts one unknown objective of encoded candidates, in the units of `scale`."""

    def __init__(
        self,
        encoder: Encoder,
        rows: Sequence[Observation],
        pending: Sequence[Observation],
        objective: int,
        known: Sequence[int],
        cache: dict[Hashable, Hyperparameters],
    ) -> None:
        """`rows` have a finite value of the objective; `known`: indices of the known objectives; `cache`: of hyperparameters.

        Pending trials count with `pending_values`: what is known of the objective already, else what is predicted (Kriging believer).
        """
        data = _TrainingData(encoder, rows, objective, known)
        at = _hyperparameters(encoder, rows, objective, known, cache)
        self.scale, self._data = data.scale, data
        self._posterior = Posterior(data.inputs, data.outputs, data.extra, data.groups, at)
        self._outputs, self._extra = data.outputs, data.extra
        self.pending_values = self.scale(np.array([row.values[objective] for row in pending]))
        is_known = np.isfinite(self.pending_values)
        for places in (np.flatnonzero(is_known), np.flatnonzero(~is_known)):
            if len(places):
                some = [pending[int(place)] for place in places]
                inputs = data.make_inputs(encoder.encode(row.params for row in some), stack_costs(some, known))
                values = self.pending_values[places] if is_known[places[0]] else self._posterior.predict(inputs)[0]
                self.pending_values[places] = values
                self._extend(inputs, values, np.array([row.variances.get(objective, 0.0) for row in some]))

    def _extend(self, inputs: Inputs, outputs: Array, variances: Array) -> None:
        """Condition on more rows, whose outputs have errors of these variances in the objective's own units."""
        before = self._posterior
        both = Inputs(np.vstack((before.inputs.rows, inputs.rows)), np.vstack((before.inputs.known, inputs.known)))
        self._outputs = np.append(self._outputs, outputs)
        self._extra = np.append(self._extra, variances / self.scale.unit**2)
        self._posterior = Posterior(both, self._outputs, self._extra, before.groups, before.at)

    def believe(self, encoded: Array, costs: Array) -> float:
        """Take one more candidate (1, W) for measured as predicted; returns that value."""
        inputs = self._data.make_inputs(encoded, costs)
        mean = float(self._posterior.predict(inputs)[0][0])
        self._posterior.believe(inputs)
        return mean

    def predict(self, encoded: Array, costs: Array) -> tuple[Array, Array]:
        """Means and deviations (P,) of candidates with known objectives `costs` (P, K)."""
        return self._posterior.predict(self._data.make_inputs(encoded, costs))


class _TrainingData:
    """Observations as inputs and outputs of the process, on scales of their own."""

    def __init__(self, encoder: Encoder, rows: Sequence[Observation], objective: int, known: Sequence[int]) -> None:
        values, costs = np.array([row.values[objective] for row in rows]), stack_costs(rows, known)
        self.scale, self._cost_scale = Scale.fit(values), CostScale.fit(costs)
        first = len(np.unique(encoder.groups))
        self.groups = np.concatenate((encoder.groups, first + np.arange(len(known))))
        self.pairs = encoder.pairs
        self.inputs = self.make_inputs(encoder.encode(row.params for row in rows), costs)
        self.outputs = self.scale(values)
        self.extra = np.array([row.variances.get(objective, 0.0) for row in rows]) / self.scale.unit**2

    def make_inputs(self, encoded: Array, costs: Array) -> Inputs:
        """Encoded rows with the standardised costs as further columns."""
        features = self._cost_scale(costs)
        return Inputs(np.hstack((encoded, _FEATURE * features)), features)


def _hyperparameters(
    encoder: Encoder,
    rows: Sequence[Observation],
    objective: int,
    known: Sequence[int],
    cache: dict[Hashable, Hyperparameters],
) -> Hyperparameters:
    """Hyperparameters fitted to some rows on their own scales: they depend on nothing but the study."""
    first = [row for row in rows if row.is_fitted] or _first(rows)
    content = tuple(
        (row.number, *row.pick_values((objective, *known)), row.variances.get(objective, 0.0)) for row in first
    )
    key = (objective, *known, *encoder.names, *encoder.pairs, content)
    if key not in cache:
        if len(cache) >= _MOST_REMEMBERED:
            cache.clear()
        data = _TrainingData(encoder, first, objective, known)
        chosen = np.array(sorted(random.Random(len(first)).sample(range(len(first)), min(len(first), MOST_FITTED))))
        part = Inputs(data.inputs.rows[chosen], data.inputs.known[chosen])
        cache[key] = HyperparameterFit(part, data.outputs[chosen], data.extra[chosen], data.groups, data.pairs).best()
    return cache[key]


def _first(rows: Sequence[Observation]) -> Sequence[Observation]:
    """The first rows, as many as the schedule gives."""
    size = 1
    while (following := max(size + 1, math.floor(size * _GROWTH))) <= len(rows):
        size = following
    return rows[:size]


def stack_costs(rows: Sequence[Observation], known: Sequence[int]) -> Array:
    """The known objectives (N, K) of N observations."""
    return np.array([row.pick_values(known) for row in rows]).reshape(len(rows), len(known))
