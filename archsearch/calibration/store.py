"""The file of a calibration: its frozen schema, written in one step, and read back with care."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from archsearch.errors import UserError
from archsearch.system import replace_file

Row = dict[str, Any]
FOLDER = "calibration"
FORMAT_VERSION = 1
_METADATA = b"archsearch.calibration"

# One row a record: a layer's slope (record "slope"; value in ms, error its standard error), a whole network ("network"; value in img/s, error its relative
# interquartile range, group train, held_out or paper) or a coefficient of the fit ("coefficient"). Columns that a record does not have are null.
SCHEMA = pa.schema(
    [
        pa.field("record", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("unit", pa.string(), nullable=False),
        pa.field("error", pa.float64()),
        pa.field("rounds", pa.int64()),
        pa.field("noisy", pa.bool_()),
        pa.field("drifted", pa.bool_()),
        pa.field("reference_img_s", pa.float64()),
        pa.field("predicted_img_s", pa.float64()),
        pa.field("macs", pa.int64()),
        pa.field("arch_id", pa.string()),
        pa.field("layer", pa.string()),
        pa.field("arch", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("measured_at", pa.timestamp("ms", tz="UTC")),
        pa.field("seconds", pa.float64()),
    ]
)


def write_rows(rows: Sequence[Row], about: Mapping[str, Any], path: Path) -> None:
    """Replace the file in one step; `about` is kept as JSON in its metadata. UserError where it cannot be written."""
    document = json.dumps({"format_version": FORMAT_VERSION, **about}, allow_nan=False)
    schema = SCHEMA.with_metadata({_METADATA: document.encode()})
    table = pa.Table.from_pylist(list(rows), schema=schema)

    def into(temporary: Path) -> None:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, temporary)

    replace_file(path, into)


def read_rows(path: Path) -> tuple[list[Row], dict[str, Any]]:
    """Rows and what `write_rows` was told about them; UserError when the file is damaged or no calibration."""
    again = "delete it and give `archsearch calibrate` again"
    try:
        # In one go: pyarrow opens a path twice, and a calibration may replace the file in between.
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
        about = json.loads((table.schema.metadata or {})[_METADATA])
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: damaged or unreadable ({_first_line(error)}); {again}") from error
    except KeyError as error:
        raise UserError(f"{path}: a parquet file, but no calibration; {again}") from error
    if not isinstance(about, dict) or about.get("format_version") != FORMAT_VERSION or table.schema != SCHEMA:
        raise UserError(f"{path}: not the calibration format of this version ({FORMAT_VERSION}); {again}")
    rows: list[Row] = table.to_pylist()
    return rows, about


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
