"""The contract of a source of labelled images, and the one order in which all forms of the same images are taken."""

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from archsearch.data.image_folder import IMAGE_SUFFIXES, some
from archsearch.errors import UserError

# Called on a decoding thread; raises whatever reading raises.
Loader = Callable[[], bytes | Image.Image]

# Hugging Face's ImageNet names n01440764_10026.JPEG n01440764_10026_n01440764.JPEG.
_CLASS_TAIL = re.compile(r"_n\d{8}$")


@dataclass(frozen=True, kw_only=True, eq=False)
class Entries:
    """The images of a split as they lie in storage: labels int64 (N,), and what names each within its class."""

    labels: NDArray[np.int64]
    keys: tuple[str, ...]

    def in_order(self) -> NDArray[np.int64]:
        """Storage indices by class, then by name without its suffix: the order that all forms of a data set share."""
        labels = self.labels.tolist()
        order = sorted(range(len(labels)), key=lambda i: (labels[i], _stem(self.keys[i]), self.keys[i], i))
        return np.array(order, dtype=np.int64)


class Source(ABC):
    """One data set: `kind` and `name` for people, `path` as given, `splits` it holds, `classes` in the order of labels.

    Classes known by name only are sorted by it; where the source numbers them, its numbers stay.
    """

    kind: str
    name: str
    path: str
    splits: tuple[str, ...]
    classes: tuple[str, ...]

    @abstractmethod
    def entries(self, split: str) -> Entries:
        """All images of a split, found without decoding any. Raises UserError for a split that is not there."""

    @abstractmethod
    def read(self, split: str, indices: NDArray[np.int64]) -> Iterator[Loader]:
        """One loader for each of these storage indices, which ascend; meant to be taken a few hundred at a time."""

    @abstractmethod
    def stamp(self, splits: Iterable[str]) -> str:
        """Hexadecimal digits that change when the files of these splits do."""

    def check_split(self, split: str) -> None:
        """Raises UserError for a split that is not there."""
        if split not in self.splits:
            raise UserError(f"{self.path}: split {split!r} is missing; found {some(list(self.splits))}")


def stamp_of(parts: Iterable[tuple[str, int, int]]) -> str:
    """Of names, sizes in bytes and times of change."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(os.fsencode(json.dumps(part) + "\n"))
    return digest.hexdigest()[:16]


def stamp_of_files(root: Path, paths: Iterable[Path]) -> str:
    """Of files below `root`, by what the file system says."""
    return stamp_of(
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
    if len(found) == 1 and train_split == "train":  # shards of one set, whatever it is called
        return {"train": next(iter(found.values()))}
    return found


def numbered_classes(count: int) -> tuple[str, ...]:
    """Names for classes that only have numbers, padded so that they sort as these do."""
    digits = len(str(max(count - 1, 0)))
    return tuple(f"{number:0{digits}}" for number in range(count))


def _stem(key: str) -> str:
    base, suffix = os.path.splitext(key)
    return _CLASS_TAIL.sub("", base if suffix.lower() in IMAGE_SUFFIXES else key)
