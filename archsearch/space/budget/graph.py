"""A space as a graph: a path through it is a distinct architecture, and an edge is a layer or a sequence of blocks with its exact cost.

A node holds all that a stage hands to the next one: the shape of the map with its tokens, and the layer that made the tokens. Each stage is two steps, its
entry and the rest of it; the head is the last step. Forms that do the same at their place (`StageForm`) are one edge.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import ClassVar, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from archsearch.blocks import Cost, Layer, Scalar, Shape
from archsearch.errors import UserError
from archsearch.space.plan import NO_POSITIONS, Choices, LayerPlan, StagePlan
from archsearch.space.space import Space
from archsearch.space.stages import Stage, shortest
from archsearch.units import MOST_COUNT, format_count

Params = dict[str, Scalar]
Integers = NDArray[np.int64]


class Node(NamedTuple):
    """A state between two steps."""

    shape: Shape
    maker: Layer | None = None  # the layer that made the tokens beside the map
    left: Layer | None = None  # the layer whose tokens the entry dropped, though it could have kept them


END = Node(Shape(0, 0, 0))


class Options:
    """The distinct forms of one step between two nodes."""

    def __init__(self) -> None:
        self.params: list[Params] = []  # the first parameters found for each form
        self.blocks: list[str] = []  # each form's block, as the space names it
        self.index: dict[frozenset[tuple[str, Scalar]], int] = {}  # form of each setting of the parameters
        self._costs: list[Cost] = []
        self.most = 0  # MACs or parameters of any form
        self._forms: dict[Hashable, int] = {}

    def add(self, form: Hashable, cost: Cost, params: Params, block: str = "") -> None:
        """Add one setting of the parameters; it becomes an option unless another one has the same form."""
        number = self._forms.setdefault(form, len(self._costs))
        if number == len(self._costs):
            self._costs.append(cost)
            self.most = max(self.most, cost.macs, cost.params)
            self.params.append(params)
            self.blocks.append(block)
        self.index[frozenset(params.items())] = number

    def __len__(self) -> int:
        return len(self._costs)

    @cached_property
    def costs(self) -> Integers:
        """MACs and parameters of each form, (n, 2)."""
        return np.array([(cost.macs, cost.params) for cost in self._costs], dtype=np.int64)


Step = dict[Node, dict[Node, Options]]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """All steps of a space in order; a path from `start` to END is a distinct architecture."""

    start: Node
    steps: list[Step]

    @cached_property
    def names(self) -> list[frozenset[str]]:
        """Names of parameters that each step asks for."""
        forms = ([options.params for ends in step.values() for options in ends.values()] for step in self.steps)
        return [frozenset(name for params in form for one in params for name in one) for form in forms]


_GRAPHS: WeakKeyDictionary[Space, Graph] = WeakKeyDictionary()


def space_graph(space: Space) -> Graph:
    """The graph of a space, cached; building it takes 0.1 s for the default space. Raises UserError for costs that 64 bits may not hold."""
    if space in _GRAPHS:
        return _GRAPHS[space]
    plan, open_names = space.plan, frozenset(space.parameters())
    start = Node(plan.image)
    nodes: Iterable[Node] = [start]
    steps: list[Step] = []
    for stage in plan.stages:
        steps.append({node: _entries(stage, node, open_names) for node in nodes})
        inside = _StageBody(stage, open_names, is_last=stage is plan.stages[-1])
        steps.append({node: inside.options(node) for node in _ends(steps[-1])})
        nodes = _ends(steps[-1])
        _check_costs(f"{space.source}: stages.{stage.number}", steps[-2:])
    steps.append({node: {END: _heads(space, node, open_names)} for node in nodes})
    _check_costs(f"{space.source}: head", steps[-1:])
    graph = _GRAPHS[space] = Graph(start=start, steps=steps)
    return graph


def _check_costs(where: str, steps: list[Step]) -> None:
    most = max(options.most for step in steps for ends in step.values() for options in ends.values())
    if most > MOST_COUNT:
        allowed = f"allowed are up to {format_count(MOST_COUNT)}; make widths, depths, kernels or image_size smaller"
        raise UserError(f"{where}: the most expensive choice has {format_count(most)} MACs or parameters; {allowed}")


def _ends(step: Step) -> dict[Node, None]:
    return dict.fromkeys(end for ends in step.values() for end in ends)


def _entries(stage: StagePlan, node: Node, open_names: frozenset[str]) -> dict[Node, Options]:
    """Every entry layer of the stage by the node after it; one that can keep tokens is listed with and without them."""
    found: dict[Node, Options] = {}
    for kind, width in product(stage.entry, stage.width):
        plan = stage.entries[str(kind)]
        for names, values in _settings([plan]):
            layer = plan.make(values[0], width=width)
            can_keep = node.maker is not None and layer.takes_tokens
            params = {stage.entry_name: kind, f"stages.{stage.number}.width": width, **names}
            for is_kept in (False, True) if can_keep else (False,):
                given = node.shape if is_kept else node.shape.plain
                maker, left = (node.maker, None) if is_kept else (None, node.maker if can_keep else None)
                options = found.setdefault(Node(layer.out(given), maker, left), Options())
                options.add(layer.canonical(given), layer.cost(given), _open_params(params, open_names))
    return found


def _heads(space: Space, node: Node, open_names: frozenset[str]) -> Options:
    found = Options()
    for names, values in _settings([space.plan.head]):
        head = space.plan.head.make(values[0], num_classes=space.plan.num_classes)
        shape = node.shape if head.takes_tokens else node.shape.plain
        found.add(head.canonical(shape), head.cost(shape), _open_params(names, open_names))
    return found


class _StageBody:
    """A stage after its entry: positions, blocks, depths and fields."""

    def __init__(self, stage: StagePlan, open_names: frozenset[str], *, is_last: bool) -> None:
        self.stage, self.open_names, self.is_last = stage, open_names, is_last

    def options(self, node: Node) -> dict[Node, Options]:
        """Every form of the stage from this node, by the node after it."""
        found: dict[Node, Options] = {}
        prefix = f"stages.{self.stage.number}"
        for stage, params in self._stages(node):
            for end, form, cost, depth in self._depths(stage, node):
                names = _open_params({**params, f"{prefix}.depth": depth}, self.open_names)
                found.setdefault(end, Options()).add(form, cost, names, str(params[f"{prefix}.block"]))
        return found

    def _stages(self, node: Node) -> Iterator[tuple[Stage, Params]]:
        """Every setting of positions, block and fields, at depth 1, that takes exactly the tokens which the entry kept."""
        entry = _EntryStandIn(width=node.shape.channels)
        for (positions, position_params), block in product(list(self._positions()), self.stage.block):
            plans = [self.stage.blocks[kind] for kind in str(block).split("/")]
            for names, values in _settings(plans):
                layers = tuple(plan.make(value) for plan, value in zip(plans, values, strict=True))
                stage = Stage(entry=entry, blocks=layers, depth=1, positions=positions)  # type: ignore[arg-type]  # a stage's plans make blocks
                if stage.takes_along(node.maker) == bool(node.maker) and not stage.takes_along(node.left):
                    yield stage, {f"stages.{self.stage.number}.block": block, **position_params, **names}

    def _positions(self) -> Iterator[tuple[Layer | None, Params]]:
        """Every setting of the stage's positions."""
        name = f"stages.{self.stage.number}.positions"
        for kind in self.stage.positions:
            if kind == NO_POSITIONS:
                yield None, {name: kind}
                continue
            plan = self.stage.position_plans[str(kind)]
            for names, values in _settings([plan]):
                yield plan.make(values[0]), {name: kind, **names}

    def _depths(self, stage: Stage, node: Node) -> Iterator[tuple[Node, Hashable, Cost, int]]:
        """The stage at each of its depths: layers that it has once, and `depth` blocks."""
        form, shape = stage.form(node.shape, node.maker, is_first=False, is_last=True)
        once, at = Cost(), node.shape
        for layer in filter(None, (stage.positions, *form.extras)):
            once, at = once + layer.cost(at), layer.out(at)
        blocks = [layer.canonical_in(shape, stage.after_first) for layer in stage.blocks]
        costs = [layer.cost(shape) for layer in stage.blocks]
        handed_on = Node(shape, node.maker or stage.opening)
        for depth in map(int, self.stage.depth):
            last = (depth - 1) % len(blocks)
            end = None if self.is_last else stage.blocks[last].stage_end()
            rounds, rest = divmod(depth, len(blocks))
            total = sum(costs, Cost()) * rounds + sum(costs[:rest], once + (end.cost(shape) if end else Cost()))
            # Two rounds show every repetition that there is.
            reached = shortest([blocks[index % len(blocks)] for index in range(min(depth, 2 * len(blocks)))])
            yield handed_on, (form.positions, form.extras, reached, depth, end), total, depth


@dataclass(frozen=True, kw_only=True)
class _EntryStandIn(Layer):
    """In place of the entry, whose cost is counted by the step before."""

    takes_tokens: ClassVar[bool] = True
    width: int


def _settings(plans: list[LayerPlan]) -> Iterator[tuple[Params, list[Params]]]:
    """Every setting of the plans' fields, shared names equal in all: by dotted name, and by field for each plan."""
    choices: dict[str, Choices] = {name: plan.choices[field] for plan in plans for field, name in plan.names.items()}
    for values in product(*choices.values()):
        names = dict(zip(choices, values, strict=True))
        yield names, [{field: names[name] for field, name in plan.names.items()} for plan in plans]


def _open_params(params: Mapping[str, Scalar], names: frozenset[str]) -> Params:
    return {name: value for name, value in params.items() if name in names}
