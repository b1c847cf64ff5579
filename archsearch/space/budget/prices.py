"""A price for the second of two bounded quantities (a Lagrange multiplier), with which bounds on scores take its band into account."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from archsearch.space.budget.graph import END, Integers, Node
from archsearch.space.budget.keyed_graph import Box

_STEPS = (30, 45)  # of the search for the price of the first and of the second quantity
_STEEPEST = 64.0  # times the range of scores over that of the quantity
_MOST_PRICED = 2.0**58  # scores are below 2**54
_GOLDEN = (5**0.5 - 1) / 2


class ScoredArrow(NamedTuple):
    """The options of a step between two nodes, each with its key and its score."""

    near: Node
    far: Node
    keys: Integers
    scores: Integers


def price_of_second(steps: list[list[ScoredArrow]], box: Box, bits: int) -> tuple[int, int]:
    """The score that a unit of the second quantity should cost, and what the whole of it at an end of the band costs; 0 where one quantity is bounded.

    No path inside has a higher score than the best of all by score - price * quantity, plus the price at the end. That holds for any price; this one
    nearly minimises the bound, together with one for the first quantity.
    """
    if len(box.low) == 1:
        return 0, 0
    dual = _Dual(steps, box, bits)

    def bound(second: float) -> float:
        first = _halve(dual.steepest[0], lambda price: dual.bound(price, second)[1] > 0)
        return dual.bound(first, second)[0]

    price = _minimise(dual.steepest[1], bound)
    whole = round(price * min(1.0, _MOST_PRICED / max(1.0, abs(price) * dual.most[2])))
    return whole, whole * (min(box.high[1], int(dual.most[2])) if whole > 0 else box.low[1])


class _Dual:
    """The bound as a function of both prices."""

    def __init__(self, steps: list[list[ScoredArrow]], box: Box, bits: int) -> None:
        mask = (1 << bits) - 1
        self.box = box
        self.steps: list[list[tuple[Node, Node, NDArray[np.float64]]]] = [
            [
                (near, far, np.column_stack((scores, keys >> bits, keys & mask)).astype(float))
                for near, far, keys, scores in arrows
            ]
            for arrows in steps
        ]
        columns = [np.concatenate([values for _, _, values in arrows]) for arrows in self.steps]
        self.most = np.sum([values.max(axis=0) for values in columns], axis=0)
        score, *costs = self.most - np.sum([values.min(axis=0) for values in columns], axis=0)
        self.steepest = [_STEEPEST * score / max(1.0, cost) for cost in costs]

    def bound(self, *prices: float) -> tuple[float, float]:
        """The bound with these prices, and how much of the first quantity its path has beyond the end of the band that is paid for."""
        ends = [high if price > 0 else low for price, low, high in zip(prices, *self.box, strict=True)]
        paid = np.array([1.0, *(-price for price in prices)])
        best: dict[Node, tuple[float, float]] = {END: (float(np.dot(prices, ends)), -float(ends[0]))}
        for step in reversed(self.steps):
            earlier: dict[Node, tuple[float, float]] = {}
            for near, far, values in step:
                totals = values @ paid
                option = int(totals.argmax())
                found = (best[far][0] + float(totals[option]), best[far][1] + float(values[option, 1]))
                earlier[near] = max(found, earlier.get(near, found))
            best = earlier
        (found,) = best.values()
        return found


def _halve(steepest: float, is_too_cheap: Callable[[float], bool]) -> float:
    """Where between -steepest and steepest a price stops to be too cheap."""
    low, high = -steepest, steepest
    for _ in range(_STEPS[0]):
        middle = (low + high) / 2
        low, high = (middle, high) if is_too_cheap(middle) else (low, middle)
    return (low + high) / 2


def _minimise(steepest: float, function: Callable[[float], float]) -> float:
    """The minimum of a convex function between -steepest and steepest, by the golden section."""
    low, high = -steepest, steepest
    inner = [high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)]
    values = [function(place) for place in inner]
    for _ in range(_STEPS[1]):
        if values[0] < values[1]:
            high = inner[1]
            inner = [high - _GOLDEN * (high - low), inner[0]]
            values = [function(inner[0]), values[0]]
        else:
            low = inner[0]
            inner = [inner[1], low + _GOLDEN * (high - low)]
            values = [values[1], function(inner[1])]
    return inner[0] if values[0] < values[1] else inner[1]
