"""An architecture: frozen, hashable, priced exactly; one walk over its layers serves cost, build and report."""

import hashlib
import html
import json
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import archsearch.blocks  # noqa: F401  # fills the registry
from archsearch.blocks import Block, Cost, Layer, LayerError, PatchesLayer, Scalar, Shape
from archsearch.errors import UserError, first_line, shown
from archsearch.space.grammar import Document, parse
from archsearch.space.plan import LayerPlan, Plan, StagePlan
from archsearch.space.stages import (
    Stage,
    canonical_documents,
    checked_stage,
    kind_document,
    stage_cost,
    stage_document,
    to_canonical_json,
)
from archsearch.units import ImageSize as ImageSize  # the room's face names it
from archsearch.units import format_count, one_size, plain_size, sides

T = TypeVar("T")
Pick = Callable[[str, Sequence[Scalar]], Scalar]

_PROBE_SIDE = 8192  # of an image on which the strides of all stages are measured
_NEAR = 16  # multiples of the stride, in each direction, among which sizes that work are looked for


class Placed(NamedTuple):
    """A layer at its place in a network: dotted path, in which stages and blocks count from 1; layer; shapes before and after it."""

    path: str
    layer: Layer
    shape: Shape
    out: Shape

    @property
    def cost(self) -> Cost:
        """MACs and parameters of the layer at its place."""
        return self.layer.cost(self.shape)

    @property
    def module(self) -> str:
        """The name of the layer's module in a built network, in which PyTorch counts stages and blocks from 0: `stages.1.blocks.0`."""
        names = [str(int(name) - 1) if name.isdecimal() else name for name in self.path.split(".")]
        return ".".join("norm" if name == "stage-norm" else name for name in names)


@dataclass(frozen=True, kw_only=True)
class Arch:
    """A network as data: stages, head, image size (one side, or height and width, in pixels) and channels of the image.

    Raises UserError at construction when a layer does not fit the map at its place.

    `name` is not part of the identity: two architectures with the same layers are equal and share their `arch_id`.
    """

    stages: tuple[Stage, ...]
    head: Layer
    image_size: ImageSize = 224
    in_chans: int = 3
    name: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", one_size(*sides(self.image_size)))  # equal sizes are written alike
        image = self.image()
        object.__setattr__(self, "in_chans", image.channels)
        if not self._fits(image):
            self.check()

    def _fits(self, shape: Shape) -> bool:
        """Whether `check` would find nothing: quicker, since architectures of a space share their stages."""
        try:
            for index, (stage, tokens, is_left) in enumerate(self._flow()):
                shape = shape.plain if is_left else shape
                if stage is None:
                    self.head.check_at(shape)
                else:
                    is_last = index == len(self.stages) - 1
                    shape = checked_stage(stage, shape, tokens, is_first=not index, is_last=is_last)
        except LayerError:
            return False
        return True

    def check(self, image_size: ImageSize | None = None) -> None:
        """Raise UserError when a layer does not fit its map for inputs of this size in pixels (one side, or height and width), with the nearest that do."""
        found = self._misfit(image_size)
        if found is None:
            return
        placed, error = found
        sentence = f"{placed.path} ({placed.layer.kind}) on a map of {placed.shape.sides}: {error}"
        if error.field == "image_size" or image_size is not None:
            sentence += self._nearest_sizes(image_size)
        raise UserError(sentence) from error

    def _misfit(self, image_size: ImageSize | None) -> tuple[Placed, LayerError] | None:
        """The first layer that does not fit its map, and why."""
        # A layer is checked once at a shape; it is kept, or another one could get its address.
        seen: dict[tuple[int, Shape], Layer] = {}
        for placed in self.layers(image_size):
            key = (id(placed.layer), placed.shape)
            if key in seen:
                continue
            seen[key] = placed.layer
            try:
                placed.layer.check_at(placed.shape)
            except LayerError as error:
                return placed, error
        return None

    def _nearest_sizes(self, image_size: ImageSize | None) -> str:
        """The nearest smaller and larger sizes that work, of those that every stage divides evenly, in words; empty where none is near."""
        *_, head = self.layers(_PROBE_SIDE)
        step = round(_PROBE_SIDE / max(1, head.shape.height))
        shape = self.image(image_size)
        down = [(shape.height // step - more, shape.width // step - more) for more in range(_NEAR)]
        up = [(-(-shape.height // step) + more, -(-shape.width // step) + more) for more in range(_NEAR)]
        found: list[str] = []
        for steps in (down, up):
            sizes = [(step * max(1, rows), step * max(1, columns)) for rows, columns in steps]
            found += [f"{size[0]}x{size[1]}" for size in sizes if self._misfit(size) is None][:1]
        near = " and ".join(dict.fromkeys(found))
        return f"; of the multiples of {step}, {near} would work" if near else ""

    @property
    def num_classes(self) -> int:
        """Logits of the classifier."""
        classes: int = self.head.num_classes  # type: ignore[attr-defined]  # every head has classes
        return classes

    def layers(self, image_size: ImageSize | None = None, in_chans: int | None = None) -> Iterator[Placed]:
        """Every layer in order of execution with its shapes, for one input size and number of channels (the architecture's own by default)."""
        shape = self.image(image_size, in_chans)
        for number, name, index, layer in self._order():
            out = layer.out(shape)
            numbered = f"{name}.{index}" if index else name
            path = name if name in ("stem", "head") else f"stages.{number}.{numbered}"
            yield Placed(path, layer, shape, out)
            shape = out

    def image(self, image_size: ImageSize | None = None, in_chans: int | None = None) -> Shape:
        """The image as a shape; size and channels are by default the architecture's own. Raises UserError for numbers below 1."""
        given = self.in_chans if in_chans is None else in_chans
        try:
            channels = operator.index(given)
        except TypeError:
            channels = 0
        if channels < 1:
            raise UserError(f"in_chans is {shown(given)}; whole numbers from 1 are allowed")
        return Shape(channels, *sides(self.image_size if image_size is None else image_size))

    def _order(self) -> Iterator[tuple[int, str, int, Layer]]:
        """Number of the stage, name, number of the block, and layer, in order of execution; both numbers start at 1. Tokens that the next stage does not take
        are dropped by a `patches` layer.
        """
        last = len(self.stages)
        for number, (stage, tokens, is_left) in enumerate(self._flow(), start=1):
            if is_left:
                yield number - 1, "patches", 0, PatchesLayer()
            if stage is None:
                yield last, "head", 0, self.head
                continue
            for name, index, layer in stage.order(tokens, is_first=number == 1, is_last=number == last):
                yield number, name, index, layer

    def _flow(self) -> Iterator[tuple[Stage | None, Layer | None, bool]]:
        """Every stage and, as None, the head; with the layer whose tokens it takes, and whether tokens are dropped before it."""
        tokens: Layer | None = None
        for stage in self.stages:
            is_taken = stage.takes_along(tokens)
            yield stage, tokens if is_taken else None, tokens is not None and not is_taken
            tokens = (tokens if is_taken else None) or stage.opening
        yield None, tokens, tokens is not None and not self.head.takes_tokens

    def cost(self, image_size: ImageSize | None = None, in_chans: int | None = None) -> Cost:
        """Exact MACs of one image in eval mode and parameters, by arithmetic; no tensor is made. Size and channels are by default the architecture's own."""
        return (
            self._own_cost if image_size is None and in_chans is None else self._cost(self.image(image_size, in_chans))
        )

    @cached_property
    def _own_cost(self) -> Cost:
        return self._cost(self.image())

    def _cost(self, shape: Shape) -> Cost:
        total = Cost()
        for index, (stage, tokens, is_left) in enumerate(self._flow()):
            shape = shape.plain if is_left else shape
            if stage is None:
                return total + self.head.cost(shape)
            is_last = index == len(self.stages) - 1
            cost, shape = stage_cost(stage, shape, tokens, is_first=not index, is_last=is_last)
            total += cost
        raise AssertionError("the head comes last")

    def map_layers(
        self,
        function: Callable[[Layer, Shape], tuple[T, Shape]],
        image_size: ImageSize | None = None,
        in_chans: int | None = None,
    ) -> Iterator[T]:
        """A figure of each layer in order of execution; `function` gives it with the shape after the layer, and is called once for a layer at a shape."""
        # By identity, which is quicker than equality; the layer is kept beside the figure, or another one could get its address.
        known: dict[tuple[int, Shape], tuple[T, Shape, Layer]] = {}
        shape = self.image(image_size, in_chans)
        for _, _, _, layer in self._order():
            key = (id(layer), shape)
            found = known.get(key)
            if found is None:
                found = known[key] = (*function(layer, shape), layer)
            yield found[0]
            shape = found[1]

    @cached_property
    def arch_id(self) -> str:
        """Twelve hexadecimal digits: the hash of the canonical form as JSON.

        Two architectures share it exactly when, built for their own images, they have the same layers with the same weights, start from the same
        initialisation, cost the same and compute the same function; how they were written makes no difference.
        """
        return hashlib.sha256(self._canonical().encode()).hexdigest()[:12]

    def _canonical(self) -> str:
        """`to_dict` as JSON without the name and with every stage in its canonical form, joined from the cached texts of the stages."""
        shape, stem = self.image(), ""
        stages: list[str] = []
        for index, (stage, tokens, is_left) in enumerate(self._flow()):
            shape = shape.plain if is_left else shape
            if stage is not None:
                is_last = index == len(self.stages) - 1
                text, entry, shape = canonical_documents(stage, shape, tokens, is_first=not index, is_last=is_last)
                stem = stem or entry
                stages.append(text)
        parts = {
            "head": to_canonical_json(kind_document(self.head.canonical(shape))),
            "image_size": to_canonical_json(self.image_size),
            **({"in_chans": str(self.in_chans)} if self.in_chans != 3 else {}),
            "num_classes": str(self.num_classes),
            "stages": f"[{','.join(stages)}]",
            "stem": stem,
        }
        return "{" + ",".join(f'"{key}":{text}' for key, text in parts.items()) + "}"

    def to_dict(self) -> dict[str, Any]:
        """The architecture in the grammar of space files, fields written out (later ones unless at their default); `from_dict` takes it back."""
        named = {"name": self.name} if self.name else {}
        return {
            **named,
            "image_size": plain_size(self.image_size),
            **({"in_chans": self.in_chans} if self.in_chans != 3 else {}),
            "num_classes": self.num_classes,
            "stem": kind_document(self.stages[0].entry),
            "stages": [stage_document(stage, is_first=index == 0) for index, stage in enumerate(self.stages)],
            "head": kind_document(self.head),
        }

    @staticmethod
    def from_json(text: str, source: str) -> "Arch":
        """Read what `to_dict` gave, or one object of `archsearch sample --json`, as JSON. Raises UserError as `from_dict`, and for other JSON."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{source}: not valid JSON: {first_line(error)}") from error
        if isinstance(document, list) and len(document) == 1:
            document = document[0]
        if isinstance(document, dict) and isinstance(document.get("arch"), dict):
            document = document["arch"]
        if not isinstance(document, dict):
            found = f"a list of {len(document)}" if isinstance(document, list) else shown(document)
            raise UserError(f"{source}: one architecture as a JSON object is needed, not {found}")
        return Arch.from_dict(document, source)

    @staticmethod
    def from_dict(document: Document, source: str = "architecture") -> "Arch":
        """Read an architecture; raises UserError when a value is missing, wrong or a list of choices, or a layer is not registered."""
        if "given" in document:
            raise UserError(
                f"{source}: {document['given']} is a network that was included as it is, and has no architecture; only its figures are kept"
            )
        if "blocks" in document:
            raise UserError(
                f"{source}: blocks: an architecture names no files of blocks; a space does, and archsearch.blocks.load_blocks registers one"
            )

        def refuse(name: str, choices: Sequence[Scalar]) -> Scalar:
            open_choices = ", ".join(map(str, choices))
            raise UserError(f"{source}: {name} is open ({open_choices}); an architecture fixes every value")

        return assemble(parse(document, source), refuse)

    def describe(self) -> str:
        """One line: `hilo 96x2 - lka 192x3 - ...` (block, width x depth)."""
        return " - ".join(f"{stage.block} {stage.width}x{stage.depth}" for stage in self.stages)

    def __repr__(self) -> str:
        cost, name = self.cost(), f"{self.name} " if self.name else ""
        figures = f"{format_count(cost.macs)} MACs, {format_count(cost.params)} params"
        return f"<Arch {name}{self.arch_id}: {self.describe()}, {figures}>"

    def _repr_html_(self) -> str:
        """The stages as a table for notebooks: layers, output map, MACs and parameters of each, and those of the head."""
        rows: dict[str, list[Placed]] = {}
        for placed in self.layers():
            first, *rest = placed.path.split(".")
            rows.setdefault("1" if first == "stem" else rest[0] if rest else first, []).append(placed)
        cells = []
        for key, group in rows.items():
            words = [self.head.kind, "", "", ""]
            if key != "head":
                stage = self.stages[int(key) - 1]
                positions = f" + {stage.positions.kind}" if stage.positions else ""
                words = [f"{stage.entry.kind}{positions}", stage.block, str(stage.width), str(stage.depth)]
            total = sum((placed.layer.cost(placed.shape) for placed in group), Cost())
            cells.append([key, *words, group[-1].out.sides, format_count(total.macs), format_count(total.params)])
        columns = ["stage", "entry", "block", "width", "depth", "map", "MACs", "params"]
        return html_table(repr(self)[1:-1], columns, cells)


def html_table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain HTML table; caption and cells are text, and are escaped."""

    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<table><caption>{html.escape(caption)}</caption>{line('th', columns)}{body}</table>"


def assemble(plan: Plan, pick: Pick) -> Arch:
    """The architecture that `pick(name, choices)` chooses; it is called once for a name, and only with two choices or more."""
    made: dict[str, Scalar] = {}

    def choose(name: str, choices: Sequence[Scalar]) -> Scalar:
        if len(choices) == 1:
            return choices[0]
        if name not in made:
            made[name] = pick(name, choices)
        return made[name]

    stages = tuple(assemble_stage(stage, choose) for stage in plan.stages)
    return join(plan, stages, assemble_head(plan, choose), is_named=not made)


def join(plan: Plan, stages: tuple[Stage, ...], head: Layer, *, is_named: bool) -> Arch:
    """The architecture of these stages and this head, with the plan's name where `is_named`."""
    name = plan.name if is_named else None
    return Arch(stages=stages, head=head, image_size=plan.image_size, in_chans=plan.in_chans, name=name)


def assemble_head(plan: Plan, choose: Pick) -> Layer:
    """The head; `choose` is asked for every name."""
    return plan.head.make(_values(plan.head, choose), num_classes=plan.num_classes)


def assemble_stage(plan: StagePlan, choose: Pick) -> Stage:
    """One stage; general choices first, then the chosen layers' own fields. `choose` is asked for every name, perhaps twice."""
    prefix = f"stages.{plan.number}"
    entry = plan.entries[str(choose(plan.entry_name, plan.entry))]
    block = str(choose(f"{prefix}.block", plan.block))
    depth = int(choose(f"{prefix}.depth", plan.depth))
    width = choose(f"{prefix}.width", plan.width)
    positions = plan.position_plans.get(str(choose(f"{prefix}.positions", plan.positions)))
    kinds = [plan.blocks[kind] for kind in block.split("/")]
    layers = [kind.make(_values(kind, choose)) for kind in kinds]
    assert all(isinstance(layer, Block) for layer in layers)
    return Stage(
        entry=entry.make(_values(entry, choose), width=width),
        blocks=tuple(layers),  # type: ignore[arg-type]  # asserted above
        depth=depth,
        positions=positions.make(_values(positions, choose)) if positions else None,
    )


def _values(plan: LayerPlan, choose: Pick) -> dict[str, Scalar]:
    return {name: choose(plan.names[name], choices) for name, choices in plan.choices.items()}
