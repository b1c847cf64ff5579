"""How far two orders of the same things agree, and how sure that is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Figures = Sequence[float] | Array

_RESAMPLES = 2000
_CONFIDENCE = 0.95


def kendall_tau(first: Figures, second: Figures) -> float:
    """Kendall's tau-b of two series of equal length, from -1 to 1; nan where one of them has no two different values.

    (concordant - discordant) / sqrt((pairs - ties in first) * (pairs - ties in second)); Kendall, Biometrika 33 (1945).
    """
    # Of every pair both ways round: that doubles all three sums, and is quicker than taking half of them out.
    signs_first, signs_second = (np.sign(np.subtract.outer(side, side)) for side in (first, second))
    scale = float(np.sqrt(np.count_nonzero(signs_first) * np.count_nonzero(signs_second)))
    return float(np.vdot(signs_first, signs_second)) / scale if scale else float("nan")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A statistic with the ends of its 95 % bootstrap interval; nan where it is not defined."""

    value: float
    low: float
    high: float


def estimate(statistic: Callable[..., float], *series: Figures, seed: int = 0) -> Estimate:
    """The statistic of series of equal length, and its percentile interval over things drawn with replacement (Efron 1979).

    One draw takes the same things of every series, and one seed makes the same draws: differences are those of pairs.
    """
    arrays = [np.asarray(one, dtype=np.float64) for one in series]
    count = len(arrays[0])
    draws = np.random.default_rng(seed).integers(0, count, (_RESAMPLES, count))
    found = np.array([statistic(*(array[draw] for array in arrays)) for draw in draws])
    tail, value = (1 - _CONFIDENCE) / 2, statistic(*arrays)
    defined = found[np.isfinite(found)]  # a draw of one thing alone has no order
    low, high = np.quantile(defined, [tail, 1 - tail]) if len(defined) else (value, value)
    return Estimate(value=value, low=float(low), high=float(high))
