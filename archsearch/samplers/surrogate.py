"""One Gaussian process for each unknown objective of a study, with its scaling; refitted only when the data has grown by a share."""

import math
import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

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
        slopes: Array | None = None,
    ) -> None:
        """`rows` have a finite value of the objective; `known`: indices of the known objectives; `cache`: of hyperparameters.

        `slopes` (J,): of the encoder's further inputs, as they are believed to be before there is data; without it these have no effect.
        Pending trials count with `pending_values`: what is known of the objective already, else what is predicted (Kriging believer).
        """
        at = _hyperparameters(encoder, rows, objective, known, cache, slopes)
        data = _TrainingData(encoder, rows, objective, known, at.slope_means, at.slope_variances)
        self.scale, self._data = data.scale, data
        self._posterior = Posterior(data.inputs, data.outputs, data.extra, data.groups, at)
        self._outputs, self._extra = data.outputs, data.extra
        self.pending_values = self.scale(np.array([row.values[objective] for row in pending]))
        is_known = np.isfinite(self.pending_values)
        for places in (np.flatnonzero(is_known), np.flatnonzero(~is_known)):
            if len(places):
                some = [pending[int(place)] for place in places]
                encoded = encoder.encode(row.params for row in some)
                inputs, trend = data.make_inputs(encoded, stack_costs(some, known)), data.trend(encoded)
                values = (
                    self.pending_values[places] if is_known[places[0]] else self._posterior.predict(inputs)[0] + trend
                )
                self.pending_values[places] = values
                self._extend(inputs, values - trend, np.array([row.variances.get(objective, 0.0) for row in some]))

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
        mean = self._posterior.predict(inputs)[0] + self._data.trend(encoded)
        self._posterior.believe(inputs)
        return float(mean[0])

    def predict(self, encoded: Array, costs: Array) -> tuple[Array, Array]:
        """Means and deviations (P,) of candidates with known objectives `costs` (P, K)."""
        inputs = self._data.make_inputs(encoded, costs)
        means, deviations = self._posterior.predict(inputs)
        return means + self._data.trend(encoded), deviations


class _TrainingData:
    """Observations as inputs and outputs of the process, on scales of their own."""

    def __init__(
        self,
        encoder: Encoder,
        rows: Sequence[Observation],
        objective: int,
        known: Sequence[int],
        slopes: Array,
        variances: Array,
    ) -> None:
        """`slopes`, `variances` (J,): means and variances of the slopes of the encoder's further inputs."""
        values, costs = np.array([row.values[objective] for row in rows]), stack_costs(rows, known)
        self.scale, self._cost_scale = Scale.fit(values), CostScale.fit(costs)
        first = len(np.unique(encoder.groups))
        self.groups = np.concatenate((encoder.groups, first + np.arange(len(known))))
        self.pairs, self._width = encoder.pairs, len(encoder.groups)
        self._slopes, self._roots = slopes, np.sqrt(variances)
        encoded = encoder.encode(row.params for row in rows)
        self.inputs, self.given = self.make_inputs(encoded, costs), encoded[:, self._width :]
        self.outputs = self.scale(values) - self.trend(encoded)
        self.extra = np.array([row.variances.get(objective, 0.0) for row in rows]) / self.scale.unit**2

    def make_inputs(self, encoded: Array, costs: Array) -> Inputs:
        """Encoded rows with the standardised costs as further columns; the further inputs have slopes of unit variance."""
        features, names, given = self._cost_scale(costs), encoded[:, : self._width], encoded[:, self._width :]
        known = np.hstack((features, given * self._roots)) if given.shape[1] else features
        return Inputs(np.hstack((names, _FEATURE * features)), known)

    def trend(self, encoded: Array) -> Array:
        """The outputs (N,) that are believed before there is data."""
        return np.asarray(encoded[:, self._width :] @ self._slopes)


def _hyperparameters(
    encoder: Encoder,
    rows: Sequence[Observation],
    objective: int,
    known: Sequence[int],
    cache: dict[Hashable, Hyperparameters],
    slopes: Array | None,
) -> Hyperparameters:
    """Hyperparameters fitted to some rows on their own scales: they depend on nothing but the study."""
    first = [row for row in rows if row.is_fitted] or _first(rows)
    content = tuple(
        (row.number, *row.pick_values((objective, *known)), row.variances.get(objective, 0.0)) for row in first
    )
    key = (objective, *known, *encoder.names, *encoder.pairs, *(() if slopes is None else slopes), content)
    if key not in cache:
        if len(cache) >= _MOST_REMEMBERED:
            cache.clear()
        cache[key] = _choose_inputs(encoder, first, objective, known, slopes)
    return cache[key]


def _choose_inputs(
    encoder: Encoder, rows: Sequence[Observation], objective: int, known: Sequence[int], slopes: Array | None
) -> Hyperparameters:
    """The fit with all inputs, or without those estimates without which it is better; with none where nothing is said of their slopes."""
    is_used = np.full(encoder.num_inputs, slopes is not None)
    slopes = np.zeros(encoder.num_inputs) if slopes is None else slopes
    best, loss = _fit(encoder, rows, objective, known, slopes, is_used)
    for place in np.flatnonzero(slopes):
        fewer = is_used & (np.arange(len(slopes)) != place)
        found, found_loss = _fit(encoder, rows, objective, known, slopes, fewer)
        if found_loss < loss:
            best, loss, is_used = found, found_loss, fewer
    return best


def _fit(
    encoder: Encoder,
    rows: Sequence[Observation],
    objective: int,
    known: Sequence[int],
    slopes: Array,
    is_used: NDArray[np.bool_],
) -> tuple[Hyperparameters, float]:
    """Hyperparameters with some of the inputs, and their loss."""
    means, variances = slopes * is_used, np.zeros(len(slopes))
    data = _TrainingData(encoder, rows, objective, known, means, variances)
    chosen = np.array(sorted(random.Random(len(rows)).sample(range(len(rows)), min(len(rows), MOST_FITTED))))
    part = Inputs(data.inputs.rows[chosen], data.inputs.known[chosen, : len(known)])
    given = data.given[np.ix_(chosen, is_used)]
    fit = HyperparameterFit(part, data.outputs[chosen], data.extra[chosen], data.groups, data.pairs, given)
    at, loss = fit.best_and_loss()
    variances[is_used] = at.slope_variances
    return replace(at, slope_means=means, slope_variances=variances), loss


def _first(rows: Sequence[Observation]) -> Sequence[Observation]:
    """The first rows, as many as the schedule gives."""
    size = 1
    while (following := max(size + 1, math.floor(size * _GROWTH))) <= len(rows):
        size = following
    return rows[:size]


def stack_costs(rows: Sequence[Observation], known: Sequence[int]) -> Array:
    """The known objectives (N, K) of N observations."""
    return np.array([row.pick_values(known) for row in rows]).reshape(len(rows), len(known))
