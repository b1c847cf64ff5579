"""The interface of a source of labelled images, and the order that all forms of the same images share."""

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from archsearch.data.image_folder import IMAGE_SUFFIXES, quote_names
from archsearch.errors import UserError

# Called on a decoding thread; may raise any error of reading.
Loader = Callable[[], bytes | Image.Image]

# The class name at the end: Hugging Face's ImageNet names n01440764_10026.JPEG n01440764_10026_n01440764.JPEG.
_CLASS_TAIL = re.compile(r"_n\d{8}$")


@dataclass(frozen=True, kw_only=True, eq=False)
class Entries:
    """The images of a split in storage order: labels int64 (N,), and a key for each that names it within its class."""

    labels: NDArray[np.int64]
    keys: tuple[str, ...]

    def sorted_indices(self) -> NDArray[np.int64]:
        """Storage indices by class, then by name without its suffix: the order that all forms of a data set share."""
        labels, stems = self.labels.tolist(), []
        for key in self.keys:
            base, suffix = os.path.splitext(key)
            stems.append(_CLASS_TAIL.sub("", base if suffix.lower() in IMAGE_SUFFIXES else key))
        order = sorted(range(len(labels)), key=lambda i: (labels[i], stems[i], self.keys[i], i))
        return np.array(order, dtype=np.int64)


class Source(ABC):
    """One data set: `kind` and `name` for people, `path` as given, its `splits`, and `classes` in the order of labels.

    Where the source numbers its classes, these are the labels; else the classes are sorted by name.
    """

    kind: str
    name: str
    path: str
    splits: tuple[str, ...]
    classes: tuple[str, ...]

    @abstractmethod
    def entries(self, split: str) -> Entries:
        """All images of a split, listed without decoding any. Raises UserError for a missing split."""

    @abstractmethod
    def read(self, split: str, indices: NDArray[np.int64]) -> Iterator[Loader]:
        """A loader for each of these storage indices, which ascend; callers take a few hundred at a time."""

    @abstractmethod
    def stamp(self, splits: Iterable[str]) -> str:
        """Sixteen hexadecimal digits that change when the files of these splits change."""

    def check_split(self, split: str) -> None:
        """Raise UserError for a missing split."""
        if split not in self.splits:
            raise UserError(f"{self.path}: split {split!r} is missing; found {quote_names(self.splits)}")


def make_stamp(parts: Iterable[tuple[str, int, int]]) -> str:
    """A stamp of names, sizes in bytes and times of change in ns."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(os.fsencode(json.dumps(part) + "\n"))
    return digest.hexdigest()[:16]


def stamp_files(root: Path, paths: Iterable[Path]) -> str:
    """A stamp of files below `root` by their paths, sizes and times of change."""
    return make_stamp(
        (path.relative_to(root).as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(paths)
    )


def shard_splits(root: Path, paths: list[Path], train_split: str) -> dict[str, list[Path]]:
    """Shards by split, each list sorted: `train-00000-of-00009`, `data/train-..`, `any-train-000000` or `train/..`."""
    found: dict[str, list[Path]] = {}
    for path in sorted(paths):
        base = re.sub(r"-\d+(-of-\d+)?$", "", path.stem)
        in_folder = path.parent != root and path.parent.name != "data"
        split = path.parent.name if in_folder else re.split(r"[-_]", base)[-1]
        found.setdefault(split, []).append(path)
    if len(found) == 1 and train_split == "train":  # all shards are of one split, under any name
        return {"train": next(iter(found.values()))}
    return found


def name_classes(labels: Collection[Any]) -> tuple[str, ...]:
    """The names among the labels, sorted; numbers up to the largest where they are numbers, padded so that they sort as these do."""
    if any(isinstance(label, str) for label in labels):
        return tuple(sorted({str(label) for label in labels}))
    count = max((int(label) for label in labels), default=-1) + 1
    digits = len(str(max(count - 1, 0)))
    return tuple(f"{number:0{digits}}" for number in range(count))
