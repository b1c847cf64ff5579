"""Hugging Face parquet shards: a column of encoded images, one of labels, class names in the schema's metadata."""

# Not timm's hfds reader: it copies the whole set into a cache of the datasets package first.

import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from archsearch.data.image_folder import quote_names
from archsearch.data.sources.base import Entries, Loader, Source, name_classes, shard_splits, stamp_files
from archsearch.errors import UserError, first_line

_IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")


def parquet_shards(root: Path) -> list[Path]:
    """Parquet files in a folder, or one folder below."""
    return [path for pattern in ("*.parquet", "*/*.parquet") for path in root.glob(pattern)]


class ParquetSource(Source):
    """Read by row groups, so that at most one of them is in memory."""

    kind = "parquet"

    def __init__(self, root: Path, train_split: str) -> None:
        self._root = root
        self.name, self.path = root.name, str(root)
        self._shards = shard_splits(root, parquet_shards(root), train_split)
        self.splits = tuple(self._shards)
        self.check_split(train_split)
        schema = _open_shard(self._shards[train_split][0]).schema_arrow
        self._image = self._column(schema, _IMAGE_COLUMNS)
        self._label = self._column(schema, _LABEL_COLUMNS)
        self.classes = _declared_classes(schema, self._label) or name_classes(
            [value for value in self._labels(train_split) if value is not None]
        )

    def entries(self, split: str) -> Entries:
        """From the columns of labels and of file names alone."""
        self.check_split(split)
        values = self._labels(split)
        if values and isinstance(values[0], str):
            number = {name: label for label, name in enumerate(self.classes)}
            numbers = [number.get(str(value), -1) for value in values]
        else:
            numbers = [-1 if value is None else int(value) for value in values]
        labels = np.array(numbers, dtype=np.int64)
        wrong = np.flatnonzero((labels < 0) | (labels >= len(self.classes)))
        if len(wrong):
            raise UserError(
                f"{self.path}: row {wrong[0]} of split {split!r} has label {values[wrong[0]]!r}, none of the"
                f" {len(self.classes)} classes; every image needs its class"
            )
        return Entries(labels=labels, keys=self._keys(split, len(labels)))

    def read(self, split: str, indices: NDArray[np.int64]) -> Iterator[Loader]:
        """Loaders of encoded images; row groups are read one after another, each once."""
        start = 0
        for shard in self._shards[split]:
            file = _open_shard(shard)
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                wanted = indices[(indices >= start) & (indices < stop)] - start
                if len(wanted):
                    column = file.read_row_group(group, columns=[self._image]).column(self._image)
                    yield from (partial(_image_bytes, column[int(row)]) for row in wanted)
                start = stop

    def stamp(self, splits: Iterable[str]) -> str:
        """From the shards."""
        return stamp_files(self._root, [path for split in splits for path in self._shards[split]])

    def _column(self, schema: pa.Schema, names: tuple[str, ...]) -> str:
        found = next((name for name in names if name in schema.names), None)
        if found is None:
            raise UserError(f"{self.path}: no column named {' or '.join(names)}; found {quote_names(schema.names)}")
        return found

    def _labels(self, split: str) -> list[Any]:
        return [
            value for shard in self._shards[split] for value in _read_column(shard, self._label).column(0).to_pylist()
        ]

    def _keys(self, split: str, count: int) -> tuple[str, ...]:
        """File names where the shards keep them, else row numbers."""
        first = _open_shard(self._shards[split][0]).schema_arrow.field(self._image).type
        if not (pa.types.is_struct(first) and first.get_field_index("path") >= 0):
            return tuple(f"{row:09}" for row in range(count))
        names: list[str | None] = []
        for shard in self._shards[split]:
            structs = _read_column(shard, f"{self._image}.path").column(0).combine_chunks()
            names.extend(structs.field("path").to_pylist())
        return tuple(f"{row:09}" if name is None else Path(name).name for row, name in enumerate(names))


def _open_shard(shard: Path) -> Any:
    try:
        return pq.ParquetFile(shard)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{shard}: not a whole parquet file ({first_line(error)})") from error


def _read_column(shard: Path, column: str) -> pa.Table:
    try:
        return _open_shard(shard).read(columns=[column])
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{shard}: column {column!r} cannot be read ({first_line(error)})") from error


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
        named = names.values() if isinstance(names, dict) else names
        return tuple(str(name) for name in named)
    except (ValueError, AttributeError, TypeError):  # metadata of another writer: the labels give the number of classes
        return ()
