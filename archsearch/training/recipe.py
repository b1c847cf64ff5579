"""Training recipes: a file for each paper in `recipes/`, one's own in the same form, and which of them an architecture is trained by. No torch."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, get_type_hints

from archsearch.errors import UserError, did_you_mean, shown
from archsearch.space import Arch, paper, paper_names, paper_table
from archsearch.system import parse_toml, read_text, user_path

_SHARES = ("drop_path_rate", "label_smoothing", "mix_probability", "mix_switch", "erasing", "ema_decay", "offset_rate")
_DEIT = "DeiT, arXiv 2012.12877, table 9 and the defaults of its code"
_DROP_PATH = 0.1  # DeiT's
_BESIDE = ("source", "models")  # keys of a file that are no fields


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """AdamW with a linear warm-up and a cosine; rates are those for `batch_size`. What is not said is DeiT's (arXiv 2012.12877, table 9 and its code).

    `drop_path_rate` None: the published rate of the recipe's model that is nearest in multiply-adds, else DeiT's. `repeats`: how often an epoch has each of
    its images, with other augmentations. `offset_rate`: the share of the learning rate at which the weights that move the samples of deformable
    convolutions are trained.
    """

    name: str = ""
    epochs: int = 300
    cooldown_epochs: int = 0  # at the smallest rate, after the others
    batch_size: int = 1024
    learning_rate: float = 1e-3
    warmup_epochs: float = 5
    warmup_learning_rate: float = 1e-6
    min_learning_rate: float = 1e-5
    scale_ends: bool = False  # whether the two rates above grow with the batch, as the peak does
    weight_decay: float = 0.05  # not on biases, norms, tables of positions and tokens
    clip: float = 0.0  # largest norm of all gradients together; 0 is none
    drop_path_rate: float | None = None
    label_smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    mix_probability: float = 1.0
    mix_switch: float = 0.5  # share of cutmix where both are on
    auto_augment: str = "rand-m9-mstd0.5-inc1"  # timm's words; "" is none
    color_jitter: float = 0.4  # only without auto_augment
    erasing: float = 0.25
    repeats: int = 3
    ema_decay: float = 0.99996  # rises to it from 0: after s steps at most 1 - (1 + s) ** (-2/3)
    offset_rate: float = 1.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "repeats"):
            self._check(name, 1 <= getattr(self, name) <= 10**7, "a whole number from 1")
        for name in ("learning_rate",):
            self._check(name, 0 < getattr(self, name) <= 1000, "above 0, at most 1000")
        for name in ("warmup_learning_rate", "min_learning_rate", "weight_decay", "clip", "mixup", "cutmix"):
            self._check(name, 0 <= getattr(self, name) <= 1000, "0 to 1000")
        for name in ("warmup_epochs", "cooldown_epochs", "color_jitter"):
            self._check(name, 0 <= getattr(self, name) <= 10**6, "0 or more")
        for name in _SHARES:
            self._check(name, getattr(self, name) is None or 0 <= getattr(self, name) <= 1, "0 to 1")

    def _check(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise UserError(f"recipe {self.name}: {name} is {shown(getattr(self, name))}; allowed is {allowed}")

    @property
    def is_mixing(self) -> bool:
        """Whether images are mixed, so that targets are shares of classes."""
        return self.mix_probability > 0 and (self.mixup > 0 or self.cutmix > 0)

    def fitted(self, *, epochs: int | None, batch_size: int | None, learning_rate: float | None) -> "TrainingRecipe":
        """The recipe for so many epochs and images of a step: warm-up and cool-down keep their shares, rates grow with the batch."""
        total, size = self.epochs + self.cooldown_epochs, batch_size or self.batch_size
        share = (epochs or total) / total
        scale = size / self.batch_size
        ends = scale if self.scale_ends else 1.0
        cooldown = round(self.cooldown_epochs * share)
        return replace(
            self,
            epochs=(epochs or total) - cooldown,
            cooldown_epochs=cooldown,
            batch_size=size,
            learning_rate=learning_rate or self.learning_rate * scale,
            warmup_epochs=self.warmup_epochs * share,
            warmup_learning_rate=self.warmup_learning_rate * ends,
            min_learning_rate=self.min_learning_rate * ends,
        )


@dataclass(frozen=True, kw_only=True)
class ChosenRecipe:
    """A recipe for an architecture, and in words why this one; `model` is the paper's model that is nearest in multiply-adds, if there is one."""

    recipe: TrainingRecipe
    reason: str
    source: str
    model: str | None


@dataclass(frozen=True, kw_only=True)
class _File:
    """What a file of a recipe says: `models` has the papers' models that were trained by it, each with what differs for it."""

    recipe: TrainingRecipe
    source: str
    models: Mapping[str, Mapping[str, Any]]


def recipe_names() -> list[str]:
    """The names of the papers' recipes, sorted."""
    return sorted(entry.name.removesuffix(".toml") for entry in _shipped().iterdir() if entry.name.endswith(".toml"))


def load_recipe(name_or_file: str) -> TrainingRecipe:
    """A paper's recipe, by the name of its file or of a model, or the user's own TOML file. Raises UserError that says where, what and what is allowed."""
    return _named(name_or_file, None).recipe


def choose_recipe(arch: Arch, name_or_file: str | None = None) -> ChosenRecipe:
    """The recipe for an architecture: the one asked for, else its own paper's, else that of the paper whose blocks it shares most. Raises UserError."""
    if name_or_file is not None:
        return _named(name_or_file, arch)
    if arch.name in paper_names():
        name = next(name for name in recipe_names() if arch.name in _file(name).models)
        return _for_model(name, arch.name, f"{arch.name} is a model of this paper")
    name, shared, total = _nearest(arch)
    if not shared:
        recipe = TrainingRecipe(name="deit", drop_path_rate=_DROP_PATH)
        return ChosenRecipe(recipe=recipe, reason="none of its blocks is of a paper here", source=_DEIT, model=None)
    return _for_model(name, _nearest_model(name, arch), f"{shared} of its {total} blocks are of this paper's kinds")


def _named(text: str, arch: Arch | None) -> ChosenRecipe:
    """The recipe that --recipe names."""
    if text in recipe_names():
        model = _nearest_model(text, arch) if arch else next(iter(_file(text).models))
        return _for_model(text, model, "as asked for")
    owner = next((name for name in recipe_names() if text in _file(name).models), None)
    if owner is not None:
        return _for_model(owner, text, "as asked for")
    path = user_path(text)
    if not os.path.lexists(path):
        known = [*recipe_names(), *paper_names()]
        raise UserError(
            f"--recipe: no paper and no file {shown(text)}{did_you_mean(text, known)}; there are {', '.join(recipe_names())}, "
            "the names of papers' models, and files of your own"
        )
    found = _parse(read_text(path, "a recipe"), text)
    recipe = replace(found.recipe, **found.models.get(str(arch.name), {}) if arch else {})
    if recipe.drop_path_rate is None:
        recipe = replace(recipe, drop_path_rate=_DROP_PATH)
    return ChosenRecipe(recipe=recipe, reason="as asked for", source=found.source or text, model=None)


def _for_model(name: str, model: str, reason: str) -> ChosenRecipe:
    """A paper's recipe as it was for one of its models."""
    found = _file(name)
    recipe = replace(found.recipe, **found.models[model])
    if recipe.drop_path_rate is None:
        rate = paper_table(model).get("drop_path_rate")
        recipe = replace(recipe, drop_path_rate=_DROP_PATH if rate is None else rate)
    return ChosenRecipe(recipe=recipe, reason=reason, source=found.source, model=model)


def _nearest(arch: Arch) -> tuple[str, int, int]:
    """The recipe whose paper has most of the blocks' kinds; of equals the one with fewest kinds that the architecture lacks. Its blocks, and all."""
    kinds = [stage.blocks[index % len(stage.blocks)].kind for stage in arch.stages for index in range(stage.depth)]

    def closeness(name: str) -> tuple[int, float]:
        own = _kinds(name)
        return sum(kind in own for kind in kinds), len(own & set(kinds)) / len(own)

    best = max(recipe_names(), key=closeness)
    return best, closeness(best)[0], len(kinds)


def _nearest_model(name: str, arch: Arch) -> str:
    """The model of a recipe that is nearest in log-MACs."""
    macs = arch.cost().macs
    return min(_file(name).models, key=lambda model: abs(math.log(paper(model).cost().macs / macs)))


@cache
def _kinds(name: str) -> frozenset[str]:
    """The kinds of blocks of a recipe's models."""
    return frozenset(
        block.kind for model in _file(name).models for stage in paper(model).stages for block in stage.blocks
    )


@cache
def _file(name: str) -> _File:
    return _parse((_shipped() / f"{name}.toml").read_text(encoding="utf-8"), name)


def _shipped() -> Traversable:
    return resources.files("archsearch") / "training" / "recipes"


def _parse(text: str, source: str) -> _File:
    """A recipe's file. Raises UserError for a key that is unknown, and a value of another type."""
    document = parse_toml(text, source)
    models, said = document.pop("models", {}), document.pop("source", "")
    name = os.path.basename(source).removesuffix(".toml")
    _check_types(document, source)
    for model, changes in models.items() if isinstance(models, dict) else [("models", models)]:
        if not isinstance(changes, dict) or model not in paper_names():
            raise UserError(
                f"{source}: models.{model} is {shown(changes)}; allowed are the papers' models, each with a table of what differs"
            )
        _check_types(changes, f"{source}: models.{model}")
    try:
        return _File(recipe=TrainingRecipe(**{**document, "name": name}), source=str(said), models=models)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def _check_types(table: Mapping[str, Any], where: str) -> None:
    """Raise UserError for an unknown key or a value of another type; a whole number stands for a float too."""
    hints = get_type_hints(TrainingRecipe)
    known = [item.name for item in fields(TrainingRecipe) if item.name != "name"]
    for key, value in table.items():
        if key not in known:
            raise UserError(
                f"{where}: unknown key {shown(key)}{did_you_mean(key, known)}; known are {', '.join([*known, *_BESIDE])}"
            )
        hint = hints[key]
        is_float = hint in (float, float | None)
        if type(value) is not hint and not (is_float and type(value) in (int, float)):
            words = "float" if is_float else hint.__name__
            raise UserError(f"{where}: {key} is {shown(value)}; it must be {words}")
