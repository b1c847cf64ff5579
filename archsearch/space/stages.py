"""A stage of an architecture: its layers in order, and the form that is equal for stages that do the same at their place."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property, lru_cache
from typing import Any, NamedTuple, TypeVar

from archsearch.blocks import Block, Cost, Layer, Scalar, Shape

_ANY_MAP = Shape(1, 1, 1)
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """An entry layer (the stem, or a downsample), perhaps learned positions, then `depth` blocks that alternate through `blocks`."""

    entry: Layer
    blocks: tuple[Block, ...]
    depth: int
    positions: Layer | None = None

    @cached_property
    def _hash(self) -> int:
        return hash((self.entry, self.blocks, self.depth, self.positions))

    def __hash__(self) -> int:
        """Computed once, since the caches below ask for it often."""
        return self._hash

    def __getstate__(self) -> dict[str, Any]:
        """The fields: hashes of text differ between processes."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    @property
    def width(self) -> int:
        """Channels of the stage."""
        width: int = self.entry.width  # type: ignore[attr-defined]  # every stem and downsample has a width
        return width

    @property
    def block(self) -> str:
        """The stage's block in the grammar: `hilo`, or `sda/lda` for two that alternate."""
        return "/".join(block.kind for block in self.blocks)

    @cached_property
    def opening(self) -> Layer | None:
        """The layer that puts tokens beside the map before the first block: positions with a class token, or messengers."""
        if self.positions and self.positions.out(_ANY_MAP).tokens:
            return self.positions
        return _first(block.before_first() for block in self.blocks)

    @cached_property
    def after_first(self) -> Layer | None:
        """The layer that stands once, after the first block."""
        return _first(block.after_first() for block in self.blocks)

    def takes_along(self, tokens: Layer | None) -> bool:
        """Whether the stage takes the tokens that this layer made: its entry can keep them, and it would make the same windows itself."""
        window = getattr(tokens, "window", None)
        has_room = self.entry.takes_tokens and self.positions is None
        return window is not None and has_room and window == getattr(self.opening, "window", None)

    def order(self, tokens: Layer | None, *, is_first: bool, is_last: bool) -> Iterator[tuple[str, int, Layer]]:
        """Name, number of the block (from 1; 0 for other layers) and layer, in order. `tokens`: the layer whose tokens come with the map."""
        yield ("stem" if is_first else "downsample"), 0, self.entry
        if self.positions:
            yield "positions", 0, self.positions
        opening = self.opening
        if opening and tokens is None and opening is not self.positions:
            yield opening.kind, 0, opening
        kinds = len(self.blocks)
        for index in range(self.depth):
            yield "blocks", index + 1, self.blocks[index % kinds]
            extra = self.after_first if index == 0 else None
            if extra:
                yield extra.kind, 0, extra
        end = self.blocks[(self.depth - 1) % kinds].stage_end()
        if end and not is_last:
            yield end.kind, 0, end

    def form(self, shape: Shape, tokens: Layer | None, *, is_first: bool, is_last: bool) -> tuple["StageForm", Shape]:
        """What the stage does at an input `shape`, with tokens made by `tokens`, and the shape after it."""
        entry, *inside = self.order(tokens, is_first=is_first, is_last=is_last)
        canonical_entry, shape = entry[2].canonical(shape), entry[2].out(shape)
        positions: Layer | None = None
        blocks: list[Block] = []
        extras: list[Layer] = []
        known: dict[int, Block] = {}
        for name, _, layer in inside:
            if name == "blocks":
                assert isinstance(layer, Block)
                if id(layer) not in known:
                    known[id(layer)] = layer.canonical_in(shape, self.after_first)
                blocks.append(known[id(layer)])
                continue
            if name == "positions":
                positions = layer.canonical(shape)
            else:
                extras.append(layer)
            shape = layer.out(shape)
        return StageForm(canonical_entry, positions, shortest(blocks), self.depth, tuple(extras)), shape


class StageForm(NamedTuple):
    """What a stage does at its place: canonical layers, the shortest alternation of the blocks it has, and `extras`, the layers that stand once."""

    entry: Layer
    positions: Layer | None
    blocks: tuple[Block, ...]
    depth: int
    extras: tuple[Layer, ...]

    def document(self, tokens: Layer | None, *, is_first: bool, is_last: bool) -> dict[str, Any]:
        """The form in the grammar of space files, with keys for extras and tokens that do not follow from the blocks."""
        blocks = self.blocks[0].pair() if len(self.blocks) == 1 and self.depth > 1 else self.blocks
        stage = Stage(entry=self.entry, positions=self.positions, blocks=blocks, depth=self.depth)
        usual = ("stem", "downsample", "positions", "blocks")
        order = stage.order(tokens, is_first=is_first, is_last=is_last)
        brought = [layer for name, _, layer in order if name not in usual]
        document = stage_document(stage, is_first=is_first)
        if tuple(brought) != self.extras:
            document["extras"] = [{"kind": layer.kind, **layer_fields(layer)} for layer in self.extras]
        if tokens is not None and not stage.takes_along(tokens):
            document["takes_along"] = tokens.kind
        return document


@lru_cache(maxsize=2**14)
def canonical_documents(
    stage: Stage, shape: Shape, tokens: Layer | None, *, is_first: bool, is_last: bool
) -> tuple[str, str, Shape]:
    """The JSON of a stage's form and of its entry, and the shape after it; cached, since architectures of a space share their stages."""
    form, after = stage.form(shape, tokens, is_first=is_first, is_last=is_last)
    document = form.document(tokens, is_first=is_first, is_last=is_last)
    return to_canonical_json(document), to_canonical_json(kind_document(form.entry)), after


@lru_cache(maxsize=2**14)
def stage_cost(
    stage: Stage, shape: Shape, tokens: Layer | None, *, is_first: bool, is_last: bool
) -> tuple[Cost, Shape]:
    """The cost of a stage at its input, and the shape after it; cached as above."""
    figures = list(_walk(stage.order(tokens, is_first=is_first, is_last=is_last), shape, _layer_cost))
    return sum((cost for cost, _ in figures), Cost()), figures[-1][1]


@lru_cache(maxsize=2**14)
def checked_stage(stage: Stage, shape: Shape, tokens: Layer | None, *, is_first: bool, is_last: bool) -> Shape:
    """The shape after a stage whose layers all fit their maps; cached as above. Raises LayerError for one that does not."""
    return list(_walk(stage.order(tokens, is_first=is_first, is_last=is_last), shape, _checked_layer))[-1][1]


def _walk(
    order: Iterable[tuple[str, int, Layer]], shape: Shape, function: Callable[[Layer, Shape], tuple[T, Shape]]
) -> Iterator[tuple[T, Shape]]:
    """What `function` gives for each layer at its shape, with the shape after it; it is called once for the repeated blocks of a stage."""
    known: dict[tuple[int, Shape], tuple[T, Shape]] = {}
    for _, _, layer in list(order):  # all kept, or another one could get a layer's address
        key = (id(layer), shape)
        if key not in known:
            known[key] = function(layer, shape)
        yield known[key]
        shape = known[key][1]


# Stages differ more than their layers do.


@lru_cache(maxsize=2**14)
def _layer_cost(layer: Layer, shape: Shape) -> tuple[Cost, Shape]:
    return layer.cost(shape), layer.out(shape)


@lru_cache(maxsize=2**14)
def _checked_layer(layer: Layer, shape: Shape) -> tuple[None, Shape]:
    layer.check_at(shape)
    return None, layer.out(shape)


def kind_document(layer: Layer) -> dict[str, Any]:
    """A stem or a head in the grammar of space files."""
    return {"kind": layer.kind, layer.kind: layer_fields(layer)}


def to_canonical_json(document: Any) -> str:
    """The document as JSON without spaces, keys sorted: equal documents give equal texts."""
    return _ENCODER.encode(document)


def _first(layers: Iterable[Layer | None]) -> Layer | None:
    """The first that is not None."""
    return next((layer for layer in layers if layer), None)


def shortest(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """The shortest prefix whose repetition gives the sequence."""
    for period in range(1, len(blocks)):
        prefix = blocks[:period]
        if all(
            block is prefix[index % period] or block == prefix[index % period] for index, block in enumerate(blocks)
        ):
            return tuple(blocks[:period])
    return tuple(blocks)


def layer_fields(layer: Layer) -> dict[str, Scalar]:
    """A layer's fields as its table has them: without `width` and `num_classes`, which stand elsewhere, and without `is_later` fields at their default."""
    return {
        name: getattr(layer, name)
        for name, is_later, default in _written_fields(type(layer))  # type: ignore[arg-type]  # mypy takes a class with a hash for its objects for none
        if not (is_later and getattr(layer, name) == default)
    }


@cache
def _written_fields(layer: type[Layer]) -> list[tuple[str, bool, Any]]:
    """Name, whether it `is_later`, and default of the fields that a layer's table has."""
    return [
        (item.name, bool(item.metadata.get("is_later")), item.default)
        for item in fields(layer)
        if item.name not in ("width", "num_classes")
    ]


def stage_document(stage: Stage, *, is_first: bool) -> dict[str, Any]:
    """A stage in the grammar of space files; a kind that occurs twice, as in canonical forms only, is numbered."""
    document: dict[str, Any] = {"width": stage.width, "depth": stage.depth, "block": stage.block}
    if not is_first:
        document["downsample"] = stage.entry.kind
        document[stage.entry.kind] = layer_fields(stage.entry)
    if stage.positions:
        document["positions"] = stage.positions.kind
        document[stage.positions.kind] = layer_fields(stage.positions)
    for index, block in enumerate(stage.blocks):
        is_second = any(block.kind == other.kind for other in stage.blocks[:index])
        document[f"{block.kind}.{index}" if is_second else block.kind] = layer_fields(block)
    return {key: value for key, value in document.items() if value != {}}
