"""Spaces: a file of choices, and the only door to it, `sample(pick)`; the papers' models are spaces of size one."""

import copy
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any

from archsearch.blocks.base import Scalar
from archsearch.errors import UserError, did_you_mean
from archsearch.space.arch import Arch, Pick, assemble
from archsearch.space.grammar import Document, format_value, parse
from archsearch.space.plan import NO_POSITIONS, Choices, LayerPlan, Plan, StagePlan


class Space:
    """A checked space: `sample(pick)` gives an architecture, `parameters()` what there is to choose, `size` how many parameter sets there are."""

    def __init__(self, document: Document, source: str, text: str = "") -> None:
        self.plan: Plan = parse(document, source)
        self.source, self.text = source, text
        self.name = self.plan.name or Path(source).stem
        self.fixed_names: dict[str, Scalar] = {}  # what `fixed` has fixed

    def sample(self, pick: Pick) -> Arch:
        """The architecture that `pick(name, choices)` chooses; pick is asked once a name, and only for names with two choices or more."""
        return assemble(self.plan, pick)

    def fixed(self, values: Mapping[str, Scalar]) -> "Space":
        """The space with these parameters fixed, by dotted name; a value may be given as text.

        A name that only some architectures have constrains these. Raises UserError for a name or a value that the space does not have.
        """
        names = self._names
        chosen: dict[str, Scalar] = {}
        for name, value in values.items():
            if name not in names:
                raise UserError(
                    f"{self.source}: no parameter {name!r}{did_you_mean(name, list(names))}; `archsearch space` lists them"
                )
            chosen[name] = _matching(f"{self.source}: {name}", value, names[name])
        space = copy.copy(self)
        for remembered in ("_names", "_parameters"):
            vars(space).pop(remembered, None)
        stages = tuple(_fixed_stage(stage, chosen) for stage in self.plan.stages)
        space.plan = replace(self.plan, stages=stages, head=_fixed_layer(self.plan.head, chosen))
        space.fixed_names = {**self.fixed_names, **chosen}
        return space

    @property
    def is_single(self) -> bool:
        """True when nothing is left to choose."""
        return not self.parameters()

    @property
    def paper(self) -> Mapping[str, Any]:
        """The `[paper]` table: title, arXiv, published figures; empty for a space of one's own."""
        return self.plan.paper

    def arch(self) -> Arch:
        """The architecture of a space of size one. Raises UserError when something is left to choose."""
        for name, choices in self.parameters().items():
            raise UserError(
                f"{self.source}: {name} has {len(choices)} choices; an architecture fixes every value (a space of size one)"
            )
        return assemble(self.plan, _never)

    def parameters(self) -> dict[str, Choices]:
        """Every name with two choices or more, conditional ones included, in the order of the file."""
        return dict(self._parameters)

    @cached_property
    def _parameters(self) -> dict[str, Choices]:
        return {name: choices for name, choices in self._names.items() if len(choices) > 1}

    @cached_property
    def _names(self) -> dict[str, Choices]:
        names: dict[str, Choices] = {}
        for stage in self.plan.stages:
            names.update(_general(stage))
            for layer in (*stage.entries.values(), *stage.position_plans.values(), *stage.blocks.values()):
                names.update(_fields(layer))
        names.update(_fields(self.plan.head))
        return names

    @property
    def size(self) -> int:
        """Number of distinct parameter sets (conditional parameters counted where they apply)."""
        return math.prod(_stage_size(stage) for stage in self.plan.stages) * _product([self.plan.head])


def _never(name: str, choices: object) -> Any:
    raise AssertionError(f"{name} is open in a space of size one")


def _general(stage: StagePlan) -> dict[str, Choices]:
    prefix = f"stages.{stage.number}"
    return {
        stage.entry_name: stage.entry,
        f"{prefix}.positions": stage.positions,
        f"{prefix}.block": stage.block,
        f"{prefix}.depth": stage.depth,
        f"{prefix}.width": stage.width,
    }


def _fixed_stage(stage: StagePlan, values: Mapping[str, Scalar]) -> StagePlan:
    """The stage with these names fixed, and without the layers that it can no longer name."""
    general = {name: (values[name],) if name in values else choices for name, choices in _general(stage).items()}
    entry, positions, block, depth, width = general.values()
    kinds = {kind for one in block for kind in str(one).split("/")}
    return replace(
        stage,
        entry=entry,
        positions=positions,
        block=block,
        depth=depth,
        width=width,
        entries={kind: _fixed_layer(plan, values) for kind, plan in stage.entries.items() if kind in entry},
        position_plans={
            kind: _fixed_layer(plan, values) for kind, plan in stage.position_plans.items() if kind in positions
        },
        blocks={kind: _fixed_layer(plan, values) for kind, plan in stage.blocks.items() if kind in kinds},
    )


def _fixed_layer(layer: LayerPlan, values: Mapping[str, Scalar]) -> LayerPlan:
    choices = {
        field: (values[layer.names[field]],) if layer.names[field] in values else allowed
        for field, allowed in layer.choices.items()
    }
    return replace(layer, choices=choices)


def _matching(where: str, value: Scalar, choices: Choices) -> Scalar:
    """The choice that a value means: equal to it, or written like it."""
    for choice in choices:
        if value == choice and isinstance(value, bool) == isinstance(choice, bool):
            return choice
        if isinstance(value, str) and _means(value.strip(), choice):
            return choice
    allowed = ", ".join(map(format_value, choices))
    raise UserError(
        f"{where}: {format_value(value)} is not among its choices{_nearest_choice(value, choices)}; allowed: {allowed}"
    )


def _means(text: str, choice: Scalar) -> bool:
    if isinstance(choice, bool | str):
        return text.lower() == format_value(choice).lower()
    try:
        return float(text) == choice
    except ValueError:
        return False


def _nearest_choice(value: Scalar, choices: Choices) -> str:
    """`, the nearest is 64` among numbers, else what is written most alike."""
    numbers = [choice for choice in choices if isinstance(choice, int | float) and not isinstance(choice, bool)]
    try:
        return (
            f", the nearest is {format_value(min(numbers, key=lambda choice: abs(choice - float(value))))}"
            if numbers
            else did_you_mean(str(value), list(map(format_value, choices)))
        )
    except ValueError:
        return ""


def _fields(layer: LayerPlan) -> dict[str, Choices]:
    return {name: layer.choices[field] for field, name in layer.names.items()}


def _product(layers: list[LayerPlan]) -> int:
    """Combinations of the layers' fields, shared names counted once."""
    names: dict[str, Choices] = {}
    for layer in layers:
        names.update(_fields(layer))
    return math.prod(len(choices) for choices in names.values())


def _stage_size(stage: StagePlan) -> int:
    entries = sum(_product([stage.entries[str(kind)]]) for kind in stage.entry)
    blocks = sum(_product([stage.blocks[kind] for kind in str(block).split("/")]) for block in stage.block)
    without = int(NO_POSITIONS in stage.positions)
    positions = without + sum(_product([plan]) for plan in stage.position_plans.values())
    return entries * positions * blocks * len(stage.depth) * len(stage.width)


@cache
def spaces_folder() -> Path:
    """The shipped spaces: inside an installed package, or beside it in a checkout."""
    inside = Path(str(resources.files("archsearch"))) / "spaces"
    return inside if inside.is_dir() else inside.parent.parent / "spaces"


def load_space(name: str | Path) -> Space:
    """A space from a TOML file, or a shipped one by name (`hybrid`, or a paper's such as `davit_tiny`).

    Raises UserError with the file, the dotted key, what was found and what is allowed.
    """
    path = _find(name)
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a space file: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}") from error
    return Space(document, source=str(name), text=text)


def _find(name: str | Path) -> Path:
    """The file behind a path or a shipped name."""
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        if path.is_file():
            return path
        raise UserError(f"{name}: no such space file")
    shipped = {file.stem: file for file in _shipped()}
    if str(name) in shipped:
        return shipped[str(name)]
    raise UserError(
        f"{name}: neither a .toml file nor a shipped space or paper{did_you_mean(name, list(shipped))}; "
        "`archsearch papers` lists the papers, hybrid is the default space"
    )


def _shipped() -> Iterator[Path]:
    yield from sorted(spaces_folder().glob("*.toml"))
    yield from sorted((spaces_folder() / "papers").glob("*.toml"))
