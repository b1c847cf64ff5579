"""The Gaussian process against dense formulas and scipy, and its distances over conditional parameters."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from scipy.optimize import approx_fprime
from scipy.stats import multivariate_normal

from archsearch.errors import UserError
from archsearch.samplers.encoding import Encoder
from archsearch.samplers.gaussian_process import HyperparameterFit, Hyperparameters, Inputs, Posterior, kernel
from archsearch.samplers.inputs import InputEncoder, KnownInputs
from archsearch.samplers.observations import FinalScores, Observation
from archsearch.samplers.pool import TablePool
from archsearch.samplers.surrogate import Surrogate

SPACE: dict[str, BaseDistribution] = {
    "block": CategoricalDistribution(["hilo", "lka"]),
    "hilo.window": CategoricalDistribution([1, 2, 7]),
    "lka.kernel": CategoricalDistribution(["9", "21"]),
    "depth": IntDistribution(1, 12),
    "rate": FloatDistribution(1e-5, 1e-1, log=True),
}
# hilo.window is read in two ways, as a number and as a code; the last weight is that of a known objective.
AT = Hyperparameters(amplitude=1.3, noise=0.02, weights=np.array([0.5, 1.5, 0.3, 0.9, 2.0, 0.7, 1.1]))


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


ENCODER = Encoder(SPACE)


def _data(number: int) -> tuple[Inputs, Any, Any, Any]:
    rng, encoder = np.random.default_rng(0), ENCODER
    known = rng.standard_normal((number, 1))
    inputs = Inputs(np.hstack((encoder.encode(_rows(number)), known)), known)
    groups = np.append(encoder.groups, encoder.groups.max() + 1)
    return inputs, rng.standard_normal(number), rng.random(number) * (rng.random(number) < 0.3), groups


def test_likelihood_and_gradient_agree_with_scipy() -> None:
    inputs, outputs, extra, groups = _data(15)
    fit = HyperparameterFit(inputs, outputs, extra, groups, ENCODER.pairs)
    vector = AT.logs  # of the pair: the logarithm of a common weight, and the logit of a share
    at = fit.unpack(vector)
    assert at.weights[2:4].tolist() == pytest.approx([0.3 / 1.9, 0.3 * 0.9 / 1.9])
    covariance = kernel(inputs, inputs, groups, at) + np.diag(at.noise + extra)
    prior = 0.5 * (((vector - fit.means) / fit.deviations) ** 2).sum()
    loss, gradient = fit.loss(vector)
    assert loss == pytest.approx(prior - multivariate_normal(np.zeros(15), covariance).logpdf(outputs), rel=1e-4)
    assert gradient == pytest.approx(approx_fprime(vector, lambda at: fit.loss(at)[0], 1e-6), rel=1e-3, abs=1e-3)
    plain = HyperparameterFit(inputs, outputs, extra, groups)
    best = plain.best().logs
    assert plain.loss(best)[0] < plain.loss(vector)[0]
    assert np.abs(plain.loss(best)[1]).max() < 0.05


def test_slopes_of_inputs_agree_with_the_dense_formula() -> None:
    """A normal slope of variance v for an input z adds v z z' to the covariance."""
    inputs, outputs, extra, groups = _data(15)
    given = np.random.default_rng(1).standard_normal((15, 2))
    fit = HyperparameterFit(inputs, outputs, extra, groups, given=given)
    vector = np.append(AT.logs, np.log([0.7, 0.2]))
    at = fit.unpack(vector)
    assert at.slope_variances.tolist() == pytest.approx([0.7, 0.2])
    covariance = kernel(inputs, inputs, groups, at) + np.diag(at.noise + extra)
    covariance += 0.7 * np.outer(given[:, 0], given[:, 0]) + 0.2 * np.outer(given[:, 1], given[:, 1])
    prior = 0.5 * (((vector - fit.means) / fit.deviations) ** 2).sum()
    loss, gradient = fit.loss(vector)
    assert loss == pytest.approx(prior - multivariate_normal(np.zeros(15), covariance).logpdf(outputs), rel=1e-4)
    assert gradient == pytest.approx(approx_fprime(vector, lambda at: fit.loss(at)[0], 1e-6), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(("believed", "true"), [(-0.5, -0.8), (-0.5, 0.8), (-0.5, 0.0), (0.0, 0.8)])
def test_a_surrogate_learns_what_an_input_is_worth(believed: float, true: float) -> None:
    """Whatever was believed of it, after 30 trials the errors of predictions are half the noise."""
    rng = np.random.default_rng(0)
    rows = [{"x": int(place)} for place in rng.integers(0, 1000, 200)]
    hints = {place: float(rng.standard_normal()) for place in range(1000)}

    class Hint:
        names, estimates = ("hint",), frozenset({"hint"})

        def __call__(self, candidates: Sequence[dict[str, Any]]) -> Any:
            return np.array([[hints[row["x"]]] for row in candidates])

    pool = TablePool([{"x": place} for place in range(1000)])
    encoder = InputEncoder({"x": IntDistribution(0, 999)}, {}, KnownInputs(Hint(), pool, pool.rows))
    outputs = np.array([true * hints[row["x"]] for row in rows]) + rng.normal(0, 0.3, 200)
    observations = [
        Observation(number=number, params=row, state=TrialState.COMPLETE, values=(output,))
        for number, (row, output) in enumerate(zip(rows, outputs, strict=True))
    ]
    surrogate = Surrogate(encoder, observations[:30], [], 0, [], {}, np.array([believed]))
    means, _ = surrogate.predict(encoder.encode(rows[30:]), np.zeros((170, 0)))
    found = means * surrogate.scale.unit + surrogate.scale.centre
    error = np.sqrt(((found - np.array([true * hints[row["x"]] for row in rows[30:]])) ** 2).mean())
    assert error < 0.15


@pytest.mark.parametrize("is_code", [True, False])
def test_the_likelihood_reads_numbers_as_they_are(is_code: bool) -> None:
    """Categories of numbers that are codes, or quantities: predictions are as good as those of who knows which, and better than those of who is wrong."""
    rng = np.random.default_rng(0)
    levels = np.array([rng.permutation(6) if is_code else np.arange(6) for _ in range(4)])
    places = rng.integers(0, 6, (400, 4))
    outputs = (levels[np.arange(4), places] ** 2).sum(axis=1) / 20.0 + rng.normal(0, 0.1, 400)
    rows = [{f"x{name}": int(place) for name, place in enumerate(row)} for row in places]
    space = {f"x{name}": CategoricalDistribution(list(range(6))) for name in range(4)}

    def error(ordered: dict[str, bool]) -> float:
        encoder = Encoder(space, ordered)
        inputs = Inputs(encoder.encode(rows), np.zeros((400, 0)))
        seen, new = (Inputs(inputs.rows[part], inputs.known[part]) for part in (slice(40), slice(40, None)))
        at = HyperparameterFit(seen, outputs[:40], np.zeros(40), encoder.groups, encoder.pairs).best()
        means, _ = Posterior(seen, outputs[:40], np.zeros(40), encoder.groups, at).predict(new)
        return float(np.sqrt(((means - outputs[40:]) ** 2).mean()))

    right, wrong = (error(dict.fromkeys(space, reading)) for reading in (not is_code, is_code))
    assert error({}) < 1.05 * right
    assert error({}) < wrong


def test_ordered_overrules() -> None:
    numbers: dict[str, BaseDistribution] = {"x": CategoricalDistribution([1, 2, 9]), "n": IntDistribution(1, 3)}
    for ordered, pairs, distances in (
        ({"x": True, "n": False}, [], {2: 1 / 64, 9: 1.0}),
        ({"x": False}, [], {2: 1.0, 9: 1.0}),
        ({}, [(1, 2)], {2: 1 + 1 / 64, 9: 2.0}),
    ):
        encoder = Encoder(numbers, ordered)
        rows = encoder.encode([{"x": value, "n": 1} for value in (1, 2, 9)])
        found = ((rows - rows[0]) ** 2).sum(axis=1)
        assert encoder.pairs == pairs
        assert found[1:] == pytest.approx([distances[2], distances[9]])
    first, second, third = Encoder(numbers, {"n": False}).encode([{"n": value} for value in (1, 2, 3)])
    assert ((first - second) ** 2).sum() == pytest.approx(((first - third) ** 2).sum())
    with pytest.raises(UserError, match="ordered is False for a name of FloatDistribution"):
        Encoder(SPACE, {"rate": False})


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
    encoder = Encoder(SPACE, {"hilo.window": True})
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
    found = FinalScores(finished)({2: 0.0, 4: 0.9})
    assert found is not None
    assert found.value == pytest.approx(0.5 * 0.9 + 2, abs=0.05)
    # One finished trial gives the level; without one that has the rung there is no estimate.
    alone = FinalScores(finished[:1])({4: 0.9})
    assert alone is not None
    assert alone.value == pytest.approx(finished[0][1] + 0.9 - early[0])
    assert FinalScores(finished)({2: 0.9}) is None
