"""Official checkpoints of the papers' models: loaded strictly into ours, and saved as the same state dict."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from archsearch.errors import UserError
from archsearch.models.checkpoints.files import read_checkpoint, unwrap, write_checkpoint
from archsearch.models.checkpoints.keys import official_key, official_shape
from archsearch.models.checkpoints.tables import check_computed, computed_buffers, computed_entries, fit_tables
from archsearch.models.features import FeatureNetwork, features
from archsearch.models.network import Network, build_without_weights
from archsearch.space import Arch, ImageSize, paper, paper_names, paper_space
from archsearch.units import format_names

_CLASSIFIER = "head.fc"
_KEYS_SHOWN = 2  # of each kind in an error


class CheckpointWarning(UserWarning):
    """The loaded model's classifier has another number of classes than the paper's or the checkpoint's."""


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

    image_size: side or (height, width) in pixels, the paper's own by default. num_classes: the checkpoint's by default; with another number the classifier
    is new and untrained. features_only: the stages alone, as `build` returns them. Warns with CheckpointWarning when the classifier is new, or has another
    number of classes than the paper's. Raises UserError that names missing, unexpected and misshaped keys.
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
    weight = given.get(official_key(pattern, f"{_CLASSIFIER}.weight"))  # `_check_keys` reports one that is missing
    trained = None if weight is None or weight.ndim != 2 else len(weight)
    arch = _with_classes(paper(name), num_classes if num_classes is not None else trained or paper(name).num_classes)
    network = build_without_weights(arch, image_size)
    given = fit_tables(given, arch, image_size, pattern, where)
    if trained is not None and trained != arch.num_classes:
        *_, last = arch.layers(image_size)
        entries = last.layer.build(last.shape).state_dict()
        given |= {official_key(pattern, key): entries[key] for key in entries if key.startswith(_CLASSIFIER)}
    computed = computed_entries(network, pattern)
    _check_keys(given, network, computed, pattern, f"{where}: no checkpoint of {name}")
    check_computed(given, computed, where)
    _check_finite(given, network, pattern, where)
    _load_weights(network, given, pattern)
    if features_only:
        return features(network, arch, image_size=image_size)
    if trained != (num_classes or paper(name).num_classes):
        _warn_of_classes(name, trained, num_classes)
    return network


def key_pattern(name: str) -> str:
    """The name of the key pattern (see `keys`) of a paper's checkpoints. Raises UserError for an unknown paper."""
    pattern: str = paper_space(name).paper["keys"]
    return pattern


def official_keys(name: str) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a paper's official state dict, with its buffers. Raises UserError for an unknown paper."""
    pattern, network = key_pattern(name), build_without_weights(paper(name))
    state = network.state_dict() | computed_buffers(network)
    return {official_key(pattern, key): official_shape(pattern, key, state[key].shape) for key in state}


def _with_classes(arch: Arch, num_classes: int) -> Arch:
    """The architecture with another number of classes."""
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}; a classifier needs one class or more")
    return replace(arch, head=replace(arch.head, num_classes=num_classes))  # type: ignore[call-arg]  # every head has classes


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
    found = [f"{len(keys)} {kind}: {format_names(keys, _KEYS_SHOWN)}" for kind, keys in problems.items() if keys]
    if found:
        raise UserError(f"{where}; {'; '.join(found)}")


def _check_finite(given: Mapping[str, Tensor], network: Network, pattern: str, where: str) -> None:
    """Raise UserError for weights that are not finite as the network holds them: its outputs would be NaN for every image."""
    keys = [official_key(pattern, ours) for ours in network.state_dict()]
    wrong = [key for key in keys if given[key].is_floating_point() and not given[key].float().isfinite().all()]
    if wrong:
        raise UserError(
            f"{where}: {len(wrong)} of {len(keys)} tensors hold NaN or infinite values: {format_names(wrong, _KEYS_SHOWN)}; "
            "its training diverged, or the file is damaged"
        )


def _describe(tensor: Tensor, shape: Sequence[int]) -> str:
    """`(1000, 512)`, with the kind of number where it is not floating point."""
    kind = "" if tensor.is_floating_point() else "complex " if tensor.is_complex() else "integer "
    return f"{kind}{tuple(shape)}"


def _load_weights(network: Network, given: Mapping[str, Tensor], pattern: str) -> None:
    """Give the network copies of the checkpoint's tensors, in its own types and memory formats."""
    device = torch.get_default_device()
    filled = {}
    for ours, target in network.state_dict().items():
        value = given[official_key(pattern, ours)].detach()
        filled[ours] = torch.empty_like(target, device=device).copy_(value.reshape(target.shape))
    network.load_state_dict(filled, assign=True)
    assert not any(tensor.is_meta for tensor in chain(network.parameters(), network.buffers()))


def _warn_of_classes(name: str, trained: int | None, num_classes: int | None) -> None:
    """Warn that the checkpoint's number of classes is not the paper's, or that the classifier was replaced for `num_classes`."""
    sentence = f"{name}: the checkpoint's classifier has {trained} classes"
    if num_classes is None:
        sentence += f" where the paper's has {paper(name).num_classes}; the model's has {trained} too"
    else:
        sentence += f" and {num_classes} are asked for: the model's is new and untrained, everything before it is the checkpoint's"
    warnings.warn(sentence, CheckpointWarning, stacklevel=3)


def save_official(model: nn.Module, file: str | Path | None = None) -> dict[str, Tensor]:
    """The state dict of this model in the paper's own code: its keys, shapes and buffers, copied to the CPU.

    With a file it is also written, as `.safetensors` or as `.pth` (under `model`). Raises UserError when the model is not a paper's.
    """
    pattern = key_pattern(_paper_name(model))
    assert isinstance(model, Network)
    state = model.state_dict() | computed_buffers(model)
    official = {}
    for key, tensor in state.items():
        copied = tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
        official[official_key(pattern, key)] = copied.reshape(official_shape(pattern, key, tensor.shape))
    if file is not None:
        write_checkpoint(official, file)
    return official


def _paper_name(model: nn.Module) -> str:
    """The name of the paper's model that this is, with any number of classes. Raises UserError where it is none."""
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
