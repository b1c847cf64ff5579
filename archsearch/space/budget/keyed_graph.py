"""The graph of a space with one integer, a key, for the costs of an edge: keys are added where costs are.

Of two bounded quantities the second fills the lowest `bits` of the key, so wide that no sum overflows, and the first the bits above.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from archsearch.space.budget.graph import END, Integers, Node

Weights = NDArray[Any]  # int64, or float64 where a table holds more paths than that


class Keys:
    """Sums of keys in ascending order without repeats, and how many paths have each."""

    def __init__(self, keys: Integers, weights: Weights) -> None:
        if len(keys) > 1:
            bits = int(weights.max()).bit_length()
            if weights.dtype == np.int64 and int(keys.max()).bit_length() + bits < 63:
                packed = np.sort((keys << bits) | weights)  # as one integer, in half the time of an argsort
                keys, weights = packed >> bits, packed & ((1 << bits) - 1)
            else:
                order = np.argsort(keys)
                keys, weights = keys[order], weights[order]
            starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
            keys, weights = keys[starts], np.add.reduceat(weights, starts)
        self.keys, self.weights = keys, weights

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def before(self) -> Weights:
        """Number of paths before each row, and at the end of all."""
        return np.concatenate((np.zeros(1, self.weights.dtype), np.cumsum(self.weights)))

    def find(self, wanted: Integers) -> Weights:
        """Number of paths with exactly these sums; needs at least one row."""
        places = np.minimum(self.keys.searchsorted(wanted), len(self.keys) - 1)
        return np.where(self.keys[places] == wanted, self.weights[places], 0)


class Edge(Keys):
    """The options of one step between two nodes, equal keys merged; each option counts once, or as its weight (n,)."""

    def __init__(self, keys: Integers, weights: NDArray[np.float64] | None = None) -> None:
        super().__init__(keys, np.ones(len(keys), np.int64) if weights is None else weights)
        self._order = np.argsort(keys, kind="stable")
        self._sorted, self._weights = keys[self._order], weights

    @property
    def num_options(self) -> int:
        """Number of options, equal keys or not."""
        return len(self._order)

    def members(self, row: int) -> Integers:
        """Numbers of the options behind a row."""
        first, stop = (int(self._sorted.searchsorted(self.keys[row], side=side)) for side in ("left", "right"))
        return self._order[first:stop]

    def draw_member(self, row: int, rng: random.Random) -> int:
        """One of the options behind a row, in proportion to their weights."""
        members = self.members(row)
        if self._weights is None:
            return int(members[rng.randrange(len(members))])
        return int(members[draw_index(np.cumsum(self._weights[members]), rng)])


Arrow = tuple[Node, Node, Edge]
Path = list[tuple[Node, Node, int]]  # from node to node by which option


class Box(NamedTuple):
    """Lowest and highest cost of each bounded quantity, both included."""

    low: tuple[int, ...]
    high: tuple[int, ...]


def fitting_rows(keys: Integers, sums: Integers, box: Box, bits: int) -> tuple[Integers, Integers]:
    """First and last (excluded) of the ascending keys with which each of these sums lies inside the box in the first quantity."""
    first = sums >> bits
    return keys.searchsorted((box.low[0] - first) << bits), keys.searchsorted((box.high[0] + 1 - first) << bits)


def draw_index(before: Weights, rng: random.Random) -> int:
    """A random index, in proportion to the differences of a cumulative sum."""
    total = before[-1]
    target = rng.randrange(int(total)) if before.dtype == np.int64 else rng.random() * float(total)
    return min(int(before.searchsorted(target, side="right")), len(before) - 1)


@dataclass(frozen=True, kw_only=True)
class KeyedGraph:
    """Keyed steps from `start` to END; the second bounded quantity has the key's lowest `bits`. `is_weighted`: the options have weights."""

    start: Node
    steps: list[list[Arrow]]
    bits: int
    is_weighted: bool = False

    @cached_property
    def num_paths(self) -> int:
        """Number of paths from `start` to END at any cost."""
        ways = {END: 1}
        for step in reversed(self.steps):
            earlier: dict[Node, int] = {}
            for node, end, edge in step:
                earlier[node] = earlier.get(node, 0) + edge.num_options * ways.get(end, 0)
            ways = earlier
        return ways[self.start]

    def arrows(self, number: int, *, is_forward: bool) -> Iterable[Arrow]:
        """The edges of a step; backward with their ends swapped."""
        return self.steps[number] if is_forward else [(end, node, edge) for node, end, edge in self.steps[number]]

    @cached_property
    def leading_to(self) -> tuple[list[dict[Node, list[tuple[Node, Edge]]]], ...]:
        """Backward, then forward: for each step the edges into a node, with the nodes they come from."""
        both = []
        for is_forward in (False, True):
            steps: list[dict[Node, list[tuple[Node, Edge]]]] = []
            for number in range(len(self.steps)):
                found: dict[Node, list[tuple[Node, Edge]]] = {}
                for near, far, edge in self.arrows(number, is_forward=is_forward):
                    found.setdefault(far, []).append((near, edge))
                steps.append(found)
            both.append(steps)
        return tuple(both)

    def ranges(self, *, is_forward: bool) -> list[dict[Node, tuple[int, int]]]:
        """Least and most of the first quantity between one end of the graph and each node; one dictionary for each place between steps, in their order."""
        found = [{self.start if is_forward else END: (0, 0)}]
        numbers = range(len(self.steps))
        for number in numbers if is_forward else reversed(numbers):
            following: dict[Node, tuple[int, int]] = {}
            for near, far, edge in self.arrows(number, is_forward=is_forward):
                if near in found[-1]:
                    costs = [int(key >> self.bits) for key in edge.keys[[0, -1]]]
                    low, high = (end + cost for end, cost in zip(found[-1][near], costs, strict=True))
                    known = following.get(far, (low, high))
                    following[far] = (min(low, known[0]), max(high, known[1]))
            found.append(following)
        return found if is_forward else found[::-1]
