"""Draws in proportion to the exponential of a score, with a band of parameters beside the quantity that the tables know."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from archsearch.errors import UserError
from archsearch.space.budget.band import Band
from archsearch.space.budget.graph import Graph, Node
from archsearch.space.budget.meet_in_the_middle import MeetInTheMiddle
from archsearch.space.budget.paths import path_cost
from archsearch.space.budget.scores import OptionScores

# Of each step, by the nodes that the options lie between.
OptionWeights = list[dict[tuple[Node, Node], NDArray[np.float64]]]

_WIDEST = 600  # exp(-600) is still a float
_PILOTS = 40
_DOUBLINGS = 20
_HALVINGS = 5


@dataclass(frozen=True, kw_only=True)
class Tilted:
    """Tables whose draws are in proportion to exp(tilt - price * parameters).

    Kept with a probability of exp(price * (parameters - end)), at most 1 inside the band that ends there, they are in proportion to exp(tilt).
    """

    tables: MeetInTheMiddle
    price: float = 0.0
    end: int = 0

    def keeps(self, params: int, rng: random.Random) -> bool:
        """Whether a draw inside the band is kept."""
        return self.price == 0 or rng.random() < math.exp(self.price * (params - self.end))


def balance(weigh: Callable[[float], MeetInTheMiddle], graph: Graph, band: Band | None) -> Tilted:
    """The tables `weigh` makes at the price with which most draws are kept: 0 where draws have parameters inside the band, else that at which they have
    about as many as its nearer end.

    A price is a Lagrange multiplier: the share that is kept is highest where the mean is the end. The mean is of a few draws, which cost little, and whose
    error makes draws slower, not wrong.
    """
    tables = weigh(0.0)
    if band is None or band.contains(round(_mean_params(tables, graph))):
        return Tilted(tables=tables)
    mean = _mean_params(tables, graph)
    end, sign = (band.high, 1) if mean > band.high else (band.low, -1)
    low, high = 0.0, 1.0 / abs(mean - end)
    for _ in range(_DOUBLINGS):
        if sign * (_mean_params(weigh(sign * high), graph) - end) <= 0:
            break
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_beyond = sign * (_mean_params(weigh(sign * middle), graph) - end) > 0
        low, high = (middle, high) if is_beyond else (low, middle)
    return Tilted(tables=weigh(sign * high), price=sign * high, end=end)


def _mean_params(tables: MeetInTheMiddle, graph: Graph) -> float:
    rng = random.Random(0)
    return fmean(int(path_cost(graph, tables.draw(rng))[1]) for _ in range(_PILOTS))


def option_weights(graph: Graph, scores: OptionScores, price: float) -> OptionWeights:
    """exp(score - price * parameters) of each option, divided by the largest of its step, which changes no proportion between paths.

    Raises UserError where an architecture might weigh less than the least number.
    """
    logs = [
        {(near, far): own * scores.unit - price * step[near][far].costs[:, 1] for (near, far), own in known.items()}
        for step, known in zip(graph.steps, scores.steps, strict=True)
    ]
    most = [max(float(own.max()) for own in step.values()) for step in logs]
    span = sum(most) - sum(min(float(own.min()) for own in step.values()) for step in logs)
    if span > _WIDEST:
        raise UserError(
            f"tilt: its sums span {span:.4g}; up to {_WIDEST} are allowed, so multiply it by {_WIDEST / span:.2g} or less"
        )
    return [
        {ends: np.exp(own - highest) for ends, own in step.items()} for step, highest in zip(logs, most, strict=True)
    ]
