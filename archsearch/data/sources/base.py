"""The interface of a source of labelled images, and the order that all forms of the same images share."""

import hashlib
import json
import os
import re
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
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

_SHARD_NUMBER = re.compile(r"-\d+(-of-\d+)?$")
_OF = re.compile(r"(\d+)[-_]of[-_](\d+)$")
_UNLABELLED = -1
_MOST_CLASSES = (
    1_000_000  # so that one wrong number does not become gigabytes of names; the largest public sets have 200,000
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Entries:
    """The images of a split in storage order: labels int64 (N,), -1 for an unlabelled image, and a key for each that names it within its class.

    `left_out` says in words which files of the split are not among them.
    """

    labels: NDArray[np.int64]
    keys: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    @property
    def unlabelled(self) -> int:
        """Number of images that cannot be taken for lack of a label."""
        return int((self.labels < 0).sum())

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
    """A stamp of files below `root` by their paths, sizes and times of change. Raises UserError for one that is not there."""
    parts = []
    for path in sorted(paths):
        try:
            stat = path.stat()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        parts.append((path.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns))
    return make_stamp(parts)


def find_shards(root: Path, suffix: str) -> list[Path]:
    """Files of this suffix in a folder, or one folder below; hidden ones, such as macOS's `._train-000.tar`, left out."""
    found = [path for pattern in (f"*{suffix}", f"*/*{suffix}") for path in root.glob(pattern)]
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts)]


def shard_splits(
    root: Path, paths: list[Path], train_split: str, number: re.Pattern[str] = _SHARD_NUMBER
) -> dict[str, list[Path]]:
    """Shards by split, each list sorted: `train-00000-of-00009`, `data/train-..`, `any-train-000000` or `train/..`."""
    found: dict[str, list[Path]] = {}
    for path in sorted(paths):
        in_folder = path.parent != root and path.parent.name != "data"
        split = path.parent.name if in_folder else re.split(r"[-_]", number.sub("", path.stem))[-1]
        found.setdefault(split, []).append(path)
    if len(found) == 1 and train_split == "train":  # all shards are of one split, under any name
        return {"train": next(iter(found.values()))}
    return found


def absent_shards(shards: Iterable[Path]) -> tuple[str, ...]:
    """In words: how many of `train-00000-of-00009` to `train-00008-of-00009` are not there."""
    found = [match for path in shards if (match := _OF.search(path.stem))]
    total = max((int(match[2]) for match in found), default=0)
    absent = total - len({int(match[1]) for match in found})
    return (f"{absent:,} of {total:,} shards, which are not there",) if absent > 0 else ()


def read_label(value: Any) -> int | str:
    """A label as a file holds it: a name, or a whole number, which is -1 for an unlabelled image. Raises ValueError for anything else."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and value.is_integer():  # what pandas makes of whole numbers beside missing ones
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= _UNLABELLED:
        return value
    if isinstance(value, str) and value and value.isprintable():
        return value
    raise ValueError(f"{reprlib.repr(value)}; allowed are whole numbers from 0, -1 for an unlabelled image, or names")


def read_labels(values: Iterable[Any], where: Callable[[int], str]) -> list[int | str]:
    """As `read_label`, for a column. Raises UserError, with the place that `where` names, for what is no label."""
    labels = []
    for index, value in enumerate(values):
        try:
            labels.append(read_label(value))
        except ValueError as error:
            raise UserError(f"{where(index)} has label {error}") from error
    return labels


def name_classes(labels: Sequence[int | str], where: Callable[[int], str]) -> tuple[str, ...]:
    """The names among the labels, sorted; numbers up to the largest where they are numbers, padded so that they sort as these do.

    `where` names the place of the label at an index. Raises UserError for a mixture of both, and for a number beyond all reason.
    """
    labelled = [index for index, label in enumerate(labels) if label != _UNLABELLED]
    kinds = {isinstance(labels[index], str): index for index in labelled}
    if len(kinds) == 2:
        raise UserError(
            f"{where(kinds[True])} has label {reprlib.repr(labels[kinds[True]])}, a name, and {where(kinds[False])} has"
            f" {labels[kinds[False]]!r}, a number; allowed is one kind in a data set"
        )
    if True in kinds:
        return tuple(sorted({str(labels[index]) for index in labelled}))
    count = max((int(labels[index]) for index in labelled), default=-1) + 1
    if count > max(_MOST_CLASSES, len(labelled)):
        raise UserError(
            f"{where(labels.index(count - 1))} has label {reprlib.repr(count - 1)}, and there are {len(labelled):,} images;"
            f" allowed are labels below {_MOST_CLASSES:,}, or below the number of images"
        )
    digits = len(str(max(count - 1, 0)))
    return tuple(f"{number:0{digits}}" for number in range(count))


def number_labels(
    labels: Sequence[int | str], classes: Sequence[str], where: Callable[[int], str], *, are_names: bool
) -> NDArray[np.int64]:
    """The number of each label's class, int64 (N,), and -1 for unlabelled ones. Raises UserError for a label without a class.

    `are_names`: the classes were taken from labels that are names, so that a number is none of them.
    """
    known = {name: number for number, name in enumerate(classes)}
    numbers = np.full(len(labels), _UNLABELLED, dtype=np.int64)
    for index, label in enumerate(labels):
        if label == _UNLABELLED:
            continue
        number = known.get(label, -1) if isinstance(label, str) else -1 if are_names else label
        if not 0 <= number < len(classes):
            raise UserError(
                f"{where(index)} has label {reprlib.repr(label)}, none of the {len(classes)} classes of the training split"
            )
        numbers[index] = number
    return numbers
