"""Multi-objective early stopping: after each rung (a part of its training) a candidate goes on only if it can still reach the front.

Everything but the score is known before the first training, so a candidate is stopped when another one is no worse in all of
that and has a score that is out of reach. Not MO-ASHA, whose open code reads an argsort as a rank and so keeps the median as
often as the best. Sums are exact (fsum), so that the same set in another order gives the same decision to the last bit.

Which noise is counted where. The gain from one rung to the next is a regression of measured scores on measured scores: its
residuals hold the noise of both, so a candidate's own standard error is not added to them. Another candidate's score at the
next rung is measured already, its noise in no residual: its standard error is added. Where neither has reached the next rung,
both residuals count. The margin is never narrower than a tie of the two scores.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from archsearch.metrics import TIE_SE, Array, is_dominated

# Optimism: the candidate is taken to be this many standard deviations better than expected.
OPTIMISM = 2.0
# Prior of the gain: slope 1 and this scatter, weighted as this many pairs with this spread.
_PRIOR_SD, _PRIOR_PAIRS, _PRIOR_SPREAD = 0.05, 4, 0.1
# The score floor needs at least this many trials.
_MIN_FLOOR_TRIALS = 8
# The regression of trained scores on a training-free one needs at least this many trials with both.
_MIN_FREE_PAIRS = 8


@dataclass(frozen=True, kw_only=True)
class RungScore:
    """The score of a finished rung: the share of validation images classified correctly, and its standard error."""

    value: float
    standard_error: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A candidate for early stopping: `costs` are its other objectives, all minimised; `scores` those of its finished rungs, in order."""

    trial: int
    costs: tuple[float, ...]
    scores: tuple[RungScore, ...]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether a candidate goes on; if not, the reason and the trial that beats it (None where its score is hopeless at any cost)."""

    goes_on: bool
    reason: str | None = None
    stopped_by: int | None = None


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Predicts the score at the next rung from the score at this one, fitted to `num_pairs` trials that have both.

    A linear regression with a conjugate prior (slope 1, flat intercept): `variance` is of the residuals, `slope_variance` of
    the slope. Trials go on because of their score at this rung, so leaving the stopped ones out does not bias the fit.
    """

    num_pairs: int
    mean: float
    next_mean: float
    slope: float
    variance: float
    slope_variance: float

    @staticmethod
    def fit(pairs: Sequence[tuple[float, float]]) -> "Gain":
        """The gain fitted to (score, next score) pairs; without any it is the prior."""
        number = len(pairs)
        scores, following = np.array(pairs, dtype=np.float64).reshape(number, 2).T
        mean, next_mean = _sum(scores) / max(number, 1), _sum(following) / max(number, 1)
        x, y = scores - mean, following - next_mean
        prior = _PRIOR_PAIRS * _PRIOR_SPREAD**2
        spread = _sum(x * x) + prior
        # Never negative: a better score is not expected to become a worse one.
        slope = max(0.0, (_sum(x * y) + prior) / spread)
        squares = _sum((y - slope * x) ** 2) + prior * (slope - 1.0) ** 2
        variance = (_PRIOR_PAIRS * _PRIOR_SD**2 + squares) / (_PRIOR_PAIRS + max(number - 1, 0))
        return Gain(
            num_pairs=number,
            mean=mean,
            next_mean=next_mean,
            slope=slope,
            variance=variance,
            slope_variance=variance / spread,
        )

    def expected(self, score: float) -> float:
        """The expected next score; without any pair only up to a constant that is the same for all trials."""
        return self.next_mean + self.slope * (score - self.mean)

    def variance_of_next(self, score: float, z: float) -> float:
        """Variance of the measured next score about `expected`: residual, intercept and slope."""
        return self.variance * (1 + 1 / max(self.num_pairs, 1)) + self._slope_part(score - self.mean, z)

    def variance_of_difference(self, difference: float, z: float) -> float:
        """Variance of the difference of two unmeasured next scores, given the difference of the scores: the common intercept cancels."""
        return 2 * self.variance + self._slope_part(difference, z)

    def _slope_part(self, distance: float, z: float) -> float:
        # Capped where z standard deviations would exceed the slope: else a lower score would be the more promising one.
        return distance**2 * min(self.slope_variance, (self.slope / z) ** 2)


def _sum(values: Array) -> float:
    """Exact, so that it does not depend on the order."""
    return math.fsum(values.tolist())


def with_free_rung(curves: Sequence[Curve], values: Mapping[int, float]) -> list[Curve]:
    """The curves with a training-free score (`values`, by trial) as their first rung; those of trials without one are left out.

    The score is brought to the scale of the first trained one by a linear regression over the trials that have both; the residual
    standard deviation becomes its standard error, so that `goes_on` applies as to any rung and an uninformative score stops no trial.
    Higher must be better. Empty with too few such trials, and where the slope is not positive.
    """
    both = [(values[curve.trial], curve.scores[0].value) for curve in curves if curve.scores and curve.trial in values]
    if len(both) < _MIN_FREE_PAIRS:
        return []
    free, trained = np.array(both, dtype=np.float64).T
    offsets = free - free.mean()
    slope = float(offsets @ trained) / float(offsets @ offsets) if offsets.any() else 0.0
    if slope <= 0:
        return []
    error = float(np.sqrt(np.sum((trained - trained.mean() - slope * offsets) ** 2) / (len(both) - 2)))

    def rescale(trial: int) -> RungScore:
        return RungScore(value=float(trained.mean() + slope * (values[trial] - free.mean())), standard_error=error)

    return [replace(curve, scores=(rescale(curve.trial), *curve.scores)) for curve in curves if curve.trial in values]


def goes_on(candidate: Curve, others: Sequence[Curve], *, names: Sequence[str] = (), z: float = OPTIMISM) -> Decision:
    """Whether a candidate that has just finished a rung is trained up to the next one.

    `others` are all other trials that did not fail, stopped ones included; those that have not finished this rung are ignored.
    `names` are the names of the costs, for the reason.
    """
    assert z > 0, "optimism counts standard deviations"
    rung = len(candidate.scores) - 1
    rivals = [other for other in others if len(other.scores) > rung]
    gain = Gain.fit(
        [(one.scores[rung].value, one.scores[rung + 1].value) for one in rivals if len(one.scores) > rung + 1]
    )
    beyond = [
        (excess, other) for other in _threats(candidate, rivals) if (excess := _excess(candidate, other, gain, z)) > 0
    ]
    if beyond:
        excess, best = max(beyond, key=lambda item: (item[0], -item[1].trial))
        return Decision(goes_on=False, reason=_reason(candidate, best, excess, names), stopped_by=best.trial)
    score, floor = candidate.scores[rung], score_floor(rivals, rung)
    if floor is not None:
        margin = max(z, TIE_SE) * math.hypot(score.standard_error, floor.standard_error)
        if score.value + margin < floor.value:
            reason = f"its score {score.value:.3f} is too low to matter at any cost: the floor of this rung is {floor.value:.3f}"
            return Decision(goes_on=False, reason=reason)
    return Decision(goes_on=True)


def _threats(candidate: Curve, rivals: Sequence[Curve]) -> list[Curve]:
    """The rivals that are no worse in the score of this rung and in every cost: only they can stop the candidate."""
    rung = len(candidate.scores) - 1
    scores = np.array([rival.scores[rung].value for rival in rivals], dtype=np.float64)
    costs = np.array([rival.costs for rival in rivals], dtype=np.float64).reshape(len(rivals), len(candidate.costs))
    is_threat = (scores >= candidate.scores[rung].value) & np.all(costs <= candidate.costs, axis=1)
    return [rival for rival, is_one in zip(rivals, is_threat.tolist(), strict=True) if is_one]


def _excess(candidate: Curve, other: Curve, gain: Gain, z: float) -> float:
    """How far the next score of a threat lies above the candidate's optimistic one; at most 0 if it does not stop the candidate."""
    rung = len(candidate.scores) - 1
    own, rival, later = candidate.scores[rung], other.scores[rung], other.scores[rung + 1 :]
    stretch = max(gain.slope, 1.0)
    if later:
        lead = later[0].value - gain.expected(own.value)
        variance = gain.variance_of_next(own.value, z) + later[0].standard_error ** 2
        tie = math.hypot(stretch * own.standard_error, later[0].standard_error)
    else:
        difference = rival.value - own.value
        lead = gain.slope * difference
        variance = gain.variance_of_difference(difference, z)
        tie = stretch * math.hypot(own.standard_error, rival.standard_error)
    return lead - max(z * math.sqrt(variance), TIE_SE * tie)


def score_floor(rivals: Sequence[Curve], rung: int) -> RungScore | None:
    """The score below which a candidate is hopeless at any cost, though it may be the cheapest; None with too few trials.

    It lies as far below the worst score of this rung's front (over the costs and the score) as that lies below the best one. The
    front is that of the trials that went on, where there are enough, so that one hopeless trial does not lower the floor for the
    next. Quartiles of the front's scores (Tukey's fences) were tried: on our table of hybrids they stopped one in ten members of
    the final front, those at its cheap end.
    """
    went_on = [curve for curve in rivals if len(curve.scores) > rung + 1]
    judged = went_on if len(went_on) >= _MIN_FLOOR_TRIALS else rivals
    if len(judged) < _MIN_FLOOR_TRIALS:
        return None
    values = np.array([(*curve.costs, -curve.scores[rung].value) for curve in judged], dtype=np.float64)
    front = [curve.scores[rung] for curve, is_out in zip(judged, is_dominated(values), strict=True) if not is_out]
    front.sort(key=lambda score: (score.value, -score.standard_error))
    worst, best = front[0], front[-1]
    return RungScore(value=worst.value - (best.value - worst.value), standard_error=worst.standard_error)


def _reason(candidate: Curve, other: Curve, excess: float, names: Sequence[str]) -> str:
    """The decision in words: which trial is no worse in which costs, and which of its scores is out of reach."""
    rung = len(candidate.scores) - 1
    listed = " and ".join(", ".join(names).rsplit(", ", 1)) or "all else"
    if len(other.scores) > rung + 1:
        following = other.scores[rung + 1].value
        outcome = f"its next score {following:.3f} is beyond {following - excess:.3f}, the best expected here"
    else:
        outcome = f"its score {other.scores[rung].value:.3f} is out of reach from {candidate.scores[rung].value:.3f}"
    return f"trial {other.trial} is no worse in {listed}, and {outcome}"
