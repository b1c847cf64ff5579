"""AZ-NAS: several training-free scores of a set of candidates as one order."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_OF_AZ_NAS = ("expressivity", "progressivity", "trainability", "macs")


def aggregate(candidates: Sequence[Mapping[str, float]], names: Sequence[str] = _OF_AZ_NAS) -> NDArray[np.float64]:
    """Sum over scores of log(rank / N), rank N for the best: a candidate that is poor in one score cannot make up for it (Lee and Ham, CVPR 2024, section 3).

    Ties share their mean rank. `candidates` as `scores` gives them; the values (N,) compare within these alone, higher is better.
    """
    from scipy.stats import rankdata  # here: it takes most of a second to import, and every worker imports this package

    values = np.array([[candidate[name] for name in names] for candidate in candidates]).reshape(-1, len(names))
    return np.asarray(np.log(rankdata(values, axis=0) / max(len(values), 1)).sum(axis=1))
