"""Which differences of a run are larger than their noise: ties of scores, and members of the front whose place is not resolved."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from archsearch.metrics import TIE_SE
from archsearch.results import OBJECTIVES, Row
from archsearch.throughput.protocol import Protocol

_SPEED = frozenset({"throughput_img_s", "latency_ms"})


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How much the scores of a run may be off: `training_sd` between seeds of one architecture, pooled over those trained with several; None without any."""

    training_sd: float | None = None

    @staticmethod
    def of(rows: Sequence[Row]) -> "Noise":
        """The pooled standard deviation: every repeated trial counts by its degrees of freedom."""
        repeated = [row for row in rows if row.get("proxy_score_sd") is not None and row["reused_from"] is None]
        freedom = sum(row["proxy_seeds"] - 1 for row in repeated)
        if not freedom:
            return Noise()
        squares = math.fsum((row["proxy_seeds"] - 1) * row["proxy_score_sd"] ** 2 for row in repeated)
        return Noise(training_sd=math.sqrt(squares / freedom))

    def error_of(self, row: Mapping[str, Any]) -> float:
        """Standard error of a row's first score: the larger of the binomial one and the noise of training, as the second holds a part of the first."""
        return max(row["proxy_score_se"] or 0.0, self.training_sd or 0.0)

    def is_tie(self, first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
        """True when two scores differ by less than TIE_SE standard errors of their difference, taken as independent."""
        if first["proxy_score"] is None or second["proxy_score"] is None:
            return False
        error = math.hypot(self.error_of(first), self.error_of(second))
        return bool(abs(first["proxy_score"] - second["proxy_score"]) < TIE_SE * error)


def unresolved(
    front: Sequence[Row], complete: Sequence[Row], objectives: Sequence[str], noise: Noise
) -> dict[int, list[int]]:
    """Members that are on the front by no more than noise: trial -> the trials that may dominate it.

    Another trial may when it is nowhere worse beyond the noise and somewhere better beyond it: scores by `Noise`, speeds by
    the spread of their blocks or the drift allowed; what is counted has no noise.
    """
    found = {
        row["trial"]: [
            other["trial"] for other in complete if other is not row and _may_dominate(other, row, objectives, noise)
        ]
        for row in front
    }
    return {trial: others for trial, others in found.items() if others}


def _may_dominate(other: Row, row: Row, objectives: Sequence[str], noise: Noise) -> bool:
    signs = [_compared(other, row, name, noise) for name in objectives]
    return min(signs) >= 0 and max(signs) > 0


def _compared(other: Row, row: Row, name: str, noise: Noise) -> int:
    """1 where the other is better beyond the noise, -1 where it is worse, 0 where nobody can say."""
    if other[name] == row[name] or _tie_of(name, noise)(other, row):
        return 0
    is_more = other[name] > row[name]
    return 1 if is_more == (OBJECTIVES[name] == "maximize") else -1


def _tie_of(name: str, noise: Noise) -> Callable[[Row, Row], bool]:
    if name == "proxy_score":
        return noise.is_tie
    return lambda other, row: name in _SPEED and _is_same_speed(other[name], row[name], _spread(other) + _spread(row))


def _is_same_speed(first: float, second: float, spread: float) -> bool:
    return abs(first - second) <= max(spread, Protocol.drift_limit) * max(first, second)


def _spread(row: Row) -> float:
    """Half of the middle half of the blocks' spread, as a share."""
    return (row["throughput_iqr"] or 0.0) / 2
