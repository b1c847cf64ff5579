"""A prepared folder: uint8 squares to map into memory, labels, class names, and a manifest with their origin and hashes."""

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archsearch.data.image_folder import quote_names
from archsearch.errors import RunError, UserError, first_line
from archsearch.system import open_regular

FORMAT = "archsearch-prepared"
VERSION = 2  # raise it when prepared files change in layout or content
MANIFEST = "manifest.json"
IMAGES = {"train": "train_images.npy", "val": "val_images.npy"}
LABELS = {"train": "train_labels.npy", "val": "val_labels.npy"}
CLASSES = "classes.json"
UNREADABLE = "unreadable.json"
FILES = (*IMAGES.values(), *LABELS.values(), CLASSES, UNREADABLE)
_DAMAGE = (
    OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, OverflowError, MemoryError, RecursionError,
)  # fmt: skip
_MOST_HASHED = 256 << 20  # bytes of a file that are hashed whenever the folder is opened: well below a second
# What a manifest must hold.
_FIELDS: dict[tuple[str, ...], type | tuple[type, ...]] = {
    ("request",): dict,
    ("source", "kind"): str,
    ("source", "name"): str,
    ("policy", "val_split"): (str, NoneType),
    ("size",): int,
    ("counts",): dict,
    ("licence",): (str, NoneType),
    **{("files", name, "bytes"): int for name in FILES},
    **{("files", name, "sha256"): str for name in FILES},
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """Images uint8 (N, size, size, 3), mapped from disk read-only, and labels int64 (N,), by split; unreadable images with reasons; the manifest."""

    folder: Path
    images: dict[str, NDArray[np.uint8]]
    labels: dict[str, NDArray[np.int64]]
    classes: tuple[str, ...]
    unreadable: dict[str, tuple[str, ...]]
    manifest: dict[str, Any]

    @property
    def size(self) -> int:
        """Height and width in pixels."""
        return int(self.manifest["size"])

    @property
    def name(self) -> str:
        """The source's name."""
        return str(self.manifest["source"]["name"])

    @property
    def fingerprint(self) -> str:
        """`fingerprint` of the manifest."""
        return fingerprint(self.manifest)

    @property
    def unlabelled(self) -> int:
        """Number of the source's images that were left out for lack of a label."""
        return sum(self.manifest.get("unlabelled", {}).values())

    @property
    def left_out(self) -> tuple[str, ...]:
        """What else was left out, in words, each beginning with the source's split."""
        counts = self.manifest.get("unlabelled", {})
        unlabelled = [f"{split}: {count:,} unlabelled (label -1)" for split, count in counts.items() if count]
        return (*unlabelled, *self.manifest.get("left_out", ()))

    def describe(self) -> str:
        """One sentence for a report."""
        source, policy = self.manifest["source"], self.manifest["policy"]
        counts = {split: len(labels) for split, labels in self.labels.items()}
        held = "held out of training" if policy["val_split"] is None else f"from its split {policy['val_split']!r}"
        unlabelled = f", {self.unlabelled:,} unlabelled left out" if self.unlabelled else ""
        return (
            f"{source['name']} ({source['kind']}): {counts['train']:,} training and {counts['val']:,} validation images"
            f" {held}, {len(self.classes):,} classes, stored at {self.size} px{unlabelled}"
        )


def fingerprint(manifest: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits from a manifest's hashes of images and labels; equal for all forms of the same images."""
    hashes = [manifest["files"][name]["sha256"] for name in (*IMAGES.values(), *LABELS.values())]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:8]


def is_prepared(folder: Path) -> bool:
    """Whether a folder holds the manifest of a finished preparation, of any version."""
    try:
        return bool(_read_json(folder / MANIFEST)["format"] == FORMAT)
    except _DAMAGE:
        return False


def read_manifest(folder: Path) -> dict[str, Any]:
    """A prepared folder's manifest. Raises UserError for a folder that is not prepared, or by another version, and for a damaged manifest."""
    try:
        manifest: dict[str, Any] = _read_json(folder / MANIFEST)
        if manifest["format"] != FORMAT:
            raise ValueError(f"format is {manifest['format']!r}")
    except _DAMAGE as error:
        raise UserError(
            f"{folder}: not a prepared folder ({first_line(error)}); make one by: archsearch prepare SOURCE {folder}"
        ) from error
    version = manifest.get("version")
    if version != VERSION:
        later = isinstance(version, int) and version > VERSION
        remedy = "take that version of archsearch, or prepare it again" if later else "prepare it again"
        raise UserError(f"{folder}: prepared in version {version} of the format, this is {VERSION}; {remedy}")
    for key, kind in _FIELDS.items():
        if not isinstance(_dig(manifest, key), kind):
            raise UserError(
                f"{folder / MANIFEST}: damaged: {' '.join(key)!r} is missing or wrong; prepare the images again"
            )
    return manifest


def open_prepared(folder: Path) -> Prepared:
    """A prepared folder, its images mapped. Raises UserError where it is damaged.

    Every file must have the manifest's size, and its hash where that takes well below a second; `check_prepared` reads all.
    """
    manifest = read_manifest(folder)
    try:
        damaged = [name for name in FILES if not _is_as_noted(folder / name, manifest["files"][name], _MOST_HASHED)]
        if damaged:
            raise ValueError(f"{quote_names(damaged)} not as written")
        classes = tuple(str(name) for name in _read_json(folder / CLASSES))
        noted = _read_json(folder / UNREADABLE)
        unreadable = {split: tuple(str(name) for name in noted[split]) for split in IMAGES}
        images = {split: _map_array(folder / name) for split, name in IMAGES.items()}
        labels = {split: np.array(_map_array(folder / name)) for split, name in LABELS.items()}
        for split, numbers in labels.items():
            found, shape = images[split], (len(numbers), manifest["size"], manifest["size"], 3)
            if found.dtype != np.uint8 or numbers.dtype != np.int64 or found.shape != shape:
                raise ValueError(f"{len(numbers)} labels for images of {found.shape}")
            if not len(numbers) or not 0 <= numbers.min() <= numbers.max() < len(classes):
                raise ValueError(f"labels outside 0 to {len(classes) - 1}")
        prepared = Prepared(
            folder=folder, images=images, labels=labels, classes=classes, unreadable=unreadable, manifest=manifest
        )
        prepared.describe()  # which meets what is wrong in the manifest beside `_FIELDS`
    except _DAMAGE as error:
        raise UserError(
            f"{folder}: prepared images are damaged ({first_line(error)}); delete this folder and start again"
        ) from error
    return prepared


def _read_json(path: Path) -> Any:
    with open_regular(path) as file:
        return json.load(file)


def _dig(document: Any, key: tuple[str, ...]) -> Any:
    """The value below these keys, an ellipsis where there is none."""
    for part in key:
        document = document.get(part, ...) if isinstance(document, dict) else ...
    return document


def _is_as_noted(path: Path, noted: Mapping[str, Any], most_hashed: float = math.inf) -> bool:
    """Whether a file has the size that the manifest notes, and its hash where it is no larger than `most_hashed` bytes."""
    with contextlib.suppress(*_DAMAGE):
        size = path.stat().st_size
        return bool(size == noted["bytes"] and (size > most_hashed or hash_file(path) == noted["sha256"]))
    return False


def _map_array(path: Path) -> NDArray[Any]:
    """An array mapped read-only. Not np.load, which opens archives and pickles too. Raises one of `_DAMAGE`."""
    array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    return array


def folder_stamp(folder: Path) -> tuple[tuple[int, int, int], ...] | None:
    """What changes when a prepared folder is exchanged or written to, found in microseconds; None where a file is missing."""
    try:
        stats = [(folder / name).stat() for name in (MANIFEST, *FILES)]
    except OSError:
        return None
    return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)


def check_prepared(folder: Path) -> Prepared:
    """A prepared folder whose hashes, counts and labels were checked against its manifest.

    Raises RunError naming what is damaged, UserError where the folder is not a prepared one.
    """
    manifest = read_manifest(folder)
    damaged = [name for name in FILES if not _is_as_noted(folder / name, manifest["files"][name])]
    if damaged:
        raise RunError(
            f"{folder}: damaged: {quote_names(damaged)} not as written; delete this folder and prepare it again"
        )
    try:
        prepared = open_prepared(folder)
    except UserError as error:
        raise RunError(str(error)) from error
    for split in IMAGES:
        counts = np.bincount(prepared.labels[split], minlength=len(prepared.classes)).tolist()
        if counts != manifest["counts"].get(split):
            raise RunError(f"{folder}: damaged: the {split} labels are not those that the manifest counts")
    return prepared


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
