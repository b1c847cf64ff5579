"""Numbers known for every candidate before it is tried, as further inputs of the sampler's models."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from optuna.distributions import BaseDistribution

from archsearch.errors import ArchsearchError, UserError
from archsearch.metrics import Array
from archsearch.samplers.encoding import Encoder
from archsearch.samplers.pool import Params, Pool, shorten

BELIEVED_SLOPE = 0.5  # of an estimate, both standardised
_MOST_REMEMBERED = 200_000


class Inputs(Protocol):
    """J numbers for every candidate, cheap enough for thousands of them: a training-free score, a prediction from another study."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the numbers, J of them, distinct."""
        ...

    @property
    def estimates(self) -> frozenset[str]:
        """The names of those that are estimates: taken to grow with the objective, in its own units and direction, until the trials show otherwise.

        The objective is the sampler's `curve_of`. Of the others nothing is believed: the trials show whether and how they matter.
        """
        ...

    def __call__(self, candidates: Sequence[Params]) -> Array:
        """The numbers (N, J) of N complete candidates, which are called for once; nan where one is not known, which counts as an average one."""
        ...


class JoinedInputs:
    """Several inputs side by side."""

    def __init__(self, parts: Sequence[Inputs]) -> None:
        """Their names are distinct."""
        self._parts = list(parts)
        self.names = tuple(name for part in parts for name in part.names)
        self.estimates = frozenset().union(*(part.estimates for part in parts))

    def __call__(self, candidates: Sequence[Params]) -> Array:
        """See Inputs."""
        return np.hstack([part(candidates) for part in self._parts])


class KnownInputs:
    """The inputs of a pool's candidates, standardised over `reference`: 0 where nothing is known."""

    def __init__(self, inputs: Inputs, pool: Pool, reference: Sequence[Params]) -> None:
        """Raises UserError where `inputs` returns something else than (N, J) numbers."""
        self.names = tuple(inputs.names)
        if len(set(self.names)) < len(self.names):
            raise UserError(f"KnownCostSampler: inputs have a name twice: {', '.join(self.names)}")
        self.is_estimate = np.array([name in inputs.estimates for name in self.names], dtype=bool)
        self._inputs, self._pool = inputs, pool
        self._found: dict[Hashable, Array] = {}
        self._nothing = np.full(len(self.names), np.nan)
        self._centre, self._unit = np.zeros(len(self.names)), np.ones(len(self.names))
        raw = self._raw(reference)
        for place, column in enumerate(raw.T):
            finite = column[np.isfinite(column)]
            if len(finite):
                self._centre[place], self._unit[place] = finite.mean(), finite.std() or 1.0

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Array:
        """Standardised inputs (N, J) of N parameter dictionaries, those that are no candidates among them."""
        return np.nan_to_num((self._raw(rows) - self._centre) / self._unit, nan=0.0)

    def _raw(self, rows: Sequence[Mapping[str, Any]]) -> Array:
        names = self._pool.distributions.keys()
        own = [row if row.keys() <= names else {name: row[name] for name in row if name in names} for row in rows]
        keys = [self._pool.key(row) for row in own]
        new = {key: row for key, row in zip(keys, own, strict=True) if key is not None and key not in self._found}
        if len(self._found) + len(new) > _MOST_REMEMBERED:
            self._found = {}
            new = {key: row for key, row in zip(keys, own, strict=True) if key is not None}
        if new:
            self._found.update(zip(new, self._call(list(new.values())), strict=True))
        found = [self._nothing if key is None else self._found[key] for key in keys]
        return np.array(found).reshape(len(rows), len(self.names))

    def _call(self, candidates: Sequence[Mapping[str, Any]]) -> Array:
        try:
            found = self._inputs([dict(params) for params in candidates])
        except ArchsearchError:
            raise
        except Exception as error:
            raise UserError(f"KnownCostSampler: inputs raised {type(error).__name__}: {error}") from error
        shape = (len(candidates), len(self.names))
        try:
            values = np.asarray(found, dtype=np.float64)
        except (TypeError, ValueError):
            raise UserError(
                f"KnownCostSampler: inputs returned {shorten(found)}; it must return numbers of shape {shape}"
            ) from None
        if values.shape != shape:
            raise UserError(
                f"KnownCostSampler: inputs returned numbers of shape {values.shape}; they must have the shape {shape}: "
                f"{shape[0]} candidates by {', '.join(self.names)}"
            )
        return np.where(np.isfinite(values), values, np.nan)


class InputEncoder(Encoder):
    """An encoder whose rows end with the candidate's inputs."""

    def __init__(
        self, distributions: Mapping[str, BaseDistribution], ordered: Mapping[str, bool], given: KnownInputs
    ) -> None:
        super().__init__(distributions, ordered)
        self._given = given
        self.num_inputs = len(given.names)

    def encode(self, rows: Iterable[Mapping[str, Any]]) -> Array:
        """The rows (N, W + J) of N dictionaries."""
        every = list(rows)
        return np.hstack((self.encode_names(every), self._given(every)))
