"""Which differences between trials are larger than measurement noise: ties of scores, and unresolved members of the front."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archsearch.metrics import TIE_SE, Array
from archsearch.results import OBJECTIVES, TIMED, Row
from archsearch.throughput import Protocol

_NOISY = TIMED | {"proxy_score"}


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Noise of a run's scores: `training_sd` is the standard deviation between seeds of one architecture, None where none had several."""

    training_sd: float | None = None

    @staticmethod
    def from_rows(rows: Sequence[Row]) -> "Noise":
        """Pools the standard deviations of all repeated trials, weighted by degrees of freedom."""
        repeated = [row for row in rows if row.get("proxy_score_sd") is not None and row["reused_from"] is None]
        freedom = sum(row["proxy_seeds"] - 1 for row in repeated)
        if not freedom:
            return Noise()
        squares = math.fsum((row["proxy_seeds"] - 1) * row["proxy_score_sd"] ** 2 for row in repeated)
        return Noise(training_sd=math.sqrt(squares / freedom))

    def standard_error(self, row: Mapping[str, Any]) -> float:
        """Standard error of a row's first score: the larger of the binomial one and `training_sd`, since that one contains part of the binomial error."""
        return max(row["proxy_score_se"] or 0.0, self.training_sd or 0.0)

    def is_tie(self, first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
        """True when two scores differ by less than TIE_SE standard errors of their difference, taken as independent."""
        if first["proxy_score"] is None or second["proxy_score"] is None:
            return False
        error = math.hypot(self.standard_error(first), self.standard_error(second))
        return bool(abs(first["proxy_score"] - second["proxy_score"]) < TIE_SE * error)


class Measured:
    """The objectives, scores and speeds of N rows with their noise, to compare one row with all of them.

    Noise of scores is `Noise`'s, that of speeds the spread of their blocks or the drift allowed; counts have none.
    """

    def __init__(self, rows: Sequence[Row], objectives: Sequence[str], noise: Noise) -> None:
        self._noise, self._objectives = noise, sorted(objectives, key=_NOISY.__contains__)  # without noise first
        self._trials = np.array([row["trial"] for row in rows], dtype=np.int64)
        self._figures = _figures(rows, list(dict.fromkeys([*objectives, "proxy_score", "throughput_img_s"])), noise)
        first = self._signed(self._figures, self._objectives[0])
        self._order = np.argsort(first, kind="stable")
        self._first = first[self._order]
        self._ordered = {name: figures[self._order] for name, figures in self._figures.items()}

    @staticmethod
    def _signed(figures: Mapping[str, Array], name: str) -> Array:
        return -figures[name] if OBJECTIVES[name] == "maximize" else figures[name]

    def ties(self, row: Row, name: str) -> NDArray[np.bool_]:
        """Which rows differ from this one by no more than noise in an objective, (N,); itself among them where it is one."""
        return np.asarray(_compare(self._figures, _figures([row], [name], self._noise), name) == 0)

    def may_dominate(self, row: Row) -> list[int]:
        """The trials that are worse than this one beyond the noise in no objective and better beyond it in at least one."""
        own = _figures([row], self._objectives, self._noise)
        stop = len(self._order)
        if self._objectives[0] not in _NOISY:  # then those that are no worse come first
            stop = int(np.searchsorted(self._first, self._signed(own, self._objectives[0])[0], side="right"))
        left, is_better = np.arange(stop), np.zeros(stop, dtype=bool)
        figures = {name: values[:stop] for name, values in self._ordered.items()}
        for name in self._objectives:
            signs = _compare(figures, own, name)
            keep = signs >= 0
            left, is_better = left[keep], (is_better | (signs > 0))[keep]
            figures = {name: values[keep] for name, values in figures.items()}
        found = np.sort(self._order[left[is_better]])
        trials = self._trials[found]
        return [trial for trial in trials.tolist() if trial != row["trial"]]


def unresolved(front: Sequence[Row], measured: Measured) -> dict[int, list[int]]:
    """Members that may be dominated within measurement noise: trial -> the trials that may dominate it, see `Measured.may_dominate`."""
    found = {row["trial"]: measured.may_dominate(row) for row in front}
    return {trial: others for trial, others in found.items() if others}


def score_ties(rows: Sequence[Row], noise: Noise) -> list[list[int]]:
    """For each row the trials of the other rows whose score is tied with its own, as `Noise.is_tie` has it."""
    trials = np.array([row["trial"] for row in rows], dtype=np.int64)
    everyone = _figures(rows, ["proxy_score"], noise)
    ties = (_is_tie(everyone, _figures([row], ["proxy_score"], noise)) & (trials != row["trial"]) for row in rows)
    return [trials[is_tie].tolist() for is_tie in ties]


def speed_noise(row: Row) -> float:
    """The noise of a row's throughput as a fraction: the spread of its blocks, or the drift allowed."""
    return max(row["throughput_iqr"] or 0.0, Protocol.drift_limit)


_ERROR, _SPREAD = "standard error of the score", "spread of the throughput"


def _figures(rows: Sequence[Row], objectives: Sequence[str], noise: Noise) -> dict[str, Array]:
    """The objectives and the two kinds of noise of N rows, (N,) each; nan for none."""
    figures = {name: np.array([row[name] for row in rows], dtype=np.float64) for name in objectives}
    figures[_ERROR] = np.array([noise.standard_error(row) for row in rows], dtype=np.float64)
    figures[_SPREAD] = np.array([row["throughput_iqr"] or 0.0 for row in rows], dtype=np.float64)
    return figures


def _is_tie(others: Mapping[str, Array], own: Mapping[str, Array]) -> NDArray[np.bool_]:
    difference = np.abs(others["proxy_score"] - own["proxy_score"])
    return np.asarray(difference < TIE_SE * np.hypot(others[_ERROR], own[_ERROR]))


def _compare(others: Mapping[str, Array], own: Mapping[str, Array], name: str) -> NDArray[np.int64]:
    """For each other one: 1 where it is better than our row beyond the noise, -1 where it is worse, 0 where they differ by no more than noise."""
    other, mine = others[name], own[name]
    is_tie = other == mine
    if name == "proxy_score":
        is_tie |= _is_tie(others, own)
    elif name in TIMED:  # noise is half the interquartile ranges of their blocks, or the drift allowed
        spread = (others[_SPREAD] + own[_SPREAD]) / 2
        is_tie |= np.abs(other - mine) <= np.maximum(spread, Protocol.drift_limit) * np.maximum(other, mine)
    is_better = (other > mine) == (OBJECTIVES[name] == "maximize")
    return np.where(is_tie, 0, np.where(is_better, 1, -1))


def surely_dominate(others: Sequence[Row], row: Row, objectives: Sequence[str], noise: Noise) -> NDArray[np.bool_]:
    """Which of some other rows dominate a row whatever the noise: better beyond it in every objective that has noise, and no worse in the exact ones."""
    everyone, own = _figures(others, objectives, noise), _figures([row], objectives, noise)
    is_over, is_better = np.ones(len(others), dtype=bool), np.zeros(len(others), dtype=bool)
    for name in objectives:
        signs = _compare(everyone, own, name)
        is_over &= signs > 0 if name in _NOISY else signs >= 0
        is_better |= signs > 0
    return np.asarray(is_over & is_better)
