"""The candidates of one proposal: new and distinct, encoded, with their known costs."""

import math
import random
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archsearch.errors import ArchsearchError, UserError
from archsearch.metrics import Array
from archsearch.samplers.encoding import Encoder
from archsearch.samplers.pool import Params, Pool, TablePool, shorten

_CROSSED = 0.25  # share of candidates that are a crossover of two parents
_TWICE = 0.5  # share of mutants that mutate again
_MOST_REMEMBERED = 200_000


class Costs:
    """The known objectives of candidates, minimised; their functions are called once for a candidate.

    `guessed`: candidates are guesses at what a study asks for. A function that finds a name missing (LookupError) then gives nan, and the candidate goes
    to `lacking`.
    """

    def __init__(self, known: Mapping[int, Callable[[Params], float]], *, guessed: bool = False) -> None:
        """Raises UserError for anything but functions by index of the objective."""
        self.known = _check_known(known)
        self.lacking: dict[Hashable, Params] = {}
        self._guessed = guessed
        self._found: dict[tuple[Hashable, Sequence[int]], tuple[float, ...]] = {}

    def get(self, key: Hashable, params: Params, signs: tuple[int, ...]) -> tuple[float, ...]:
        """The costs of the candidate `key`, in the order of the objectives; `signs`: -1 for objectives that the study maximises."""
        try:
            return self.require(key, params, signs)
        except UserError as error:
            if not (self._guessed and isinstance(error.__cause__, LookupError)):
                raise
            self.lacking[key] = params
            return (math.nan,) * len(self.known)

    def require(self, key: Hashable, params: Params, signs: tuple[int, ...]) -> tuple[float, ...]:
        """As `get`, for parameters that are no guess. Raises UserError for a function that raises, or that returns something else than a number."""
        place = (key, signs)
        if place not in self._found:
            if len(self._found) >= _MOST_REMEMBERED:
                self._found.clear()
            self._found[place] = tuple(signs[index] * self._call(index, params) for index in self.known)
        return self._found[place]

    def _call(self, index: int, params: Params) -> float:
        try:
            value = self.known[index](dict(params))
        except ArchsearchError:
            raise
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
            raise UserError(f"KnownCostSampler: known[{index}] raised {found} for {params}") from error
        try:
            return _as_float(value)
        except (TypeError, ValueError, OverflowError):
            raise UserError(
                f"KnownCostSampler: known[{index}] returned {shorten(value)} for {params}; it must return a number"
            ) from None


def _check_known(known: Any) -> dict[int, Callable[[Params], float]]:
    """The functions in the order of the objectives."""
    if not isinstance(known, Mapping):
        raise UserError(
            f"KnownCostSampler: known is {shorten(known)}; give functions by index of the objective, such as {{1: cost}}"
        )
    for index, function in known.items():
        if isinstance(index, bool) or not isinstance(index, int | np.integer):
            raise UserError(
                f"KnownCostSampler: known has the key {shorten(index)}; give the index of an objective, counted from 0"
            )
        if not callable(function):
            raise UserError(f"KnownCostSampler: known[{index}] is {shorten(function)}, which is not a function")
    return {int(index): function for index, function in sorted(known.items())}


def _as_float(value: Any) -> float:
    """The number; text is none."""
    if isinstance(value, str | bytes):
        raise TypeError("text")
    return float(value)


class Candidates:
    """A list that grows by `add`; its candidates are distinct, not in `seen`, agree with `fixed`, and have finite costs."""

    def __init__(
        self,
        pool: Pool,
        encoder: Encoder,
        costs: Costs,
        signs: tuple[int, ...],
        seen: Iterable[Hashable],
        fixed: Mapping[str, Any],
    ) -> None:
        self._pool, self._encoder, self._costs, self._signs, self._fixed = pool, encoder, costs, signs, fixed
        self._keys: set[Hashable] = set(seen)
        self.params: list[Params] = []
        self.encoded: Array = np.zeros((0, len(encoder.groups) + encoder.num_inputs))
        self.costs: Array = np.zeros((0, len(costs.known)))

    def __len__(self) -> int:
        return len(self.params)

    def add(self, found: Iterable[Params | None]) -> slice:
        """Append those that are new, without None; returns their slice."""
        new: list[Params] = []
        costs: list[tuple[float, ...]] = []
        for params in found:
            key = None if params is None else self._pool.key(params)
            if params is None or key is None or key in self._keys or not self._fixed.items() <= params.items():
                continue
            self._keys.add(key)
            found_costs = self._costs.get(key, params, self._signs)
            if all(map(math.isfinite, found_costs)):
                new.append(params)
                costs.append(found_costs)
        start = len(self.params)
        self.params += new
        self.encoded = np.vstack((self.encoded, self._encoder.encode(new)))
        self.costs = np.vstack((self.costs, np.array(costs).reshape(len(new), self.costs.shape[1])))
        return slice(start, len(self.params))


class WholeTable:
    """All allowed rows of a table, encoded once, with their costs."""

    def __init__(self, pool: TablePool, encoder: Encoder, costs: Costs, signs: tuple[int, ...]) -> None:
        found = np.array([costs.get(pool.key(row), row, signs) for row in pool.rows]).reshape(
            len(pool), len(costs.known)
        )
        allowed = np.isfinite(found).all(axis=1)
        self._rows = [row for row, is_allowed in zip(pool.rows, allowed, strict=True) if is_allowed]
        self._places = {pool.key(row): place for place, row in enumerate(self._rows)}
        self._encoded, self._costs = encoder.encode(self._rows), found[allowed]
        self.num_left_out = len(pool) - len(self._rows)

    def pick(self, seen: Iterable[Hashable], fixed: Mapping[str, Any]) -> "Rows":
        """Those that are not in `seen` and agree with `fixed`."""
        left = np.ones(len(self._rows), dtype=bool)
        left[[self._places[key] for key in seen if key in self._places]] = False
        if fixed:
            left &= [fixed.items() <= row.items() for row in self._rows]
        places = np.flatnonzero(left)
        return Rows(
            params=[self._rows[place] for place in places],
            encoded=self._encoded[places],
            costs=self._costs[places],
        )


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Candidates to choose among: parameters, encoded (N, W), and known costs (N, K)."""

    params: list[Params]
    encoded: Array
    costs: Array

    def at(self, places: NDArray[np.int64]) -> "Rows":
        """Those at these places."""
        chosen = [self.params[place] for place in places]
        return Rows(params=chosen, encoded=self.encoded[places], costs=self.costs[places])

    def without(self, place: int) -> "Rows":
        """All but the one at this place."""
        return Rows(
            params=[*self.params[:place], *self.params[place + 1 :]],
            encoded=np.delete(self.encoded, place, axis=0),
            costs=np.delete(self.costs, place, axis=0),
        )


def breed(pool: Pool, parents: Sequence[Params], number: int, rng: random.Random) -> Iterable[Params | None]:
    """Mutants of the parents, by one or two mutations, and crossovers of two of them."""
    for index in range(number if parents else 0):
        parent = parents[index % len(parents)]
        if len(parents) > 1 and rng.random() < _CROSSED:
            yield pool.cross(parent, rng.choice(parents), rng)
            continue
        mutant = pool.mutate(parent, rng)
        if mutant is not None and rng.random() < _TWICE:
            mutant = pool.mutate(mutant, rng)
        yield mutant
