"""Official checkpoints of the papers' models: load them strictly into ours, and give the same state dict back."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from archsearch.errors import UserError
from archsearch.models.build import Network, build_unfilled
from archsearch.models.checkpoints.files import read_checkpoint, unwrap, write_checkpoint
from archsearch.models.checkpoints.keys import official_key, official_shape
from archsearch.models.checkpoints.tables import check_computed, computed_buffers, computed_entries, fit_tables
from archsearch.models.features import FeatureNetwork, features
from archsearch.space.arch import Arch, ImageSize
from archsearch.space.papers import paper, paper_names, paper_space

_CLASSIFIER = "head.fc"
_NAMED = 8  # keys that an error names of each kind


class CheckpointWarning(UserWarning):
    """The loaded model's classifier is not the paper's."""


@overload
def load_official(
    name: str,
    state_dict: Mapping[str, Any] | str | Path,
    image_size: ImageSize | None = None,
    *,
    num_classes: int | None = None,
    features_only: Literal[False] = False,
) -> Network: ...


@overload
def load_official(
    name: str,
    state_dict: Mapping[str, Any] | str | Path,
    image_size: ImageSize | None = None,
    *,
    features_only: Literal[True],
) -> FeatureNetwork: ...


def load_official(
    name: str,
    state_dict: Mapping[str, Any] | str | Path,
    image_size: ImageSize | None = None,
    *,
    num_classes: int | None = None,
    features_only: bool = False,
) -> Network | FeatureNetwork:
    """A paper's model with its official checkpoint: a state dict, a training checkpoint around one, or the file of either.

    image_size: side or (height, width) in pixels, the paper's own by default. num_classes: what the checkpoint has by default; with another number the
    classifier is new; either way a CheckpointWarning tells. features_only: the stages alone, as `build` gives them.
    Raises UserError that names missing, unexpected and misshaped keys.
    """
    if features_only and num_classes is not None:
        raise UserError(
            f"load_official: num_classes {num_classes} has no meaning with features_only=True: there is no classifier"
        )
    pattern, where = key_pattern(name), f"state dict for {name}"
    if isinstance(state_dict, str | Path):
        where, given = str(state_dict), read_checkpoint(state_dict)
    else:
        given = unwrap(state_dict, where)
    trained = _trained_classes(given, pattern)
    arch = _with_classes(paper(name), num_classes if num_classes is not None else trained or paper(name).num_classes)
    network = build_unfilled(arch, image_size)
    given = fit_tables(given, arch, image_size, pattern, where)
    if trained is not None and trained != arch.num_classes:
        given |= _fresh_classifier(arch, image_size, pattern)
    computed = computed_entries(network, pattern)
    _check_keys(given, network, computed, pattern, f"{where}: no checkpoint of {name}")
    check_computed(given, computed, where)
    _fill(network, given, pattern)
    if features_only:
        return features(network, arch, image_size=image_size)
    if trained != (num_classes or paper(name).num_classes):
        _tell(name, trained, num_classes)
    return network


def key_pattern(name: str) -> str:
    """How a paper's checkpoints name their tensors: a pattern of `checkpoint_keys`."""
    pattern: str = paper_space(name).paper["keys"]
    return pattern


def official_keys(name: str) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a paper's official state dict, its buffers included."""
    pattern, network = key_pattern(name), build_unfilled(paper(name), None)
    state = network.state_dict() | computed_buffers(network)
    return {official_key(pattern, key): official_shape(pattern, key, state[key].shape) for key in state}


def _with_classes(arch: Arch, num_classes: int) -> Arch:
    """The architecture with another number of classes."""
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}; a classifier needs one class or more")
    return replace(arch, head=replace(arch.head, num_classes=num_classes))  # type: ignore[call-arg]  # every head has classes


def _trained_classes(given: Mapping[str, Tensor], pattern: str) -> int | None:
    """Rows of the checkpoint's classifier; None where there is none, which the comparison of keys reports."""
    weight = given.get(official_key(pattern, f"{_CLASSIFIER}.weight"))
    return None if weight is None or weight.ndim != 2 else len(weight)


def _fresh_classifier(arch: Arch, image_size: ImageSize | None, pattern: str) -> dict[str, Tensor]:
    """Official entries of a classifier as the paper initialises it."""
    *_, last = arch.layers(image_size)
    entries = {f"head.{key}": tensor for key, tensor in last.layer.build(last.shape).state_dict().items()}
    return {official_key(pattern, key): entries[key] for key in entries if key.startswith(_CLASSIFIER)}


def _check_keys(
    given: Mapping[str, Tensor], network: Network, optional: Mapping[str, Tensor], pattern: str, where: str
) -> None:
    """Raise UserError unless `given` holds every official key in its shape and kind, and nothing else but `optional`."""
    wanted: dict[str, str] = {}
    misshaped: list[str] = []
    for ours, tensor in network.state_dict().items():
        key = official_key(pattern, ours)
        wanted[key] = _describe(tensor, official_shape(pattern, ours, tensor.shape))
        if key in given and _describe(given[key], given[key].shape) != wanted[key]:
            misshaped.append(f"{key} is {_describe(given[key], given[key].shape)} and should be {wanted[key]}")
    problems = {
        "missing": [key for key in wanted if key not in given],
        "unexpected": [key for key in given if key not in wanted and key not in optional],
        "misshaped": misshaped,
    }
    found = [f"{len(keys)} {kind}: {_some(keys)}" for kind, keys in problems.items() if keys]
    if found:
        raise UserError(f"{where}; {'; '.join(found)}")


def _describe(tensor: Tensor, shape: Sequence[int]) -> str:
    """`(1000, 512)`, with the kind of number where it is not floating point."""
    kind = "" if tensor.is_floating_point() else "complex " if tensor.is_complex() else "integer "
    return f"{kind}{tuple(shape)}"


def _some(keys: Sequence[str]) -> str:
    """The first keys, and how many more there are."""
    rest = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return ", ".join(keys[:_NAMED]) + rest


def _fill(network: Network, given: Mapping[str, Tensor], pattern: str) -> None:
    """Give the unfilled network copies of the checkpoint's tensors, in its own types and memory formats."""
    device = torch.get_default_device()
    filled = {}
    for ours, target in network.state_dict().items():
        value = given[official_key(pattern, ours)].detach()
        filled[ours] = torch.empty_like(target, device=device).copy_(value.reshape(target.shape))
    network.load_state_dict(filled, assign=True)
    assert not any(tensor.is_meta for tensor in chain(network.parameters(), network.buffers()))


def _tell(name: str, trained: int | None, num_classes: int | None) -> None:
    """Warn that the checkpoint's classifier is not the paper's, or not what was asked for and so replaced."""
    sentence = f"{name}: the checkpoint's classifier has {trained} classes"
    if num_classes is None:
        sentence += f" where the paper's has {paper(name).num_classes}; the model's has {trained} too"
    else:
        sentence += f" and {num_classes} are asked for: the model's is new and untrained, everything before it is the checkpoint's"
    warnings.warn(sentence, CheckpointWarning, stacklevel=3)


def save_official(model: nn.Module, file: str | Path | None = None) -> dict[str, Tensor]:
    """The state dict that the paper's own code would give for this model: its keys, shapes and buffers, copied to the CPU.

    With a file it is written too, as `.safetensors` or as `.pth` (under `model`). Raises UserError when the model is no paper's.
    """
    pattern = key_pattern(_paper_name(model))
    assert isinstance(model, Network)
    state = model.state_dict() | computed_buffers(model)
    official = {
        official_key(pattern, key): _copy(tensor, official_shape(pattern, key, tensor.shape))
        for key, tensor in state.items()
    }
    if file is not None:
        write_checkpoint(official, file)
    return official


def _copy(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """A contiguous copy on the CPU that shares nothing."""
    return tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True).reshape(tuple(shape))


def _paper_name(model: nn.Module) -> str:
    """The paper's name of a model that is one, whatever its number of classes."""
    if not isinstance(model, Network):
        raise UserError(
            f"a {type(model).__name__} has no official keys; give the network that load_official or build made, out of its wrapper"
        )
    classifier = dict(model.named_modules()).get(_CLASSIFIER)
    if model.name not in paper_names() or not isinstance(classifier, nn.Linear):
        raise UserError(
            f"the model {model.name or model.arch_id!r} has no official keys; known: {', '.join(paper_names())}"
        )
    if _with_classes(paper(model.name), classifier.out_features).arch_id != model.arch_id:
        raise UserError(f"the model is called {model.name} and has other layers than that paper's model")
    return model.name
