"""Where a sampler's candidates come from: the protocol, and a pool over a finite table."""

import random
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution

from archsearch.errors import UserError

Params = dict[str, Any]
_TRIES = 16


class Pool(Protocol):
    """Candidates as parameter dictionaries. Whatever it returns is whole and allowed; the same `rng` gives the same answers."""

    @property
    def distributions(self) -> Mapping[str, BaseDistribution]:
        """Every name a candidate may have, with its distribution: what the model reads scales and categories from."""
        ...

    def draw(self, number: int, rng: random.Random) -> list[Params]:
        """At random; fewer than `number` when there are no more, and may repeat."""
        ...

    def mutate(self, params: Params, rng: random.Random) -> Params | None:
        """A candidate near this one, or None."""
        ...

    def cross(self, first: Params, second: Params, rng: random.Random) -> Params | None:
        """A candidate that takes after both, or None."""
        ...

    def key(self, params: Mapping[str, Any]) -> Hashable | None:
        """Equal for candidates that are the same thing; None for what is no whole candidate (a paper's model, a trial still being asked)."""
        ...


def items_key(params: Mapping[str, Any]) -> Hashable:
    """The parameters themselves, whatever their order."""
    return tuple(sorted(params.items()))


class _Row(dict[str, Any]):
    """A row that remembers its key: sorting a thousand rows' names was a third of an ask."""

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        self.key = items_key(params)


class TablePool:
    """A finite table of candidates, duplicates taken once. Raises UserError when it is empty."""

    def __init__(self, candidates: Iterable[Mapping[str, Any]]) -> None:
        rows = (_Row(_plain(row)) for row in candidates)
        self._rows: dict[Hashable, Params] = {row.key: row for row in rows}
        self._order = list(self._rows.values())
        if not self._rows:
            raise UserError("KnownCostSampler: candidates is empty; give at least one parameter dictionary, or None")
        values: dict[str, dict[Any, None]] = {}
        for row in self._order:
            for name, value in row.items():
                values.setdefault(name, {})[value] = None
        self._values = {name: list(found) for name, found in values.items()}
        self._distributions = {name: CategoricalDistribution(found) for name, found in self._values.items()}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def distributions(self) -> Mapping[str, BaseDistribution]:
        """Every name of the table with the values it takes."""
        return self._distributions

    @property
    def rows(self) -> list[Params]:
        """Every candidate."""
        return self._order

    def draw(self, number: int, rng: random.Random) -> list[Params]:
        """Different rows; all of them when there are no more than `number`."""
        return self._order if number >= len(self._order) else rng.sample(self._order, number)

    def mutate(self, params: Params, rng: random.Random) -> Params | None:
        """A row that differs in one name, or where the table has none, in as few as some random rows show."""
        for _ in range(_TRIES):
            name = rng.choice(sorted(params))
            found = self._rows.get(items_key({**params, name: rng.choice(self._values[name])}))
            if found is not None and found[name] != params[name]:
                return found
        return self._nearest({**params}, rng, avoid=items_key(params))

    def cross(self, first: Params, second: Params, rng: random.Random) -> Params | None:
        """A row that has each name from one of the two, or the nearest to such a one."""
        child = {name: (first if rng.random() < 0.5 or name not in second else second)[name] for name in sorted(first)}
        return self._rows.get(items_key(child)) or self._nearest(child, rng, avoid=items_key(first))

    def key(self, params: Mapping[str, Any]) -> Hashable | None:
        """The row's items; None outside the table."""
        found = params.key if isinstance(params, _Row) else items_key(params)
        return found if found in self._rows else None

    def _nearest(self, params: Params, rng: random.Random, avoid: Hashable) -> Params | None:
        rows = [row for row in self.draw(4 * _TRIES, rng) if items_key(row) != avoid]
        return min(rows, key=lambda row: _differences(row, params), default=None)


def _plain(row: Mapping[str, Any]) -> Params:
    """Python's own numbers in place of numpy's, which a storage could not keep."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in row.items()}


def _differences(first: Params, second: Params) -> int:
    """Names that are not the same in both."""
    absent = object()
    return sum(first.get(name, absent) != second.get(name, absent) for name in first.keys() | second.keys())
