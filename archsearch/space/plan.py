"""The choices of a space, by stage and layer, checked so that every combination of them is a network that can be built.

A layer's own choices that do not fit a map are dropped; choices written in the file that do not fit are refused with their dotted name.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from archsearch.blocks import Block, Layer, LayerError, Scalar, Shape
from archsearch.errors import UserError
from archsearch.units import ImageSize, sides

Choices = tuple[Scalar, ...]
NO_POSITIONS = "none"
MOST_SETTINGS = 50_000  # of all stages at every input that they may get: some seconds to count


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """A layer kind with the choices of its fields.

    `names`: each field's dotted name in the search; `place`: the dotted name of the key that names the layer; `written`: fields that the file writes;
    `fixed`: values of fields that are no choices.
    """

    layer: type[Layer]
    place: str
    choices: Mapping[str, Choices]
    names: Mapping[str, str]
    written: frozenset[str]
    fixed: Mapping[str, Scalar]

    def make(self, values: Mapping[str, Scalar], **extra: Any) -> Layer:
        """The layer with these field values."""
        return self.layer(**{**self.fixed, **values, **extra})


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage: the choices of its entry (stem or downsample), positions, width, depth and block, and the plan of every layer that these name."""

    number: int
    width: Choices
    depth: Choices
    block: Choices
    entry: Choices
    positions: Choices
    blocks: Mapping[str, LayerPlan]
    entries: Mapping[str, LayerPlan]
    position_plans: Mapping[str, LayerPlan]

    @property
    def entry_name(self) -> str:
        """Dotted name of the choice of the entry layer."""
        return "stem.kind" if self.number == 1 else f"stages.{self.number}.downsample"

    @property
    def num_entries(self) -> int:
        """Settings of the entry layer, the width left aside."""
        return sum(count_settings([self.entries[str(kind)]]) for kind in self.entry)

    @property
    def num_bodies(self) -> int:
        """Settings of all after the entry: positions, block with its fields, depth."""
        positions = sum(count_settings([plan]) for plan in self.position_plans.values())
        positions += NO_POSITIONS in self.positions
        sequences = [[self.blocks[kind] for kind in str(block).split("/")] for block in self.block]
        return positions * sum(map(count_settings, sequences)) * len(self.depth)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A whole document, checked: every combination of its choices is a network that can be built at `image_size`."""

    name: str | None
    source: str
    image_size: ImageSize
    in_chans: int
    num_classes: int
    stages: tuple[StagePlan, ...]
    head: LayerPlan
    head_kinds: Choices
    paper: Mapping[str, Any]

    @property
    def image(self) -> Shape:
        """The image as a shape."""
        return Shape(self.in_chans, *sides(self.image_size))


def count_settings(layers: Sequence[LayerPlan]) -> int:
    """Combinations of the layers' fields, shared names counted once."""
    names = {name: len(layer.choices[field]) for layer in layers for field, name in layer.names.items()}
    return math.prod(names.values())


def valid_stage(stage: StagePlan, shapes: set[Shape], source: str, *, room: int) -> tuple[StagePlan, set[Shape], int]:
    """The stage with every choice checked at every shape that can reach it: own choices that do not fit are dropped, written ones raise UserError.

    Also returns the shapes after the stage, with and without tokens, and what is left of `room`: how many settings, counted at every input that a
    stage may get, the rest of the space may have, so that it is checked and counted in seconds.
    """
    width_name = f"stages.{stage.number}.width"
    shapes = {shape.plain for shape in shapes}  # tokens that are kept need what their map needs
    where = f"{source}: stages.{stage.number}"
    room = _take_room(room, stage.num_entries * len(stage.width) * len(shapes), where)
    entries: dict[str, LayerPlan] = {}
    reached: set[Shape] = set()
    for kind, plan in stage.entries.items():
        for width in stage.width:
            plan = valid_layer(plan, shapes, source, width_name, extra={"width": width})
        entries[kind] = plan
        for width, shape, values in product(stage.width, shapes, _combinations(plan)):
            reached.add(plan.make(values, width=width).out(shape))
    room = _take_room(room, stage.num_bodies * len(reached), where)
    position_plans = {
        kind: valid_layer(plan, reached, source, width_name) for kind, plan in stage.position_plans.items()
    }
    opened = set(reached) if NO_POSITIONS in stage.positions else set()
    for plan in position_plans.values():
        opened |= {plan.make(values).out(shape) for values in _combinations(plan) for shape in reached}
    stage = replace(stage, entries=entries, position_plans=position_plans)
    blocks, ends = _valid_blocks(stage, opened, source)
    return replace(stage, blocks=_same_shared(blocks, source)), ends, room


def _take_room(room: int, number: int, where: str) -> int:
    """What is left after so many settings. Raises UserError where they are too many."""
    if number > room:
        raise UserError(
            f"{where}: {number} settings at its inputs, where {room} of the {MOST_SETTINGS} that a space may have are left; write fewer choices"
        )
    return room - number


def _valid_blocks(stage: StagePlan, shapes: set[Shape], source: str) -> tuple[dict[str, LayerPlan], set[Shape]]:
    """The blocks' plans, checked alone and together with a block that makes messengers; and the shapes after the stage."""
    where = f"{source}: stages.{stage.number}.block"
    width_name = f"stages.{stage.number}.width"
    blocks = {kind: valid_layer(plan, shapes, source, width_name) for kind, plan in stage.blocks.items()}
    ends: set[Shape] = set()
    for block in stage.block:
        kinds = str(block).split("/")
        opening = next((kind for kind in kinds if _messengers(blocks[kind])), None)
        inside = shapes
        if opening:
            inside = {layer.out(shape) for layer in _messengers(blocks[opening]) for shape in shapes}
            for kind in kinds:
                if not blocks[kind].layer.takes_tokens:
                    raise UserError(
                        f"{where}: {block!r}: {kind} works on a map alone, and {opening} puts messengers beside it"
                    )
                if kind != opening:
                    blocks[kind] = valid_layer(blocks[kind], inside, source, width_name)
        ends |= inside
    return blocks, ends


def _messengers(plan: LayerPlan) -> list[Layer]:
    """The layers that a block of this plan may put before the first block of its stage; most blocks have none."""
    assert issubclass(plan.layer, Block)
    if plan.layer.before_first is Block.before_first:
        return []
    layers = (plan.make(values) for values in _combinations(plan))
    return [opening for layer in layers if isinstance(layer, Block) and (opening := layer.before_first())]


def _same_shared(plans: dict[str, LayerPlan], source: str) -> dict[str, LayerPlan]:
    """The plans with the choices of shared names that all of them allow, since the choices of a name must not depend on the block."""
    common: dict[str, Choices] = {}
    for plan in plans.values():
        for field_name, name in plan.names.items():
            allowed = plan.choices[field_name]
            common[name] = tuple(value for value in common.get(name, allowed) if value in allowed)
            if not common[name]:
                raise UserError(
                    f"{source}: {name}: no choice fits every block of the stage; write the field in each block's own table"
                )
    return {
        kind: replace(plan, choices={field_name: common[plan.names[field_name]] for field_name in plan.choices})
        for kind, plan in plans.items()
    }


def _combinations(plan: LayerPlan) -> Iterator[dict[str, Scalar]]:
    """Every setting of the plan's fields."""
    for values in product(*plan.choices.values()):
        yield dict(zip(plan.choices, values, strict=True))


def valid_layer(
    plan: LayerPlan, shapes: set[Shape], source: str, width_name: str, extra: Mapping[str, Scalar] | None = None
) -> LayerPlan:
    """The plan without those of its own choices that do not fit one of `shapes`; a written choice that does not fit raises UserError."""
    for _ in range(2):  # a later field's bad first choice can hide what is wrong with an earlier one
        for name in plan.choices or {"": ()}:
            plan = _valid_field(plan, name, shapes, source, width_name, extra or {})
    return plan


def _valid_field(
    plan: LayerPlan, name: str, shapes: set[Shape], source: str, width_name: str, extra: Mapping[str, Scalar]
) -> LayerPlan:
    """`valid_layer` for one field, with the values of the others by `_others`; errors of the other fields are left to their own turn."""
    kept = []
    dropped: LayerError | None = None
    for value in plan.choices.get(name, (0,)):
        settings = ({**others, name: value} if name else {} for others in _others(plan, name))
        errors = (_first_error(plan, values, shapes, extra) for values in settings)
        error = next(filter(None, errors), None)
        if error is not None and error.field == name and name not in plan.written:
            dropped = error
            continue
        if error is not None and (error.field == name or error.field not in plan.choices):
            where = plan.names.get(error.field, {"width": width_name, "kind": plan.place}.get(error.field, error.field))
            raise UserError(f"{source}: {where}: {error}")
        kept.append(value)
    if not name:
        return plan
    if not kept:
        assert dropped is not None
        raise UserError(f"{source}: {_none_fits(plan, name, width_name, dropped)}")
    return replace(plan, choices={**plan.choices, name: tuple(kept)})


def _none_fits(plan: LayerPlan, name: str, width_name: str, error: LayerError) -> str:
    """The error sentence for a field that the file leaves out: it names what the file writes, and what does not fit that."""
    where = width_name if error.against == "width" else plan.place
    own = ", ".join(map(str, plan.choices[name]))
    change = "another width" if error.against == "width" else "another layer"
    return (
        f"{where}: none of the layer's own choices of {name} ({own}) fits {plan.layer.kind} here: {error}; "
        f"write {plan.names[name]}, or take {change}"
    )


def _others(plan: LayerPlan, name: str) -> Iterator[dict[str, Scalar]]:
    """The values of the other fields with which a field's choices are checked: the first choice, and every choice of coupled fields."""
    first = {key: values[0] for key, values in plan.choices.items()}
    coupled = [key for key in plan.layer.coupled if name in plan.layer.coupled and key != name]
    for values in product(*(plan.choices[key] for key in coupled)):
        yield {**first, **dict(zip(coupled, values, strict=True))}


def _first_error(
    plan: LayerPlan, values: Mapping[str, Scalar], shapes: set[Shape], extra: Mapping[str, Scalar]
) -> LayerError | None:
    """The layer's error at the first shape that it does not fit, or whose map is smaller than a window, cell or interval of it."""
    layer = plan.make(values, **extra)
    for shape in sorted(shapes):
        try:
            layer.check_at(shape)
            layer.check_choice(shape)
        except LayerError as error:
            return error
    return None
