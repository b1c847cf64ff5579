"""Calibrated prediction: its arithmetic against slower ways, recovery of known slopes, and the choice of sites."""

import itertools
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.known_machine import KEY, SMALL, known_calibration, small_plan, true_latency_ms, true_ms

from archsearch.errors import UserError
from archsearch.metrics import kendall_tau
from archsearch.space import Space
from archsearch.throughput import left_out_errors
from archsearch.throughput.calibration.regression import (
    left_out_residuals,
    mape,
    non_negative,
    ridge,
    score_predictions,
)
from archsearch.throughput.calibration.sites import Site


def brute_force_tau(one: Sequence[float], other: Sequence[float]) -> float:
    """Tau-b by counting pairs."""
    concordant = discordant = tied_one = tied_other = 0
    for (a, b), (c, d) in itertools.combinations(zip(one, other, strict=True), 2):
        concordant += (a - c) * (b - d) > 0
        discordant += (a - c) * (b - d) < 0
        tied_one += a == c
        tied_other += b == d
    pairs = len(one) * (len(one) - 1) // 2
    return float((concordant - discordant) / ((pairs - tied_one) * (pairs - tied_other)) ** 0.5)


def test_tau_matches_counted_pairs() -> None:
    rng = np.random.default_rng(0)
    for size in (3, 8, 20):
        one, other = rng.integers(0, 6, (2, size)).astype(float)
        assert kendall_tau(one, other) == pytest.approx(brute_force_tau(one.tolist(), other.tolist()))
    assert np.isnan(kendall_tau(np.ones(4), np.arange(4.0)))


def test_ridge_is_least_squares_with_one_more_row_for_each_penalty() -> None:
    rng = np.random.default_rng(1)
    design, target = rng.normal(size=(20, 4)), rng.normal(size=20)
    penalty, prior = np.array([0.1, 2.0, 0.0, 5.0]), np.array([1.0, 0.0, -1.0, 2.0])
    rows = np.vstack([design, np.diag(np.sqrt(penalty))])
    expected = np.linalg.lstsq(rows, np.concatenate([target, np.sqrt(penalty) * prior]), rcond=None)[0]
    assert ridge(design, target, penalty, prior) == pytest.approx(expected)

    refitted = []
    for row in range(20):
        kept = np.arange(20) != row
        refitted.append(target[row] - design[row] @ ridge(design[kept], target[kept], penalty, prior))
    assert left_out_residuals(design, target, penalty, prior) == pytest.approx(np.array(refitted))


def test_the_non_negative_fit_is_the_best_over_all_sets_of_columns() -> None:
    rng = np.random.default_rng(2)
    for _ in range(5):
        design, target = rng.normal(size=(12, 4)), rng.normal(size=12)
        best = float(target @ target)
        for size in range(1, 5):
            for columns in itertools.combinations(range(4), size):
                part = design[:, columns]
                found = np.linalg.lstsq(part, target, rcond=None)[0]
                if np.all(found >= 0):
                    best = min(best, float(np.sum((target - part @ found) ** 2)))
        coefficients = non_negative(design, target, 0.0)
        assert np.all(coefficients >= 0)
        assert np.sum((target - design @ coefficients) ** 2) == pytest.approx(best, rel=1e-6)


def test_scores_lie_inside_their_intervals() -> None:
    rng = np.random.default_rng(3)
    measured = rng.uniform(1, 2, 30)
    predicted = measured * rng.normal(1, 0.05, 30)
    found = score_predictions(predicted, measured)
    assert found is not None
    assert found.count == 30
    assert found.mape.value == pytest.approx(np.abs(predicted / measured - 1).mean())
    assert found.mape.value == mape(predicted, measured)
    assert found.mape.low < found.mape.value < found.mape.high
    assert found.tau.low < found.tau.value <= found.tau.high
    # The interval of a mean is about its value +- 1.96 standard errors.
    error = np.abs(predicted / measured - 1).std() / 30**0.5
    assert (found.mape.high - found.mape.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.15)
    assert score_predictions(measured[:2], measured[:2]) is None


def test_known_slopes_are_recovered(tmp_path: Path) -> None:
    plan, calibration = known_calibration(tmp_path)
    for task in plan.networks:
        truth = 1000 * KEY.batch_size / true_latency_ms(task.arch)
        speed = np.median([row["reference_img_s"] for row in calibration.rows if row["record"] == "network"]) / 50
        assert calibration.predict(task.arch) == pytest.approx(truth * speed, rel=0.03)
    assert calibration.mape < 0.015
    assert calibration.is_trusted
    held_out = [network for network in calibration.networks if network.group == "held_out"]
    assert len(held_out) == 12
    assert calibration.tau == pytest.approx(
        brute_force_tau([each.predicted_img_s or 0 for each in held_out], [each.steady_img_s for each in held_out])
    )


def test_sites_that_were_not_timed_are_interpolated() -> None:
    plan = small_plan()
    slopes = {site: true_ms(site) for site in plan.space_sites}
    errors = left_out_errors(slopes)
    assert np.median(np.abs(list(errors.values()))) < 0.05


def test_kinds_and_sizes_that_were_not_timed_are_not_predicted(tmp_path: Path) -> None:
    plan, calibration = known_calibration(tmp_path)
    arch = plan.networks[0].arch
    assert calibration.predict(arch) is not None
    assert calibration.predict(replace(arch, image_size=64)) is None
    assert calibration.predict(replace(arch, image_size=(32, 64))) is None
    assert calibration.predict(replace(arch, in_chans=4)) is None
    text = SMALL.replace("lka", "channel").replace("channel = { kernel = [9, 21] }", "")
    other = Space(tomllib.loads(text), "other.toml", text)
    assert calibration.predict(other.sample(lambda name, choices: choices[0])) is None


def test_the_chosen_sites_have_every_kind_at_every_shape_and_every_value() -> None:
    plan = small_plan()
    chosen = plan.sites
    groups = [(site.kind, site.shape, site.out) for site in chosen]
    assert set(groups) == {(site.kind, site.shape, site.out) for site in plan.space_sites}
    assert len(set(chosen)) == len(chosen) <= 40 < len(plan.space_sites)
    assert set(small_plan(slopes=10_000).sites) == set(plan.space_sites)
    assert len(small_plan(slopes=1).sites) == len(set(groups))

    def values(sites: Sequence[Site]) -> set[Any]:
        return {(site.kind, site.shape[1:], item) for site in sites for item in site.values().items()}

    assert values(chosen) == values(plan.space_sites)
    assert small_plan(papers=()).sites == chosen  # drawn again
    assert small_plan(seed=1).sites != chosen


def test_hybrids_are_distinct_and_inside_the_band() -> None:
    plan = small_plan()
    groups = [task.group for task in plan.networks]
    assert (groups.count("train"), groups.count("held_out")) == (24, 12)
    assert len({task.arch.arch_id for task in plan.networks}) == 36
    assert all(plan.band.contains(task.arch.cost().macs) for task in plan.networks)
    text = SMALL.replace("[1, 2, 3]", "1").replace("[1, 2]", "1").replace("[32, 64]", "32").replace("[64, 96]", "64")
    with pytest.raises(UserError, match=r"\d\d different architectures were found .*lower --held-out"):
        _ = small_plan(space=Space(tomllib.loads(text), "few.toml", text), held_out=500).networks
