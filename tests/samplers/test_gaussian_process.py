"""The Gaussian process against dense formulas and scipy, and its distances over conditional parameters."""

import random
from typing import Any

import numpy as np
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.optimize import approx_fprime
from scipy.stats import multivariate_normal

from archsearch.samplers.encoding import Encoder
from archsearch.samplers.gaussian_process import HyperparameterFit, Hyperparameters, Inputs, Posterior, kernel
from archsearch.samplers.observations import infer_final

SPACE: dict[str, BaseDistribution] = {
    "block": CategoricalDistribution(["hilo", "lka"]),
    "hilo.window": CategoricalDistribution([1, 2, 7]),
    "lka.kernel": CategoricalDistribution(["9", "21"]),
    "depth": IntDistribution(1, 12),
    "rate": FloatDistribution(1e-5, 1e-1, log=True),
}
AT = Hyperparameters(amplitude=1.3, noise=0.02, weights=np.array([0.5, 1.5, 0.3, 2.0, 0.7, 1.1]))


def _rows(number: int) -> list[dict[str, Any]]:
    rng = random.Random(0)
    rows = []
    for _ in range(number):
        row: dict[str, Any] = {
            "block": rng.choice(["hilo", "lka"]),
            "depth": rng.randint(1, 12),
            "rate": 10 ** rng.uniform(-5, -1),
        }
        row |= (
            {"hilo.window": rng.choice([1, 2, 7])}
            if row["block"] == "hilo"
            else {"lka.kernel": rng.choice(["9", "21"])}
        )
        rows.append(row)
    return rows


def _data(number: int) -> tuple[Inputs, Any, Any, Any]:
    rng, encoder = np.random.default_rng(0), Encoder(SPACE)
    known = rng.standard_normal((number, 1))
    inputs = Inputs(np.hstack((encoder.encode(_rows(number)), known)), known)
    groups = np.append(encoder.groups, len(SPACE))
    return inputs, rng.standard_normal(number), rng.random(number) * (rng.random(number) < 0.3), groups


def test_likelihood_and_gradient_agree_with_scipy() -> None:
    inputs, outputs, extra, groups = _data(15)
    fit = HyperparameterFit(inputs, outputs, extra, groups)
    covariance = kernel(inputs, inputs, groups, AT) + np.diag(AT.noise + extra)
    prior = 0.5 * (((AT.logs - fit.means) / fit.deviations) ** 2).sum()
    loss, gradient = fit.loss(AT.logs)
    assert loss == pytest.approx(prior - multivariate_normal(np.zeros(15), covariance).logpdf(outputs), rel=1e-4)
    assert gradient == pytest.approx(approx_fprime(AT.logs, lambda logs: fit.loss(logs)[0], 1e-6), rel=1e-3, abs=1e-3)
    best = fit.best()
    assert fit.loss(best.logs)[0] < loss
    assert np.abs(fit.loss(best.logs)[1]).max() < 0.05


def test_posterior_agrees_with_dense_formula() -> None:
    inputs, outputs, extra, groups = _data(25)
    seen, new = (Inputs(inputs.rows[part], inputs.known[part]) for part in (slice(15), slice(15, None)))
    means, deviations = Posterior(seen, outputs[:15], extra[:15], groups, AT).predict(new)
    inverse = np.linalg.inv(kernel(seen, seen, groups, AT) + np.diag(AT.noise + extra[:15]))
    cross = kernel(seen, new, groups, AT)
    assert means == pytest.approx(cross.T @ inverse @ outputs[:15], abs=1e-3)
    variances = np.diag(kernel(new, new, groups, AT) - cross.T @ inverse @ cross)
    assert deviations**2 == pytest.approx(variances, abs=1e-3)


def test_kernel_is_positive_definite_over_conditional_names() -> None:
    inputs, _, _, groups = _data(60)
    assert np.linalg.eigvalsh(kernel(inputs, inputs, groups, AT)).min() > -1e-9


def test_distances_know_order_and_sameness() -> None:
    encoder = Encoder(SPACE)
    base = {"block": "hilo", "depth": 4, "hilo.window": 2}

    def distance(other: dict[str, Any]) -> float:
        first, second = encoder.encode([base, other])
        return float(((first - second) ** 2).sum())

    assert distance(dict(reversed(base.items()))) == 0
    assert distance({**base, "never heard of": 3}) == 0
    assert 0 < distance({**base, "depth": 5}) < distance({**base, "depth": 12}) <= 1
    assert distance({**base, "hilo.window": 1}) < distance({**base, "hilo.window": 7})
    assert distance({**base, "block": "lka"}) == pytest.approx(1)
    # Absent in one: nearly the largest distance; absent in both (lka.kernel, rate above): no effect.
    assert 0.75 <= distance({"block": "hilo", "depth": 4}) <= 1
    assert distance({**base, "lka.kernel": "9"}) == pytest.approx(1)


def test_final_score_follows_the_curves_of_finished_trials() -> None:
    rng = np.random.default_rng(0)
    early = rng.random(40)
    finished = [({4: score, 8: score + 1}, 0.5 * score + 2 + rng.normal(0, 0.01)) for score in early]
    found = infer_final({2: 0.0, 4: 0.9}, finished)
    assert found is not None
    assert found.value == pytest.approx(0.5 * 0.9 + 2, abs=0.05)
    # One finished trial gives the level; without one that has the rung there is no estimate.
    alone = infer_final({4: 0.9}, finished[:1])
    assert alone is not None
    assert alone.value == pytest.approx(finished[0][1] + 0.9 - early[0])
    assert infer_final({2: 0.9}, finished) is None
