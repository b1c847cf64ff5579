"""Scores for the next candidate: expected hypervolume improvement, or, before there is data, the distance to what was tried."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from optuna.trial import TrialState

from archsearch.metrics import Array, is_dominated
from archsearch.samplers.ehvi import Boxes, expected_improvement, undominated_boxes
from archsearch.samplers.encoding import Encoder
from archsearch.samplers.feasibility import Feasibility
from archsearch.samplers.observations import Observation, Observations
from archsearch.samplers.surrogate import Surrogate, stack_costs

# The reference lies beyond the worst value by this share of the objective's range, so that the ends of the front gain something too.
_MARGIN = 0.1
_OPTIMISM = 2.0
_TINY = 1e-9  # where nothing that keeps the constraints can improve the front, what more likely keeps them comes first
_REFRESHED = 32  # scores brought up to date at once
# Weight of parameters, whose mean distance is at most 1, beside known costs by rank.
_VARIETY = 0.5
COMPETING = 0.8  # share of the candidates that each of the first proposals is chosen from


class EncodedCandidates(Protocol):
    """Candidates as rows of numbers, with their known objectives."""

    @property
    def encoded(self) -> Array:
        """Parameters by an Encoder, (N, W)."""

    @property
    def costs(self) -> Array:
        """Known objectives, minimised, (N, K)."""


class Acquisition:
    """Expected hypervolume improvement over complete and pending trials: unknown objectives as their models scale them, known ones in their own units.

    The reference is the worst value of each objective, of known ones among the candidates too, plus a tenth of the range. With a `feasibility` only trials that
    keep the constraints count, and a score is multiplied by the probability that its candidate does (Gardner et al., 2014).
    """

    def __init__(
        self,
        models: Mapping[int, Surrogate],
        known: Sequence[int],
        observations: Observations,
        candidates: EncodedCandidates,
        feasibility: Feasibility | None = None,
    ) -> None:
        """`models` (by index of the objective) and `known` together cover every objective."""
        self._models, self._known, self._candidates = models, list(known), candidates
        self._feasibility = feasibility
        self._width = len(models) + len(known)
        complete, pending = observations.in_state(TrialState.COMPLETE), observations.pending(known)
        if feasibility:
            complete = [row for row in complete if feasibility.keeps(row)]
        points = np.zeros((len(complete) + len(pending), self._width))
        points[:, self._known] = stack_costs([*complete, *pending], known)
        for index, model in models.items():
            # As measured: posterior means of noisy values in their place won 0.003 +- 0.003 of the true hypervolume on the noisy table of hybrids, and
            # lost 0.007 +- 0.003 on NAS-Bench-201's CIFAR-100 with the accuracy of one training (100 evaluations).
            measured = model.scale(np.array([row.values[index] for row in complete]))
            points[:, index] = np.concatenate((measured, model.pending_values))
        self._points = points[np.all(np.isfinite(points), axis=1)]
        self._limit = self._reference(self._points)
        self._boxes = self._make_boxes()

    def _make_boxes(self) -> Boxes:
        self._points = self._points[~is_dominated(self._points)]
        return undominated_boxes(self._points, self._limit)

    def believe(self, place: int) -> None:
        """Count a candidate as evaluated, with the values predicted for it; the reference stays."""
        encoded, costs = self._candidates.encoded[place : place + 1], self._candidates.costs[place : place + 1]
        point = np.zeros((1, self._width))
        point[:, self._known] = costs
        for index, model in self._models.items():
            point[:, index] = model.believe(encoded, costs)
        self._points = np.concatenate((self._points, point))
        self._boxes = self._make_boxes()

    def best(self, scores: Array, *, is_optimistic: bool) -> int:
        """Place of the best candidate; `scores` of an earlier state are brought up to date in place as far as that needs.

        What is believed lowers every score: the front is larger, deviations are smaller, and the improvement is convex in each objective. So an old score
        bounds the new one, and few have to be computed (Minoux, 1978, "Accelerated greedy algorithms").
        """
        is_new = np.isneginf(scores)
        while True:
            order = np.argsort(-scores, kind="stable")
            if is_new[order[0]]:
                return int(order[0])
            old = order[:_REFRESHED][~is_new[order[:_REFRESHED]]]
            scores[old], is_new[old] = self(old, is_optimistic=is_optimistic), True

    def _reference(self, points: Array) -> Array:
        low, high = np.full(self._width, np.inf), np.full(self._width, -np.inf)
        low[self._known], high[self._known] = self._candidates.costs.min(axis=0), self._candidates.costs.max(axis=0)
        if len(points):
            low, high = np.minimum(low, points.min(axis=0)), np.maximum(high, points.max(axis=0))
        else:
            # Only stopped trials so far: their scores are standardised, so nearly all lie between -1 and 1.
            low[list(self._models)], high[list(self._models)] = -1.0, 1.0
        return np.asarray(high + _MARGIN * np.where(high > low, high - low, 1.0))

    def __call__(self, which: slice | NDArray[np.int64], *, is_optimistic: bool = False) -> Array:
        """Scores (C,) of some of the candidates; `is_optimistic`, for when all scores are 0, takes each objective _OPTIMISM deviations better."""
        encoded, costs = self._candidates.encoded[which], self._candidates.costs[which]
        means, deviations = np.zeros((len(encoded), self._width)), np.zeros((len(encoded), self._width))
        means[:, self._known] = costs
        for index, model in self._models.items():
            means[:, index], deviations[:, index] = model.predict(encoded, costs)
        if is_optimistic:
            means, deviations = means - _OPTIMISM * deviations, np.zeros_like(deviations)
        scores = expected_improvement(self._boxes, means, deviations)
        if not self._feasibility:
            return scores
        return (scores + _TINY * is_optimistic) * self._feasibility(encoded, costs)


def farthest(
    encoder: Encoder,
    rows: Sequence[Observation],
    candidates: EncodedCandidates,
    known: Sequence[int],
    rng: random.Random,
    *,
    competing: float = COMPETING,
    first_among: float = 0.0,
) -> int:
    """Index of the candidate, among a random share `competing`, whose nearest observation is farthest in known costs (by rank) and parameters.

    Without an observation it is the one of the most ordinary cost, or one of the share `first_among` of the most ordinary ones.
    """
    number = len(candidates.encoded)
    some = np.array(rng.sample(range(number), math.ceil(competing * number)))
    costs = _ranks(candidates.costs[some], candidates.costs)
    tried = [row for row in rows if np.all(np.isfinite(row.pick_values(known)))]
    if not tried:
        ordinary = np.argsort(np.abs(costs - 0.5).sum(axis=1), kind="stable")
        return int(some[ordinary[rng.randrange(max(1, int(first_among * len(ordinary))))]])
    others = _ranks(stack_costs(tried, known), candidates.costs)
    distances = np.abs(costs[:, None, :] - others[None, :, :]).sum(axis=2)
    first = candidates.encoded[some][:, : len(encoder.groups)]
    second = encoder.encode_names(row.params for row in tried)
    squares = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)[None, :] - 2 * first @ second.T
    distances += _VARIETY * squares / max(1, len(encoder.names))
    return int(some[np.argmax(distances.min(axis=1))])


def pareto_front(rows: Sequence[Observation]) -> list[Observation]:
    """The observations, without nan, that no other dominates."""
    finite = [row for row in rows if np.all(np.isfinite(row.values))]
    if not finite:
        return []
    dominated = is_dominated(np.array([row.values for row in finite]))
    return [row for row, is_out in zip(finite, dominated, strict=True) if not is_out]


def _ranks(values: Array, among: Array) -> Array:
    """Share of `among` (P, K) below each of `values` (N, K), column by column."""
    ranks: Array = np.zeros(values.shape)
    for column in range(values.shape[1]):
        ranks[:, column] = np.searchsorted(np.sort(among[:, column]), values[:, column]) / max(1, len(among))
    return ranks
