"""The first candidates of a study, chosen before there is a model by what estimates say of them."""

import math
import random

import numpy as np

from archsearch.metrics import Array, is_dominated
from archsearch.samplers.acquisition import COMPETING
from archsearch.samplers.ehvi import expected_improvement, undominated_boxes

_ERROR = 0.5  # of an estimate, as a share of the standard deviation of all: without any, a study of one objective gains nothing after its first trial
_MARGIN = 0.1  # from the worst candidate to the reference, as a share of the range


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
    gains = expected_improvement(boxes, candidates[some], deviations)
    return int(some[np.argmax(gains)])
