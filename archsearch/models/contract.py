"""The contract of layers, checked on what they build: `archsearch blocks --check` runs it on a file of one's own, the tests on the whole registry.

A layer is taken at each of its own choices, on several small maps where its `check` lets it stand.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple, get_args, get_type_hints

import torch
from torch import Tensor, nn

from archsearch.blocks import Block, Layer, LayerError, MessengersLayer, Scalar, Scale, Shape, own_choices
from archsearch.errors import ArchsearchError, first_line
from archsearch.models.count import count_activations, count_flop_counter, count_fvcore
from archsearch.models.network import build_without_weights
from archsearch.space import Arch, Space

SHAPES = (
    Shape(64, 14, 14),
    Shape(32, 4, 10),
    Shape(96, 12, 10),
    Shape(64, 9, 16),
    Shape(64, 5, 7),
    Shape(64, 4, 4),
)
# Maps that messenger windows and their regions tile, others that they cover, and maps headed by a class token.
_WINDOWED = (Shape(64, 56, 28), Shape(32, 28, 28), Shape(64, 20, 31), Shape(64, 5, 9))
_HEADED = (Shape(64, 7, 7, 1), Shape(48, 4, 10, 1))
_CLASSES = 64
_SCALARS = (int, float, str, bool)
_PLACES = ("kind", "width", "image_size")  # what a LayerError may name beside the layer's own fields
_TOLERANCE = 1e-4  # of the largest output, between an image alone and the same image in a batch, float32


class Finding(NamedTuple):
    """What a check found of a layer; `problem` is empty where it passed, and a problem with a note does not fail the layer."""

    role: str
    kind: str
    check: str
    problem: str
    is_note: bool = False

    @property
    def result(self) -> str:
        """In a word."""
        return "passed" if not self.problem else "note" if self.is_note else "failed"


@dataclass(frozen=True)
class Standing:
    """A layer at a shape, with the module that it builds there."""

    layer: Layer
    shape: Shape

    def __str__(self) -> str:
        settings = ", ".join(f"{name}={getattr(self.layer, name)}" for name in own_choices(type(self.layer)))
        tokens = f" with {self.shape.tokens} tokens" if self.shape.tokens else ""
        return f"at {settings or 'its only setting'} on {self.shape.channels} x {self.shape.sides}{tokens}"

    @cached_property
    def module(self) -> nn.Module:
        """As it is built from the seed 0, in eval mode."""
        return self.build(0.0).eval()

    def build(self, drop_path: float) -> nn.Module:
        """A new module from the seed 0."""
        torch.manual_seed(0)
        return self.layer.build(self.shape, drop_path)

    def input(self, batch: int) -> Tensor:
        """Random numbers, (batch, *shape), channels_last."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(batch, *self.shape.tensor, generator=generator).contiguous(memory_format=torch.channels_last)


def check_layer(layer: type[Layer], shapes: Sequence[Shape] = SHAPES, *, notes: bool = True) -> Iterator[Finding]:
    """Every check of a layer, in order; `notes` adds those that only inform, which take seconds."""
    try:
        problems, settings = list(_field_problems(layer)), list(layer_settings(layer))
        places = [Standing(each, shape) for each in settings for shape in shapes_for(each, shapes)]
    except Exception as error:
        yield _finding(layer, "fields", [f"raises {_words(error)}"])
        return
    yield _finding(layer, "fields", problems)
    refusals = {place: _refusal(place) for place in places}
    standing = [place for place in places if refusals[place] is None]
    refused = [f"check refuses all of {len(settings)} settings on every map that was tried"] if not standing else []
    refused += _each(places, lambda place: _refusal_problem(place.layer, refusals[place]))
    yield _finding(layer, "check", refused)
    if not standing:
        return
    yield _finding(layer, "canonical", _each(standing, _canonical_problem))
    # One of each setting and each shape is enough where the module itself is looked at.
    some = _covering(standing)
    for name, problem in _MODULE_CHECKS.items():
        yield _finding(layer, name, _each(standing if name in _EVERYWHERE else some, problem))
    yield _finding(layer, "space", _each(standing[:1], _space_problem))
    if notes:
        refused_places = [place for place in places if refusals[place]]
        yield _finding(layer, "strict", _each(refused_places, _strict_problem))._replace(is_note=True)
        yield _finding(layer, "export", _each(standing[:1], _export_problem))._replace(is_note=True)


def check_layers(layers: Iterable[type[Layer]]) -> list[Finding]:
    """`check_layer` of several."""
    return [finding for layer in layers for finding in check_layer(layer)]


def _finding(layer: type[Layer], check: str, problems: Iterable[str]) -> Finding:
    """The first problem, and how many more there are."""
    found = list(problems)
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return Finding(layer.role, layer.kind, check, f"{found[0]}{more}" if found else "")


def _each(standing: Iterable[Standing], problem: Callable[[Standing], str | None]) -> Iterator[str]:
    """The problems of a check at each place; an exception is one."""
    for place in standing:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # such as of an initialisation without elements
                found = problem(place)
        except Exception as error:
            found = f"raises {_words(error)}"
        if found:
            yield f"{place}: {found}"


def _words(error: Exception) -> str:
    """An error in one line, with its type where it is none of our own."""
    return str(error) if isinstance(error, ArchsearchError) else f"{type(error).__name__}: {first_line(error)}"


def layer_settings(layer: type[Layer]) -> Iterator[Layer]:
    """The layer at its defaults, at each own choice of each field with the others at their defaults, and at all first and all last choices."""
    needed: dict[str, Scalar] = {
        name: _CLASSES for name in ("width", "num_classes") if name in layer.__dataclass_fields__
    }
    choices = own_choices(layer)
    settings: list[dict[str, Scalar]] = [{}]
    settings += [{name: value} for name, values in choices.items() for value in values]
    settings += [{name: values[place] for name, values in choices.items()} for place in (0, -1)]
    seen: dict[Layer, None] = dict.fromkeys(layer(**{**needed, **setting}) for setting in settings)
    yield from seen


def _refusal(place: Standing) -> Exception | None:
    """What the layer's check raises; None where the layer can stand."""
    try:
        place.layer.check_at(place.shape)
    except Exception as error:
        return error
    return None


def _refusal_problem(layer: Layer, error: Exception | None) -> str | None:
    """What is wrong with a refusal itself."""
    if error is None:
        return None
    if not isinstance(error, LayerError):
        return f"raises {_words(error)}; only LayerError is expected"
    names = [*(item.name for item in fields(layer)), *_PLACES]
    return None if error.field in names else f"LayerError names {error.field!r}, no field; allowed: {', '.join(names)}"


def shapes_for(layer: Layer, shapes: Sequence[Shape]) -> list[Shape]:
    """The shapes to try: images for a stem, windows with messengers for blocks that want these, a class token for layers that take one."""
    if layer.role == "stem":
        return [Shape(3, shape.height * 4, shape.width * 4) for shape in shapes]
    opening = layer.before_first() if isinstance(layer, Block) else None
    if opening:
        return [opening.out(shape) for shape in _WINDOWED[: len(shapes)]]
    if layer.kind in ("messengers", "messenger"):
        plain = _WINDOWED[: len(shapes)]
        windows = [MessengersLayer(window=7).out(shape) for shape in plain]
        return [*plain, *(windows if layer.takes_tokens else [])]
    return [*shapes, *(_HEADED[: len(shapes)] if layer.takes_tokens else [])]


def _covering(standing: Sequence[Standing]) -> list[Standing]:
    """The first place of every setting, and of every shape."""
    by_setting = {place.layer: place for place in reversed(standing)}
    by_shape = {place.shape: place for place in reversed(standing)}
    return list(dict.fromkeys([*reversed(by_setting.values()), *reversed(by_shape.values())]))


def _field_problems(layer: type[Layer]) -> Iterator[str]:
    """What is missing for a space to name the layer and for people to understand it."""
    if (layer.__doc__ or "").startswith(f"{layer.__name__}("):  # as dataclass writes it where there is none
        yield "the class has no docstring, which `archsearch blocks` shows"
    types = get_type_hints(layer)
    for item in fields(layer):
        if item.default is MISSING:
            continue  # the stage's width, the head's classes
        if not item.metadata.get("doc"):
            yield f"the field {item.name} has no doc; write choice({item.default!r}, ..., doc=...)"
        kind, values = types[item.name], [item.default, *item.metadata.get("choices", ())]
        # 4 for a float is another number in an architecture's id than the 4.0 that a space file gives.
        wrong = [value for value in values if type(value) is not kind]
        if kind not in _SCALARS:
            yield f"the field {item.name} is a {kind}; a space file can write int, float, str and bool"
        elif wrong:
            yield f"the field {item.name} is a {kind.__name__}, and its choice {wrong[0]!r} is none"
        if item.metadata.get("scale") not in (None, *get_args(Scale)):
            yield f"the scale of {item.name} is {item.metadata['scale']!r}; allowed: {', '.join(get_args(Scale))}"


def _canonical_problem(place: Standing) -> str | None:
    layer, shape = place.layer, place.shape
    form = layer.canonical_in(shape, None) if isinstance(layer, Block) else layer.canonical(shape)
    form.check_at(shape)
    again = form.canonical_in(shape, None) if isinstance(form, Block) else form.canonical(shape)
    if again != form:
        return f"canonical of {form} is {again}; the canonical form of a canonical form is itself"
    if form.cost(shape) != layer.cost(shape):
        return f"canonical gives {form}, which costs {form.cost(shape)} instead of {layer.cost(shape)}"
    if form.out(shape) != layer.out(shape):
        return f"canonical gives {form}, after which the shape is {form.out(shape)} instead of {layer.out(shape)}"
    return None


def _out_problem(place: Standing) -> str | None:
    with torch.no_grad():
        out = place.module(place.input(2))
    out_shape = place.layer.out(place.shape)
    wanted = (2, out_shape.channels) if place.layer.role == "head" else (2, *out_shape.tensor)
    if tuple(out.shape) != wanted:
        return f"out says {wanted[1:]} without the batch, the module gives {tuple(out.shape)[1:]}"
    if not out.isfinite().all():
        return "the module gives numbers that are not finite"
    if place.layer.role != "head" and not out.is_contiguous(memory_format=torch.channels_last):
        return "the module's output is not in channels_last memory"
    return None


def _macs_problem(place: Standing) -> str | None:
    size, channels, cost = place.shape.tensor[1:], place.shape.channels, place.layer.cost(place.shape)
    counted = count_fvcore(place.module, size, channels)
    if counted != cost.macs:
        return f"cost says {cost.macs} MACs, fvcore counts {counted}"
    without_norms = count_flop_counter(place.module, size, channels)
    if without_norms != cost.macs - cost.norm_macs:
        return f"cost says {cost.macs - cost.norm_macs} MACs outside norms, FlopCounterMode counts {without_norms}"
    return None


def _activations_problem(place: Standing) -> str | None:
    counted = count_activations(place.module, place.shape.tensor[1:], place.shape.channels)
    said = place.layer.cost(place.shape).activations
    return f"cost says {said} activations, fvcore counts {counted}" if counted != said else None


def _params_problem(place: Standing) -> str | None:
    built, said = (
        sum(parameter.numel() for parameter in place.module.parameters()),
        place.layer.cost(place.shape).params,
    )
    return f"cost says {said} parameters, the module has {built}" if built != said else None


def _start_problem(place: Standing) -> str | None:
    """The same seed must give the same weights."""
    first, again = place.build(0.0).state_dict(), place.build(0.0).state_dict()
    for name, tensor in first.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            return f"{name} begins with numbers that are not finite"
        if not torch.equal(tensor, again[name]):
            return f"the same seed gives other weights in {name}"
    return None


def _training_problem(place: Standing) -> str | None:
    """A step in training mode with dropped branches gives a gradient to every parameter."""
    module = place.build(0.0).train()
    torch.manual_seed(2)
    out = module(place.input(2))
    if out.requires_grad:
        torch.autograd.backward((out * torch.randn_like(out)).sum())
    for name, parameter in module.named_parameters():
        if parameter.grad is None:
            return f"no gradient reaches {name}"
        if not parameter.grad.isfinite().all():
            return f"the gradient of {name} is not finite"
    dropped = place.build(0.5).train()(place.input(2))
    return None if dropped.shape == out.shape else f"with drop_path the output is {tuple(dropped.shape)}"


def _batch_problem(place: Standing) -> str | None:
    """In eval mode an image's output does not depend on the images beside it, and is the same each time."""
    images = place.input(2)
    with torch.no_grad():
        together, alone = place.module(images), torch.cat([place.module(images[:1]), place.module(images[1:])])
        again = place.module(images)
    largest = float(together.abs().max())
    if float((together - again).abs().max()) > _TOLERANCE * largest:
        return "in eval mode the same images give another output each time"
    apart = float((together - alone).abs().max())
    return f"an image's output differs by {apart:.2g} in a batch of two" if apart > _TOLERANCE * largest else None


def _space_problem(place: Standing) -> str | None:
    """A space of the layer at its own choices, an architecture of it as a document and back, and its network's parameters."""
    document = _document(place.layer)
    if document is None:
        return None
    space = Space(document, "a space of this layer")
    arch = space.sample(lambda name, choices: choices[0])
    if Arch.from_dict(arch.to_dict()) != arch:
        return "an architecture with it is not the same after to_dict and from_dict"
    params = sum(parameter.numel() for parameter in build_without_weights(arch).parameters())
    return (
        None
        if params == arch.cost().params
        else f"a network with it has {params} parameters, its cost says {arch.cost().params}"
    )


def _document(layer: Layer) -> dict[str, Any] | None:
    """The smallest space that has the layer; None for one that no space names, or that a class token must precede."""
    stage = {"width": 64, "depth": 2, "block": layer.kind if layer.role == "block" else "mlp"}
    second = {"width": 64, "depth": 1, "block": "mlp", "downsample": "patch", "mlp": {"conv": False}}
    document: dict[str, Any] = {
        "image_size": 224,
        "num_classes": 10,
        "stem": {"kind": "patch"},
        "stages": [stage, second],
    }
    if layer.role == "stem":
        document["stem"] = {"kind": layer.kind}
    elif layer.role == "downsample":
        second["downsample"] = layer.kind
    elif layer.role == "positions":
        stage["positions"] = layer.kind
    elif layer.role == "head":
        document["head"] = {"kind": layer.kind}
    return None if layer.role == "extra" or (layer.role == "head" and layer.takes_tokens) else document


def _strict_problem(place: Standing) -> str | None:
    """A module that runs on a map which `check` refuses."""
    try:
        with torch.no_grad():
            runs = tuple(place.module(place.input(2)).shape) == (2, *place.layer.out(place.shape).tensor)
    except Exception:
        return None  # as the check says
    return "check refuses it, and the module runs there" if runs else None


def _export_problem(place: Standing) -> str | None:
    """torch.export with any number of images."""
    batch = torch.export.Dim("batch", min=2, max=64)
    module = place.build(0.0).eval()
    exported = torch.export.export(module, (place.input(3),), dynamic_shapes=({0: batch},))
    with torch.no_grad():
        apart = (exported.module()(place.input(5)) - module(place.input(5))).abs().max()
    return (
        None if float(apart) < _TOLERANCE else "the exported module gives another output for another number of images"
    )


_MODULE_CHECKS: dict[str, Callable[[Standing], str | None]] = {
    "out": _out_problem,
    "params": _params_problem,
    "macs": _macs_problem,
    "activations": _activations_problem,
    "start": _start_problem,
    "training": _training_problem,
    "batch": _batch_problem,
}
_EVERYWHERE = ("out", "params", "macs")
