"""Our own checkpoints: one safetensors file with a network's weights and, in its metadata, all that is needed to build the network.

The metadata has the key `archsearch`: JSON with the architecture, the image size that the network was built for, and where the weights come from.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from archsearch.blocks import origin, registered_layers
from archsearch.errors import UserError, first_line, shown
from archsearch.models.checkpoints.files import check_entries, describe, read_checkpoint, write_checkpoint
from archsearch.models.network import Network, build_without_weights
from archsearch.space import Arch, ImageSize
from archsearch.units import format_image, sides
from archsearch.version import __version__

INITIAL = "initial weights, not trained"
_FORMAT = 1  # raised when a reader of before could misread the file
_KEY = "archsearch"
_UNKNOWN = {"weights": "not stated"}


@dataclass(frozen=True, kw_only=True)
class Header:
    """What one of our checkpoints says of itself: `size` is (height, width) in pixels, `num_classes` 0 where there is no classifier."""

    arch: Arch
    size: tuple[int, int]
    num_classes: int
    provenance: Mapping[str, Any]
    version: str


def save(network: nn.Module, file: str | Path, *, provenance: Mapping[str, Any] | None = None) -> None:
    """Write a network that `build` made, with its architecture, image size and weights, as one `.safetensors` file, whole or not at all.

    provenance: where the weights come from, as JSON can hold it; its key `weights` says it in words. Raises UserError for another module, for a network
    whose parts were replaced or wrapped, for another suffix, and where the file cannot be written.
    """
    path = Path(file)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: archsearch.save writes .safetensors files, not {path.suffix or 'without a suffix'!r}")
    if not isinstance(network, Network):
        raise UserError(
            f"archsearch.save: got a {type(network).__name__}; give the network that build or load made, out of its wrapper"
        )
    state = {
        key: tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
        for key, tensor in network.state_dict().items()
    }
    _check(state, _built(network.arch, network.size, network.num_classes), "archsearch.save: the network was changed")
    header = {
        "format": _FORMAT,
        "version": __version__,
        "arch": network.arch.to_dict(),
        "image_size": list(network.size),
        "num_classes": network.num_classes,
        "blocks": own_blocks(network.arch),
        "provenance": dict(_UNKNOWN if provenance is None else provenance),
    }
    try:
        text = json.dumps(header, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"archsearch.save: provenance: {first_line(error)}; texts, finite numbers, lists and dicts of them are allowed"
        ) from error
    write_checkpoint(state, path, {_KEY: text})


def load(file: str | Path, *, image_size: ImageSize | None = None) -> Network:
    """The network in a file that `save` or `archsearch export` wrote, with its weights, on the CPU and, as `build` returns it, in training mode.

    image_size: another one than it was saved for, where no weight depends on it. Nothing in the file is run. Raises UserError for a file that is not one of
    ours, damaged, of a newer version, whose entries are not those of its architecture, and where a layer of its architecture is not registered: a file of
    your own blocks is loaded before.
    """
    header = read_header(file)
    network = _built(header.arch, header.size if image_size is None else sides(image_size), header.num_classes)
    given = read_checkpoint(file)
    problem = (
        f"its weights are for {format_image(header.size)}"
        if image_size
        else "damaged, since its weights are not those of its architecture"
    )
    _check(given, network, f"{file}: {problem}")
    weights = {}
    for key, target in network.state_dict().items():
        weights[key] = torch.empty_like(target, device="cpu", dtype=given[key].dtype).copy_(given[key])
    network.load_state_dict(weights, assign=True)
    return network.to(next(network.parameters()).dtype)  # buffers that are computed, too


def read_header(file: str | Path) -> Header:
    """What one of our checkpoints says of itself. Raises UserError as `load`."""
    document = _read_document(Path(file))
    try:
        version, number = str(document["version"]), int(document["format"])
        if number > _FORMAT:
            raise UserError(
                f"{file}: written by archsearch {version} in format {number}, and this one reads up to {_FORMAT}; upgrade archsearch"
            )
        _check_registered(dict(document["blocks"]), str(file))
        height, width = (int(side) for side in document["image_size"])
        return Header(
            arch=Arch.from_dict(document["arch"], str(file)),
            size=(height, width),
            num_classes=int(document["num_classes"]),
            provenance=dict(document["provenance"]),
            version=version,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: damaged: its description of the network lacks or misstates {shown(error)}") from error


def is_own(file: str | Path) -> bool:
    """Whether a file is a `.safetensors` file with archsearch's metadata. Raises UserError for such a file that cannot be read."""
    path = Path(file)
    return path.suffix == ".safetensors" and _metadata(path) is not None


def own_blocks(arch: Arch) -> dict[str, str]:
    """The layers of an architecture that archsearch does not bring, by role and kind (`block convnext`), with the names of their files."""
    layers = {type(placed.layer) for placed in arch.layers()}
    files = {f"{layer.role} {layer.kind}": origin(layer) for layer in layers}
    return {name: Path(file).name for name, file in sorted(files.items()) if file != "archsearch"}


def _check_registered(blocks: Mapping[str, str], where: str) -> None:
    """Raise UserError for a layer of one's own that is not registered in this process."""
    for name, file in blocks.items():
        role, _, kind = name.partition(" ")
        if kind not in registered_layers(role):  # type: ignore[arg-type]  # a role that is none has no layers
            raise UserError(
                f"{where}: its {role} {kind!r} is of {file}, which is not loaded here; call archsearch.blocks.load_blocks({file!r}) first"
            )


def _metadata(path: Path) -> str | None:
    """The text under our key of a safetensors file's metadata. Raises UserError where it is no such file."""
    if not os.path.isfile(path):
        what = "no file" if os.path.lexists(path) else "no such checkpoint file"
        raise UserError(f"{path}: {what}; archsearch.save and `archsearch export` write such files")
    try:
        with safe_open(path, framework="pt") as opened:
            return (opened.metadata() or {}).get(_KEY)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file: {first_line(error)}") from error


def _read_document(path: Path) -> dict[str, Any]:
    """The JSON object under our key."""
    text = _metadata(path)
    if text is None:
        raise UserError(
            f"{path}: weights without an architecture: no file of archsearch.save or `archsearch export`; "
            "archsearch.load_official loads a paper's official checkpoint"
        )
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged: its description of the network is no JSON: {first_line(error)}") from error
    if not isinstance(document, dict):
        raise UserError(f"{path}: damaged: its description of the network is {shown(document)}, no object")
    return document


def _built(arch: Arch, size: tuple[int, int], num_classes: int) -> Network:
    """The network without weights; without a classifier for 0 classes."""
    network = build_without_weights(arch, size)
    if num_classes == 0:
        network.reset_classifier(0)
    return network


def _check(given: Mapping[str, Tensor], network: Network, where: str) -> None:
    """Raise UserError, which begins with `where`, unless the entries are those of the network."""
    check_entries(given, {key: describe(tensor, tensor.shape) for key, tensor in network.state_dict().items()}, where)
