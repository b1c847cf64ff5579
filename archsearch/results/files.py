"""Writing and reading trials.parquet and front.parquet.

Both are derived from the study: a file that is lost or damaged is written again when the run is continued.
"""

import contextlib
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from archsearch.errors import UserError, first_line
from archsearch.identity import with_throughput_ids
from archsearch.results.fronts import front_rows
from archsearch.results.manifest import MANIFEST_FILE, replace_derived
from archsearch.results.schema import FRONT_FILE, FRONT_SCHEMA, LATER_COLUMNS, SCHEMA, TRIALS_FILE, Row

if TYPE_CHECKING:
    import pandas as pd

_EPOCH = datetime(1970, 1, 1, tzinfo=ZoneInfo("UTC"))
_BLOCK = 10_000  # rows that are made into a table at once


def write_trials(rows: Sequence[Row], folder: Path) -> None:
    """Replace trials.parquet in one step; rows have every column of SCHEMA."""

    def write(path: Path) -> None:
        with path.open("wb") as file, pq.ParquetWriter(file, SCHEMA, write_page_checksum=True) as writer:
            for start in range(0, max(1, len(rows)), _BLOCK):  # so that no second copy of a long run is in memory
                writer.write_table(_table(rows[start : start + _BLOCK], SCHEMA))

    replace_derived(folder / TRIALS_FILE, write)


def write_front(rows: Sequence[Row], folder: Path, objectives: Sequence[str], throughput_id: str | None = None) -> None:
    """Replace front.parquet in one step, from the rows that `ranked` gave."""
    table = _table(front_rows(rows, objectives, throughput_id), FRONT_SCHEMA)
    replace_derived(folder / FRONT_FILE, lambda path: write_parquet(table, path))


def _table(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """The rows as a table. Raises UserError where a damaged study has other values than its columns can hold."""
    try:
        return pa.Table.from_pylist(list(rows), schema=schema)
    except (pa.ArrowException, OverflowError) as error:
        raise UserError(
            f"the run's study is damaged: a trial does not fit its columns ({first_line(error)})"
        ) from error


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a table to a file."""
    with path.open("wb") as file:  # pyarrow takes a path such as a:/b for an address
        pq.write_table(table, file, write_page_checksum=True)


def read_trials(folder: Path) -> "pd.DataFrame":
    """trials.parquet as a frame, columns as in SCHEMA. Raises UserError when it is missing or damaged."""
    return _read(folder / TRIALS_FILE, SCHEMA)


def trial_ids(folder: Path) -> dict[str, int]:
    """The arch_ids of a run, each with the number of its first trial. Raises UserError as `read_trials`; only these columns are read."""
    schema = pa.schema([SCHEMA.field("trial"), SCHEMA.field("arch_id")])
    rows = _read_table(folder / TRIALS_FILE, schema).to_pylist()
    return {row["arch_id"]: row["trial"] for row in reversed(rows)}


def read_rows(folder: Path, without: Sequence[str] = ()) -> list[Row]:
    """The rows of trials.parquet as plain values, None for an empty one. Raises UserError when the file is missing or damaged.

    Columns named in `without` are left out, which saves time and memory: `arch` is as large as all others together.
    """
    table = read_columns(folder, [name for name in SCHEMA.names if name not in without])
    times = [field.name for field in SCHEMA if pa.types.is_timestamp(field.type) and field.name not in without]
    try:
        rows: list[Row] = table.to_pylist()
        for row in rows:
            row.update({name: _EPOCH + timedelta(milliseconds=row[name]) for name in times if row[name] is not None})
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise _other_columns(folder, error) from error
    return with_throughput_ids(rows)


def read_columns(folder: Path, names: Sequence[str]) -> pa.Table:
    """These columns of trials.parquet, with nothing in place of what is not a number, and times as milliseconds; reads no other part of the file.

    Raises UserError when the file is missing or damaged.
    """
    schema = pa.schema([SCHEMA.field(name) for name in names])
    table = _read_table(folder / TRIALS_FILE, schema)
    try:
        return _plain(table.cast(schema))
    except (pa.ArrowException, ValueError) as error:
        raise _other_columns(folder, error) from error


def _other_columns(folder: Path, error: Exception) -> UserError:
    return UserError(f"{folder}: trials.parquet does not hold what its columns say ({first_line(error)})")


def _plain(table: pa.Table) -> pa.Table:
    """The table with nothing in place of what is not a number, and with times as milliseconds.

    Of times and of `pa.scalar` pyarrow would import pandas, which takes longer than most reports.
    """
    for place, field in enumerate(table.schema):
        column = table.column(place)
        if pa.types.is_floating(field.type):
            table = table.set_column(place, field, pc.if_else(pc.is_nan(column), pa.nulls(1, field.type)[0], column))
        elif pa.types.is_timestamp(field.type):
            table = table.set_column(place, field.name, column.cast(pa.int64()))
    return table


def read_front(folder: Path) -> "pd.DataFrame":
    """front.parquet as a frame: `front_name` and the columns of SCHEMA. Raises UserError when it is missing or damaged."""
    return _read(folder / FRONT_FILE, FRONT_SCHEMA)


def _read(path: Path, schema: pa.Schema) -> "pd.DataFrame":
    frame: pd.DataFrame = _read_table(path, schema).to_pandas()
    return frame


def _is_damaged_text(column: pa.ChunkedArray) -> bool:
    """Whether a column has bytes for text, or a text with what no run writes, and a terminal would obey."""
    if not pa.types.is_string(column.type):
        return bool(pa.types.is_binary(column.type))
    return bool(pc.any(pc.match_substring_regex(column, r"[\x00-\x1f\x7f]")).as_py())


def _read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """The columns of the schema, as the file has them."""
    again = "give the run's `archsearch run` command again to have it written from the run's storage"
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; {again}")
    try:
        # Opened here: pyarrow opens a path twice, and a run may replace the file in between.
        with path.open("rb") as opened:
            file = pq.ParquetFile(opened, page_checksum_verification=True)
            table = file.read([name for name in schema.names if name in file.schema_arrow.names])
        if any(map(_is_damaged_text, table.columns)):
            raise ValueError("its texts are damaged")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable parquet file ({first_line(error)}); {again}") from error
    for name in schema.names:
        if name not in table.column_names:
            if name not in LATER_COLUMNS:
                raise UserError(f"{path}: lacks the column {name!r}; {again}")
            table = table.append_column(schema.field(name), pa.nulls(len(table), schema.field(name).type))
    return table.select(schema.names)


@contextlib.contextmanager
def damage_is_an_error(folder: Path) -> Iterator[None]:
    """Turn what damaged contents of a run's files make code raise into a UserError; --debug shows where it was."""
    try:
        yield
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        AssertionError,
        RecursionError,
    ) as error:
        raise UserError(
            f"{folder}: {MANIFEST_FILE}, {TRIALS_FILE} or {FRONT_FILE} is damaged ({type(error).__name__}: {first_line(error)}); "
            "give the run's `archsearch run` command again to have them written from the study"
        ) from error
