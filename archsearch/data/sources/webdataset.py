"""Webdataset shards: tar files in which files of the same stem form a sample, its image and a `.cls` or `.json` with the label."""

# Not timm's wds reader: it streams decoded images only, without random access, so a subset would be drawn after decoding.

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from archsearch.data.image_folder import IMAGE_SUFFIXES, quote_names
from archsearch.data.sources.base import (
    Entries,
    Loader,
    Source,
    absent_shards,
    find_shards,
    name_classes,
    number_labels,
    read_label,
    shard_splits,
    stamp_files,
)
from archsearch.data.sources.tars import Member, members
from archsearch.errors import UserError, first_line

# As the webdataset package splits a name: at the first dot of its last part.
_SAMPLE = re.compile(r"^((?:.*/)?[^./][^/.]*)\.([^/]*)$")
_LABEL_FIELDS = ("label", "cls", "class")
_NUMBER = re.compile(r"((^|[-_.])\d+|\d{3,})([-_]of[-_]\d+)?$")
_TAR = re.compile(r"\.(tar|tgz|tar\.(gz|bz2|xz|zst))$")
_MOST_LABEL_BYTES = 16 << 20  # of a .cls or .json file


@dataclass(frozen=True, kw_only=True)
class _Sample:
    key: str
    image: Member
    label: int | str


@dataclass(frozen=True, kw_only=True)
class _Split:
    """The samples of a split, and the names of files and samples that are none."""

    samples: list[_Sample] = field(default_factory=list)
    no_sample: list[str] = field(default_factory=list)
    no_image: list[str] = field(default_factory=list)

    @property
    def labels(self) -> list[int | str]:
        return [sample.label for sample in self.samples]

    def left_out(self) -> list[str]:
        """In words, what lies in the shards and is no sample."""
        found = (("files of no sample", self.no_sample), ("samples without an image", self.no_image))
        return [f"{len(names):,} {what} ({quote_names(names)})" for what, names in found if names]

    def where(self, index: int) -> str:
        """The place of a sample, for an error."""
        sample = self.samples[index]
        return f"{sample.image.tar}: sample {sample.key!r}"


def webdataset_shards(root: Path) -> list[Path]:
    """Shards in a folder, or one folder below: tar files whose names end in a number."""
    return [path for path in find_shards(root, ".tar") if _NUMBER.search(path.stem)]


class WebdatasetSource(Source):
    """Read at random, by the places of the members; labels are numbers or names."""

    kind = "webdataset"

    def __init__(self, root: Path, train_split: str) -> None:
        self._root = root
        self.name, self.path = root.name, str(root)
        shards = webdataset_shards(root)
        _refuse_other_tars(root, shards)
        self._shards = shard_splits(root, shards, train_split, number=_NUMBER)
        self.splits = tuple(self._shards)
        self.check_split(train_split)
        self._found: dict[str, _Split] = {}
        train = self._split(train_split)
        self.classes = name_classes(train.labels, train.where)
        self._are_names = any(isinstance(label, str) for label in train.labels)

    def entries(self, split: str) -> Entries:
        """From the headers of the shards and the small files with the labels."""
        self.check_split(split)
        found = self._split(split)
        keys = []
        for sample in found.samples:
            # A leading folder that only repeats the class's name is no part of the key.
            folder, _, rest = sample.key.partition("/")
            keys.append(rest if rest and folder == sample.label else sample.key)
        return Entries(
            labels=number_labels(found.labels, self.classes, found.where, are_names=self._are_names),
            keys=tuple(keys),
            left_out=(*absent_shards(self._shards[split]), *found.left_out()),
        )

    def read(self, split: str, indices: NDArray[np.int64]) -> Iterator[Loader]:
        """Loaders that read one member each, at its place in the tar."""
        samples = self._split(split).samples
        for index in indices:
            yield samples[index].image.read

    def stamp(self, splits: Iterable[str]) -> str:
        """From the shards, and whether images are unlabelled: earlier versions took these for a class, and kept it prepared."""
        names = list(splits)
        stamp = stamp_files(self._root, [path for split in names for path in self._shards[split]])
        return f"{stamp}-unlabelled" if any(-1 in self._split(split).labels for split in names) else stamp

    def _split(self, split: str) -> _Split:
        if split not in self._found:
            self._found[split] = _Split()
            for shard in self._shards[split]:
                _read_shard(shard, self._found[split])
        return self._found[split]


def _refuse_other_tars(root: Path, shards: list[Path]) -> None:
    """Raise UserError for a tar beside the shards that is not read as one."""
    folders = {root, *(shard.parent for shard in shards)}
    beside = {path for folder in folders for path in folder.iterdir() if _TAR.search(path.name)} - set(shards)
    names = [path.relative_to(root).as_posix() for path in sorted(beside) if not path.name.startswith(".")]
    if names:
        raise UserError(
            f"{root}: {quote_names(names)} beside webdataset shards; allowed are uncompressed .tar files whose names end in a number"
        )


def _read_shard(shard: Path, into: _Split) -> None:
    """Add the samples of a shard, whose files stand next to one another, as the format demands."""
    key, parts = "", dict[str, Member]()
    for member in members(shard):
        match = _SAMPLE.match(member.name.removeprefix("./"))
        if match is None:
            into.no_sample.append(member.name)
            continue
        if match[1] != key:
            _add_sample(shard, key, parts, into)
            key, parts = match[1], {}
        if match[2].lower() in parts:
            raise UserError(f"{shard}: sample {key!r} has two files of the ending {match[2]!r}; allowed is one")
        parts[match[2].lower()] = member
    _add_sample(shard, key, parts, into)


def _add_sample(shard: Path, key: str, parts: dict[str, Member], into: _Split) -> None:
    if not parts:
        return
    images = [member for suffix, member in parts.items() if f".{suffix}" in IMAGE_SUFFIXES]
    try:
        label = _read_label(parts)
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{shard}: the label of sample {key!r} cannot be read ({first_line(error)})") from error
    if not images and label is None:  # a text or boxes of no image in this shard
        into.no_image.append(key)
        return
    if label is None or len(images) != 1:
        what = "no label" if label is None else f"{len(images)} images"
        raise UserError(
            f"{shard}: sample {key!r} has {what}; found {quote_names(sorted(parts))}, needed are one image and cls,"
            f" or json with {' or '.join(_LABEL_FIELDS)}"
        )
    into.samples.append(_Sample(key=key, image=images[0], label=label))


def _read_label(parts: dict[str, Member]) -> int | str | None:
    """The label in a sample's `.cls` or `.json`. Raises ValueError, OSError or RecursionError where it is none."""
    for suffix in ("cls", "json"):
        if suffix in parts and parts[suffix].size > _MOST_LABEL_BYTES:
            raise ValueError(f".{suffix} holds {parts[suffix].size:,} bytes; allowed are {_MOST_LABEL_BYTES:,}")
    if "cls" in parts:
        text = parts["cls"].read().decode().strip()
        return read_label(int(text) if re.fullmatch(r"-?[0-9]+", text) else text)
    if "json" in parts:
        document = json.loads(parts["json"].read())
        values = [document.get(field) for field in _LABEL_FIELDS] if isinstance(document, dict) else []
        return next((read_label(value) for value in values if value is not None), None)
    return None
