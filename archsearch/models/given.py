"""Networks that are given as modules, by timm or by a function of the user's: they have costs and can be built, but have no architecture."""

import hashlib
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from archsearch.blocks import Cost
from archsearch.errors import RunError, UserError, did_you_mean, first_line, shown
from archsearch.models.count import count_activations, count_known
from archsearch.space import Arch, ImageSize
from archsearch.units import format_image, one_size, plain_size, sides

TIMM = "timm:"
_BATCH = 2  # images that a network is tried on: in training a BatchNorm needs two
Maker = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class GivenNetwork:
    """A network by its `source`, `timm:NAME` or `package.module:function`, as it was when it was counted.

    `kind` is the class of the module, `version` what its code was, `weights` digits of the names and shapes of its weights.
    `macs` lack the operations `uncounted`, which the counter has no formula for. `no_score` says why a run's proxy cannot train it.
    """

    source: str
    kind: str
    version: str
    image_size: ImageSize
    in_chans: int
    num_classes: int
    macs: int
    params: int
    activations: int
    uncounted: tuple[str, ...]
    weights: str
    no_score: str | None = field(default=None, compare=False)

    @classmethod
    def count(cls, source: str, *, image_size: ImageSize, in_chans: int, num_classes: int) -> Self:
        """Build the network and count it. Raises UserError where it cannot be built, run on images of this size, or counted."""
        model, classes = _build(source, image_size, in_chans, num_classes)
        try:
            macs, uncounted = count_known(model, image_size, in_chans)
            activations = count_activations(model, image_size, in_chans)
        except Exception as error:
            raise UserError(f"{_where(source)}: cannot be counted: {_reason(error)}") from error
        return cls(
            source=source,
            kind=type(model).__name__,
            version=_version(source),
            image_size=image_size,
            in_chans=in_chans,
            num_classes=classes,
            macs=macs,
            params=_num_params(model),
            activations=activations,
            uncounted=uncounted,
            weights=_weights(model),
        )

    @property
    def arch_id(self) -> str:
        """Twelve hexadecimal digits, the hash of source, version, images and shapes of the weights; no architecture has such an id."""
        said = {name: value for name, value in self.to_dict().items() if name not in ("kind", "no_score")}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]

    def cost(self) -> Cost:
        """MACs of one image, parameters and activations, as counted; MACs in norms are among the others."""
        return Cost(macs=self.macs, params=self.params, activations=self.activations)

    def describe(self) -> str:
        """One line: `ResNet, timm 1.0.31`, and what its MACs lack."""
        lacks = f", MACs without {', '.join(self.uncounted)}" if self.uncounted else ""
        return f"{self.kind}, {self.version}{lacks}"

    def build(self) -> nn.Module:
        """The network with initial weights, the same each time, in eval mode. Raises UserError as `count` does, RunError where it is another one now."""
        model, _ = _build(self.source, self.image_size, self.in_chans, self.num_classes)
        if _weights(model) != self.weights:
            raise RunError(f"{self.source} is another network now, with weights of other shapes; put its code back")
        return model

    def build_for(self, image_size: ImageSize, num_classes: int, *, seed: int = 0) -> nn.Module:
        """The network for color images of this size, with the initial weights of this seed. Raises UserError where it cannot be built for them."""
        model, classes = _build(self.source, image_size, 3, num_classes, seed=seed)
        if classes != num_classes:
            raise UserError(f"{_where(self.source)}: gives {classes} classes where {num_classes} are needed")
        return model

    def check_trainable(self, image_size: ImageSize, num_classes: int) -> None:
        """Raise UserError where `build_for` does, and where the network gives anything but (B, classes) while it is trained."""
        model = self.build_for(image_size, num_classes)
        with torch.random.fork_rng(devices=[]):  # dropout draws random numbers
            _run(self.source, model.train(), image_size, 3)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in place of those of an architecture; the key `given` tells the two apart."""
        return {
            "given": self.source,
            "kind": self.kind,
            "version": self.version,
            "image_size": plain_size(self.image_size),
            "in_chans": self.in_chans,
            "num_classes": self.num_classes,
            "macs": self.macs,
            "params": self.params,
            "activations": self.activations,
            "uncounted": list(self.uncounted),
            "weights": self.weights,
            **({"no_score": self.no_score} if self.no_score else {}),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """What `to_dict` gave."""
        values = {"source": document["given"], **{name: value for name, value in document.items() if name != "given"}}
        size, uncounted = one_size(*sides(document["image_size"])), tuple(document["uncounted"])
        return cls(**{**values, "image_size": size, "uncounted": uncounted})


def is_given(document: Mapping[str, Any]) -> bool:
    """Whether a document that stands for a network is that of a `GivenNetwork`."""
    return "given" in document


def no_score_of(document: Mapping[str, Any]) -> str | None:
    """Why a run's proxy cannot train the network of such a document; None where it can."""
    reason: str | None = document.get("no_score") if is_given(document) else None
    return reason


def read_network(document: Mapping[str, Any]) -> Arch | GivenNetwork:
    """What `to_dict` of an architecture or of a given network gave. Raises as `Arch.from_dict` does."""
    return GivenNetwork.from_dict(document) if is_given(document) else Arch.from_dict(document)


def _where(source: str) -> str:
    return f"--include {source}"


def _build(
    source: str, image_size: ImageSize, in_chans: int, num_classes: int, *, seed: int = 0
) -> tuple[nn.Module, int]:
    """The module in eval mode, tried on images; and the classes that it gives: `num_classes` where its function takes that."""
    make, asked = _timm_maker(source, image_size) if source.startswith(TIMM) else _own_maker(source)
    wanted = {name: value for name, value in (("num_classes", num_classes), ("in_chans", in_chans)) if name in asked}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = make(**wanted)
        except (Exception, SystemExit) as error:
            raise UserError(f"{_where(source)}: cannot be built: {_reason(error)}") from error
        if not isinstance(model, nn.Module):
            raise UserError(
                f"{_where(source)}: gives {shown(model)}, a {type(model).__name__}; it must give an nn.Module"
            )
        classes = _run(source, model.cpu().eval(), image_size, in_chans)
    if "num_classes" in asked and classes != num_classes:
        raise UserError(f"{_where(source)}: gives {classes} classes where its num_classes was {num_classes}")
    for layer in model.modules():  # as our own networks: the images of a timing are laid out so
        if isinstance(layer, nn.Conv2d):
            layer.to(memory_format=torch.channels_last)
    return model, classes


def _run(source: str, model: nn.Module, image_size: ImageSize, in_chans: int) -> int:
    """The classes that it gives for two images. Raises UserError where it fails, or gives anything but (B, classes)."""
    images = torch.zeros(_BATCH, in_chans, *sides(image_size))
    try:
        with torch.no_grad():
            out = model(images)
    except Exception as error:
        size = format_image(image_size, in_chans)
        raise UserError(f"{_where(source)}: fails on {_BATCH} images of {size}: {_reason(error)}") from error
    if not isinstance(out, Tensor) or out.ndim != 2 or out.shape[0] != _BATCH or out.shape[1] < 1:
        got = f"a tensor of {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise UserError(f"{_where(source)}: gives {got} for {_BATCH} images; it must give (images, classes) logits")
    return int(out.shape[1])


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _timm_maker(source: str, image_size: ImageSize) -> tuple[Maker, tuple[str, ...]]:
    """timm's `create_model` for a name, at this image size where the network is made for one. Raises UserError with the nearest name."""
    import timm  # here: it takes seconds to import

    name = source.removeprefix(TIMM)
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        raise UserError(f"{_where(source)}: timm {timm.__version__} has no model {shown(name)}{hint}")
    try:
        usual = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # weights that it does not know, behind the dot
        base, _, tag = name.partition(".")
        hint = did_you_mean(name, timm.list_pretrained(f"{base}.*"))
        raise UserError(f"{_where(source)}: timm {timm.__version__} has no {shown(tag)} of {base}{hint}") from error
    is_resized = usual is not None and usual.fixed_input_size and tuple(usual.input_size[1:]) != sides(image_size)
    sized: dict[str, Any] = {"img_size": sides(image_size)} if is_resized else {}
    return lambda **asked: timm.create_model(name, pretrained=False, **asked, **sized), ("num_classes", "in_chans")


def _own_maker(source: str) -> tuple[Maker, tuple[str, ...]]:
    """The function of a module, which is imported, and those of `num_classes` and `in_chans` that it takes."""
    function = _function(source)
    try:
        names = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise UserError(f"{_where(source)}: is no function that can be called: {_reason(error)}") from error
    needed = [
        name
        for name, parameter in names.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in ("num_classes", "in_chans")
    ]
    if needed:
        raise UserError(
            f"{_where(source)}: needs the argument{'s' * (len(needed) > 1)} {', '.join(needed)}; a function without "
            "arguments is wanted, or one of num_classes and in_chans"
        )
    return function, tuple(name for name in ("num_classes", "in_chans") if name in names)


def _function(source: str) -> Maker:
    """What `package.module:function` names; the folder of the process is searched after Python's own path. Raises UserError where it is not there."""
    module_name, _, name = source.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise UserError(f"{_where(source)}: {module_name} cannot be imported: {_reason(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        hint = did_you_mean(name, [known for known, value in vars(module).items() if callable(value)])
        raise UserError(f"{_where(source)}: {module_name} has no function {shown(name)}{hint}")
    made: Maker = function
    return made


def _version(source: str) -> str:
    """What the code of a source is: timm's version, or digits of the file in which the function is written."""
    if source.startswith(TIMM):
        import timm

        return f"timm {timm.__version__}"
    function = inspect.unwrap(_function(source))
    module = sys.modules.get(getattr(function, "__module__", None) or source.partition(":")[0])
    file = Path(getattr(module, "__file__", None) or "")
    return f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()[:12]}" if file.is_file() else "no file"


def _num_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _weights(model: nn.Module) -> str:
    """Twelve hexadecimal digits of the names, shapes and types of parameters and buffers."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    said = [f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in tensors]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:12]
