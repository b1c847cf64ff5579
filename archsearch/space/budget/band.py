"""Bands of MACs and parameters, and the ends of a space's range."""

from dataclasses import dataclass
from typing import Literal

from archsearch.blocks import Cost
from archsearch.space.arch import Arch
from archsearch.space.budget.graph import END, Node, Params, space_graph
from archsearch.space.space import Space
from archsearch.units import format_count

Quantity = Literal["macs", "params"]
COLUMNS: dict[Quantity, int] = {"macs": 0, "params": 1}


@dataclass(frozen=True)
class Band:
    """The MACs (or parameters) a candidate may have, both ends included."""

    low: int
    high: int
    unit: str = "MACs"

    @classmethod
    def around(cls, budget_macs: int, tolerance: float) -> "Band":
        """From budget * (1 - tolerance) to budget * (1 + tolerance); the tolerance is a fraction."""
        return cls(round(budget_macs * (1 - tolerance)), round(budget_macs * (1 + tolerance)))

    def contains(self, number: int) -> bool:
        """True inside the band."""
        return self.low <= number <= self.high

    def distance(self, number: int) -> int:
        """Distance to the nearer end; 0 inside."""
        return max(self.low - number, number - self.high, 0)

    def __str__(self) -> str:
        return f"{format_count(self.low)} to {format_count(self.high)} {self.unit}"


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The MACs and the parameters that a candidate may have; None allows any number."""

    macs: Band | None = None
    params: Band | None = None

    def contains(self, cost: Cost) -> bool:
        """True where both numbers are inside."""
        return self.distance(cost) == 0

    def distance(self, cost: Cost) -> float:
        """How far the cost lies outside, as a share of the band's upper end, summed over both; 0 inside."""
        pairs = ((self.macs, cost.macs), (self.params, cost.params))
        return sum(band.distance(number) / max(1, band.high) for band, number in pairs if band is not None)

    def __str__(self) -> str:
        return " and ".join(str(band) for band in (self.macs, self.params) if band is not None) or "any cost"


def extremes(space: Space, quantity: Quantity = "macs") -> tuple[Arch, Arch]:
    """The architectures with the least and the most MACs (or parameters) of a space."""
    return _extreme(space, quantity, 1), _extreme(space, quantity, -1)


def _extreme(space: Space, quantity: Quantity, sign: int) -> Arch:
    """The architecture with the least sign * cost, from the head back to the image."""
    graph = space_graph(space)
    best: dict[Node, tuple[int, Params]] = {END: (0, {})}
    for step in reversed(graph.steps):
        earlier: dict[Node, tuple[int, Params]] = {}
        for node, ends in step.items():
            for end, options in ends.items():
                if end not in best:
                    continue
                costs = sign * options.costs[:, COLUMNS[quantity]]
                option = int(costs.argmin())
                total = best[end][0] + int(costs[option])
                if node not in earlier or total < earlier[node][0]:
                    earlier[node] = (total, {**options.params[option], **best[end][1]})
        best = earlier
    _, params = best[graph.start]
    return space.sample(lambda name, choices: params[name])


def explain_out_of_range(space: Space, band: Band | None, params_band: Band | None) -> str | None:
    """The error sentence for a band that lies below or above the whole range of the space, else None."""
    bounds: list[tuple[Quantity, Band | None]] = [("macs", band), ("params", params_band)]
    for quantity, bound in bounds:
        if bound is None:
            continue
        ends = [(int(getattr(arch.cost(), quantity)), arch) for arch in extremes(space, quantity)]
        if ends[0][0] > bound.high or ends[1][0] < bound.low:
            words = [f"{format_count(number)} ({arch.describe()})" for number, arch in ends]
            least, most = {"macs": ("cheapest", "most expensive"), "params": ("smallest", "largest")}[quantity]
            return f"{space.source}: no architecture has {bound}; the {least} architecture of the space has {words[0]}, the {most} {words[1]}"
    return None
