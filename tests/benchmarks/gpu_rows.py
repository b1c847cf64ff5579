"""The rows of `gpu.py`: one figure each, and the file of a card, which keeps those of every commit."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from archsearch.system import replace_file

Row = dict[str, Any]

_TEXT, _COUNT = pa.string(), pa.int64()
SCHEMA = pa.schema(
    [
        *((name, _TEXT) for name in ("section", "what", "side", "dtype", "mode", "layout")),
        *((name, _COUNT) for name in ("batch_size", "image_size")),
        ("value", pa.float64()),
        *((name, _TEXT) for name in ("unit", "note", "commit", "date", "conditions")),
    ]
)
# What a row is a figure of: a later one of the same takes its place.
_NOT_OF_KEY = ("value", "note", "date", "conditions")
KEY = tuple(name for name in SCHEMA.names if name not in _NOT_OF_KEY)


def card_file(folder: Path, card: str) -> Path:
    """FOLDER/gpu-CARD.parquet."""
    return folder / f"gpu-{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}.parquet"


def read_rows(path: Path) -> list[Row]:
    """Those of a file; none where there is no file."""
    rows: list[Row] = pq.read_table(path).to_pylist() if path.exists() else []
    return rows


def merged(rows: Iterable[Row]) -> list[Row]:
    """The last row of every key, at the place of the first."""
    latest: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        whole = dict.fromkeys(SCHEMA.names) | row
        latest[tuple(whole[name] for name in KEY)] = whole
    return list(latest.values())


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """The whole file anew, by renaming: whoever is killed meanwhile leaves the old one or the new one."""
    table = pa.Table.from_pylist(list(rows), SCHEMA)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))
