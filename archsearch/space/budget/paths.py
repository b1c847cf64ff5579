"""Single paths through a space's graph: found by parameters, priced, and changed in one stage."""

import random
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from archsearch.space.budget.graph import END, Graph, Integers, Node, Options, Params
from archsearch.space.budget.keyed_graph import Path

Fits = Callable[[Integers], NDArray[np.bool_]]  # costs (..., 2) -> which of them are in the band


def find_path(graph: Graph, params: Params, node: Node | None = None, number: int = 0) -> Path | None:
    """The path of the architecture with these parameters, from a node before step `number` (by default the image) to END; None when there is none."""
    if number == len(graph.steps):
        return []
    node = graph.start if node is None else node
    asked = frozenset((name, value) for name, value in params.items() if name in graph.names[number])
    for end, options in graph.steps[number].get(node, {}).items():
        option = options.index.get(asked)
        rest = None if option is None else find_path(graph, params, end, number + 1)
        if option is not None and rest is not None:
            return [(node, end, option), *rest]
    return None


def path_cost(graph: Graph, path: Path, number: int = 0) -> Integers:
    """MACs and parameters of a path from step `number` on."""
    costs = [graph.steps[number + index][node][end].costs[option] for index, (node, end, option) in enumerate(path)]
    return np.sum(costs, axis=0, dtype=np.int64) if costs else np.zeros(2, np.int64)


def redraw_stage(graph: Graph, params: Params, path: Path, place: int, fits: Fits, rng: random.Random) -> Path | None:
    """The path with another form of the stage whose entry is step `place` (or of the head); later stages keep their parameters. None without another form."""
    before, own = path_cost(graph, path[:place]), path[place : place + 2]
    found: list[tuple[Path, NDArray[np.int64]]] = []
    for pieces in _pieces(graph, path[place][0], place):
        rest = find_path(graph, params, pieces[-1][1], place + len(pieces))
        if rest is None:
            continue
        costs, *inner = (options.costs for _, _, options in pieces)
        if inner:
            costs = costs[:, None] + inner[0]  # of all pairs of an entry and a body
        allowed = fits(before + path_cost(graph, rest, place + len(pieces)) + costs)
        if [(node, end) for node, end, _ in pieces] == [(node, end) for node, end, _ in own]:
            allowed[tuple(option for _, _, option in own)] = False
        nodes = [(node, end, 0) for node, end, _ in pieces]
        found.append(([*nodes, *rest], np.argwhere(allowed)))
    total = sum(len(places) for _, places in found)
    if not total:
        return None
    chosen = rng.randrange(total)
    for pattern, places in found:
        if chosen < len(places):
            new = [(node, end, int(option)) for (node, end, _), option in zip(pattern, places[chosen], strict=False)]
            return [*path[:place], *new, *pattern[len(new) :]]
        chosen -= len(places)
    raise AssertionError("a place beyond all replacements")


def _pieces(graph: Graph, node: Node, place: int) -> Iterator[list[tuple[Node, Node, Options]]]:
    """Entry and body of a stage for each pair of nodes they lead through; the head is one piece."""
    for middle, entries in graph.steps[place][node].items():
        if middle == END:
            yield [(node, END, entries)]
            continue
        for end, insides in graph.steps[place + 1].get(middle, {}).items():
            yield [(node, middle, entries), (middle, end, insides)]
