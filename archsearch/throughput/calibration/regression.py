"""Ridge regression, and the accuracy of predictions: relative error, rank agreement, and their intervals."""

from dataclasses import dataclass

import numpy as np

from archsearch.metrics import Array, Estimate, estimate, kendall_tau


def ridge(design: Array, target: Array, penalty: Array, prior: Array) -> Array:
    """The coefficients b (P,) that minimise |target - design b|^2 + sum_p penalty_p (b_p - prior_p)^2; design is (N, P)."""
    gram = design.T @ design + np.diag(penalty)
    return prior + np.linalg.solve(gram, design.T @ (target - design @ prior))


def left_out_residuals(design: Array, target: Array, penalty: Array, prior: Array) -> Array:
    """target - prediction (N,) of every row by a ridge fit to the other rows, without refitting: residual / (1 - leverage)."""
    gram = design.T @ design + np.diag(penalty)
    leverage = np.einsum("np,pn->n", design, np.linalg.solve(gram, design.T))
    residuals = target - design @ ridge(design, target, penalty, prior)
    return np.asarray(residuals / (1 - leverage), dtype=np.float64)


def non_negative(design: Array, target: Array, penalty: float) -> Array:
    """Ridge coefficients (P,) that are 0 or more; the penalty is a share of each column's own square sum."""
    from scipy.optimize import nnls  # 0.4 s, and only a fit needs it

    lengths = np.sqrt(np.sum(design * design, axis=0))
    lengths[lengths == 0] = 1.0
    # A ridge is least squares with one more row for each coefficient; columns of length 1 suit the solver's tolerance.
    rows = np.vstack([design / lengths, np.sqrt(penalty) * np.eye(len(lengths))])
    coefficients, _ = nnls(rows, np.concatenate([target, np.zeros(len(lengths))]))
    return np.asarray(coefficients / lengths, dtype=np.float64)


def mape(predicted: Array, measured: Array) -> float:
    """Mean absolute percentage error as a fraction of the measured figures (0.05 is 5 %)."""
    return float(np.mean(np.abs(predicted / measured - 1)))


@dataclass(frozen=True, kw_only=True)
class PredictionScore:
    """Accuracy of the predictions of `count` networks."""

    count: int
    mape: Estimate
    tau: Estimate


def score_predictions(predicted: Array, measured: Array, seed: int = 0) -> PredictionScore | None:
    """MAPE and Kendall's tau of predictions in images/s (N,); None for fewer than three networks."""
    if len(measured) < 3:
        return None
    error, tau = (estimate(figure, predicted, measured, seed=seed) for figure in (mape, kendall_tau))
    return PredictionScore(count=len(measured), mape=error, tau=tau)
