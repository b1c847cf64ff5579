"""Pools, from which a sampler takes its candidates: the protocol, and a pool of a finite table."""

import random
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution

from archsearch.errors import UserError
from archsearch.samplers.encoding import ABSENT

Params = dict[str, Any]
_TRIES = 16
_SHOWN = 60  # letters of a wrong value in a message


class Pool(Protocol):
    """Candidates as parameter dictionaries. All that it returns are complete and allowed; the same `rng` gives the same ones."""

    @property
    def distributions(self) -> Mapping[str, BaseDistribution]:
        """Every name that a candidate may have, with its distribution, from which the model takes scales and categories."""
        ...

    def draw(self, number: int, rng: random.Random) -> Sequence[Params]:
        """Random candidates, perhaps with repeats; fewer than `number` when there are no more."""
        ...

    def mutate(self, params: Params, rng: random.Random) -> Params | None:
        """A candidate near this one, or None."""
        ...

    def cross(self, first: Params, second: Params, rng: random.Random) -> Params | None:
        """A crossover of two candidates, or None."""
        ...

    def key(self, params: Mapping[str, Any]) -> Hashable | None:
        """Equal for candidates that are the same; None for parameters that are no complete candidate (a paper's model, a trial that is still sampled)."""
        ...


class Row(dict[str, Any]):
    """Parameters, not to be changed, with their key: sorting the names of a thousand rows was a third of the time of an ask."""

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        self.key = tuple(sorted(params.items()))


def items_key(params: Mapping[str, Any]) -> Hashable:
    """The parameters themselves, in a fixed order."""
    return params.key if isinstance(params, Row) else tuple(sorted(params.items()))


def shorten(value: object) -> str:
    """How a message shows what it was given."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


class TablePool:
    """A finite table of candidates, `rows`, without duplicates. Raises UserError when it is empty, or a row is no parameter dictionary."""

    def __init__(self, candidates: Iterable[Mapping[str, Any]]) -> None:
        self._rows: dict[Hashable, Row] = {row.key: row for row in map(_make_row, _iterate(candidates))}
        self.rows = list(self._rows.values())
        if not self._rows:
            raise UserError("KnownCostSampler: candidates is empty; give at least one parameter dictionary, or None")
        self._places: dict[str, dict[Any, int]] = {}  # of each value among those of its name
        for row in self.rows:
            for name, value in row.items():
                places = self._places.setdefault(name, {})
                places.setdefault(value, len(places))
        self._values = {name: list(places) for name, places in self._places.items()}
        self.distributions = {name: CategoricalDistribution(found) for name, found in self._values.items()}
        self._codes = self._encode(self.rows)

    def __len__(self) -> int:
        return len(self._rows)

    def draw(self, number: int, rng: random.Random) -> Sequence[Params]:
        """Distinct rows; all of them when there are no more than `number`."""
        return self.rows if number >= len(self.rows) else rng.sample(self.rows, number)

    def mutate(self, params: Params, rng: random.Random) -> Params | None:
        """A row that differs in one name, or, when none is found, the nearest of some random rows."""
        for _ in range(_TRIES):
            name = rng.choice(sorted(params))
            found = self._rows.get(items_key({**params, name: rng.choice(self._values[name])}))
            if found is not None and found[name] != params[name]:
                return found
        return self._nearest(params, rng, avoid=params)

    def cross(self, first: Params, second: Params, rng: random.Random) -> Params | None:
        """A row with each name from one of the two, or, when there is none, the nearest of some random rows."""
        child = {name: (first if rng.random() < 0.5 or name not in second else second)[name] for name in sorted(first)}
        return self._rows.get(items_key(child)) or self._nearest(child, rng, avoid=first)

    def key(self, params: Mapping[str, Any]) -> Hashable | None:
        """The parameters themselves; None for those outside the table."""
        found = items_key(params)
        return found if found in self._rows else None

    def _encode(self, rows: Sequence[Params]) -> NDArray[np.int32]:
        """The place of each value (N, names), -1 where a row lacks the name."""
        columns = [[places.get(row.get(name, ABSENT), -1) for row in rows] for name, places in self._places.items()]
        return np.array(columns, dtype=np.int32).T

    def _nearest(self, params: Params, rng: random.Random, avoid: Params) -> Params | None:
        """Of some random rows, the one that differs in the fewest names, but not `avoid`."""
        some = np.array(rng.sample(range(len(self.rows)), min(len(self.rows), 4 * _TRIES)))
        wanted, other = self._encode([params, avoid])
        some = some[(self._codes[some] != other).any(axis=1)]
        differences = (self._codes[some] != wanted).sum(axis=1)
        return self.rows[some[differences.argmin()]] if len(some) else None


def _iterate(candidates: Any) -> Iterable[Any]:
    """The rows; a single dictionary or text is no table."""
    if not isinstance(candidates, Iterable) or isinstance(candidates, Mapping | str):
        raise UserError(f"KnownCostSampler: candidates is {shorten(candidates)}; give a list of parameter dictionaries")
    return candidates


def _make_row(row: Any) -> Row:
    """With Python's own numbers in place of numpy's, which a storage could not keep."""
    if not isinstance(row, Mapping) or not all(isinstance(name, str) for name in row):
        raise UserError(f"KnownCostSampler: a candidate is {shorten(row)}; give a dictionary of values by name")
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in row.items()}
    for name, value in plain.items():
        if not isinstance(value, bool | int | float | str | None) or value != value:  # nan never equals itself
            raise UserError(
                f"KnownCostSampler: the candidate {shorten(row)} has {name}={shorten(value)}; "
                "a value is a number other than nan, text, True, False or None"
            )
    return Row(plain)
