"""Official checkpoints of the papers' models: loaded strictly into ours, and saved as the same state dict."""

import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from archsearch.errors import UserError
from archsearch.models.checkpoints.files import (
    KEYS_SHOWN,
    Weights,
    check_entries,
    describe,
    read_weights,
    unwrap,
    write_checkpoint,
)
from archsearch.models.checkpoints.keys import official_key, official_shape
from archsearch.models.checkpoints.tables import check_computed, computed_buffers, computed_entries, fit_tables
from archsearch.models.features import FeatureNetwork, features
from archsearch.models.network import Network, build_without_weights
from archsearch.space import Arch, ImageSize, paper, paper_names, paper_space
from archsearch.units import format_names

_CLASSIFIER = "head.fc"
_PROBES = 3  # keys by which a prefix is found


class CheckpointWarning(UserWarning):
    """The loaded model's classifier has another number of classes than the paper's or the checkpoint's, or what was done to the checkpoint to load it."""


@overload
def load_official(
    name: str,
    state_dict: Mapping[str, Any] | str | Path,
    image_size: ImageSize | None = None,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    features_only: Literal[False] = False,
    weights: Weights = "model",
) -> Network: ...


@overload
def load_official(
    name: str,
    state_dict: Mapping[str, Any] | str | Path,
    image_size: ImageSize | None = None,
    *,
    in_chans: int = 3,
    features_only: Literal[True],
    weights: Weights = "model",
) -> FeatureNetwork: ...


def load_official(
    name: str,
    state_dict: Mapping[str, Any] | str | Path,
    image_size: ImageSize | None = None,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    features_only: bool = False,
    weights: Weights = "model",
) -> Network | FeatureNetwork:
    """A paper's model with its official checkpoint: a state dict, a training checkpoint around one, or the file of either.

    image_size: side or (height, width) in pixels, the paper's own by default. num_classes: the checkpoint's by default; with another number the classifier
    is new and untrained. in_chans: channels of the images; for others than the checkpoint's the stem's weights are summed for one, and else repeated in turn
    and scaled, as timm does it. features_only: the stages alone, as `build` returns them; the checkpoint may then lack what these do not have. weights: the
    model's, or "ema" for their average where a training checkpoint holds both. A prefix of all keys is taken off. Warns with CheckpointWarning of that, of
    which weights were taken where there are two, and when the classifier is new or has another number of classes than the paper's. Raises UserError that
    names missing, unexpected and misshaped keys.
    """
    if features_only and num_classes is not None:
        raise UserError(
            f"load_official: num_classes {num_classes} has no meaning with features_only=True: there is no classifier"
        )
    pattern, where = key_pattern(name), f"state dict for {name}"
    if isinstance(state_dict, str | Path):
        where = str(state_dict)
        given, notes = read_weights(state_dict, weights)
    else:
        given, notes = unwrap(state_dict, where, weights)
    network = build_without_weights(paper(name), image_size, in_chans)
    given, prefix_note = _without_prefix(given, [official_key(pattern, ours) for ours in network.state_dict()])
    weight = given.get(official_key(pattern, f"{_CLASSIFIER}.weight"))  # `_check_keys` reports one that is missing
    trained = None if weight is None or weight.ndim != 2 else len(weight)
    arch = _with_classes(paper(name), num_classes if num_classes is not None else trained or paper(name).num_classes)
    if arch.num_classes != paper(name).num_classes:
        network = build_without_weights(arch, image_size, in_chans)
    given, table_notes = fit_tables(given, network, image_size, pattern, where)
    if trained is not None and trained != arch.num_classes:
        *_, last = arch.layers(image_size)
        entries = last.layer.build(last.shape).state_dict()
        given |= {official_key(pattern, key): entries[key] for key in entries if key.startswith(_CLASSIFIER)}
    computed = computed_entries(network, pattern)
    used = features(network, arch, image_size=image_size) if features_only else network
    given = _filled(given, network, used, pattern)
    _warn_of(name, [*notes, prefix_note, *table_notes, _fit_channels(given, network, pattern)])
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


def _without_prefix(given: Mapping[str, Tensor], wanted: Collection[str]) -> tuple[dict[str, Tensor], str | None]:
    """The entries behind the prefix, if any, with which most of the wanted keys are there; and a sentence that names it."""

    def count(prefix: str) -> int:
        return sum(prefix + key in given for key in wanted)

    longest = sorted(wanted, key=len)[-_PROBES:]
    ends = {key.removesuffix(probe) for key in given for probe in longest if key.endswith(f".{probe}")}
    prefix = max(["", *sorted(ends)], key=count)
    if not prefix:
        return dict(given), None
    found = {key.removeprefix(prefix): value for key, value in given.items() if key.startswith(prefix)}
    note = f"the prefix {prefix!r} was taken off"
    return found, note + (
        f", and {len(given) - len(found)} entries without it were left out" if len(given) > len(found) else ""
    )


def _filled(given: Mapping[str, Tensor], network: Network, used: nn.Module, pattern: str) -> dict[str, Tensor]:
    """The state dict with zeros for what it may lack: BatchNorm's counts of batches, and tensors of the network that `used` does not have."""
    theirs = {id(tensor) for tensor in chain(used.parameters(), used.buffers())}
    filled = dict(given)
    for ours, tensor in chain(network.named_parameters(), network.named_buffers()):
        key = official_key(pattern, ours)
        if key not in given and (ours.endswith(".num_batches_tracked") or id(tensor) not in theirs):
            filled[key] = torch.zeros(official_shape(pattern, ours, tensor.shape), dtype=tensor.dtype)
    return filled


def _fit_channels(given: dict[str, Tensor], network: Network, pattern: str) -> str | None:
    """Fit, in place, the convolutions on the image to the network's channels, by timm's rule; a sentence that says so, None where they fit already.

    Their sum for one channel; else repeated in turn and scaled by old / new channels, so that grey images give about what they gave.
    """
    changed: tuple[int, int] | None = None
    for ours, tensor in network.stem.state_dict(prefix="stem.").items():
        key = official_key(pattern, ours)
        weight = given.get(key)
        if weight is None or weight.ndim != 4 or not weight.is_floating_point() or tensor.ndim != 4:
            continue
        had, has = weight.shape[1], tensor.shape[1]
        if had != 3 or has == had or weight.shape[::2] != tensor.shape[::2]:
            continue
        summed = weight.sum(1, keepdim=True)
        given[key] = summed if has == 1 else weight.repeat(1, -(-has // had), 1, 1)[:, :has] * (had / has)
        changed = (had, has)
    if changed is None:
        return None
    how = "summed" if changed[1] == 1 else f"repeated in turn and scaled by {changed[0]}/{changed[1]}"
    return f"the stem's weights for {changed[0]} channels were {how} for {changed[1]}"


def _with_classes(arch: Arch, num_classes: int) -> Arch:
    """The architecture with another number of classes."""
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}; a classifier needs one class or more")
    return replace(arch, head=replace(arch.head, num_classes=num_classes))  # type: ignore[call-arg]  # every head has classes


def _check_keys(
    given: Mapping[str, Tensor], network: Network, optional: Mapping[str, Tensor], pattern: str, where: str
) -> None:
    """Raise UserError unless `given` holds every official key in its shape and kind, and nothing else but `optional`."""
    wanted = {
        official_key(pattern, ours): describe(tensor, official_shape(pattern, ours, tensor.shape))
        for ours, tensor in network.state_dict().items()
    }
    check_entries(given, wanted, where, optional)


def _check_finite(given: Mapping[str, Tensor], network: Network, pattern: str, where: str) -> None:
    """Raise UserError for weights that are not finite as the network holds them: its outputs would be NaN for every image."""
    keys = [official_key(pattern, ours) for ours in network.state_dict()]
    wrong = [key for key in keys if given[key].is_floating_point() and not given[key].float().isfinite().all()]
    if wrong:
        raise UserError(
            f"{where}: {len(wrong)} of {len(keys)} tensors hold NaN or infinite values: {format_names(wrong, KEYS_SHOWN)}; "
            "its training diverged, or the file is damaged"
        )


def _load_weights(network: Network, given: Mapping[str, Tensor], pattern: str) -> None:
    """Give the network copies of the checkpoint's tensors, in its own types and memory formats."""
    device = torch.get_default_device()
    filled = {}
    for ours, target in network.state_dict().items():
        value = given[official_key(pattern, ours)].detach()
        filled[ours] = torch.empty_like(target, device=device).copy_(value.reshape(target.shape))
    network.load_state_dict(filled, assign=True)
    assert not any(tensor.is_meta for tensor in chain(network.parameters(), network.buffers()))


def _warn_of(name: str, notes: Iterable[str | None]) -> None:
    """Warn of what was done to the checkpoint."""
    for note in filter(None, notes):
        warnings.warn(f"{name}: {note}", CheckpointWarning, stacklevel=3)


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
    theirs = replace(paper(model.name), in_chans=model.arch.in_chans)
    if _with_classes(theirs, classifier.out_features).arch_id != model.arch_id:
        raise UserError(f"the model is called {model.name} and has other layers than that paper's model")
    return model.name
