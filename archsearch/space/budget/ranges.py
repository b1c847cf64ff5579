"""Sums or maxima of many slices of an array at once, in two look-ups a slice (a disjoint sparse table)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


class RangeTable:
    """`reduce` (np.add or np.maximum) over slices of `values` (n,); built in O(n log n), 8 n log n bytes.

    Nothing is subtracted, so a sum of small numbers beside large ones keeps all its digits, as differences of cumulative sums do not.
    """

    def __init__(self, values: NDArray[Any], reduce: np.ufunc, empty: float) -> None:
        self.values, self.reduce, self.empty = values, reduce, empty
        self.levels: list[NDArray[Any]] = []
        half = 1
        while half < len(values):
            padded = np.full(-(-len(values) // (2 * half)) * 2 * half, empty, values.dtype)
            padded[: len(values)] = values
            pairs = padded.reshape(-1, 2, half)
            # From each place to the middle of its block.
            pairs[:, 0] = reduce.accumulate(pairs[:, 0, ::-1], axis=1)[:, ::-1]
            pairs[:, 1] = reduce.accumulate(pairs[:, 1], axis=1)
            self.levels.append(padded[: len(values)])
            half *= 2

    def over(self, start: NDArray[np.int64], stop: NDArray[np.int64]) -> NDArray[Any]:
        """For each of the slices [start, stop), (q,) -> (q,); `empty` where it has no place."""
        found = np.full(len(start), self.empty, self.values.dtype)
        single = np.flatnonzero(stop - start == 1)
        found[single] = self.values[start[single]]
        several = np.flatnonzero(stop - start > 1)
        first, last = start[several], stop[several] - 1
        level = np.frexp((first ^ last).astype(float))[1] - 1  # of the block whose middle lies between them
        for number in np.unique(level):
            own = level == number
            table = self.levels[number]
            found[several[own]] = self.reduce(table[first[own]], table[last[own]])
        return found
