"""Parameter dictionaries as rows of numbers, whose squared differences respect the order of numbers and compare categories for equality."""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from archsearch.errors import UserError
from archsearch.metrics import Array

# A number's span gives distances up to 1; where one side lacks the name the distance is between 3/4 and 1.
_PRESENT = math.sqrt(0.75)
_HALF = math.sqrt(0.5)
_LOG_RATIO = 10.0
_MOST_CODES = 1000
_MOST_REMEMBERED = 10_000  # rows; up to some kilobytes each
ABSENT = "\0absent"


class Column:
    """The columns of one reading of a name: one for a number, or one for each value of a category; and one that marks whether the name is there."""

    def __init__(self, distribution: BaseDistribution, *, ordered: bool) -> None:
        self._choices: Sequence[Any] = ()
        self._low, self._span, self._log = 0.0, 1.0, False
        if ordered:
            numbers = numeric_values(distribution)
            assert numbers is not None, "an ordered name has numbers"
            low, high = min(numbers), max(numbers)
            self._log = low > 0 and high / low >= _LOG_RATIO and getattr(distribution, "log", True)
            self._low, top = (math.log(low), math.log(high)) if self._log else (low, high)
            self._span = (top - self._low) or 1.0
        else:
            self._choices = _codes(distribution)
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


def _codes(distribution: BaseDistribution) -> Sequence[Any]:
    """All values of a name without an order. Raises UserError where they are too many."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    if isinstance(distribution, IntDistribution) and len(range(distribution.low, distribution.high + 1)) <= _MOST_CODES:
        return range(distribution.low, distribution.high + 1)
    raise UserError(
        f"KnownCostSampler: ordered is False for a name of {distribution}; only a category or at most {_MOST_CODES} integers can be codes"
    )


def _readings(name: str, distribution: BaseDistribution, ordered: bool | None) -> Sequence[bool]:
    """True where a number is read as a quantity, False where as a code; both for a category of numbers that `ordered` does not name."""
    numbers = numeric_values(distribution)
    if numbers is None:
        if ordered:
            raise UserError(
                f"KnownCostSampler: ordered has {name!r}, but its values are not all numbers: {distribution}"
            )
        return (False,)
    if ordered is not None:
        return (ordered,)
    return (True, False) if isinstance(distribution, CategoricalDistribution) and len(set(numbers)) > 2 else (True,)


class Encoder:
    """Parameter dictionaries as rows (N, W); `groups` (W,) gives the index of each column's reading: a name read in two ways has two.

    The squared distance of two rows within a group is 1 for different categories, at most 1 for numbers, about 1 where one row lacks the
    name, and 0 where both do. `pairs`: the groups of names read in two ways, as number and as code.
    """

    num_inputs = 0  # columns of a row after those of the names: see InputEncoder

    def __init__(
        self, distributions: Mapping[str, BaseDistribution], ordered: Mapping[str, bool] | None = None
    ) -> None:
        """`ordered`: see KnownCostSampler; names that are missing here have no effect."""
        self.distributions = dict(distributions)
        self.names = sorted(distributions)
        self._columns: list[tuple[str, Column]] = []
        self.pairs: list[tuple[int, int]] = []
        for name in self.names:
            readings = _readings(name, distributions[name], (ordered or {}).get(name))
            if len(readings) == 2:
                self.pairs.append((len(self._columns), len(self._columns) + 1))
            self._columns += [(name, Column(distributions[name], ordered=reading)) for reading in readings]
        widths = [column.width for _, column in self._columns]
        self.groups: NDArray[np.int64] = np.repeat(np.arange(len(widths)), widths)
        # Rows by the values of all names: from one ask to the next most are the same.
        self._known: dict[Hashable, Array] = {}

    def encode(self, rows: Iterable[Mapping[str, Any]]) -> Array:
        """All columns of N dictionaries."""
        return self.encode_names(rows)

    def encode_names(self, rows: Iterable[Mapping[str, Any]]) -> Array:
        """The rows (N, W) of N dictionaries; unknown names have no effect."""
        keys = [tuple(map(row.get, self.names, repeat(ABSENT))) for row in rows]
        if not all(map(self._known.__contains__, keys)):
            self._remember(keys)
        return np.stack([self._known[key] for key in keys]) if keys else np.zeros((0, len(self.groups)))

    def _remember(self, keys: Sequence[tuple[Any, ...]]) -> None:
        """Encode those that are not known."""
        new = [key for key in dict.fromkeys(keys) if key not in self._known]
        if len(self._known) + len(new) > _MOST_REMEMBERED:
            self._known, new = {}, list(dict.fromkeys(keys))
        self._known.update(zip(new, self._encode(new), strict=True))

    def _encode(self, rows: Sequence[Sequence[Any]]) -> Array:
        """The rows (N, W) of the values of all names."""
        values = dict(zip(self.names, zip(*rows, strict=True), strict=False))
        parts = [column.encode(values[name]) for name, column in self._columns] if rows else []
        return np.hstack(parts) if parts else np.zeros((len(rows), 0))
