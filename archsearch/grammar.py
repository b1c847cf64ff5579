"""The one grammar: a document (TOML or JSON) whose scalars are fixed, whose lists are choices, and whose missing layer fields take the layer's own choices.

A document becomes a Plan, in which everything is a tuple of valid choices; `arch.py` turns a Plan and a `pick` into an architecture.
Stages are numbered from 1, as in the papers: `stages.3.hilo.window`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from itertools import product
from typing import Any, get_type_hints

from archsearch.blocks.base import (
    Layer,
    LayerError,
    Scalar,
    Shape,
    field_scale,
    layer_type,
    layers_of,
    nearest,
    own_choices,
)
from archsearch.errors import UserError

Choices = tuple[Scalar, ...]
Document = Mapping[str, Any]

SHARED = ("mlp_ratio", "head_dim")
_TOP = ("name", "image_size", "num_classes", "stem", "stages", "head", "paper")
_STAGE = ("width", "depth", "block", "downsample", *SHARED)
_WORDS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """A layer kind with the choices of its fields; `names` gives each field's dotted name in the search."""

    layer: type[Layer]
    choices: Mapping[str, Choices]
    names: Mapping[str, str]
    written: frozenset[str]
    fixed: Mapping[str, Scalar]

    def make(self, values: Mapping[str, Scalar], **extra: Any) -> Layer:
        """The layer with these field values."""
        return self.layer(**{**self.fixed, **values, **extra})


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage: the choices of its entry (stem or downsample), width, depth and block, and the plan of every layer these may name."""

    number: int
    width: Choices
    depth: Choices
    block: Choices
    entry: Choices
    blocks: Mapping[str, LayerPlan]
    entries: Mapping[str, LayerPlan]

    @property
    def entry_name(self) -> str:
        """Dotted name of the choice of the entry layer."""
        return "stem.kind" if self.number == 1 else f"stages.{self.number}.downsample"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A whole document, checked: every combination of its choices is a network that can be built at `image_size`."""

    name: str | None
    source: str
    image_size: int
    num_classes: int
    stages: tuple[StagePlan, ...]
    head: LayerPlan
    head_kinds: Choices
    paper: Mapping[str, Any]


class _Reader:
    """Reads values out of one table, remembers where it stands, and refuses what is left over."""

    def __init__(self, source: str, where: str, table: Any) -> None:
        self.source, self.where = source, where
        if not isinstance(table, Mapping):
            raise UserError(f"{source}: {where} must be a table, not {table!r}")
        self.table = table

    def at(self, key: str) -> str:
        """`file: dotted.key` for an error sentence."""
        return f"{self.source}: {self.where}.{key}" if self.where else f"{self.source}: {key}"

    def only(self, allowed: Iterable[str]) -> None:
        """Refuse keys nobody reads."""
        known = list(allowed)
        for key in self.table:
            if key not in known:
                raise UserError(f"{self.at(key)}: unknown key{nearest(key, known)}; allowed here: {', '.join(known)}")

    def choices(self, key: str, kind: type) -> Choices:
        """A scalar or a list as a tuple of distinct choices of the right type."""
        raw = self.table[key]
        values = raw if isinstance(raw, (list, tuple)) else [raw]
        if not values:
            raise UserError(f"{self.at(key)}: the list of choices is empty; give a value or at least one choice")
        checked = tuple(self._typed(key, value, kind) for value in values)
        repeated = [value for index, value in enumerate(checked) if value in checked[:index]]
        if repeated:
            raise UserError(f"{self.at(key)}: the choice {repeated[0]!r} stands twice; every choice may stand once")
        return checked

    def scalar(self, key: str, kind: type) -> Any:
        """A value that may not be a list."""
        if isinstance(self.table[key], (list, tuple)):
            raise UserError(f"{self.at(key)}: a list is not allowed here; give one value ({_WORDS[kind]})")
        return self.choices(key, kind)[0]

    def _typed(self, key: str, value: Any, kind: type) -> Scalar:
        if isinstance(value, str | bool) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return value
        if kind not in (int, float) or isinstance(value, bool) or not isinstance(value, (int, kind)):
            raise UserError(f"{self.at(key)}: {value!r} is not {_WORDS[kind]}")
        if not 0 <= value < 1e9:
            raise UserError(f"{self.at(key)}: {value!r} is out of range; a number from 0 up is allowed")
        return float(value) if kind is float else int(value)

    def positive(self, key: str) -> Choices:
        """Whole numbers of at least 1."""
        values = self.choices(key, int)
        for value in values:
            if int(value) < 1:
                raise UserError(f"{self.at(key)}: {value!r} is not positive; whole numbers from 1 are allowed")
        return values

    def need(self, *keys: str) -> None:
        """Keys that have no default."""
        for key in keys:
            if key not in self.table:
                raise UserError(f"{self.at(key)} is missing; every {'stage' if self.where else 'space'} needs it")


def parse(document: Document, source: str) -> Plan:
    """Read a document; `source` (a file name) starts every error sentence. Raises UserError with the dotted key and what is allowed."""
    top = _Reader(source, "", document)
    top.only(_TOP)
    top.need("stem", "stages")
    image_size = int(top.positive("image_size")[0]) if "image_size" in document else 224
    num_classes = int(top.positive("num_classes")[0]) if "num_classes" in document else 1000
    for key, kind in (("image_size", int), ("num_classes", int), ("name", str)):
        if key in document:
            top.scalar(key, kind)
    if not isinstance(document["stages"], (list, tuple)) or not document["stages"]:
        raise UserError(f"{source}: stages must be a list of tables, written [[stages]], with at least one stage")
    shapes = {Shape(3, image_size, image_size)}
    stages: list[StagePlan] = []
    for number, table in enumerate(document["stages"], start=1):
        stage = _stage(source, number, table, document["stem"])
        stage, shapes = _valid_stage(stage, shapes, source)
        stages.append(stage)
    head, head_kinds = _head(source, document.get("head", {"kind": "pool"}))
    head = _valid_layer(head, shapes, source, f"stages.{len(stages)}.width", extra={"num_classes": num_classes})
    return Plan(
        name=document.get("name"),
        source=source,
        image_size=image_size,
        num_classes=num_classes,
        stages=tuple(stages),
        head=head,
        head_kinds=head_kinds,
        paper=document.get("paper", {}),
    )


def _stage(source: str, number: int, table: Any, stem: Any) -> StagePlan:
    """The plan of one stage before its choices are checked against shapes."""
    reader = _Reader(source, f"stages.{number}", table)
    entry_reader, entry_key, role = reader, "downsample", "downsample"
    if number == 1:
        entry_reader, entry_key, role = _Reader(source, "stem", stem), "kind", "stem"
    reader.need("width", "depth", "block", *(["downsample"] if number > 1 else []))
    entry_reader.need(entry_key)
    entries = entry_reader.choices(entry_key, str)
    blocks = reader.choices("block", str)
    kinds = list(dict.fromkeys(kind for block in blocks for kind in str(block).split("/")))
    tables = [kind for kind in kinds if isinstance(kind, str)] + ([str(kind) for kind in entries] if number > 1 else [])
    for block in blocks:
        if len(set(str(block).split("/"))) < len(str(block).split("/")):
            raise UserError(f"{reader.at('block')}: {block!r} names a block twice; a/b alternates two different blocks")
    block_types = {kind: layer_type("block", kind, reader.at("block")) for kind in kinds}
    entry_types = {str(kind): layer_type(role, str(kind), entry_reader.at(entry_key)) for kind in entries}  # type: ignore[arg-type]  # role is one of two literals
    _refuse_absent_layers(reader, tables)
    reader.only([key for key in _STAGE if number > 1 or key != "downsample"] + tables)
    if number == 1:
        entry_reader.only(["kind", *(str(kind) for kind in entries)])
    _refuse_idle_shared(reader, block_types.values())
    return StagePlan(
        number=number,
        width=reader.positive("width"),
        depth=reader.positive("depth"),
        block=blocks,
        entry=entries,
        blocks={kind: _layer(reader, layer, shared=reader) for kind, layer in block_types.items()},
        entries={kind: _layer(entry_reader, layer, shared=None) for kind, layer in entry_types.items()},
    )


def _refuse_absent_layers(reader: _Reader, tables: list[str]) -> None:
    """A table of a layer that the stage never uses would be ignored: refuse it."""
    for key in reader.table:
        if key not in tables and key not in _STAGE and (key in layers_of("block") or key in layers_of("downsample")):
            raise UserError(
                f"{reader.at(key)}: {key} is no choice of this stage ({', '.join(tables)}); take the table out or add it"
            )


def _refuse_idle_shared(reader: _Reader, layers: Iterable[type[Layer]]) -> None:
    """A stage-wide field that no block of the stage has would be ignored: refuse it."""
    owned = {name for layer in layers for name in own_choices(layer)}
    for key in SHARED:
        if key in reader.table and key not in owned:
            raise UserError(f"{reader.at(key)}: no block of this stage has a {key}; take it out")


def _layer(reader: _Reader, layer: type[Layer], *, shared: _Reader | None) -> LayerPlan:
    """The plan of one layer kind: its own table first, then the stage's shared fields, then the layer's own choices."""
    where = f"{reader.where}.{layer.kind}"
    table = _Reader(reader.source, where, reader.table.get(layer.kind, {}))
    own = own_choices(layer)
    plain = {item.name for item in fields(layer) if "choices" not in item.metadata and item.default is not MISSING}
    table.only([*own, *sorted(plain)])
    types = get_type_hints(layer)
    choices: dict[str, Choices] = {}
    names: dict[str, str] = {}
    for name, defaults in own.items():
        is_shared = shared is not None and name in SHARED and name not in table.table
        names[name] = f"{reader.where}.{name}" if is_shared else f"{where}.{name}"
        if name in table.table:
            choices[name] = table.choices(name, types[name])
        elif is_shared and shared is not None and name in shared.table:
            choices[name] = shared.choices(name, types[name])
        else:
            choices[name] = defaults
    written = frozenset(
        name for name in own if name in table.table or (shared is not None and name in SHARED and name in shared.table)
    )
    fixed = {name: table.scalar(name, types[name]) for name in plain if name in table.table}
    return LayerPlan(layer=layer, choices=choices, names=names, written=written, fixed=fixed)


def _head(source: str, table: Any) -> tuple[LayerPlan, Choices]:
    """The head's plan; a head has one kind."""
    reader = _Reader(source, "head", table)
    reader.need("kind")
    kind = reader.scalar("kind", str)
    reader.only(["kind", kind])
    return _layer(reader, layer_type("head", kind, reader.at("kind")), shared=None), (kind,)


def _valid_stage(stage: StagePlan, shapes: set[Shape], source: str) -> tuple[StagePlan, set[Shape]]:
    """Check every choice of the stage at every shape that can reach it; own choices that do not fit are dropped, written ones are refused."""
    width_name = f"stages.{stage.number}.width"
    entries: dict[str, LayerPlan] = {}
    reached: set[Shape] = set()
    for kind, plan in stage.entries.items():
        for width in stage.width:
            plan = _valid_layer(plan, shapes, source, width_name, extra={"width": width})
        entries[kind] = plan
        for width, shape, values in product(stage.width, shapes, _combinations(plan)):
            reached.add(plan.make(values, width=width).out(shape))
    blocks = {kind: _valid_layer(plan, reached, source, width_name) for kind, plan in stage.blocks.items()}
    return replace(stage, entries=entries, blocks=_same_shared(blocks, source)), reached


def _same_shared(plans: dict[str, LayerPlan], source: str) -> dict[str, LayerPlan]:
    """Blocks that share a name must offer the same choices (a name's choices never change): keep what all of them allow."""
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
    """All values of an entry's few fields."""
    for values in product(*plan.choices.values()):
        yield dict(zip(plan.choices, values, strict=True))


def _valid_layer(
    plan: LayerPlan, shapes: set[Shape], source: str, width_name: str, extra: Mapping[str, Scalar] | None = None
) -> LayerPlan:
    """The plan with own choices that cannot stand at one of `shapes` dropped; a written choice that cannot is an error."""
    for _ in range(2):  # a later field's bad first choice can hide what is wrong with an earlier one
        for name in plan.choices or {"": ()}:
            plan = _valid_field(plan, name, shapes, source, width_name, extra or {})
    return plan


def _valid_field(
    plan: LayerPlan, name: str, shapes: set[Shape], source: str, width_name: str, extra: Mapping[str, Scalar]
) -> LayerPlan:
    """`_valid_layer` for one field, the others at their first choice; their own errors are judged in their own turn."""
    first = {key: values[0] for key, values in plan.choices.items()}
    kept = []
    for value in plan.choices.get(name, (0,)):
        error = _first_error(plan, {**first, name: value} if name else {}, shapes, extra)
        if error is not None and error.field == name and name not in plan.written:
            continue
        if error is not None and (error.field == name or error.field not in plan.choices):
            where = plan.names.get(error.field, width_name if error.field == "width" else error.field)
            raise UserError(f"{source}: {where}: {error}")
        kept.append(value)
    if not name:
        return plan
    if not kept:
        raise UserError(
            f"{source}: {plan.names[name]}: none of the layer's own choices {list(plan.choices[name])} fits here; write one that does"
        )
    return replace(plan, choices={**plan.choices, name: tuple(kept)})


def _first_error(
    plan: LayerPlan, values: Mapping[str, Scalar], shapes: set[Shape], extra: Mapping[str, Scalar]
) -> LayerError | None:
    """What the layer says at the first shape it cannot stand at."""
    layer = plan.make(values, **extra)
    for shape in sorted(shapes):
        try:
            layer.check(shape)
            _check_extent(layer, shape)
        except LayerError as error:
            return error
    return None


def _check_extent(layer: Layer, shape: Shape) -> None:
    """Nothing spatial may be larger than the map it was written for; at another input size the papers' rules pad or clip."""
    side = max(shape.height, shape.width)
    for name in own_choices(type(layer)):
        if field_scale(type(layer), name) in ("window", "interval") and getattr(layer, name) > side:
            raise LayerError(
                name,
                f"{name} {getattr(layer, name)} is larger than the map of {shape.height}x{shape.width}; allowed: 1 to {side}",
            )
