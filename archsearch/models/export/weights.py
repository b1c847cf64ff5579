"""The network that is exported: an architecture with the weights of a file of ours, of an official checkpoint, or initial ones."""

import contextlib
import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from archsearch.errors import UserError
from archsearch.models.checkpoints import INITIAL, is_own, load, load_official, read_header
from archsearch.models.network import Network, build
from archsearch.space import Arch, ImageSize, paper, paper_names

_SEED = 0  # of weights that are drawn
_OFFICIAL = "official checkpoint of"


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """A network in eval mode and float32 on the CPU, where its weights come from, and sentences on what was done to them."""

    network: Network
    provenance: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """`initial`, `official`, also by way of a file of ours, or `file`."""
        words = str(self.provenance.get("weights"))
        return "initial" if words == INITIAL else "official" if words.startswith(_OFFICIAL) else "file"


def weighted(
    arch: Arch,
    file: Path | None,
    *,
    image_size: ImageSize | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
) -> Weighted:
    """The network of an architecture with the weights of a file, or initial ones, which are the same every time.

    What is not given is the file's own, or the architecture's. Raises UserError for a file of another architecture, for one without an architecture where
    this is no paper's model, and for weights that do not fit the size or the channels.
    """
    options: dict[str, Any] = {"image_size": image_size, "num_classes": num_classes, "in_chans": in_chans}
    if file is None:
        with _seeded():
            found = Weighted(network=build(arch, **options), provenance={"weights": INITIAL, "seed": _SEED})
    elif not os.path.isfile(file):
        raise UserError(
            f"--weights: {file}: no such file; allowed are files of archsearch.save and official checkpoints"
        )
    else:
        found = _from_own(arch, file, **options) if is_own(file) else _from_official(arch, file, **options)
    found.network.float().eval()
    return found


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """The same random numbers every time meanwhile; those after are as if there had been none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        yield


def _from_own(
    arch: Arch, file: Path, *, image_size: ImageSize | None, num_classes: int | None, in_chans: int | None
) -> Weighted:
    """The network of one of our files, whose architecture must be this one but for image size, channels and classes."""
    header = read_header(file)
    theirs = _like(header.arch, arch)
    if theirs.arch_id != arch.arch_id:
        raise UserError(
            f"--weights: {file} holds {theirs.name or theirs.arch_id} ({theirs.describe()}), and this is "
            f"{arch.name or arch.arch_id} ({arch.describe()}); give the weights of the same architecture"
        )
    if in_chans not in (None, header.arch.in_chans):
        raise UserError(f"--in-chans: {in_chans}, and the weights of {file} are for {header.arch.in_chans} channels")
    network = load(file, image_size=image_size)
    notes: tuple[str, ...] = ()
    if num_classes not in (None, header.num_classes):
        with _seeded():
            network.reset_classifier(num_classes)
        notes = (
            f"the file's classifier has {header.num_classes} classes; the one for {num_classes} is new and untrained",
        )
    return Weighted(network=network, provenance={**header.provenance, "file": file.name}, notes=notes)


def _like(arch: Arch, other: Arch) -> Arch:
    """The architecture with the image size, channels and classes of the other."""
    head = replace(arch.head, num_classes=other.num_classes)  # type: ignore[call-arg]  # every head has classes
    return replace(arch, head=head, image_size=other.image_size, in_chans=other.in_chans)


def _from_official(
    arch: Arch, file: Path, *, image_size: ImageSize | None, num_classes: int | None, in_chans: int | None
) -> Weighted:
    """A paper's model with its official checkpoint; the warnings that loading it gives are the notes."""
    name = arch.name or ""
    if name not in paper_names() or paper(name).arch_id != arch.arch_id:
        raise UserError(
            f"--weights: {file} holds no architecture, so it could only be the official checkpoint of a paper's model, and "
            f"{name or arch.arch_id} is none; give a file of archsearch.save or `archsearch export`"
        )
    with warnings.catch_warnings(record=True) as caught, _seeded():
        warnings.simplefilter("always")
        network = load_official(name, file, image_size, num_classes=num_classes, in_chans=in_chans or arch.in_chans)
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    provenance = {"weights": f"{_OFFICIAL} {name}", "file": file.name, "sha256": digest}
    return Weighted(network=network, provenance=provenance, notes=tuple(str(each.message) for each in caught))
