"""Exact neighbours: a stage of an architecture drawn anew among all its forms with which the whole stays in the band."""

import random
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from archsearch.budget.network import Path
from archsearch.budget.options import END, Graph, Integers, Node, Options, Params

Fits = Callable[[Integers], NDArray[np.bool_]]  # costs (..., 2) -> which of them are in the band


def path_of(graph: Graph, params: Params, node: Node | None = None, number: int = 0) -> Path | None:
    """The path of the architecture with these parameters, from a node before step `number` (the image) to END; None when it does not lead there."""
    if number == len(graph.steps):
        return []
    node = graph.start if node is None else node
    asked = frozenset((name, value) for name, value in params.items() if name in graph.names[number])
    for end, options in graph.steps[number].get(node, {}).items():
        option = options.index.get(asked)
        rest = None if option is None else path_of(graph, params, end, number + 1)
        if option is not None and rest is not None:
            return [(node, end, option), *rest]
    return None


def cost_of(graph: Graph, path: Path, number: int = 0) -> Integers:
    """MACs and parameters of a path from step `number` on."""
    costs = [graph.steps[number + index][node][end].costs[option] for index, (node, end, option) in enumerate(path)]
    return np.sum(costs, axis=0, dtype=np.int64) if costs else np.zeros(2, np.int64)


def redrawn(graph: Graph, params: Params, path: Path, place: int, fits: Fits, rng: random.Random) -> Path | None:
    """The path with the stage whose entry is step `place` (or the head) drawn anew; the later ones keep their parameters. None when it has no other form."""
    before, own = cost_of(graph, path[:place]), path[place : place + 2]
    found: list[tuple[Path, NDArray[np.int64]]] = []
    for pieces in _pieces(graph, path[place][0], place):
        rest = path_of(graph, params, pieces[-1][1], place + len(pieces))
        if rest is None:
            continue
        costs = before + cost_of(graph, rest, place + len(pieces)) + _sums([options for _, _, options in pieces])
        allowed = fits(costs)
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
    """Entry and inside of a stage by the nodes they go over; the head is one piece."""
    for middle, entries in graph.steps[place][node].items():
        if middle == END:
            yield [(node, END, entries)]
            continue
        for end, insides in graph.steps[place + 1].get(middle, {}).items():
            yield [(node, middle, entries), (middle, end, insides)]


def _sums(options: list[Options]) -> Integers:
    """Costs of all combinations, (n, 2) or (n, m, 2)."""
    costs = options[0].costs
    return costs if len(options) == 1 else costs[:, None] + options[1].costs
