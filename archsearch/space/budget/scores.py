"""Scores that are sums over layers, as one whole number for each option of a space's graph."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from archsearch.blocks import PatchesLayer
from archsearch.errors import UserError, shown
from archsearch.space.arch import Arch, Placed
from archsearch.space.budget.graph import END, Graph, Integers, Node, Params, Step, space_graph
from archsearch.space.budget.keyed_graph import Path
from archsearch.space.space import Space

Score = Callable[[Placed], float]  # of one layer at its place; an architecture's is the sum


class Scored(NamedTuple):
    """An architecture, parameters that give it, and the sum of a score over its layers."""

    score: float
    params: Params
    arch: Arch


_BITS = 53  # of the largest sum: as many as a float has
_LayersOfOptions = list[dict[tuple[Node, Node], list[list[Placed]]]]
_LAYERS: WeakKeyDictionary[Space, _LayersOfOptions] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class OptionScores:
    """For each step of the graph and each two nodes, the score of each option between them, in multiples of `unit`.

    The unit is a power of 2 so small that every sum of layers keeps a float's digits, and whole numbers below 2**53 stay exact. Sums of multiples do
    not depend on their order, as sums of floats do: equal scores are equal. Nodes that no path leads through are missing.
    """

    steps: list[dict[tuple[Node, Node], Integers]]
    unit: float

    def of(self, path: Path) -> int:
        """The sum over a path."""
        return sum(int(step[near, far][option]) for step, (near, far, option) in zip(self.steps, path, strict=True))


def score_options(space: Space, score: Score) -> OptionScores:
    """The score of every option. Raises UserError for one that is not a finite number."""
    steps = [
        {ends: [[_finite(score, placed) for placed in layers] for layers in options] for ends, options in step.items()}
        for step in option_layers(space)
    ]
    most = sum(max(sum(map(abs, layers)) for options in step.values() for layers in options) for step in steps)
    if not math.isfinite(most):
        raise UserError("score: the sum over an architecture's layers is not finite; make the scores smaller")
    shift = _BITS - math.frexp(most)[1]
    whole = [
        {
            ends: np.array([sum(round(math.ldexp(one, shift)) for one in layers) for layers in options], dtype=np.int64)
            for ends, options in step.items()
        }
        for step in steps
    ]
    return OptionScores(steps=whole, unit=math.ldexp(1.0, -shift))


def _finite(score: Score, placed: Placed) -> float:
    given = score(placed)
    try:
        number = float(given)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"score of {placed.path} ({placed.layer.kind}): {shown(given)}; a finite number is allowed")
    return number


def option_layers(space: Space) -> _LayersOfOptions:
    """The layers of every option at their places, cached; 2 s for the default space. Tokens are dropped by the step that does not take them."""
    if space not in _LAYERS:
        graph = space_graph(space)
        before, after = _some_params(graph, is_forward=True), _some_params(graph, is_forward=False)
        found: _LayersOfOptions = []
        for number, step in enumerate(graph.steps):
            found.append({})
            for near, far in _passed(step, after[number + 1]):
                whole = [{**before[number][near], **own, **after[number + 1][far]} for own in step[near][far].params]
                archs = (space.sample(lambda name, choices, params=params: params[name]) for params in whole)  # type: ignore[misc]  # bound at once
                found[-1][near, far] = [_layers_by_step(arch)[number] for arch in archs]
        _LAYERS[space] = found
    return _LAYERS[space]


def _passed(step: Step, after: Mapping[Node, Params]) -> Iterator[tuple[Node, Node]]:
    """The pairs of nodes of a step that paths to END lead through."""
    return ((near, far) for near, ends in step.items() for far in ends if far in after)


def _some_params(graph: Graph, *, is_forward: bool) -> list[dict[Node, Params]]:
    """Parameters of some path between one end of the graph and each node; one dictionary for each place between steps, in their order."""
    found: list[dict[Node, Params]] = [{graph.start if is_forward else END: {}}]
    for step in graph.steps if is_forward else reversed(graph.steps):
        following: dict[Node, Params] = {}
        for near, ends in step.items():
            for far, options in ends.items():
                known, reached = (near, far) if is_forward else (far, near)
                if known in found[-1]:
                    following.setdefault(reached, {**found[-1][known], **options.params[0]})
        found.append(following)
    return found if is_forward else found[::-1]


def _layers_by_step(arch: Arch) -> list[list[Placed]]:
    """The layers of an architecture by the graph's steps: entry and body of each stage, then the head."""
    steps: list[list[Placed]] = []
    dropping: list[Placed] = []
    for placed in arch.layers():
        if isinstance(placed.layer, PatchesLayer):
            dropping = [placed]
        elif placed.layer.role in ("stem", "downsample", "head"):
            steps += [[*dropping, placed], []]
            dropping = []
        else:
            steps[-1].append(placed)
    return steps[:-1]


def every_path(graph: Graph, scores: OptionScores) -> Integers:
    """MACs, parameters and score of every path (n, 3)."""
    sums = {graph.start: np.zeros((1, 3), np.int64)}
    for step, known in zip(graph.steps, scores.steps, strict=True):
        parts: dict[Node, list[Integers]] = {}
        for (near, far), own in known.items():
            options = np.column_stack((step[near][far].costs, own))
            parts.setdefault(far, []).append((sums[near][:, None] + options).reshape(-1, 3))
        sums = {far: np.concatenate(found) for far, found in parts.items()}
    return sums[END]
