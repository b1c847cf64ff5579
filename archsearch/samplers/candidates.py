"""The candidates of one proposal: new and distinct, encoded, with their known costs."""

import math
import random
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from archsearch.metrics import Array
from archsearch.samplers.encoding import Encoder
from archsearch.samplers.pool import Params, Pool

_CROSSED = 0.25  # share of candidates that are a crossover of two parents
_TWICE = 0.5  # share of mutants that mutate again
_MOST_REMEMBERED = 200_000


class Costs:
    """The known objectives of candidates, minimised; their functions are called once for a candidate."""

    def __init__(self, known: Mapping[int, Callable[[Params], float]]) -> None:
        self.known = dict(sorted(known.items()))
        self._found: dict[tuple[Hashable, Sequence[int]], tuple[float, ...]] = {}

    def get(self, key: Hashable, params: Params, signs: tuple[int, ...]) -> tuple[float, ...]:
        """The costs of the candidate `key`, in the order of the objectives; `signs`: -1 for objectives that the study maximises."""
        place = (key, signs)
        if place not in self._found:
            if len(self._found) >= _MOST_REMEMBERED:
                self._found.clear()
            self._found[place] = tuple(
                signs[index] * float(function(dict(params))) for index, function in self.known.items()
            )
        return self._found[place]


class Candidates:
    """A list that grows by `add`; its candidates are distinct, not in `seen`, and agree with `fixed`."""

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
        self.encoded: Array = np.zeros((0, len(encoder.groups)))
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
            if not any(map(math.isnan, found_costs)):
                new.append(params)
                costs.append(found_costs)
        start = len(self.params)
        self.params += new
        self.encoded = np.vstack((self.encoded, self._encoder.encode(new)))
        self.costs = np.vstack((self.costs, np.array(costs).reshape(len(new), self.costs.shape[1])))
        return slice(start, len(self.params))


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
