"""The first candidates of a study, before there is a model: far from each other, the very first promising by what estimates say."""

import math
import random
from collections.abc import Sequence

import numpy as np

from archsearch.metrics import Array, is_dominated
from archsearch.samplers.acquisition import COMPETING, farthest
from archsearch.samplers.candidates import Candidates, Rows
from archsearch.samplers.ehvi import expected_improvement, undominated_boxes
from archsearch.samplers.encoding import Encoder
from archsearch.samplers.observations import Observations
from archsearch.samplers.pool import Params
from archsearch.samplers.surrogate import stack_costs

# How many rows of a whole table compete for a place among the first trials: other candidates are drawn at random anyway. The very first is drawn from
# the most ordinary rows: the most ordinary one alone left 30 seeds with 12 different runs on the table of hybrids, a tenth with 28 and the same front.
_MOST_COMPETING = 500
_FIRST_AMONG = 0.1
# Error of an estimate, as a share of the standard deviation of all: without one, a study of one objective gains nothing after its first trial.
_ERROR = 0.5
_MARGIN = 0.1  # from the worst candidate to the reference, as a share of the range
NO_SLOPES: Array = np.zeros(0)


def first_candidates(
    candidates: Candidates | Rows,
    observations: Observations,
    encoder: Encoder,
    known: Sequence[int],
    rng: random.Random,
    count: int,
    slopes: Array = NO_SLOPES,
) -> list[Params]:
    """Candidates far from all trials and from each other; where there are estimates (`slopes`), the very first is the most promising by them.

    When an estimate chose all of the first four, or two of them, it found more by the tenth trial where it was good; but one that was noise lost .011
    and .006 of the hypervolume after 50 trials on the table of hybrids, since the models learn more from trials that are far apart. So it loses nothing.
    """
    competing, first_among = COMPETING, 0.0
    if isinstance(candidates, Rows):
        competing, first_among = min(_MOST_COMPETING / len(candidates.params), COMPETING), _FIRST_AMONG
    left, chosen = Rows(params=list(candidates.params), encoded=candidates.encoded, costs=candidates.costs), []
    for _ in range(min(count, len(left.params))):
        if slopes.any() and not observations.rows:
            place = most_promising(*_as_estimated(left, observations, encoder, known, slopes), rng)
        else:
            rows = observations.rows
            place = farthest(encoder, rows, left, known, rng, competing=competing, first_among=first_among)
        chosen.append(left.params[place])
        costs = dict(zip(known, left.costs[place], strict=True))
        observations = observations.with_pending(-1, left.params[place], costs)
        left = left.without(place)
    return chosen


def most_promising(candidates: Array, tried: Array, rng: random.Random) -> int:
    """Index of the candidate, among a random share, of most expected hypervolume improvement, were the trials as estimated.

    `candidates` (N, M), `tried` (T, M): an objective as estimated, on any scale, and the known ones, minimised.
    """
    low, high = candidates.min(axis=0), candidates.max(axis=0)
    reference = high + _MARGIN * np.where(high > low, high - low, 1.0)
    boxes = undominated_boxes(tried[~is_dominated(tried)] if len(tried) else tried, reference)
    some = np.array(rng.sample(range(len(candidates)), math.ceil(COMPETING * len(candidates))))
    deviations = np.zeros((len(some), candidates.shape[1]))
    deviations[:, 0] = _ERROR * candidates[:, 0].std()
    return int(some[np.argmax(expected_improvement(boxes, candidates[some], deviations))])


def _as_estimated(
    candidates: Rows, observations: Observations, encoder: Encoder, known: Sequence[int], slopes: Array
) -> tuple[Array, Array]:
    """Candidates and trials with the objective that the inputs estimate, and the known ones."""
    tried = [row for row in observations.rows if all(map(math.isfinite, row.pick_values(known)))]
    encoded, width = encoder.encode(row.params for row in tried), len(encoder.groups)
    return (
        np.column_stack((candidates.encoded[:, width:] @ slopes, candidates.costs)),
        np.column_stack((encoded[:, width:] @ slopes, stack_costs(tried, known))),
    )
