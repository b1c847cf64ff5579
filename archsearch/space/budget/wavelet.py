"""A wavelet matrix with weights (Claude and Navarro, SPIRE 2012): how much weight the rows of a slice have below a value, for millions of slices at once."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


class WaveletMatrix:
    """Rows with a value (n,) and a weight (n,) each; built in O(n log n), a query takes O(log n)."""

    def __init__(self, values: NDArray[np.int64], weights: NDArray[Any]) -> None:
        self.distinct, ranks = np.unique(values, return_inverse=True)
        self.levels: list[tuple[int, NDArray[np.int64], NDArray[Any]]] = []
        for bit in reversed(range(len(self.distinct).bit_length())):
            is_low = (ranks >> bit) & 1 == 0
            lows = np.concatenate(([0], np.cumsum(is_low)))
            weight_of_lows = np.concatenate((np.zeros(1, weights.dtype), np.cumsum(weights * is_low)))
            self.levels.append((bit, lows, weight_of_lows))
            order = np.concatenate((np.flatnonzero(is_low), np.flatnonzero(~is_low)))
            ranks, weights = ranks[order], weights[order]

    def below(self, start: NDArray[np.int64], stop: NDArray[np.int64], value: NDArray[np.int64]) -> NDArray[Any]:
        """Weight of the rows [start, stop) whose value is below `value`, for arrays (q,) of queries -> (q,)."""
        rank = np.searchsorted(self.distinct, value)
        total = np.zeros(len(start), self.levels[0][2].dtype)
        for bit, lows, weight_of_lows in self.levels:
            is_one = (rank >> bit) & 1 == 1
            total += np.where(is_one, weight_of_lows[stop] - weight_of_lows[start], 0)
            low_start, low_stop = lows[start], lows[stop]
            start = np.where(is_one, lows[-1] + start - low_start, low_start)
            stop = np.where(is_one, lows[-1] + stop - low_stop, low_stop)
        return total
