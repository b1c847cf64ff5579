"""Expected hypervolume improvement against Monte Carlo, and against hypervolume differences where nothing is uncertain."""

import moocore
import numpy as np
import pytest

from archsearch.metrics import Array
from archsearch.samplers.ehvi import expected_improvement, undominated_boxes


def _gain(front: Array, point: Array, reference: Array) -> float:
    """Hypervolume that `point` adds."""
    both = moocore.hypervolume(np.vstack((front, point)), ref=reference)
    return float(both - moocore.hypervolume(front, ref=reference))


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_known_objectives_give_hypervolume_differences(objectives: int) -> None:
    rng = np.random.default_rng(objectives)
    for number in (1, 3, 12):
        # Few whole values: ties in every objective, duplicates, dominated points and points beyond the reference.
        points = rng.integers(0, 8, (number, objectives)).astype(float)
        candidates = rng.integers(0, 8, (20, objectives)) + rng.choice([0.0, 0.5], (20, objectives))
        reference = np.full(objectives, 6.5)
        found = expected_improvement(undominated_boxes(points, reference), candidates, np.zeros_like(candidates))
        assert found == pytest.approx([_gain(points, point, reference) for point in candidates], abs=1e-9)


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_uncertain_objectives_agree_with_monte_carlo(objectives: int) -> None:
    rng = np.random.default_rng(objectives)
    points, reference = rng.random((6, objectives)), np.ones(objectives)
    means, deviations = rng.random((2, objectives)) * 0.8, rng.random((2, objectives)) * 0.3
    deviations[1, 0] = 0.0  # one candidate has a known objective
    found = expected_improvement(undominated_boxes(points, reference), means, deviations)
    for mean, deviation, value in zip(means, deviations, found, strict=True):
        gains = [_gain(points, sample, reference) for sample in rng.normal(mean, deviation, (2000, objectives))]
        assert value == pytest.approx(np.mean(gains), abs=1e-9 + 4 * np.std(gains) / np.sqrt(2000))


def test_nothing_measured_leaves_one_box() -> None:
    boxes = undominated_boxes(np.zeros((0, 2)), np.array([2.0, 3.0]))
    assert expected_improvement(boxes, np.array([[1.0, 1.0]]), np.zeros((1, 2))) == pytest.approx([2.0])
