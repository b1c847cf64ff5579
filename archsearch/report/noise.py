"""Which differences between trials are larger than measurement noise: ties of scores, and unresolved members of the front."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from archsearch.metrics import TIE_SE
from archsearch.results import OBJECTIVES, Row
from archsearch.throughput import Protocol

_SPEED = frozenset({"throughput_img_s", "latency_ms"})


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


def unresolved(
    front: Sequence[Row], complete: Sequence[Row], objectives: Sequence[str], noise: Noise
) -> dict[int, list[int]]:
    """Members that may be dominated within measurement noise: trial -> the trials that may dominate it.

    A trial may dominate a member when it is worse beyond the noise in no objective and better beyond it in at least one.
    Noise of scores is `Noise`'s, that of speeds the spread of their blocks or the drift allowed; counts have none.
    """
    found: dict[int, list[int]] = {}
    for row, other in product(front, complete):
        signs = [0] if other is row else [_compare(other, row, name, noise) for name in objectives]
        if min(signs) >= 0 and max(signs) > 0:
            found.setdefault(row["trial"], []).append(other["trial"])
    return found


def _compare(other: Row, row: Row, name: str, noise: Noise) -> int:
    """1 where the other is better beyond the noise, -1 where it is worse, 0 where they differ by no more than noise."""
    is_tie = other[name] == row[name]
    if name == "proxy_score":
        is_tie |= noise.is_tie(other, row)
    elif name in _SPEED:  # noise is half the interquartile ranges of their blocks, or the drift allowed
        spread = ((other["throughput_iqr"] or 0.0) + (row["throughput_iqr"] or 0.0)) / 2
        is_tie |= abs(other[name] - row[name]) <= max(spread, Protocol.drift_limit) * max(other[name], row[name])
    if is_tie:
        return 0
    return 1 if (other[name] > row[name]) == (OBJECTIVES[name] == "maximize") else -1
