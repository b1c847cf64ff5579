"""How certain a front is whose scores are noisy: the chance of each trial to be on it, and what one more training of each is worth.

The score of a trial is known as the mean over its trainings, with a normal error that is independent of the others'; all other objectives are taken as
exact. So a trial is on the front where no other that is no worse in these has a better score.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from archsearch.metrics import Array
from archsearch.results.fronts import minimised
from archsearch.results.schema import Row

SCORE = "proxy_score"
# The binomial variance of scores counts as so many degrees of freedom beside the variances between seeds.
_PRIOR_FREEDOM = 2
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
_TINY = 1e-12  # a standard error in place of none
_FIRST_RIVALS = 128  # that are looked at, before four times as many, and so on
_SURE = 8.3  # standard errors from which on `ndtr` is 1
_NOTHING = 1e-18  # the share of a sum that does not change it


def number_of_seeds(row: Row) -> int:
    """How often a trial was trained."""
    return int(row["proxy_seeds"] or 1)


def mean_score(row: Row) -> float:
    """The mean score of a complete trial over its trainings."""
    return float(row[SCORE] if row["proxy_score_mean"] is None else row["proxy_score_mean"])


class FrontChances:
    """What the scores of complete trials that can be ranked together, every architecture once, tell of their front.

    `places`: of the `rows` to judge, of which all others may be rivals; by default all of them.
    """

    def __init__(self, rows: Sequence[Row], objectives: Sequence[str], places: Sequence[int] | None = None) -> None:
        self.places = np.arange(len(rows)) if places is None else np.array(places, dtype=np.int64)
        self.variance = training_variance(rows)
        self._means = np.array([mean_score(row) for row in rows])
        self._trainings = np.array([number_of_seeds(row) for row in rows])
        self._order = np.argsort(-self._means, kind="stable")  # the best mean first
        self._rank = np.argsort(self._order)
        others = minimised(rows, [name for name in objectives if name != SCORE])
        self._others = np.ascontiguousarray(others[self._order].T)  # (M - 1, N), in that order

    def _rivals_of(self, place: int) -> NDArray[np.int64]:
        """Places of the trials that are no worse in all other objectives, the best mean first."""
        rank = self._rank[place]
        is_rival = np.ones(len(self._order), dtype=bool)
        for values in self._others:
            is_rival &= values <= values[rank]
        is_rival[rank] = False
        return self._order[np.flatnonzero(is_rival)]

    def chances(self) -> Array:
        """The chance of each of `places` to be on the front; by quadrature, exact but for rounding."""
        known, group_of = np.unique(np.column_stack((-self._means, self._trainings)), axis=0, return_inverse=True)
        means, errors = -known[:, 0], np.maximum(np.sqrt(self.variance / known[:, 1]), _TINY)
        groups = group_of.reshape(-1)  # scores are shares of a number of images, so that of many trials many are equal
        found = []
        for place in self.places.tolist():
            counts = np.bincount(groups[self._rivals_of(place)], minlength=len(known))
            some = np.flatnonzero(counts)
            own = means[groups[place]] + errors[groups[place]] * _NODES
            found.append(_chance(own, means[some], errors[some], counts[some]))
        return np.array(found)

    def gains(self, under_way: Sequence[int] = ()) -> Array:
        """By place (N,): how much one more training of each trial is worth, in standard deviations of a training.

        It is by how much the chosen one of two, a trial and its best rival, is expected to be better in truth for that training (the knowledge gradient;
        Frazier, Powell and Dayanik, 2008), the largest over all such twos of `places`: their sum spends more on the rivals of many, and left more
        trials wrongly on the front. `under_way`: places that are trained now, which will tell their part.
        """
        trainings = self._trainings.copy()
        trainings[np.array(under_way, dtype=np.int64)] += 1
        deviation = max(math.sqrt(self.variance), _TINY)
        # One more training moves a mean by so many standard deviations of a training.
        moves = 1 / np.sqrt(trainings * (trainings + 1))
        found = np.zeros(len(self._means))
        for place in self.places:
            rivals = self._rivals_of(place)
            if len(rivals):
                pair = np.array([place, rivals[0]])
                away = abs(self._means[place] - self._means[rivals[0]]) / deviation / moves[pair]
                gains = moves[pair] * (_normal_density(away) - away * ndtr(-away))
                found[pair] = np.maximum(found[pair], gains)
        return found


def _chance(own: Array, means: Array, errors: Array, counts: NDArray[np.int64]) -> float:
    """The chance that a score, at these nodes (40,), is beyond those of so many rivals of each mean, the best first.

    Of many rivals few matter: those that even the lowest score exceeds for sure are left out, and so are scores that a higher one outweighs,
    which no further rival can change.
    """
    weights, start, size, widest = _WEIGHTS, 0, _FIRST_RIVALS, errors.max(initial=0.0)
    while start < len(means) and own[0] - means[start] < _SURE * widest:
        some = slice(start, start + size)
        with np.errstate(divide="ignore"):  # a chance of nothing
            logarithms = np.log(ndtr((own[:, None] - means[some]) / errors[some]))
        weights = weights * np.exp(logarithms @ counts[some])
        matters = weights >= _NOTHING * np.maximum.accumulate(weights[::-1])[::-1]
        own, weights = own[matters], weights[matters]
        start, size = start + size, 4 * size
    return float(weights.sum() / _WEIGHTS.sum())


def training_variance(rows: Sequence[Row]) -> float:
    """The variance of one training's score: between the seeds of trials that have several, with the binomial variance as a few degrees of freedom more."""
    repeated = [row for row in rows if row["proxy_score_sd"] is not None]
    freedom = sum(number_of_seeds(row) - 1 for row in repeated)
    squares = math.fsum((number_of_seeds(row) - 1) * row["proxy_score_sd"] ** 2 for row in repeated)
    errors = [row["proxy_score_se"] ** 2 for row in rows if row["proxy_score_se"] is not None]
    if errors:
        freedom, squares = freedom + _PRIOR_FREEDOM, squares + _PRIOR_FREEDOM * math.fsum(errors) / len(errors)
    return squares / freedom if freedom else 0.0


def _normal_density(values: Array) -> Array:
    return np.asarray(np.exp(-(values**2) / 2) / math.sqrt(2 * math.pi))
