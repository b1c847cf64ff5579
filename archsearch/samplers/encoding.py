"""Parameter dictionaries as rows of numbers, whose squared differences respect the order of numbers and compare categories for equality."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from archsearch.metrics import Array

# A number's span gives distances up to 1; where one side lacks the name the distance is between 3/4 and 1.
_PRESENT = math.sqrt(0.75)
_HALF = math.sqrt(0.5)
_LOG_RATIO = 10.0
ABSENT = "\0absent"


class Column:
    """The columns of one name: one for a number, one for each choice of a category, and one that marks whether the name is there."""

    def __init__(self, distribution: BaseDistribution) -> None:
        self._choices: tuple[Any, ...] = ()
        self._low, self._span, self._log = 0.0, 1.0, False
        numbers = numeric_values(distribution)
        if numbers is None:
            assert isinstance(distribution, CategoricalDistribution), "anything else is a number"
            self._choices = distribution.choices
        else:
            low, high = min(numbers), max(numbers)
            self._log = low > 0 and high / low >= _LOG_RATIO and getattr(distribution, "log", True)
            self._low, top = (math.log(low), math.log(high)) if self._log else (low, high)
            self._span = (top - self._low) or 1.0
        self.width = len(self._choices or "x") + 1
        # Rows of values met so far, that of an absent name first.
        self._places: dict[Any, int] = {ABSENT: 0}
        self._parts: list[Sequence[float]] = [[0.0] * self.width]

    def encode(self, values: Sequence[Any]) -> Array:
        """These columns (N, width) for N values, some of them ABSENT."""
        for value in values:
            if value not in self._places:
                self._places[value] = len(self._parts)
                if self._choices:
                    self._parts.append([*(_HALF * (choice == value) for choice in self._choices), _HALF])
                else:
                    number = math.log(value) if self._log else float(value)
                    self._parts.append([(number - self._low) / self._span - 0.5, _PRESENT])
        return np.array(self._parts)[[self._places[value] for value in values]]


def numeric_values(distribution: BaseDistribution) -> Sequence[float] | None:
    """All choices, or both ends of a range; None where choices are not numbers."""
    if isinstance(distribution, IntDistribution | FloatDistribution):
        return (distribution.low, distribution.high)
    assert isinstance(distribution, CategoricalDistribution), "Optuna has no other"
    if all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in distribution.choices):
        return [float(choice) for choice in distribution.choices]  # type: ignore[arg-type]  # just checked
    return None


class Encoder:
    """Parameter dictionaries as rows (N, W); `groups` (W,) gives the index of each column's name in `names`.

    The squared distance of two rows within a name's columns is 1 for different categories, at most 1 for numbers, about 1 where one row lacks the
    name, and 0 where both do.
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution]) -> None:
        self.names = sorted(distributions)
        self._columns = {name: Column(distributions[name]) for name in self.names}
        widths = [self._columns[name].width for name in self.names]
        self.groups: NDArray[np.int64] = np.repeat(np.arange(len(widths)), widths)

    def encode(self, rows: Iterable[Mapping[str, Any]]) -> Array:
        """The rows (N, W) of N dictionaries; unknown names have no effect."""
        rows = list(rows)
        parts = [self._columns[name].encode([row.get(name, ABSENT) for row in rows]) for name in self.names]
        return np.hstack(parts) if parts else np.zeros((len(rows), 0))
