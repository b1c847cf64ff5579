"""The grammar of space files (TOML or JSON): a scalar is fixed, a list gives choices, and a layer field that is left out takes the layer's own choices.

`parse` makes a document into a Plan, in which everything is a tuple of valid choices; `arch.py` makes a Plan and a `pick` into an architecture.
Stages are numbered from 1, as in the papers: `stages.3.hilo.window`.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

from archsearch.blocks import Layer, Role, Scalar, Shape, layer_type, own_choices, registered_layers
from archsearch.errors import UserError, did_you_mean, first_line, shown
from archsearch.space.plan import (
    MOST_SETTINGS,
    NO_POSITIONS,
    Choices,
    LayerPlan,
    Plan,
    StagePlan,
    valid_layer,
    valid_stage,
)
from archsearch.units import MOST_CHANNELS, MOST_SIDE, ImageSize, one_size, sides

Document = Mapping[str, Any]

SHARED = ("mlp_ratio", "head_dim")
_TOP = ("name", "image_size", "in_chans", "num_classes", "blocks", "stem", "stages", "head", "paper")
_STAGE = ("width", "depth", "block", "downsample", "positions", *SHARED)
_TABLE_ROLES: tuple[Role, ...] = ("block", "downsample", "positions")
# Bounds that no network of today comes near; within them every space is checked and counted in seconds, and every cost is exact in 64 bits.
MOST = {"image_size": MOST_SIDE, "in_chans": MOST_CHANNELS, "num_classes": 10**6, "depth": 1000}
MOST_NUMBER = 65_536  # of any other value
MOST_STAGES, MOST_CHOICES, LONGEST_NAME = 16, 1000, 100
_WORDS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


def format_value(value: object) -> str:
    """A value as a space file writes it: `true`, `0.25`, `4`, `hilo`."""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


class _Reader:
    """Reads the values of one table; its errors start with the file and the dotted key."""

    def __init__(self, source: str, where: str, table: Any) -> None:
        self.source, self.where = source, where
        if not isinstance(table, Mapping):
            raise UserError(f"{source}: {where} must be a table, not {shown(table)}")
        self.table = table

    def locate(self, key: str) -> str:
        """`file: dotted.key` for an error sentence."""
        return f"{self.source}: {self.where}.{key}" if self.where else f"{self.source}: {key}"

    def check_keys(self, allowed: Iterable[str]) -> None:
        """Raise UserError for a key that is not allowed."""
        known = list(allowed)
        for key in self.table:
            if key not in known:
                raise UserError(
                    f"{self.locate(key)}: unknown key{did_you_mean(key, known)}; allowed here: {', '.join(known)}"
                )

    def choices(self, key: str, kind: type) -> Choices:
        """A scalar or a list as a tuple of distinct choices of the right type."""
        raw = self.table[key]
        values = raw if isinstance(raw, (list, tuple)) else [raw]
        if len(values) > MOST_CHOICES:
            raise UserError(f"{self.locate(key)}: {len(values)} choices; at most {MOST_CHOICES} are allowed")
        if not values:
            raise UserError(f"{self.locate(key)}: the list of choices is empty; give a value or at least one choice")
        checked = tuple(self._typed(key, value, kind) for value in values)
        repeated = [value for index, value in enumerate(checked) if value in checked[:index]]
        if repeated:
            raise UserError(
                f"{self.locate(key)}: the choice {shown(repeated[0])} stands twice; every choice may stand once"
            )
        return checked

    def scalar(self, key: str, kind: type) -> Any:
        """One value of the right type; a list is refused."""
        if isinstance(self.table[key], (list, tuple)):
            raise UserError(f"{self.locate(key)}: a list is not allowed here; give one value ({_WORDS[kind]})")
        return self.choices(key, kind)[0]

    def _typed(self, key: str, value: Any, kind: type) -> Scalar:
        if isinstance(value, str | bool) and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return value
        if kind not in (int, float) or isinstance(value, bool) or not isinstance(value, (int, kind)):
            raise UserError(f"{self.locate(key)}: {shown(value)} is not {_WORDS[kind]}")
        most = MOST.get(key, MOST_NUMBER)
        if not 0 <= value <= most:
            raise UserError(f"{self.locate(key)}: {shown(value)} is out of range; a number from 0 to {most} is allowed")
        return float(value) if kind is float else int(value)

    def positive(self, key: str) -> Choices:
        """Whole numbers of at least 1."""
        values = self.choices(key, int)
        for value in values:
            self._check_positive(key, value)
        return values

    def _check_positive(self, key: str, value: Scalar) -> int:
        if int(value) < 1:
            raise UserError(f"{self.locate(key)}: {value!r} is not positive; whole numbers from 1 are allowed")
        return int(value)

    def size(self, key: str) -> ImageSize:
        """A side in pixels, or a list of height and width."""
        values = self.table[key]
        if not isinstance(values, (list, tuple)):
            return int(self.positive(key)[0])
        if len(values) != 2:
            raise UserError(f"{self.locate(key)}: a list of {len(values)} numbers; write a side, or [height, width]")
        height, width = (self._check_positive(key, self._typed(key, value, int)) for value in values)
        return one_size(height, width)

    def require(self, *keys: str) -> None:
        """Raise UserError when one of these keys, which have no default, is missing, or written in another way."""
        known = {*_TOP, *_STAGE, *(kind for role in _TABLE_ROLES for kind in registered_layers(role))}
        for key in keys:
            if key in self.table:
                continue
            needed = f"every {'stage' if self.where.startswith('stages') else self.where or 'space'} needs {key}"
            near = difflib.get_close_matches(key, [name for name in self.table if name not in known], n=1)
            if near:
                raise UserError(f"{self.locate(near[0])}: unknown key, did you mean {key!r}? {needed}")
            raise UserError(f"{self.locate(key)} is missing; {needed}")


def block_paths(document: Document, source: str) -> list[str]:
    """The files of blocks that a document names under its key `blocks`. Raises UserError where they are no texts."""
    reader = _Reader(source, "", document)
    return [str(path) for path in reader.choices("blocks", str)] if "blocks" in document else []


def parse(document: Document, source: str) -> Plan:
    """Check a document and return its plan; `source` (a file name) starts every error. Raises UserError with the dotted key and what is allowed.

    The layers of the files under `blocks` must be registered already.
    """
    top = _Reader(source, "", document)
    top.check_keys(_TOP)
    top.require("stem", "stages")
    image_size = top.size("image_size") if "image_size" in document else 224
    in_chans = int(top.positive("in_chans")[0]) if "in_chans" in document else 3
    num_classes = int(top.positive("num_classes")[0]) if "num_classes" in document else 1000
    for key, kind in (("in_chans", int), ("num_classes", int), ("name", str)):
        if key in document:
            top.scalar(key, kind)
    name = str(document.get("name", ""))
    if name and not is_name(name):
        raise UserError(
            f"{source}: name {shown(name)} is no name; allowed are up to {LONGEST_NAME} printable characters without / and \\"
        )
    if not isinstance(document["stages"], (list, tuple)) or not 1 <= len(document["stages"]) <= MOST_STAGES:
        raise UserError(
            f"{source}: stages must be a list of tables, written [[stages]], with at least one stage and at most {MOST_STAGES}"
        )
    shapes = {Shape(in_chans, *sides(image_size))}
    stages: list[StagePlan] = []
    room = MOST_SETTINGS
    for number, table in enumerate(document["stages"], start=1):
        stage = _stage(source, number, table, document["stem"])
        stage, shapes, room = valid_stage(stage, shapes, source, room=room)
        stages.append(stage)
    reader = _Reader(source, "head", document.get("head", {"kind": "pool"}))
    reader.require("kind")
    kind_of_head = reader.scalar("kind", str)
    reader.check_keys(["kind", kind_of_head])
    head = _layer(reader, layer_type("head", kind_of_head, reader.locate("kind")), "kind")
    if not head.layer.takes_tokens:
        shapes = {shape.plain for shape in shapes}
    head = valid_layer(head, shapes, source, f"stages.{len(stages)}.width", extra={"num_classes": num_classes})
    return Plan(
        name=document.get("name"),
        source=source,
        image_size=image_size,
        in_chans=in_chans,
        num_classes=num_classes,
        stages=tuple(stages),
        head=head,
        head_kinds=(kind_of_head,),
        paper=_paper(source, document.get("paper", {})),
    )


def is_name(text: str) -> bool:
    """Whether a space may be called so: a run's folder is named after it."""
    return 0 < len(text.strip()) <= LONGEST_NAME and text.isprintable() and not set(text) & set("/\\")


def _paper(source: str, table: Any) -> Mapping[str, Any]:
    """The `[paper]` table, which is shown and not read. Raises UserError where it is none, or holds what JSON has no word for."""
    try:
        json.dumps(table, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        allowed = "texts, finite numbers, lists and tables are allowed"
        raise UserError(f"{source}: paper: {first_line(error)}; {allowed}") from error
    paper: Mapping[str, Any] = _Reader(source, "paper", table).table
    return paper


def _stage(source: str, number: int, table: Any, stem: Any) -> StagePlan:
    """The plan of one stage before its choices are checked against shapes."""
    reader = _Reader(source, f"stages.{number}", table)
    entry_reader, entry_key, role = reader, "downsample", "downsample"
    if number == 1:
        entry_reader, entry_key, role = _Reader(source, "stem", stem), "kind", "stem"
    reader.require("width", "depth", "block", *(["downsample"] if number > 1 else []))
    entry_reader.require(entry_key)
    entries = entry_reader.choices(entry_key, str)
    blocks = reader.choices("block", str)
    positions = reader.choices("positions", str) if "positions" in reader.table else (NO_POSITIONS,)
    kinds = list(dict.fromkeys(kind for block in blocks for kind in str(block).split("/")))
    tables = kinds + [str(kind) for kind in (*positions, *(entries if number > 1 else ())) if kind != NO_POSITIONS]
    for block in blocks:
        if len(set(str(block).split("/"))) < len(str(block).split("/")):
            raise UserError(
                f"{reader.locate('block')}: {shown(block)} names a block twice; a/b alternates two different blocks"
            )
    block_types = {kind: layer_type("block", kind, reader.locate("block")) for kind in kinds}
    entry_types = {str(kind): layer_type(role, str(kind), entry_reader.locate(entry_key)) for kind in entries}  # type: ignore[arg-type]  # role is one of two literals
    position_types = {
        str(kind): layer_type("positions", str(kind), reader.locate("positions"), also=(NO_POSITIONS,))
        for kind in positions
        if kind != NO_POSITIONS
    }
    _refuse_absent_layers(reader, tables)
    reader.check_keys([key for key in _STAGE if number > 1 or key != "downsample"] + tables)
    if number == 1:
        entry_reader.check_keys(["kind", *(str(kind) for kind in entries)])
    _refuse_idle_shared(reader, block_types.values())
    return StagePlan(
        number=number,
        width=reader.positive("width"),
        depth=reader.positive("depth"),
        block=blocks,
        entry=entries,
        positions=positions,
        blocks={kind: _layer(reader, layer, "block", shared=reader) for kind, layer in block_types.items()},
        entries={kind: _layer(entry_reader, layer, entry_key) for kind, layer in entry_types.items()},
        position_plans={kind: _layer(reader, layer, "positions") for kind, layer in position_types.items()},
    )


def _refuse_absent_layers(reader: _Reader, tables: list[str]) -> None:
    """Raise UserError for a table of a layer that the stage does not have: it would be ignored."""
    for key in reader.table:
        known = {kind for role in _TABLE_ROLES for kind in registered_layers(role)}
        if key not in tables and key not in _STAGE and key in known:
            raise UserError(
                f"{reader.locate(key)}: {key} is no choice of this stage ({', '.join(tables)}); take the table out or add it"
            )


def _refuse_idle_shared(reader: _Reader, layers: Iterable[type[Layer]]) -> None:
    """Raise UserError for a stage-wide field that no block of the stage has: it would be ignored."""
    owned = {name for layer in layers for name in own_choices(layer)}
    for key in SHARED:
        if key in reader.table and key not in owned:
            raise UserError(f"{reader.locate(key)}: no block of this stage has a {key}; take it out")


def _layer(reader: _Reader, layer: type[Layer], key: str, *, shared: _Reader | None = None) -> LayerPlan:
    """The plan of a layer that `key` names. A field takes the layer's own table, else the stage's shared field, else the layer's own choices."""
    where = f"{reader.where}.{layer.kind}"
    table = _Reader(reader.source, where, reader.table.get(layer.kind, {}))
    own = own_choices(layer)
    plain = {item.name for item in fields(layer) if "choices" not in item.metadata and item.default is not MISSING}
    table.check_keys([*own, *sorted(plain)])
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
    place = f"{reader.where}.{key}"
    return LayerPlan(layer=layer, place=place, choices=choices, names=names, written=written, fixed=fixed)
