"""The ends of a space's range, exactly: shortest and longest paths through its graph."""

from typing import Literal

from archsearch.arch import Arch
from archsearch.budget.band import Band
from archsearch.budget.options import END, Node, Params, graph_of
from archsearch.space import Space
from archsearch.units import format_count

Quantity = Literal["macs", "params"]
COLUMNS: dict[Quantity, int] = {"macs": 0, "params": 1}


def extremes(space: Space, quantity: Quantity = "macs") -> tuple[Arch, Arch]:
    """The architectures with the least and the most MACs (or parameters) of a space."""
    return _extreme(space, quantity, 1), _extreme(space, quantity, -1)


def _extreme(space: Space, quantity: Quantity, sign: int) -> Arch:
    """The architecture with the least sign * cost, from the head back to the image."""
    graph = graph_of(space)
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


def beyond_range(space: Space, band: Band | None, params_band: Band | None) -> str | None:
    """The sentence for a band below or above everything that the space has; None when it is neither."""
    bounds: list[tuple[Quantity, Band | None]] = [("macs", band), ("params", params_band)]
    for quantity, bound in bounds:
        if bound is None:
            continue
        ends = [(int(getattr(arch.cost(), quantity)), arch) for arch in extremes(space, quantity)]
        if ends[0][0] > bound.high or ends[1][0] < bound.low:
            words = [f"{format_count(number)} ({arch.describe()})" for number, arch in ends]
            least, most = {"macs": ("cheapest", "dearest"), "params": ("smallest", "largest")}[quantity]
            return f"{space.source}: no architecture has {bound}; the {least} architecture of the space has {words[0]}, the {most} {words[1]}"
    return None
