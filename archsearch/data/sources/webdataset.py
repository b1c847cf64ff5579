"""Webdataset shards: tar files in which files of the same stem form a sample, its image and a `.cls` or `.json` with the label."""

# Not timm's wds reader: it streams decoded images only, without random access, so a subset would be drawn after decoding.

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from archsearch.data.image_folder import IMAGE_SUFFIXES, quote_names
from archsearch.data.sources.base import Entries, Loader, Source, name_classes, shard_splits, stamp_files
from archsearch.data.sources.tars import Member, members
from archsearch.errors import UserError

# As the webdataset package splits a name: at the first dot of its last part.
_SAMPLE = re.compile(r"^((?:.*/)?[^./][^/.]*)\.([^/]*)$")
_LABEL_FIELDS = ("label", "cls", "class")


@dataclass(frozen=True, kw_only=True)
class _Sample:
    key: str
    image: Member
    label: int | str


def webdataset_shards(root: Path) -> list[Path]:
    """Shards in a folder, or one folder below: tar files whose names end in a number."""
    found = [path for pattern in ("*.tar", "*/*.tar") for path in root.glob(pattern)]
    return [path for path in found if re.search(r"\d{3,}$", path.stem)]


class WebdatasetSource(Source):
    """Read at random, by the places of the members; labels are numbers or names."""

    kind = "webdataset"

    def __init__(self, root: Path, train_split: str) -> None:
        self._root = root
        self.name, self.path = root.name, str(root)
        self._shards = shard_splits(root, webdataset_shards(root), train_split)
        self.splits = tuple(self._shards)
        self.check_split(train_split)
        self._found: dict[str, list[_Sample]] = {}
        self.classes = name_classes([sample.label for sample in self._samples(train_split)])

    def entries(self, split: str) -> Entries:
        """From the headers of the shards and the small files with the labels."""
        self.check_split(split)
        number = {name: label for label, name in enumerate(self.classes)}
        labels, keys = [], []
        for sample in self._samples(split):
            label = number.get(sample.label, -1) if isinstance(sample.label, str) else sample.label
            if not 0 <= label < len(self.classes):
                raise UserError(
                    f"{sample.image.tar}: sample {sample.key!r} has label {sample.label!r}, none of the"
                    f" {len(self.classes)} classes of the training split"
                )
            labels.append(label)
            # A leading folder that only repeats the class's name is no part of the key.
            folder, _, rest = sample.key.partition("/")
            keys.append(rest if rest and folder == sample.label else sample.key)
        return Entries(labels=np.array(labels, dtype=np.int64), keys=tuple(keys))

    def read(self, split: str, indices: NDArray[np.int64]) -> Iterator[Loader]:
        """Loaders that read one member each, at its place in the tar."""
        samples = self._samples(split)
        for index in indices:
            yield samples[index].image.read

    def stamp(self, splits: Iterable[str]) -> str:
        """From the shards."""
        return stamp_files(self._root, [path for split in splits for path in self._shards[split]])

    def _samples(self, split: str) -> list[_Sample]:
        if split not in self._found:
            self._found[split] = [sample for shard in self._shards[split] for sample in _read_shard(shard)]
        return self._found[split]


def _read_shard(shard: Path) -> Iterator[_Sample]:
    """Samples whose files stand next to one another, as the format demands."""
    key, parts = "", dict[str, Member]()
    for member in members(shard):
        match = _SAMPLE.match(member.name.removeprefix("./"))
        if match is None:
            continue
        if match[1] != key:
            yield from _make_sample(shard, key, parts)
            key, parts = match[1], {}
        parts[match[2].lower()] = member
    yield from _make_sample(shard, key, parts)


def _make_sample(shard: Path, key: str, parts: dict[str, Member]) -> Iterator[_Sample]:
    images = [member for suffix, member in parts.items() if f".{suffix}" in IMAGE_SUFFIXES]
    if not images:  # texts or boxes of an image that is not in this shard
        return
    try:
        label = _read_label(parts)
    except (ValueError, OSError) as error:
        raise UserError(f"{shard}: the label of sample {key!r} cannot be read ({error})") from error
    if label is None:
        raise UserError(
            f"{shard}: sample {key!r} has no label; found {quote_names(sorted(parts))}, needed is cls, or json with"
            f" {' or '.join(_LABEL_FIELDS)}"
        )
    yield _Sample(key=key, image=images[0], label=label)


def _read_label(parts: dict[str, Member]) -> int | str | None:
    if "cls" in parts:
        text = parts["cls"].read().decode().strip()
        return int(text) if re.fullmatch(r"\d+", text) else text
    if "json" in parts:
        document = json.loads(parts["json"].read())
        values = [document[field] for field in _LABEL_FIELDS if field in document] if isinstance(document, dict) else []
        return next((value for value in values if isinstance(value, int | str)), None)
    return None
