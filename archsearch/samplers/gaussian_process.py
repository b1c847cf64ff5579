"""A Gaussian process over encoded rows: one weight a name, fitted by marginal likelihood with priors; numpy and scipy alone.

k(x, y) = amplitude * exp(-sum_n weight_n * d_n(x, y)) + 1 + c(x).c(y), with d_n the squared distance within the columns of group n, and c the known
objectives, standardised: the constant and the slopes of a linear mean are integrated out under unit normals. Further inputs have slopes too, under normals
whose variances are fitted. botorch would bring
gpytorch along for a few hundred rows; the tests hold likelihood, gradient and posterior against SciPy and dense formulas.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.special import expit

from archsearch.metrics import Array

Indices = NDArray[np.int64]

# Means and deviations of the normal priors on the logarithms; the mean of the weights depends on their number.
_AMPLITUDE = (0.0, 1.0)
_NOISE = (np.log(0.01), 2.0)
_WEIGHT_DEVIATION = 1.0
_SLOPE_VARIANCE = (np.log(0.25), 1.5)
# Of the logit of a code's share beside a number; the logit of no share; and by how much its log posterior must be better for numbers alone: with few
# observations a mixture is the safer guess.
_SHARE = (0.0, 2.0)
_NO_SHARE = -30.0
_CLEARLY = 5.0
_NONE: Indices = np.array([], dtype=np.int64)
_LIMIT = 6.0  # an optimum lies within this many deviations
_JITTER = 1e-6
_ITERATIONS = 60
_CELLS = 2_000_000  # numbers in one array of observations by candidates: 16 MB


class Inputs(NamedTuple):
    """Encoded rows (N, W) and standardised known objectives (N, K)."""

    rows: Array
    known: Array


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """Of standardised outputs: `amplitude` and `noise` are variances, `weights` has one number for each group of columns.

    The slopes of further inputs are normal with `slope_means` (J,), which are given, and `slope_variances`, which are fitted.
    """

    amplitude: float
    noise: float
    weights: Array
    slope_variances: Array = field(default_factory=lambda: np.zeros(0))
    slope_means: Array = field(default_factory=lambda: np.zeros(0))

    @property
    def logs(self) -> Array:
        """As one vector of logarithms: amplitude, noise, weights, variances of slopes."""
        return np.log(np.concatenate(([self.amplitude, self.noise], self.weights, self.slope_variances)))

    @classmethod
    def from_logs(cls, logs: Array, num_slopes: int = 0) -> "Hyperparameters":
        """From `logs`."""
        values = np.exp(logs)
        last = len(values) - num_slopes
        return cls(
            amplitude=float(values[0]), noise=float(values[1]), weights=values[2:last], slope_variances=values[last:]
        )


def kernel(first: Inputs, second: Inputs, groups: Indices, at: Hyperparameters) -> Array:
    """Covariances (N, P) without noise."""
    weights = at.weights[groups]
    return _kernel(_weigh(first, weights), _weigh(second, weights), at.amplitude)


class _Weighed(NamedTuple):
    """Inputs with rows times the roots of their columns' weights, and the squared lengths (N,) of these."""

    rows: Array
    squares: Array
    known: Array


def _weigh(inputs: Inputs, weights: Array) -> _Weighed:
    rows = inputs.rows * np.sqrt(weights)
    return _Weighed(rows, (rows**2).sum(axis=1), inputs.known)


def _kernel(first: _Weighed, second: _Weighed, amplitude: float) -> Array:
    return np.asarray(amplitude * np.exp(-_distances(first, second)) + _linear(first.known, second.known))


def _distances(first: _Weighed, second: _Weighed) -> Array:
    """Weighted squared distances (N, P)."""
    squares = first.squares[:, None] + second.squares[None, :] - 2 * first.rows @ second.rows.T
    return np.asarray(np.maximum(squares, 0.0))


def _linear(first: Array, second: Array) -> Array:
    return np.asarray(1.0 + first @ second.T)


class HyperparameterFit:
    """The negative log posterior of the hyperparameters, and its gradient, on some data.

    They are searched as one vector: the logarithms of amplitude, noise, and each group's weight. Two groups that are readings of one name have, in these
    places, the logarithm of their common weight and the logit of the second's share in it: the likelihood decides between them. The logarithms of the
    variances of further inputs' slopes come last.
    """

    def __init__(
        self,
        inputs: Inputs,
        outputs: Array,
        extra_noise: Array,
        groups: Indices,
        pairs: Sequence[tuple[int, int]] = (),
        given: Array | None = None,
    ) -> None:
        """`extra_noise` (N,): variances of outputs that are not measured but inferred. `pairs`: groups that are two readings of one name.

        `given` (N, J): further inputs, whose slopes are normal around 0 with variances that are fitted.
        """
        self.outputs, self.extra_noise = outputs, extra_noise
        number = int(groups.max()) + 1 if len(groups) else 0
        weighed = [_weigh(Inputs(inputs.rows[:, groups == group], inputs.known), np.ones(1)) for group in range(number)]
        distances = [_distances(rows, rows) for rows in weighed]
        self.per_group = np.stack(distances or [np.zeros((0, 0))]).reshape(number, -1)  # (groups, N * N)
        self.linear = _linear(inputs.known, inputs.known)
        self._first, self._second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        # Two random candidates correlate by about 1/e at this weight on every name.
        weight = 2.0 / max(1, number - len(pairs))
        means, deviations = np.full(number, np.log(weight)), np.full(number, _WEIGHT_DEVIATION)
        means[self._second], deviations[self._second] = _SHARE
        self._given = np.zeros((len(outputs), 0)) if given is None else given
        slopes = np.ones(self._given.shape[1])
        self.means = np.concatenate(([_AMPLITUDE[0], _NOISE[0]], means, _SLOPE_VARIANCE[0] * slopes))
        self.deviations = np.concatenate(([_AMPLITUDE[1], _NOISE[1]], deviations, _SLOPE_VARIANCE[1] * slopes))

    def unpack(self, vector: Array) -> Hyperparameters:
        """The hyperparameters of a vector."""
        at = Hyperparameters.from_logs(vector, self._given.shape[1])
        share = expit(vector[2 + self._second])
        common = at.weights[self._first]
        at.weights[self._first], at.weights[self._second] = common * (1 - share), common * share
        return at

    def loss(self, vector: Array) -> tuple[float, Array]:
        """Negative log posterior up to a constant, and its gradient by the vector."""
        at, number = self.unpack(vector), len(self.outputs)
        smooth = at.amplitude * np.exp(-(at.weights @ self.per_group)).reshape(number, number)
        matrix = smooth + self.linear + np.diag(at.noise + self.extra_noise + _JITTER)
        if len(at.slope_variances):
            matrix += (self._given * at.slope_variances) @ self._given.T
        factor = cho_factor(matrix, lower=True, check_finite=False)
        alpha = cho_solve(factor, self.outputs, check_finite=False)
        inverse = cho_solve(factor, np.eye(number), check_finite=False)
        likelihood = 0.5 * self.outputs @ alpha + np.log(np.diag(factor[0])).sum() + 0.5 * number * np.log(2 * np.pi)
        inner = inverse - np.outer(alpha, alpha)  # twice the derivative by the matrix
        weighted = inner * smooth
        by_log = -0.5 * at.weights * (self.per_group @ weighted.ravel())
        share = expit(vector[2 + self._second])
        first, second = by_log[self._first], by_log[self._second]
        by_log[self._first], by_log[self._second] = first + second, (1 - share) * second - share * first
        by_slope = 0.5 * at.slope_variances * ((inner @ self._given) * self._given).sum(axis=0)
        gradient = np.concatenate(([0.5 * weighted.sum(), 0.5 * at.noise * np.trace(inner)], by_log, by_slope))
        away = (vector - self.means) / self.deviations
        return float(likelihood + 0.5 * away @ away), np.asarray(gradient + away / self.deviations)

    def best(self) -> Hyperparameters:
        """The mode alone."""
        return self.best_and_loss()[0]

    def best_and_loss(self) -> tuple[Hyperparameters, float]:
        """The mode and its loss, searched from the priors' means by L-BFGS-B; that without any share of codes where it is clearly the better one."""
        mixed, loss = self._search(self.means)
        if not len(self._second):
            return self.unpack(mixed), loss
        start = self.means.copy()
        start[2 + self._second] = _NO_SHARE
        ordered, ordered_loss = self._search(start, keep=2 + self._second)
        prior = 0.5 * (((start - self.means) / self.deviations) ** 2).sum()  # of shares that are no parameters here
        if ordered_loss - prior + _CLEARLY < loss:
            return self.unpack(ordered), ordered_loss - prior
        return self.unpack(mixed), loss

    def _search(self, start: Array, keep: Indices = _NONE) -> tuple[Array, float]:
        """The vector of the least loss and that loss; entries `keep` stay as they are in `start`."""
        low, high = self.means - _LIMIT * self.deviations, self.means + _LIMIT * self.deviations
        low[keep] = high[keep] = start[keep]
        bounds = list(zip(low, high, strict=True))
        options = {"maxiter": _ITERATIONS}
        found = minimize(self.loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        return found.x, float(found.fun)


class Posterior:
    """Predicts outputs from `inputs` with measured `outputs` (N,)."""

    def __init__(
        self, inputs: Inputs, outputs: Array, extra_noise: Array, groups: Indices, at: Hyperparameters
    ) -> None:
        self.inputs, self.groups, self.at = inputs, groups, at
        self._weights = at.weights[groups]
        self._weighed = _weigh(inputs, self._weights)
        matrix = _kernel(self._weighed, self._weighed, at.amplitude)
        matrix[np.diag_indices_from(matrix)] += at.noise + extra_noise + _JITTER
        self.factor = cholesky(matrix, lower=True, check_finite=False)
        self.alpha = cho_solve((self.factor, True), outputs, check_finite=False)

    def believe(self, inputs: Inputs) -> None:
        """Condition on one more row (1, W), measured as predicted: no mean changes, and deviations shrink near it. Takes the square of N, not the cube."""
        row = _weigh(inputs, self._weights)
        cross = _kernel(self._weighed, row, self.at.amplitude)[:, 0]
        low, size = solve_triangular(self.factor, cross, lower=True, check_finite=False), len(self.alpha)
        corner = _kernel(row, row, self.at.amplitude)[0, 0] + self.at.noise + _JITTER - low @ low
        factor = np.zeros((size + 1, size + 1))
        factor[:size, :size], factor[size, :size], factor[size, size] = self.factor, low, np.sqrt(corner)
        self.factor, self.alpha = factor, np.append(self.alpha, 0.0)
        self.inputs = Inputs(np.vstack((self.inputs.rows, inputs.rows)), np.vstack((self.inputs.known, inputs.known)))
        self._weighed = _Weighed(*(np.concatenate(both) for both in zip(self._weighed, row, strict=True)))

    def predict(self, inputs: Inputs) -> tuple[Array, Array]:
        """Means and standard deviations (P,) of the outputs without noise."""
        step = max(1, _CELLS // len(self.alpha))
        parts = [
            self._predict(Inputs(inputs.rows[start : start + step], inputs.known[start : start + step]))
            for start in range(0, len(inputs.rows), step)
        ]
        means, deviations = zip(*parts, strict=True) if parts else ([np.zeros(0)], [np.zeros(0)])
        return np.concatenate(means), np.concatenate(deviations)

    def _predict(self, inputs: Inputs) -> tuple[Array, Array]:
        cross = _kernel(self._weighed, _weigh(inputs, self._weights), self.at.amplitude)
        solved = solve_triangular(self.factor, cross, lower=True, check_finite=False)
        prior = self.at.amplitude + 1.0 + (inputs.known**2).sum(axis=1)
        variance = prior - (solved**2).sum(axis=0)
        return cross.T @ self.alpha, np.sqrt(np.maximum(variance, 0.0))
