"""Hypervolumes of fronts on one scale."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from archsearch.metrics import Array, hypervolume

HYPERVOLUME_REFERENCE = 1.1


@dataclass(frozen=True, kw_only=True, eq=False)
class VolumeScale:
    """Every objective from 0, its best value, to 1, its worst, among some trials; `low` and `span` are (M,), of values to be minimised."""

    low: Array
    span: Array

    @classmethod
    def of(cls, values: Array) -> Self:
        """The scale of these trials (N, M), of which there is at least one."""
        low, high = values.min(axis=0), values.max(axis=0)
        return cls(low=low, span=np.where(high > low, high - low, 1.0))

    def volume(self, front: Array) -> float:
        """What a front (N, M) dominates, up to HYPERVOLUME_REFERENCE in each objective."""
        scaled = (front - self.low) / self.span
        return hypervolume(scaled, np.full(len(self.low), HYPERVOLUME_REFERENCE))
