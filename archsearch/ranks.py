"""How far two orders of the same things agree."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Figures = Sequence[float] | NDArray[np.float64]


def kendall_tau(first: Figures, second: Figures) -> float:
    """Kendall's tau-b of two series of equal length, from -1 to 1; nan where one of them has no two different values.

    (concordant - discordant) / sqrt((pairs - ties in first) * (pairs - ties in second)); Kendall, Biometrika 33 (1945).
    """
    upper = np.triu_indices(len(first), k=1)
    signs_first, signs_second = (np.sign(np.subtract.outer(side, side))[upper] for side in (first, second))
    scale = float(np.sqrt(np.count_nonzero(signs_first) * np.count_nonzero(signs_second)))
    return float(np.sum(signs_first * signs_second)) / scale if scale else float("nan")
