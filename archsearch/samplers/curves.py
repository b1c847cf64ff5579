"""Final scores of trials that were stopped early, inferred from the learning curves of those that were not."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

# As many pairs as would halve the regression's pull: a slope of 1 and a shift are believed until the pairs say otherwise.
_SHRINKAGE = 4.0


class Inferred(NamedTuple):
    """A final score and the variance of its error."""

    value: float
    variance: float


Curve = Mapping[int, float]


def infer_final(stopped: Curve, finished: Sequence[tuple[Curve, float]]) -> Inferred | None:
    """From the last rung of `stopped` by a linear regression over finished (curve, final score) that have it; None without such."""
    if not stopped:
        return None
    last = max(stopped)
    pairs = [(curve[last], final) for curve, final in finished if last in curve]
    if not pairs:
        return None
    early, final = (np.array(column) for column in zip(*pairs, strict=True))
    centre, target = early.mean(), final.mean()
    spread = ((early - centre) ** 2).sum()
    typical = spread / len(pairs)
    # Ridge towards a slope of 1: the strength is that of _SHRINKAGE pairs of usual spread.
    penalty = _SHRINKAGE * typical
    together = ((early - centre) * (final - target)).sum()
    slope = (together + penalty) / (spread + penalty) if spread + penalty > 0 else 1.0
    errors = final - target - slope * (early - centre)
    # With few pairs the errors say little: the spread of the finished scores stands in for some of them.
    variance = ((errors**2).sum() + _SHRINKAGE * max(final.var(), typical)) / (len(pairs) + _SHRINKAGE)
    return Inferred(float(target + slope * (stopped[last] - centre)), float(variance))
