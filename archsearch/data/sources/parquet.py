"""Hugging Face parquet shards: a column of encoded images, one of labels, class names in the schema's metadata."""

# Not timm's hfds reader: it copies the whole set into a cache of the datasets package first.

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from archsearch.data.image_folder import quote_names
from archsearch.data.sources.base import (
    Entries,
    Loader,
    Source,
    absent_shards,
    find_shards,
    name_classes,
    number_labels,
    read_labels,
    shard_splits,
    stamp_files,
)
from archsearch.errors import UserError, first_line
from archsearch.system import open_regular

_IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")


def parquet_shards(root: Path) -> list[Path]:
    """Parquet files in a folder, or one folder below."""
    return find_shards(root, ".parquet")


class ParquetSource(Source):
    """Read by row groups, so that at most one of them is in memory."""

    kind = "parquet"

    def __init__(self, root: Path, train_split: str) -> None:
        self._root = root
        self.name, self.path = root.name, str(root)
        self._shards = shard_splits(root, parquet_shards(root), train_split)
        self.splits = tuple(self._shards)
        self.check_split(train_split)
        first = self._shards[train_split][0]
        self._schema = _open_shard(first).schema_arrow
        self._image = _column(first, self._schema, _IMAGE_COLUMNS)
        self._label = _column(first, self._schema, _LABEL_COLUMNS)
        self._found: dict[str, list[int | str]] = {}
        self.classes, self._are_names = _declared_classes(self._schema, self._label), False
        if not self.classes:
            labels = self._labels(train_split)
            self.classes = name_classes(labels, partial(self._where, train_split))
            self._are_names = any(isinstance(label, str) for label in labels)

    def entries(self, split: str) -> Entries:
        """From the columns of labels and of file names alone."""
        self.check_split(split)
        where = partial(self._where, split)
        labels = number_labels(self._labels(split), self.classes, where, are_names=self._are_names)
        keys = self._keys(split, len(labels))
        return Entries(labels=labels, keys=keys, left_out=absent_shards(self._shards[split]))

    def read(self, split: str, indices: NDArray[np.int64]) -> Iterator[Loader]:
        """Loaders of encoded images; row groups are read one after another, each once."""
        start = 0
        for shard in self._shards[split]:
            file = _open_shard(shard)
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                wanted = indices[(indices >= start) & (indices < stop)] - start
                if len(wanted):
                    with _explain_damage(shard, f"row group {group} cannot be read"):
                        column = file.read_row_group(group, columns=[self._image]).column(self._image)
                    yield from (partial(_image_bytes, column[int(row)]) for row in wanted)
                start = stop

    def stamp(self, splits: Iterable[str]) -> str:
        """From the shards."""
        return stamp_files(self._root, [path for split in splits for path in self._shards[split]])

    def _labels(self, split: str) -> list[int | str]:
        if split not in self._found:
            values = []
            for shard in self._shards[split]:
                self._check_schema(shard)
                values.extend(_read_values(shard, self._label))
            self._found[split] = read_labels(values, partial(self._where, split))
        return self._found[split]

    def _where(self, split: str, row: int) -> str:
        """The shard of a split's row, and its row there."""
        for shard in self._shards[split]:
            num_rows = _open_shard(shard).metadata.num_rows
            if row < num_rows:
                break
            row -= num_rows
        return f"{shard}: row {row}"

    def _check_schema(self, shard: Path) -> None:
        """Raise UserError where a shard's two columns are not those of the first training shard."""
        schema = _open_shard(shard).schema_arrow
        for name in (self._image, self._label):
            wanted = self._schema.field(name).type
            found = schema.field(name).type if schema.get_field_index(name) >= 0 else None
            if found != wanted:
                there = f"is {found}" if found else f"is missing, found {quote_names(schema.names)}"
                raise UserError(f"{shard}: column {name!r} {there}; needed is {wanted}, as in the first training shard")

    def _keys(self, split: str, count: int) -> tuple[str, ...]:
        """File names where the shards keep them, else row numbers."""
        first = self._schema.field(self._image).type
        if not (pa.types.is_struct(first) and first.get_field_index("path") >= 0):
            return tuple(f"{row:09}" for row in range(count))
        names: list[str | None] = []
        for shard in self._shards[split]:
            names.extend(_read_values(shard, f"{self._image}.path"))
        return tuple(f"{row:09}" if name is None else Path(name).name for row, name in enumerate(names))


def _column(shard: Path, schema: pa.Schema, names: tuple[str, ...]) -> str:
    found = next((name for name in names if schema.get_field_index(name) >= 0), None)
    if found is None:
        raise UserError(f"{shard}: no single column named {' or '.join(names)}; found {quote_names(schema.names)}")
    return found


@contextmanager
def _explain_damage(shard: Path, what: str) -> Iterator[None]:
    """A UserError in place of what pyarrow raises on damaged files."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{shard}: {what} ({first_line(error)})") from error


def _open_shard(shard: Path) -> Any:
    with _explain_damage(shard, "not a whole parquet file"):
        open_regular(shard).close()
        return pq.ParquetFile(shard, page_checksum_verification=True)


def _read_values(shard: Path, column: str) -> list[Any]:
    """The values of a column, or of a part of one such as `image.path`."""
    file = _open_shard(shard)
    with _explain_damage(shard, f"column {column!r} cannot be read"):
        found = file.read(columns=[column]).column(0)
        values: list[Any] = (found.flatten()[0] if pa.types.is_struct(found.type) else found).to_pylist()
        return values


def _image_bytes(value: Any) -> bytes:
    content = value.as_py()
    content = content["bytes"] if isinstance(content, dict) else content
    if not isinstance(content, bytes):
        raise ValueError("the row holds no bytes")
    return content


def _declared_classes(schema: pa.Schema, column: str) -> tuple[str, ...]:
    """Class names that the datasets package wrote into the metadata, empty without any."""
    try:
        document = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names = document.get("info", {}).get("features", {}).get(column, {}).get("names", ())
        if isinstance(names, dict):  # number -> name
            names = [names[str(number)] for number in range(len(names))]
        return tuple(str(name) for name in names) if isinstance(names, list) else ()
    except (
        ValueError,
        AttributeError,
        TypeError,
        KeyError,
        RecursionError,
    ):  # metadata of another writer: the labels give the number of classes
        return ()
