"""Initial weights from a trained network of other layers: every layer of the same kind and shape is copied."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from archsearch.blocks import field_scale, own_choices
from archsearch.errors import UserError
from archsearch.models import CheckpointWarning, Network, is_own, load, load_official, official_keys, read_checkpoint
from archsearch.space import Placed, paper, paper_names
from archsearch.system import Say, ignore
from archsearch.units import sides

_LEAST_MATCH = 0.5  # of a paper's entries, for a file to be taken for its checkpoint

# What two layers must share: kind, channels of a head or a group where it has such, and every tensor by name and shape.
_Key = tuple[str, tuple[object, ...], tuple[tuple[str, tuple[int, ...]], ...]]


@dataclass(frozen=True, kw_only=True)
class CopiedLayer:
    """A layer with parameters, and the place in the other network that its weights come from; None where none fitted."""

    layer: str
    kind: str
    params: int
    copied_from: str | None


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """What was copied from where, layer by layer in order of execution."""

    file: str
    source: str
    layers: tuple[CopiedLayer, ...]

    @property
    def copied_params(self) -> int:
        """Number of parameters that were copied."""
        return sum(layer.params for layer in self.layers if layer.copied_from)

    @property
    def params(self) -> int:
        """Number of all parameters."""
        return sum(layer.params for layer in self.layers)

    def describe(self) -> str:
        """One line: what share was copied."""
        number = sum(layer.copied_from is not None for layer in self.layers)
        percent = math.floor(1000 * self.copied_params / self.params) / 10  # rounded down: 100 is all
        return (
            f"{percent:g} % of the parameters, {number} of {len(self.layers)} layers, start from {self.source}; "
            "the rest is initialised anew"
        )


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A layer of a network as it is copied: its place, its stage, and its module."""

    place: str
    stage: str
    kind: str
    key: _Key
    module: nn.Module


def initialise(network: Network, file: str | Path, *, say: Say = ignore) -> InitialWeights:
    """Copy what fits from a checkpoint of ours or a paper's official one into the network, in place. Raises UserError for a file that is neither."""
    source, name = read_source(file, network.size, say=say)
    return InitialWeights(file=str(file), source=name, layers=copy_layers(source, network))


def read_source(file: str | Path, size: tuple[int, int], *, say: Say = ignore) -> tuple[Network, str]:
    """The trained network in a file and its name; a paper's is built for images of `size` where it can be, so that tables are resized."""
    if is_own(file):
        network = load(file)
        return network, network.name or f"architecture {network.arch_id}"
    name = _paper_of(file)
    own_size = sides(paper(name).image_size)
    try:
        paper(name).check(size)
    except UserError:
        size = own_size
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CheckpointWarning)
        network = load_official(name, file, image_size=None if size == own_size else size)
    for warning in caught:
        if issubclass(warning.category, CheckpointWarning):
            say(f"note: {warning.message}")
    return network, name


def copy_layers(source: Network, target: Network) -> tuple[CopiedLayer, ...]:
    """Copy every layer of `target` that `source` has in the same kind and shape: the n-th of a stage from the n-th there, else from another stage.

    A layer of the source is copied once.
    """
    theirs, ours = list(_parts(source)), list(_parts(target))
    left, taken = list(theirs), dict[str, _Part]()
    for same_stage in (True, False):
        for part in ours:
            fits = (other for other in left if other.key == part.key and (other.stage == part.stage or not same_stage))
            if part.place not in taken and (found := next(fits, None)) is not None:
                taken[part.place] = found
                left.remove(found)
    for part in ours:
        if part.place in taken:
            part.module.load_state_dict(taken[part.place].module.state_dict())
    return tuple(
        CopiedLayer(
            layer=part.place,
            kind=part.kind,
            params=sum(tensor.numel() for tensor in part.module.parameters()),
            copied_from=taken[part.place].place if part.place in taken else None,
        )
        for part in ours
    )


def _parts(network: Network) -> Iterator[_Part]:
    """The layers with parameters; the last norm and the classifier apart."""
    for placed in network.arch.layers(network.size):
        names = ("norm", "head") if placed.module == "head" else (placed.module,)
        for name in names:
            module = network.get_submodule(name)
            if next(module.parameters(), None) is not None:
                stage = ".".join(name.split(".")[:2]) if name.startswith("stages.") else name
                yield _Part(
                    place=name, stage=stage, kind=placed.layer.kind, key=_key(name, placed, module), module=module
                )


def _key(name: str, placed: Placed, module: nn.Module) -> _Key:
    """What a layer must share with another to take its weights."""
    entries = tuple((key, tuple(tensor.shape)) for key, tensor in module.state_dict().items())
    if name in ("norm", "head"):  # a last norm is the same whatever head follows it
        return name, (), entries
    # Weights of the same shape that are cut into other heads or groups mean something else.
    layer = type(placed.layer)
    cuts = tuple(getattr(placed.layer, key) for key in own_choices(layer) if field_scale(layer, key) == "width")
    return f"{layer.role} {layer.kind}", cuts, entries


def _paper_of(file: str | Path) -> str:
    """The paper's model whose official checkpoint a file is, by its keys and shapes. Raises UserError where it is none."""
    given = read_checkpoint(file)

    def match(name: str) -> float:
        wanted = official_keys(name)
        return sum(_is_same(given.get(key), shape) for key, shape in wanted.items()) / len(wanted)

    shares = {name: match(name) for name in paper_names()}
    best = max(shares, key=lambda name: shares[name])
    if shares[best] < _LEAST_MATCH:
        raise UserError(
            f"--init-from {file}: neither a checkpoint of archsearch nor a paper's official one; nearest is {best}, of which it has "
            f"{shares[best]:.0%} of the tensors"
        )
    return best


def _is_same(tensor: Tensor | None, shape: tuple[int, ...]) -> bool:
    return tensor is not None and tuple(tensor.shape) == tuple(shape)
