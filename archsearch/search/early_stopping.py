"""Multi-objective early stopping: after a rung, a part of its training, a candidate goes on only if it can still matter.

Everything but the score is known before the first training, so a candidate matters unless another one is no worse in all of
that and its score is out of reach. Not MO-ASHA, whose open code reads an argsort as a rank and so keeps the median as often
as the best. Sums are exact (fsum), so that the same set in another order gives the same decision to the last bit.

Which noise is counted where. The gain from one rung to the next is a regression of measured scores on measured scores: its
residuals hold the noise of both, so a candidate's own standard error is not added to them. Another candidate's score at the
next rung is measured already, its noise in no residual: its standard error is added. Where neither has been there, two
residuals stand between them. Whatever the residuals say, a margin is never narrower than a tie of the two scores.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from archsearch.metrics import domination_matrix

# Optimism: the candidate is taken to be this many standard deviations better than expected.
OPTIMISM = 2.0
# Scores closer than this many standard errors of their difference are called a tie, as in the report.
TIE_SE = 2.0
# What is believed of gains before any was seen: slope 1, this scatter, at the weight of this many pairs spread like this.
_PRIOR_SD, _PRIOR_PAIRS, _PRIOR_SPREAD = 0.05, 4, 0.1
# Fewer trials than this do not say what a usual score is.
_JUNK_JUDGES = 8
# Trials that have a training-free score and a trained one, before the first says anything about the second.
_FREE_JUDGES = 8


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a rung gave: the share of validation images that are right, and its standard error."""

    value: float
    standard_error: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A candidate as rungs see it: `costs` are its other objectives, all to be minimised, `scores` its finished rungs in order."""

    trial: int
    costs: tuple[float, ...]
    scores: tuple[Score, ...]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether a candidate goes on; if not, why, and which trial was the reason (None for one that is merely junk)."""

    goes_on: bool
    reason: str | None = None
    stopped_by: int | None = None


@dataclass(frozen=True, kw_only=True)
class Gain:
    """How a score at one rung becomes the next one's, learnt from `num_pairs` trials that have both.

    A linear regression with a conjugate prior (slope 1, flat intercept): `variance` is of the residuals, `slope_variance` of
    the slope. Trials go on because of their score at this rung, so those left out do not bias what is expected given it.
    """

    num_pairs: int
    mean: float
    next_mean: float
    slope: float
    variance: float
    slope_variance: float

    @staticmethod
    def of(pairs: Sequence[tuple[float, float]]) -> "Gain":
        """The gain of (score, next score) pairs; none are needed."""
        number = len(pairs)
        mean = math.fsum(score for score, _ in pairs) / max(number, 1)
        next_mean = math.fsum(score for _, score in pairs) / max(number, 1)
        centred = [(score - mean, following - next_mean) for score, following in pairs]
        prior = _PRIOR_PAIRS * _PRIOR_SPREAD**2
        spread = math.fsum(x * x for x, _ in centred) + prior
        # A score that forecasts nothing has slope 0; better trials are never expected to end worse.
        slope = max(0.0, (math.fsum(x * y for x, y in centred) + prior) / spread)
        squares = math.fsum((y - slope * x) ** 2 for x, y in centred) + prior * (slope - 1.0) ** 2
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
        """The next score of a trial with this one; where no pair was seen, up to a constant that is the same for all."""
        return self.next_mean + self.slope * (score - self.mean)

    def variance_of(self, score: float, z: float) -> float:
        """Of the next measured score about `expected`: residual, intercept and slope."""
        return self.variance * (1 + 1 / max(self.num_pairs, 1)) + self._slope_part(score - self.mean, z)

    def variance_between(self, difference: float, z: float) -> float:
        """Of the difference of two next scores, both unseen: the intercept is common and cancels."""
        return 2 * self.variance + self._slope_part(difference, z)

    def _slope_part(self, distance: float, z: float) -> float:
        # Capped where optimism would outgrow the slope: else a lower score would be the more hopeful one.
        return distance**2 * min(self.slope_variance, (self.slope / z) ** 2)


def with_free_rung(curves: Sequence[Curve], values: Mapping[int, float]) -> list[Curve]:
    """The curves with a score that needs no training as their first, by trial; empty where trials do not say (yet) that it is worth anything.

    It is brought to the scale of the first trained scores by their regression on it, over the trials that have both, and what that
    leaves open is its standard error: so the same rule can judge by it, and where it foretells little it stops nobody. More must be better.
    """
    both = [(values[curve.trial], curve.scores[0].value) for curve in curves if curve.scores and curve.trial in values]
    if len(both) < _FREE_JUDGES:
        return []
    free, trained = np.array(both, dtype=np.float64).T
    offsets = free - free.mean()
    slope = float(offsets @ trained) / float(offsets @ offsets) if offsets.any() else 0.0
    if slope <= 0:
        return []
    error = float(np.sqrt(np.sum((trained - trained.mean() - slope * offsets) ** 2) / (len(both) - 2)))

    def score(trial: int) -> Score:
        return Score(value=float(trained.mean() + slope * (values[trial] - free.mean())), standard_error=error)

    return [replace(curve, scores=(score(curve.trial), *curve.scores)) for curve in curves if curve.trial in values]


def goes_on(candidate: Curve, others: Sequence[Curve], *, names: Sequence[str] = (), z: float = OPTIMISM) -> Decision:
    """Whether a candidate that has just finished a rung is to be trained for the next one.

    `others` are all other trials that did not fail, stopped ones among them; those without this rung say nothing. `names` are
    what the costs are called, for the reason.
    """
    assert z > 0, "optimism counts standard deviations"
    rung = len(candidate.scores) - 1
    rivals = [other for other in others if len(other.scores) > rung]
    gain = Gain.of(
        [(one.scores[rung].value, one.scores[rung + 1].value) for one in rivals if len(one.scores) > rung + 1]
    )
    beyond = [(excess, other) for other in rivals if (excess := _excess(candidate, other, gain, z)) > 0]
    if beyond:
        _, worst = max(beyond, key=lambda item: (item[0], -item[1].trial))
        return Decision(goes_on=False, reason=_reason(candidate, worst, gain, names, z), stopped_by=worst.trial)
    fence, mine = junk_fence(rivals, rung), candidate.scores[rung]
    if fence is not None and _is_below(mine, fence, z):
        words = (
            f"its score {mine.value:.3f} is too low to matter at any cost: the fence of this rung is {fence.value:.3f}"
        )
        return Decision(goes_on=False, reason=words)
    return Decision(goes_on=True)


def _is_below(mine: Score, fence: Score, z: float) -> bool:
    return mine.value + max(z, TIE_SE) * math.hypot(mine.standard_error, fence.standard_error) < fence.value


def _excess(candidate: Curve, other: Curve, gain: Gain, z: float) -> float:
    """How far the other's next score is beyond the candidate's optimistic one; not above 0 for one that stops nobody."""
    rung = len(candidate.scores) - 1
    mine, theirs = candidate.scores[rung], other.scores[rung]
    if theirs.value < mine.value or any(a > b for a, b in zip(other.costs, candidate.costs, strict=True)):
        return 0.0
    lead, variance, tie = _lead(mine, theirs, other.scores[rung + 1 :], gain, z)
    return lead - max(z * math.sqrt(variance), TIE_SE * tie)


def _lead(mine: Score, theirs: Score, later: Sequence[Score], gain: Gain, z: float) -> tuple[float, float, float]:
    """By how much the other is expected to lead at the next rung, that figure's variance, and the standard error of the two scores alone."""
    stretch = max(gain.slope, 1.0)
    if later:
        lead = later[0].value - gain.expected(mine.value)
        variance = gain.variance_of(mine.value, z) + later[0].standard_error ** 2
        return lead, variance, math.hypot(stretch * mine.standard_error, later[0].standard_error)
    difference = theirs.value - mine.value
    tie = stretch * math.hypot(mine.standard_error, theirs.standard_error)
    return gain.slope * difference, gain.variance_between(difference, z), tie


def junk_fence(rivals: Sequence[Curve], rung: int) -> Score | None:
    """The score below which a candidate would be kept alive only because nothing is cheaper: as far below the worst score of this
    rung's front (over the costs and the score) as that is below the best.

    The front is that of the trials that went on, where there are enough, so that one junk does not speak for the next. None where
    there are too few trials to say. Quartiles of the front's scores (Tukey's fences) were tried: on our table of hybrids they
    stopped one in ten members of the final front, which are its cheap end.
    """
    went_on = [curve for curve in rivals if len(curve.scores) > rung + 1]
    judges = went_on if len(went_on) >= _JUNK_JUDGES else rivals
    if len(judges) < _JUNK_JUDGES:
        return None
    values = np.array([(*curve.costs, -curve.scores[rung].value) for curve in judges], dtype=np.float64)
    is_out = np.any(domination_matrix(values), axis=0)
    front = sorted((curve.scores[rung] for curve, out in zip(judges, is_out, strict=True) if not out), key=_order)
    worst, best = front[0], front[-1]
    return Score(value=worst.value - (best.value - worst.value), standard_error=worst.standard_error)


def _order(score: Score) -> tuple[float, float]:
    return score.value, -score.standard_error


def _reason(candidate: Curve, other: Curve, gain: Gain, names: Sequence[str], z: float) -> str:
    """The decision in words: who is no worse, in what, and which score is out of reach."""
    rung = len(candidate.scores) - 1
    mine, theirs, later = candidate.scores[rung], other.scores[rung], other.scores[rung + 1 :]
    what = f"no worse in {_listed(names)}" if names else "no worse in all else"
    if later:
        most = later[0].value - _excess(candidate, other, gain, z)
        return f"trial {other.trial} is {what}, and its next score {later[0].value:.3f} is beyond {most:.3f}, the most hoped for here"
    return f"trial {other.trial} is {what}, and its score {theirs.value:.3f} is out of reach from {mine.value:.3f}"


def _listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
