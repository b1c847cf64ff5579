"""Spaces: the choices of a TOML file; `sample(pick)` makes an architecture of them. The papers' models are spaces of size one."""

import copy
import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from archsearch.blocks import BlockFile, Scalar
from archsearch.errors import UserError, did_you_mean
from archsearch.space.arch import Arch, Pick, assemble, html_table
from archsearch.space.block_files import block_files, register_files
from archsearch.space.grammar import LONGEST_NAME, Document, format_value, parse
from archsearch.space.plan import Choices, LayerPlan, Plan, StagePlan, count_settings
from archsearch.space.shipped import spaces_folder
from archsearch.system import parse_toml, read_text
from archsearch.units import ImageSize, format_image, plain_size, sides

_PLAIN = 10**6  # up to here a number is shown whole


class Space:
    """A set of architectures, given by a document in the grammar of space files.

    `sample(pick)` gives an architecture, `parameters()` the names with their choices, `size` the number of parameter sets. Raises UserError with the
    file (`source`), the dotted key, what was found and what is allowed.

    The code of the files of blocks that the document names is run. They are looked for in the folder of `source`, unless `files` has them.
    """

    def __init__(
        self, document: Document, source: str, text: str = "", *, files: Sequence[BlockFile] | None = None
    ) -> None:
        self.block_files = block_files(document, source) if files is None else tuple(files)
        register_files(self.block_files)
        self.plan: Plan = parse(document, source)
        self._document = document
        self.source, self.text = source, text
        stem = "".join(sign if sign.isprintable() else "_" for sign in Path(source).stem[:LONGEST_NAME])
        self.name = self.plan.name or stem
        self.fixed_names: dict[str, Scalar] = {}  # by `fixed`, with their values

    def sample(self, pick: Pick) -> Arch:
        """The architecture that `pick(name, choices)` chooses; it is called once for a name, and only with two choices or more."""
        return assemble(self.plan, pick)

    def fixed(self, values: Mapping[str, Scalar]) -> "Space":
        """The space with these parameters fixed, by dotted name; a value may be text.

        A name that only some architectures have is fixed in those. Raises UserError for a name or a value that the space does not have.
        """
        names = self._names
        chosen: dict[str, Scalar] = {}
        for name, value in values.items():
            if name not in names:
                raise UserError(
                    f"{self.source}: no parameter {name!r}{did_you_mean(name, list(names))}; `archsearch space` lists them"
                )
            chosen[name] = _match_choice(f"{self.source}: {name}", value, names[name])
        space = copy.copy(self)
        for cached in ("_names", "_parameters"):
            vars(space).pop(cached, None)
        stages = tuple(_fixed_stage(stage, chosen) for stage in self.plan.stages)
        space.plan = replace(self.plan, stages=stages, head=_fixed_layer(self.plan.head, chosen))
        space.fixed_names = {**self.fixed_names, **chosen}
        return space

    def resized(self, image_size: ImageSize | None) -> "Space":
        """The space for images of this size (a side, or height and width, in pixels); itself for None. Raises UserError where its choices do not fit."""
        if image_size is None or sides(image_size) == sides(self.plan.image_size):
            return self
        document = {**self._document, "image_size": list(sides(image_size))}
        try:
            space = Space(document, self.source, self.text, files=self.block_files)
        except UserError as error:
            raise UserError(f"at {format_image(image_size)}: {error}") from error
        return space.fixed(self.fixed_names)

    def __repr__(self) -> str:
        fixed = "".join(f", {name}={format_value(value)}" for name, value in self.fixed_names.items())
        size = f"{self.size:,}" if self.size < _PLAIN else f"{float(self.size):.3e}"
        sets = f"{size} parameter set{'s' * (self.size > 1)}"
        return f"<Space {self.name}: {len(self.plan.stages)} stages, {sets}{fixed}>"

    def _repr_html_(self) -> str:
        """The choices of each stage as a table for notebooks; `parameters()` has those of the layers' fields."""

        def words(choices: Choices) -> str:
            return ", ".join(map(format_value, choices))

        rows = [
            [str(stage.number), *map(words, (stage.entry, stage.positions, stage.block, stage.width, stage.depth))]
            for stage in self.plan.stages
        ]
        return html_table(repr(self)[1:-1], ["stage", "entry", "positions", "block", "width", "depth"], rows)

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

        def pick(name: str, choices: Sequence[Scalar]) -> Scalar:
            raise AssertionError(f"{name} is open in a space of size one")

        return assemble(self.plan, pick)

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
            names |= stage_choices(stage)
        return names | layer_choices(self.plan.head)

    def canonical(self) -> dict[str, Any]:
        """What the space can give, as plain values: equal for spaces with the same architectures under the same names, in whatever order written."""
        plan = self.plan
        stages = [
            {
                **{name: _sorted(choices) for name, choices in _general_choices(stage).items()},
                **{
                    group: {kind: _canonical_layer(layer) for kind, layer in layers.items()}
                    for group, layers in (
                        ("entries", stage.entries),
                        ("positions", stage.position_plans),
                        ("blocks", stage.blocks),
                    )
                },
            }
            for stage in plan.stages
        ]
        inputs = {"image_size": plain_size(plan.image_size), "num_classes": plan.num_classes}
        inputs |= {"in_chans": plan.in_chans} if plan.in_chans != 3 else {}
        return {**inputs, "stages": stages, "head": _canonical_layer(plan.head)}

    @property
    def size(self) -> int:
        """Number of distinct parameter sets (conditional parameters counted where they apply)."""
        total = count_settings([self.plan.head])
        for stage in self.plan.stages:
            total *= stage.num_entries * stage.num_bodies * len(stage.width)
        return total


def _sorted(choices: Choices) -> list[Scalar]:
    return sorted(choices, key=lambda choice: (type(choice).__name__, choice))


def _canonical_layer(layer: LayerPlan) -> dict[str, Any]:
    choices = {name: _sorted(layer.choices[field]) for field, name in layer.names.items()}
    return {"layer": layer.layer.__name__, "choices": choices, "fixed": dict(layer.fixed)}


def _general_choices(stage: StagePlan) -> dict[str, Choices]:
    prefix = f"stages.{stage.number}"
    return {
        stage.entry_name: stage.entry,
        f"{prefix}.positions": stage.positions,
        f"{prefix}.block": stage.block,
        f"{prefix}.depth": stage.depth,
        f"{prefix}.width": stage.width,
    }


def _fixed_stage(stage: StagePlan, values: Mapping[str, Scalar]) -> StagePlan:
    """The stage with these names fixed, without the layers that are no choice any more."""
    general = {
        name: (values[name],) if name in values else choices for name, choices in _general_choices(stage).items()
    }
    entry, positions, block, depth, width = general.values()
    stage = replace(stage, entry=entry, positions=positions, block=block, depth=depth, width=width)

    def fix(plans: Mapping[str, LayerPlan], kinds: Container[Scalar]) -> dict[str, LayerPlan]:
        return {kind: _fixed_layer(plan, values) for kind, plan in plans.items() if kind in kinds}

    blocks = fix(stage.blocks, {kind for one in block for kind in str(one).split("/")})
    position_plans = fix(stage.position_plans, positions)
    return replace(stage, entries=fix(stage.entries, entry), position_plans=position_plans, blocks=blocks)


def _fixed_layer(layer: LayerPlan, values: Mapping[str, Scalar]) -> LayerPlan:
    fixed = {field: (values[name],) for field, name in layer.names.items() if name in values}
    return replace(layer, choices={**layer.choices, **fixed})


def _match_choice(where: str, value: Scalar, choices: Choices) -> Scalar:
    """The choice equal to a value, or written like it. Raises UserError with the nearest choice."""
    for choice in choices:
        if value == choice and isinstance(value, bool) == isinstance(choice, bool):
            return choice
        if isinstance(value, str) and _is_written_like(value.strip(), choice):
            return choice
    allowed = ", ".join(map(format_value, choices))
    raise UserError(
        f"{where}: {format_value(value)} is not among its choices{_hint_nearest(value, choices)}; allowed: {allowed}"
    )


def _is_written_like(text: str, choice: Scalar) -> bool:
    """`true` is True, and `4` is 4.0."""
    if isinstance(choice, bool | str):
        return text.lower() == format_value(choice).lower()
    try:
        return float(text) == choice
    except ValueError:
        return False


def _hint_nearest(value: Scalar, choices: Choices) -> str:
    """`, the nearest is 64` among numbers, else what is written most alike."""
    numbers = [choice for choice in choices if isinstance(choice, int | float) and not isinstance(choice, bool)]
    if not numbers:
        return did_you_mean(str(value), list(map(format_value, choices)))
    try:
        return f", the nearest is {format_value(min(numbers, key=lambda choice: abs(choice - float(value))))}"
    except ValueError:
        return ""


def stage_choices(stage: StagePlan) -> dict[str, Choices]:
    """Every name of a stage and its layers, with its choices; no two stages share one."""
    names = _general_choices(stage)
    for layer in (*stage.entries.values(), *stage.position_plans.values(), *stage.blocks.values()):
        names |= layer_choices(layer)
    return names


def layer_choices(layer: LayerPlan) -> dict[str, Choices]:
    """Every name of a layer with its choices."""
    return {name: layer.choices[field] for field, name in layer.names.items()}


def load_space(name: str | Path) -> Space:
    """A space from a TOML file, or a shipped one by name (`hybrid`, or a paper's such as `davit_tiny`).

    Raises UserError with the file, the dotted key, what was found and what is allowed.
    """
    path = _find_file(name)
    text = read_text(path, "a space file")
    return Space(parse_toml(text, str(path)), source=str(name), text=text)


def _find_file(name: str | Path) -> Path:
    """The file behind a path or a shipped name."""
    path = Path(name)
    if os.path.lexists(path) and (path.suffix == ".toml" or not path.is_dir()):
        return path
    if path.suffix == ".toml":
        raise UserError(f"{name}: no such space file")
    files = [*sorted(spaces_folder().glob("*.toml")), *sorted((spaces_folder() / "papers").glob("*.toml"))]
    shipped = {file.stem: file for file in files}
    if str(name) in shipped:
        return shipped[str(name)]
    raise UserError(
        f"{name}: neither a .toml file nor a shipped space or paper{did_you_mean(name, list(shipped))}; "
        "`archsearch papers` lists the papers, hybrid is the default space"
    )
