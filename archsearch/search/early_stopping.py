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
from math import nan

import numpy as np
from numpy.typing import NDArray

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


@dataclass(frozen=True)
class CurveArrays:
    """N curves as one array: a column for the trial, one for each cost, one for each rung's score, and one for each of its standard errors.

    Scores of rungs that were not finished are nan.
    """

    figures: Array
    num_costs: int

    @staticmethod
    def of(curves: Sequence[Curve], num_costs: int) -> "CurveArrays":
        """The curves as arrays."""
        num_rungs = max((len(curve.scores) for curve in curves), default=0)
        rows = [curve_figures(curve, num_rungs) for curve in curves]
        return CurveArrays(
            np.array(rows, dtype=np.float64).reshape(len(rows), 1 + num_costs + 2 * num_rungs), num_costs
        )

    @property
    def trials(self) -> Array:
        """(N,)."""
        return self.figures[:, 0]

    @property
    def costs(self) -> Array:
        """(N, M), minimised."""
        return self.figures[:, 1 : 1 + self.num_costs]

    def scores(self, rung: int) -> Array:
        """(N,), of a rung from 0."""
        return self._column(rung, 0)

    def errors(self, rung: int) -> Array:
        """(N,), their standard errors."""
        return self._column(rung, 1)

    def _column(self, rung: int, half: int) -> Array:
        num_rungs = (self.figures.shape[1] - 1 - self.num_costs) // 2
        if rung >= num_rungs:
            return np.full(len(self.figures), nan)
        return self.figures[:, 1 + self.num_costs + half * num_rungs + rung]

    def where(self, chosen: NDArray[np.bool_] | NDArray[np.intp]) -> "CurveArrays":
        """Those of a mask (N,), or at these places."""
        return CurveArrays(self.figures[chosen], self.num_costs)


def curve_figures(curve: Curve, num_rungs: int) -> list[float]:
    """The row of a curve in `CurveArrays`."""
    missing = [nan] * (num_rungs - len(curve.scores))
    scores = [score.value for score in curve.scores]
    errors = [score.standard_error for score in curve.scores]
    return [float(curve.trial), *curve.costs, *scores, *missing, *errors, *missing]


class CurveTable:
    """Curves by trial, kept in arrays while they are set and removed one by one: a decision over tens of thousands of them takes milliseconds."""

    def __init__(self, num_costs: int, num_rungs: int) -> None:
        self._num_costs, self._num_rungs = num_costs, num_rungs
        self._places: dict[int, int] = {}
        self._figures = np.full((64, 1 + num_costs + 2 * num_rungs), nan)

    def set(self, curve: Curve) -> None:
        """Add a curve, or replace that of its trial."""
        place = self._places.setdefault(curve.trial, len(self._places))
        if place == len(self._figures):
            self._figures = np.vstack((self._figures, np.full_like(self._figures, nan)))
        self._figures[place] = curve_figures(curve, self._num_rungs)

    def remove(self, trial: int) -> None:
        """Remove the curve of a trial if there is one."""
        if trial in self._places:
            self._figures[self._places[trial]] = nan

    def arrays(self) -> CurveArrays:
        """All curves; a removed one is a row of nan."""
        return CurveArrays(self._figures[: len(self._places)], self._num_costs)

    def get(self, trial: int) -> Curve | None:
        """The curve of a trial."""
        if trial not in self._places or np.isnan(self._figures[self._places[trial], 0]):
            return None
        figures = self._figures[self._places[trial]].tolist()
        costs, rest = figures[1 : 1 + self._num_costs], figures[1 + self._num_costs :]
        pairs = zip(rest[: self._num_rungs], rest[self._num_rungs :], strict=True)
        scores = (RungScore(value=value, standard_error=error) for value, error in pairs if not math.isnan(value))
        return Curve(trial=trial, costs=tuple(costs), scores=tuple(scores))

    def curves(self) -> list[Curve]:
        """All curves."""
        return [curve for trial in self._places if (curve := self.get(trial)) is not None]


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
    def fit(pairs: Sequence[tuple[float, float]] | Array) -> "Gain":
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
        part = (score - self.mean) ** 2 * self._slope_part(z)
        return self.variance * (1 + 1 / max(self.num_pairs, 1)) + part

    def variance_of_difference(self, difference: Array, z: float) -> Array:
        """Variance of the difference of two unmeasured next scores, given the differences of the scores: the common intercept cancels."""
        return np.asarray(2 * self.variance + difference**2 * self._slope_part(z))

    def _slope_part(self, z: float) -> float:
        # Capped where z standard deviations would exceed the slope: else a lower score would be the more promising one.
        return min(self.slope_variance, (self.slope / z) ** 2)


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


def goes_on(
    candidate: Curve, others: Sequence[Curve] | CurveTable, *, names: Sequence[str] = (), z: float = OPTIMISM
) -> Decision:
    """Whether a candidate that has just finished a rung is trained up to the next one.

    `others` are all other trials that did not fail, stopped ones included; those that have not finished this rung are ignored, and in a
    table the candidate. `names` are the names of the costs, for the reason.
    """
    assert z > 0, "optimism counts standard deviations"
    rung = len(candidate.scores) - 1
    if isinstance(others, CurveTable):
        rivals = others.arrays()
        rivals = rivals.where(~np.isnan(rivals.scores(rung)) & (rivals.trials != candidate.trial))
    else:
        rivals = CurveArrays.of(others, len(candidate.costs))
        rivals = rivals.where(~np.isnan(rivals.scores(rung)))
    gain = Gain.fit(_pairs(rivals, rung))
    threats = rivals.where(_is_threat(candidate, rivals))
    excess = _excess(candidate, threats, gain, z)
    if np.any(excess > 0):
        best = np.lexsort((threats.trials, -excess))[:1]
        reason = _reason(candidate, threats.where(best), float(excess[best[0]]), names)
        return Decision(goes_on=False, reason=reason, stopped_by=int(threats.trials[best[0]]))
    score, floor = candidate.scores[rung], _floor(rivals, rung)
    if floor is not None:
        margin = max(z, TIE_SE) * math.hypot(score.standard_error, floor.standard_error)
        if score.value + margin < floor.value:
            reason = f"its score {score.value:.3f} is too low to matter at any cost: the floor of this rung is {floor.value:.3f}"
            return Decision(goes_on=False, reason=reason)
    return Decision(goes_on=True)


def _pairs(rivals: CurveArrays, rung: int) -> Array:
    """(P, 2): the scores at this rung and the next one, of the rivals that have both."""
    scores, following = rivals.scores(rung), rivals.scores(rung + 1)
    return np.column_stack((scores, following))[~np.isnan(following)]


def _is_threat(candidate: Curve, rivals: CurveArrays) -> NDArray[np.bool_]:
    """Which rivals are no worse in the score of this rung and in every cost: only they can stop the candidate."""
    rung = len(candidate.scores) - 1
    is_no_worse = rivals.scores(rung) >= candidate.scores[rung].value
    return np.asarray(is_no_worse & np.all(rivals.costs <= candidate.costs, axis=1))


def _excess(candidate: Curve, threats: CurveArrays, gain: Gain, z: float) -> Array:
    """How far the next score of each threat lies above the candidate's optimistic one; at most 0 for one that does not stop the candidate."""
    rung = len(candidate.scores) - 1
    own, stretch = candidate.scores[rung], max(gain.slope, 1.0)
    later, later_error = threats.scores(rung + 1), threats.errors(rung + 1)
    is_later = ~np.isnan(later)
    # Of a threat that has reached the next rung:
    lead = later - gain.expected(own.value)
    variance = gain.variance_of_next(own.value, z) + later_error**2
    tie = np.hypot(stretch * own.standard_error, later_error)
    # Of one that has not:
    difference = threats.scores(rung) - own.value
    lead = np.where(is_later, lead, gain.slope * difference)
    variance = np.where(is_later, variance, gain.variance_of_difference(difference, z))
    tie = np.where(is_later, tie, stretch * np.hypot(own.standard_error, threats.errors(rung)))
    return np.asarray(lead - np.maximum(z * np.sqrt(variance), TIE_SE * tie))


def score_floor(rivals: Sequence[Curve], rung: int) -> RungScore | None:
    """The score below which a candidate is hopeless at any cost, though it may be the cheapest; None with too few trials.

    It lies as far below the worst score of this rung's front (over the costs and the score) as that lies below the best one. The
    front is that of the trials that went on, where there are enough, so that one hopeless trial does not lower the floor for the
    next. Quartiles of the front's scores (Tukey's fences) were tried: on our table of hybrids they stopped one in ten members of
    the final front, those at its cheap end.
    """
    return _floor(CurveArrays.of(rivals, len(rivals[0].costs) if rivals else 0), rung)


def _floor(rivals: CurveArrays, rung: int) -> RungScore | None:
    """`score_floor` of arrays."""
    is_later = ~np.isnan(rivals.scores(rung + 1))
    judged = rivals.where(is_later) if np.count_nonzero(is_later) >= _MIN_FLOOR_TRIALS else rivals
    if len(judged.trials) < _MIN_FLOOR_TRIALS:
        return None
    scores, errors = judged.scores(rung), judged.errors(rung)
    is_on = ~is_dominated(np.column_stack((judged.costs, -scores)))
    scores, errors = scores[is_on], errors[is_on]
    worst, best = np.lexsort((-errors, scores))[[0, -1]]
    value = float(scores[worst])
    return RungScore(value=value - (float(scores[best]) - value), standard_error=float(errors[worst]))


def _reason(candidate: Curve, other: CurveArrays, excess: float, names: Sequence[str]) -> str:
    """The decision in words: which trial (one row) is no worse in which costs, and which of its scores is out of reach."""
    rung = len(candidate.scores) - 1
    listed = " and ".join(", ".join(names).rsplit(", ", 1)) or "all else"
    score, following = float(other.scores(rung)[0]), float(other.scores(rung + 1)[0])
    if not math.isnan(following):
        outcome = f"its next score {following:.3f} is beyond {following - excess:.3f}, the best expected here"
    else:
        outcome = f"its score {score:.3f} is out of reach from {candidate.scores[rung].value:.3f}"
    return f"trial {int(other.trials[0])} is no worse in {listed}, and {outcome}"
