"""Pools, from which a sampler takes its candidates: the protocol, and a pool of a finite table."""

import random
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution

from archsearch.errors import UserError

Params = dict[str, Any]
_TRIES = 16


class Pool(Protocol):
    """Candidates as parameter dictionaries. All that it returns are complete and allowed; the same `rng` gives the same ones."""

    @property
    def distributions(self) -> Mapping[str, BaseDistribution]:
        """Every name that a candidate may have, with its distribution, from which the model takes scales and categories."""
        ...

    def draw(self, number: int, rng: random.Random) -> list[Params]:
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


def items_key(params: Mapping[str, Any]) -> Hashable:
    """The parameters themselves, in a fixed order."""
    return tuple(sorted(params.items()))


class _Row(dict[str, Any]):
    """A row with its key: sorting the names of a thousand rows was a third of the time of an ask."""

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        self.key = items_key(params)


class TablePool:
    """A finite table of candidates, `rows`, without duplicates. Raises UserError when it is empty."""

    def __init__(self, candidates: Iterable[Mapping[str, Any]]) -> None:
        # Python's own numbers in place of numpy's, which a storage could not keep.
        rows = (
            _Row({name: value.item() if isinstance(value, np.generic) else value for name, value in row.items()})
            for row in candidates
        )
        self._rows: dict[Hashable, Params] = {row.key: row for row in rows}
        self.rows = list(self._rows.values())
        if not self._rows:
            raise UserError("KnownCostSampler: candidates is empty; give at least one parameter dictionary, or None")
        values: dict[str, dict[Any, None]] = {}
        for row in self.rows:
            for name, value in row.items():
                values.setdefault(name, {})[value] = None
        self._values = {name: list(found) for name, found in values.items()}
        self.distributions = {name: CategoricalDistribution(found) for name, found in self._values.items()}

    def __len__(self) -> int:
        return len(self._rows)

    def draw(self, number: int, rng: random.Random) -> list[Params]:
        """Distinct rows; all of them when there are no more than `number`."""
        return self.rows if number >= len(self.rows) else rng.sample(self.rows, number)

    def mutate(self, params: Params, rng: random.Random) -> Params | None:
        """A row that differs in one name, or, when none is found, the nearest of some random rows."""
        for _ in range(_TRIES):
            name = rng.choice(sorted(params))
            found = self._rows.get(items_key({**params, name: rng.choice(self._values[name])}))
            if found is not None and found[name] != params[name]:
                return found
        return self._nearest({**params}, rng, avoid=items_key(params))

    def cross(self, first: Params, second: Params, rng: random.Random) -> Params | None:
        """A row with each name from one of the two, or, when there is none, the nearest of some random rows."""
        child = {name: (first if rng.random() < 0.5 or name not in second else second)[name] for name in sorted(first)}
        return self._rows.get(items_key(child)) or self._nearest(child, rng, avoid=items_key(first))

    def key(self, params: Mapping[str, Any]) -> Hashable | None:
        """The parameters themselves; None for those outside the table."""
        found = params.key if isinstance(params, _Row) else items_key(params)
        return found if found in self._rows else None

    def _nearest(self, params: Params, rng: random.Random, avoid: Hashable) -> Params | None:
        rows = [row for row in self.draw(4 * _TRIES, rng) if items_key(row) != avoid]
        absent = object()

        def differences(row: Params) -> int:
            return sum(row.get(name, absent) != params.get(name, absent) for name in row.keys() | params.keys())

        return min(rows, key=differences, default=None)
