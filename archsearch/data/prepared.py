"""A prepared folder: uint8 squares to map into memory, labels, class names, and a manifest with their origin and hashes."""

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archsearch.data.image_folder import quote_names
from archsearch.errors import RunError, UserError

FORMAT = "archsearch-prepared"
VERSION = 2  # raise it when prepared files change in layout or content
MANIFEST = "manifest.json"
IMAGES = {"train": "train_images.npy", "val": "val_images.npy"}
LABELS = {"train": "train_labels.npy", "val": "val_labels.npy"}
CLASSES = "classes.json"
UNREADABLE = "unreadable.json"
FILES = (*IMAGES.values(), *LABELS.values(), CLASSES, UNREADABLE)
_DAMAGE = (OSError, ValueError, TypeError, KeyError, AttributeError)


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
        """Eight hexadecimal digits from the manifest's hashes of images and labels; equal for all forms of the same images."""
        files = self.manifest["files"]
        hashes = [files[name]["sha256"] for name in (*IMAGES.values(), *LABELS.values())]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()[:8]

    def describe(self) -> str:
        """One sentence for a report."""
        source, policy = self.manifest["source"], self.manifest["policy"]
        counts = {split: len(labels) for split, labels in self.labels.items()}
        held = "held out of training" if policy["val_split"] is None else f"from its split {policy['val_split']!r}"
        return (
            f"{source['name']} ({source['kind']}): {counts['train']:,} training and {counts['val']:,} validation images"
            f" {held}, {len(self.classes):,} classes, stored at {self.size} px"
        )


def is_prepared(folder: Path) -> bool:
    """Whether a folder holds the manifest of a finished preparation, of any version."""
    try:
        return bool(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["format"] == FORMAT)
    except _DAMAGE:
        return False


def read_manifest(folder: Path) -> dict[str, Any]:
    """A prepared folder's manifest. Raises UserError for a folder that is not prepared, or by another version."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"format is {manifest['format']!r}")
    except _DAMAGE as error:
        raise UserError(
            f"{folder}: not a prepared folder ({error}); make one by: archsearch prepare SOURCE {folder}"
        ) from error
    if manifest.get("version") != VERSION:
        raise UserError(f"{folder}: prepared in version {manifest.get('version')}, this is {VERSION}; prepare it again")
    assert isinstance(manifest, dict)
    return manifest


def open_prepared(folder: Path) -> Prepared:
    """A prepared folder, its images mapped. Raises UserError where it is damaged, as far as that shows without reading the images."""
    manifest = read_manifest(folder)
    try:
        classes = tuple(str(name) for name in json.loads((folder / CLASSES).read_text(encoding="utf-8")))
        noted = json.loads((folder / UNREADABLE).read_text(encoding="utf-8"))
        unreadable = {split: tuple(str(name) for name in noted[split]) for split in IMAGES}
        images = {split: np.load(folder / name, mmap_mode="r", allow_pickle=False) for split, name in IMAGES.items()}
        labels = {split: np.load(folder / name, allow_pickle=False) for split, name in LABELS.items()}
        for split, numbers in labels.items():
            found, shape = images[split], (len(numbers), manifest["size"], manifest["size"], 3)
            if found.dtype != np.uint8 or numbers.dtype != np.int64 or found.shape != shape:
                raise ValueError(f"{len(numbers)} labels for images of {found.shape}")
            if not len(numbers) or not 0 <= numbers.min() <= numbers.max() < len(classes):
                raise ValueError(f"labels outside 0 to {len(classes) - 1}")
    except _DAMAGE as error:
        raise UserError(
            f"{folder}: prepared images are damaged ({error}); delete this folder and start again"
        ) from error
    return Prepared(
        folder=folder, images=images, labels=labels, classes=classes, unreadable=unreadable, manifest=manifest
    )


def check_prepared(folder: Path) -> Prepared:
    """A prepared folder whose hashes, counts and labels were checked against its manifest.

    Raises RunError naming what is damaged, UserError where the folder is not a prepared one.
    """
    manifest = read_manifest(folder)
    damaged = []
    for name in FILES:
        with contextlib.suppress(*_DAMAGE):
            noted, path = manifest["files"][name], folder / name
            if path.stat().st_size == noted["bytes"] and hash_file(path) == noted["sha256"]:
                continue
        damaged.append(name)
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
        if counts != manifest["counts"][split]:
            raise RunError(f"{folder}: damaged: the {split} labels are not those that the manifest counts")
    return prepared


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
