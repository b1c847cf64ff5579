"""An architecture: frozen, hashable, priced exactly; one walk over its layers serves cost, build and report."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

from archsearch import blocks
from archsearch.blocks.base import Block, Layer, LayerError, Scalar, Shape
from archsearch.blocks.positions import PatchesLayer
from archsearch.cost import Cost
from archsearch.errors import UserError
from archsearch.grammar import Document, parse
from archsearch.plan import LayerPlan, Plan, StagePlan

T = TypeVar("T")
__all__ = ["Arch", "Pick", "Placed", "Stage", "assemble", "blocks"]

Pick = Callable[[str, Sequence[Scalar]], Scalar]
ImageSize = int | tuple[int, int]


class Placed(NamedTuple):
    """A layer where it stands: dotted path, input shape, output shape."""

    path: str
    layer: Layer
    shape: Shape
    out: Shape


@dataclass(frozen=True, kw_only=True)
class Stage:
    """An entry layer (the stem, or a downsample), perhaps learned positions, then `depth` blocks that alternate through `blocks`."""

    entry: Layer
    blocks: tuple[Block, ...]
    depth: int
    positions: Layer | None = None

    @property
    def width(self) -> int:
        """Channels of the stage."""
        width: int = self.entry.width  # type: ignore[attr-defined]  # every stem and downsample has a width
        return width

    @property
    def block(self) -> str:
        """The stage's block in the grammar: `hilo`, or `sda/lda` for two that alternate."""
        return "/".join(block.kind for block in self.blocks)

    @property
    def opening(self) -> Layer | None:
        """What puts tokens beside the map when the stage begins: positions with a class token, or a block's messengers."""
        if self.positions and self.positions.out(_ANY_MAP).tokens:
            return self.positions
        return _first(block.before_first() for block in self.blocks)

    def takes_along(self, tokens: Layer | None) -> bool:
        """Whether tokens made by this layer may come with the map into this stage: its entry brings them, and it would make the same windows."""
        window = getattr(tokens, "window", None)
        has_room = self.entry.takes_tokens and self.positions is None
        return window is not None and has_room and window == getattr(self.opening, "window", None)

    def order(self, tokens: Layer | None, *, is_first: bool, is_last: bool) -> Iterator[tuple[str, int, Layer]]:
        """Names in the stage (numbered for blocks, from 1) and layers, in order. `tokens`: the layer whose tokens come with the map."""
        yield ("stem" if is_first else "downsample"), 0, self.entry
        if self.positions:
            yield "positions", 0, self.positions
        opening = self.opening
        if opening and tokens is None and opening is not self.positions:
            yield opening.kind, 0, opening
        kinds = len(self.blocks)
        for index in range(self.depth):
            yield "blocks", index + 1, self.blocks[index % kinds]
            extra = _first(block.after_first() for block in self.blocks) if index == 0 else None
            if extra:
                yield extra.kind, 0, extra
        end = self.blocks[(self.depth - 1) % kinds].stage_end()
        if end and not is_last:
            yield end.kind, 0, end


_ANY_MAP = Shape(1, 1, 1)


def _first(layers: Iterable[Layer | None]) -> Layer | None:
    """The first that is there."""
    return next((layer for layer in layers if layer), None)


@dataclass(frozen=True, kw_only=True)
class Arch:
    """A network as data. Raises UserError at construction when a layer cannot stand where it is put.

    `name` is not part of the identity: two architectures with the same layers are equal and share their `arch_id`.
    """

    stages: tuple[Stage, ...]
    head: Layer
    image_size: int = 224
    name: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        self.check()

    def check(self, image_size: ImageSize | None = None) -> None:
        """Raise UserError when a layer cannot stand at its place for inputs of this size (one side, or height and width)."""
        for placed in self._unique_layers(image_size):
            try:
                placed.layer.check_at(placed.shape)
            except LayerError as error:
                raise UserError(
                    f"{placed.path} ({placed.layer.kind}) on a map of {placed.shape.height}x{placed.shape.width}: {error}"
                ) from error

    @property
    def num_classes(self) -> int:
        """Logits of the classifier."""
        classes: int = self.head.num_classes  # type: ignore[attr-defined]  # every head has classes
        return classes

    def layers(self, image_size: ImageSize | None = None, in_chans: int = 3) -> Iterator[Placed]:
        """Every layer in order of execution with its shapes, for one input size (the architecture's own by default)."""
        shape = self._input(image_size, in_chans)
        for number, name, index, layer in self._order():
            out = layer.out(shape)
            yield Placed(_path(number, name, index), layer, shape, out)
            shape = out

    def _input(self, image_size: ImageSize | None, in_chans: int = 3) -> Shape:
        """The image as a shape."""
        size = image_size or self.image_size
        height, width = size if isinstance(size, tuple) else (size, size)
        return Shape(in_chans, height, width)

    def _order(self) -> Iterator[tuple[int, str, int, Layer]]:
        """Stage, name, number of the block and layer, in order; stages and blocks are numbered from 1. Tokens end where nobody takes them along."""
        tokens: Layer | None = None
        last = len(self.stages)
        for number, stage in enumerate(self.stages, start=1):
            if tokens and not stage.takes_along(tokens):
                yield number - 1, "patches", 0, PatchesLayer()
                tokens = None
            for name, index, layer in stage.order(tokens, is_first=number == 1, is_last=number == last):
                yield number, name, index, layer
            tokens = tokens or stage.opening
        if tokens and not self.head.takes_tokens:
            yield last, "patches", 0, PatchesLayer()
        yield last, "head", 0, self.head

    def _unique_layers(self, image_size: ImageSize | None) -> Iterator[Placed]:
        """The walk without repeats of one layer at one shape."""
        seen: dict[tuple[int, Shape], Layer] = {}
        for placed in self.layers(image_size):
            key = (id(placed.layer), placed.shape)
            if key not in seen:
                seen[key] = placed.layer
                yield placed

    def cost(self, image_size: ImageSize | None = None) -> Cost:
        """Exact MACs of one image in eval mode and parameters, by arithmetic; no tensor is made."""
        macs = params = norm_macs = 0
        for cost in self.along(_cost_and_out, image_size):
            macs += cost.macs
            params += cost.params
            norm_macs += cost.norm_macs
        return Cost(macs, params, norm_macs)

    def along(self, ask: Callable[[Layer, Shape], tuple[T, Shape]], image_size: ImageSize | None = None) -> Iterator[T]:
        """What `ask` says of each layer in order of execution, besides the shape after it; it is asked once of a layer at a shape."""
        # By identity, which is quicker than equality; the layer is kept beside the answer, or another one could get its address.
        known: dict[tuple[int, Shape], tuple[T, Shape, Layer]] = {}
        shape = self._input(image_size)
        for _, _, _, layer in self._order():
            key = (id(layer), shape)
            found = known.get(key)
            if found is None:
                found = known[key] = (*ask(layer, shape), layer)
            yield found[0]
            shape = found[1]

    @cached_property
    def arch_id(self) -> str:
        """Twelve hexadecimal digits: the hash of the canonical JSON without the name."""
        document = {key: value for key, value in self.to_dict().items() if key != "name"}
        text = json.dumps(document, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """The architecture in the grammar of space files, fields written out (later ones unless at their default); `from_dict` takes it back."""
        named = {"name": self.name} if self.name else {}
        stem = self.stages[0].entry
        return {
            **named,
            "image_size": self.image_size,
            "num_classes": self.num_classes,
            "stem": {"kind": stem.kind, stem.kind: _fields(stem)},
            "stages": [_stage_dict(stage, first=index == 0) for index, stage in enumerate(self.stages)],
            "head": {"kind": self.head.kind, self.head.kind: _fields(self.head)},
        }

    @staticmethod
    def from_dict(document: Document, source: str = "architecture") -> "Arch":
        """Read an architecture; raises UserError when a value is missing, wrong or a list of choices."""
        return assemble(parse(document, source), _refuse(source))

    def describe(self) -> str:
        """One line: `hilo 96x2 - lka 192x3 - ...` (block, width x depth)."""
        return " - ".join(f"{stage.block} {stage.width}x{stage.depth}" for stage in self.stages)


def _path(number: int, name: str, index: int) -> str:
    """`stem`, `stages.2.downsample`, `stages.2.blocks.1`, `head`."""
    if name in ("stem", "head"):
        return name
    return f"stages.{number}.{name}.{index}" if index else f"stages.{number}.{name}"


def _fields(layer: Layer) -> dict[str, Scalar]:
    """A layer's fields but those its stage or the top level writes."""
    return {
        item.name: getattr(layer, item.name)
        for item in fields(layer)
        if item.name not in ("width", "num_classes")
        and not (item.metadata.get("is_later") and getattr(layer, item.name) == item.default)
    }


def _stage_dict(stage: Stage, *, first: bool) -> dict[str, Any]:
    document: dict[str, Any] = {"width": stage.width, "depth": stage.depth, "block": stage.block}
    if not first:
        document["downsample"] = stage.entry.kind
        document[stage.entry.kind] = _fields(stage.entry)
    if stage.positions:
        document["positions"] = stage.positions.kind
        document[stage.positions.kind] = _fields(stage.positions)
    for block in stage.blocks:
        document[block.kind] = _fields(block)
    return {key: value for key, value in document.items() if value != {}}


def _refuse(source: str) -> Pick:
    """The pick of a document that must not leave a choice open."""

    def pick(name: str, choices: Sequence[Scalar]) -> Scalar:
        raise UserError(f"{source}: {name} is open ({', '.join(map(str, choices))}); an architecture fixes every value")

    return pick


def assemble(plan: Plan, pick: Pick) -> Arch:
    """The architecture that `pick(name, choices)` chooses; it is asked once a name, and only where there are two choices or more."""
    made: dict[str, Scalar] = {}

    def choose(name: str, choices: Sequence[Scalar]) -> Scalar:
        if len(choices) == 1:
            return choices[0]
        if name not in made:
            made[name] = pick(name, choices)
        return made[name]

    stages = tuple(_assemble_stage(stage, choose) for stage in plan.stages)
    head = plan.head.make(_values(plan.head, choose), num_classes=plan.num_classes)
    return Arch(stages=stages, head=head, image_size=plan.image_size, name=plan.name if not made else None)


def _assemble_stage(plan: StagePlan, choose: Pick) -> Stage:
    """One stage; general choices first, then the chosen layers' own fields."""
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


def _cost_and_out(layer: Layer, shape: Shape) -> tuple[Cost, Shape]:
    return layer.cost(shape), layer.out(shape)
