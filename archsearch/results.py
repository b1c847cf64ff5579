"""The files of a run: the schema of trials.parquet, Pareto fronts, the manifest; writing and reading them.

All of them are derived from the study: a file that is lost or damaged is written again when the run is continued.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from archsearch.errors import UserError, first_line, without_passwords
from archsearch.identity import with_throughput_ids
from archsearch.metrics import Array, front_ranks, is_dominated
from archsearch.system import flocked, replace_file

Row = dict[str, Any]
Direction = Literal["maximize", "minimize"]

TRIALS_FILE, FRONT_FILE, MANIFEST_FILE = "trials.parquet", "front.parquet", "manifest.json"
LOCK_FILE = "run.lock"  # held by the driver at work in the folder
MANIFEST_VERSION = 1
ENDED = ("complete", "stopped", "failed")  # the states of trials that are over

OBJECTIVES: dict[str, Direction] = {
    "proxy_score": "maximize",
    "throughput_img_s": "maximize",
    "params": "minimize",
    "macs": "minimize",
    "latency_ms": "minimize",
    "peak_memory_bytes": "minimize",
}
# Objectives that vary from one measurement to the next; the others are exact or repeatable.
_TIMED = frozenset({"throughput_img_s", "latency_ms"})
# Objectives that depend on the device and its conditions: ranked only within one identity of the throughput (see `identity`).
DEVICE_OBJECTIVES = frozenset({*_TIMED, "peak_memory_bytes"})

RUN_FRONT = "objectives"
PAIR_FRONTS: dict[str, tuple[str, str]] = {
    f"proxy_score/{other}": ("proxy_score", other) for other in ("macs", "params", "throughput_img_s")
}

_BLOCK = 10_000  # rows that are made into a table at once
_TIME = pa.timestamp("ms", tz="UTC")


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


# The columns of trials.parquet; docs/results.md has the meaning of each. Frozen: columns are only added, at the end.
SCHEMA = pa.schema(
    [
        _required("trial", pa.int64()),
        _required("arch_id", pa.string()),
        _required("state", pa.string()),
        pa.field("reason", pa.string()),
        _required("is_fixed", pa.bool_()),
        pa.field("paper", pa.string()),
        _required("in_band", pa.bool_()),
        pa.field("reused_from", pa.int64()),
        pa.field("front", pa.int64()),
        _required("macs", pa.int64()),
        pa.field("macs_fvcore", pa.int64()),
        _required("params", pa.int64()),
        _required("architecture", pa.string()),
        pa.field("throughput_img_s", pa.float64()),
        pa.field("throughput_iqr", pa.float64()),
        pa.field("latency_ms", pa.float64()),
        pa.field("throughput_noisy", pa.bool_()),
        pa.field("throughput_ratio", pa.float64()),
        pa.field("throughput_drift", pa.float64()),
        pa.field("peak_memory_bytes", pa.int64()),
        pa.field("proxy_score", pa.float64()),
        pa.field("proxy_score_se", pa.float64()),
        pa.field("proxy_id", pa.string()),
        pa.field("proxy_train_loss", pa.float64()),
        pa.field("proxy_retried", pa.bool_()),
        _required("device", pa.string()),
        pa.field("device_name", pa.string()),
        _required("dtype", pa.string()),
        _required("mode", pa.string()),
        _required("batch_size", pa.int64()),
        _required("image_size", pa.int64()),
        _required("seed", pa.int64()),
        _required("started_at", _TIME),
        pa.field("finished_at", _TIME),
        pa.field("seconds_count", pa.float64()),
        pa.field("seconds_throughput", pa.float64()),
        pa.field("seconds_proxy", pa.float64()),
        pa.field("seconds_total", pa.float64()),
        _required("archsearch_version", pa.string()),
        pa.field("torch_version", pa.string()),
        _required("python_version", pa.string()),
        pa.field("conditions", pa.string()),
        _required("arch", pa.string()),
        pa.field("throughput_predicted_img_s", pa.float64()),
        pa.field("throughput_again_img_s", pa.float64()),
        pa.field("throughput_again_iqr", pa.float64()),
        pa.field("throughput_again_ratio", pa.float64()),
        pa.field("throughput_change", pa.float64()),
        pa.field("rung", pa.int64()),
        pa.field("rung_score", pa.float64()),
        pa.field("rung_score_se", pa.float64()),
        pa.field("rung_proxy_id", pa.string()),
        pa.field("learning_curve", pa.string()),
        pa.field("train_images", pa.int64()),
        pa.field("proxy_seeds", pa.int64()),
        pa.field("proxy_score_mean", pa.float64()),
        pa.field("proxy_score_sd", pa.float64()),
        pa.field("proxy_seed_scores", pa.string()),
        pa.field("proxy_loader_images_s", pa.float64()),
        pa.field("proxy_step_images_s", pa.float64()),
        pa.field("proxy_micro_batch", pa.int64()),
        pa.field("free_naswot", pa.float64()),
        pa.field("free_zico", pa.float64()),
        pa.field("free_expressivity", pa.float64()),
        pa.field("free_progressivity", pa.float64()),
        pa.field("free_trainability", pa.float64()),
        pa.field("run", pa.string()),
        pa.field("space", pa.string()),
        pa.field("budget_macs", pa.int64()),
        pa.field("schema_version", pa.int64()),
        pa.field("throughput_id", pa.string()),
        pa.field("throughput_raw_img_s", pa.float64()),
        pa.field("throughput_again_raw_img_s", pa.float64()),
        pa.field("other_cores", pa.float64()),
    ]
)
# Grows by one when a column is added or gets another meaning; null in files from before there was one.
SCHEMA_VERSION = 2
# Columns that a file of an earlier version may lack; they are then read as empty.
_LATER = frozenset(SCHEMA.names[SCHEMA.names.index("throughput_predicted_img_s") :])
FRONT_SCHEMA = SCHEMA.insert(0, _required("front_name", pa.string()))

# Filled in by the engine from the trainings up to each rung.
RUNG_COLUMNS = tuple(SCHEMA.names[SCHEMA.names.index("rung") : SCHEMA.names.index("proxy_seeds")])
# Filled in by the engine for a trial trained with several seeds.
SEED_COLUMNS = ("proxy_seeds", "proxy_score_mean", "proxy_score_sd", "proxy_seed_scores")
# The same in every row of a run, so that rows of several runs can be read together.
RUN_COLUMNS = ("run", "space", "budget_macs", "schema_version")
# Filled in by the engine, which makes the ranked figures from the measured ones.
RANK_COLUMNS = frozenset({"throughput_id", "throughput_raw_img_s", "throughput_again_raw_img_s"})

# The columns that an evaluation may fill in; the engine fills in the others.
MEASURED_COLUMNS = frozenset(SCHEMA.names[SCHEMA.names.index("throughput_img_s") :]).union({"macs_fvcore"}) - {
    "seed",
    "started_at",
    "finished_at",
    "seconds_total",
    "arch",
    "throughput_predicted_img_s",
    "throughput_change",
    "other_cores",
    *RUNG_COLUMNS,
    *SEED_COLUMNS,
    *RUN_COLUMNS,
    *RANK_COLUMNS,
}

# The measurement conditions. Figures of different conditions are never ranked together; a run has one value of each.
CONDITION_COLUMNS = ("device", "dtype", "mode", "batch_size", "image_size")


def check_measured(phase: str, values: Mapping[str, Any]) -> None:
    """Raise ValueError when a phase of an evaluation gives a column that it may not fill in, or a value that the column cannot hold."""
    for name, value in values.items():
        if name not in MEASURED_COLUMNS:
            raise ValueError(f"phase {phase} measured {name}, which is no column of {TRIALS_FILE} to be measured")
        if name != "conditions":
            kind = SCHEMA.field(name).type
            pa.array([value], kind)
            pa.array([value]).cast(kind)  # unlike the line above, refuses 1.5 as an integer


def check_objectives(names: Sequence[str], where: str = "--objectives") -> None:
    """Raise UserError for no, unknown or repeated objectives."""
    unknown = [name for name in names if name not in OBJECTIVES]
    if unknown or not names or len(set(names)) < len(names):
        got = f"unknown objective {unknown[0]!r}" if unknown else f"got {','.join(names) or 'nothing'!r}"
        raise UserError(f"{where}: {got}; write one or more of {', '.join(OBJECTIVES)}, each once")


def minimised(rows: Sequence[Row], objectives: Sequence[str]) -> Array:
    """The objectives of `rows` as (N, M) values to minimise: maximised ones negated."""
    signs = [-1.0 if OBJECTIVES[name] == "maximize" else 1.0 for name in objectives]
    return np.array([[float(row[name]) for name in objectives] for row in rows]).reshape(-1, len(signs)) * signs


def latest_identity(rows: Sequence[Row]) -> str | None:
    """The throughput_id of the latest timing, of a complete trial if there is one; None without any."""
    last: str | None = None
    for row in reversed(rows):
        if row["throughput_id"] is not None and row["state"] == "complete":
            return str(row["throughput_id"])
        last = last or row["throughput_id"]
    return last


def ranked(rows: Sequence[Row], objectives: Sequence[str], throughput_id: str | None = None) -> list[Row]:
    """The same rows with `front` set: 0 for the Pareto front of the complete ones, 1 for the next front, None for the others.

    Where an objective depends on the device only rows of this identity are ranked, by default those of the latest timing's.
    """
    by_trial = trial_ranks(rows, objectives, throughput_id)
    return [{**row, "front": by_trial.get(row["trial"])} for row in rows]


def trial_ranks(rows: Sequence[Row], objectives: Sequence[str], throughput_id: str | None = None) -> dict[int, int]:
    """The `front` of each row that is ranked, by trial."""
    rankable = _rankable(rows, objectives, throughput_id)
    ranks = front_ranks(minimised(rankable, objectives)).tolist()
    return {row["trial"]: rank for row, rank in zip(rankable, ranks, strict=True)}


class LiveFront:
    """The trials on a run's front while rows are added one by one; needs a comparison with its members for each."""

    def __init__(self, objectives: Sequence[str], throughput_id: str | None, members: Sequence[Row]) -> None:
        """The front that has these members; for rows of this identity, where an objective depends on the device."""
        self.throughput_id = throughput_id
        self.trials: list[int] = [row["trial"] for row in members]
        self._objectives = tuple(objectives)
        self._values: Array = minimised(members, self._objectives)

    def add(self, row: Row) -> list[int] | None:
        """The members that this row dominates, which are members no longer; None where it is no member itself."""
        if not _rankable([row], self._objectives, self.throughput_id):
            return None
        value = minimised([row], self._objectives)
        is_no_worse = np.all(self._values <= value, axis=1)
        if np.any(is_no_worse & np.any(self._values < value, axis=1)):
            return None
        is_out = np.all(value <= self._values, axis=1) & ~is_no_worse
        dominated = [trial for trial, out in zip(self.trials, is_out, strict=True) if out]
        self.trials = [*(trial for trial, out in zip(self.trials, is_out, strict=True) if not out), row["trial"]]
        self._values = np.vstack((self._values[~is_out], value))
        return dominated


def comparable(rows: Sequence[Row], objectives: Sequence[str], throughput_id: str | None = None) -> list[Row]:
    """The rows that these objectives can rank together: all, or where one depends on the device those of this identity."""
    if DEVICE_OBJECTIVES.isdisjoint(objectives):
        return list(rows)
    chosen = throughput_id or latest_identity(rows)
    return [row for row in rows if row["throughput_id"] == chosen]


def _rankable(rows: Sequence[Row], objectives: Sequence[str], throughput_id: str | None) -> list[Row]:
    """The complete rows of one identity that have every objective; asserts that they were measured under the same conditions."""
    within = comparable(rows, objectives, throughput_id)
    chosen = [row for row in within if row["state"] == "complete" and None not in map(row.get, objectives)]
    for column in (*CONDITION_COLUMNS, "proxy_id"):
        values = {row[column] for row in chosen}
        assert len(values) <= 1, f"rows of different {column} cannot be ranked together: {values}"
    return chosen


def front_rows(rows: Sequence[Row], objectives: Sequence[str], throughput_id: str | None = None) -> list[Row]:
    """The members of the run's front and of each pairwise front, with `front_name`; every architecture once in each. As in `ranked`."""
    originals = [row for row in rows if row["reused_from"] is None]
    members: list[Row] = []
    for name, axes in {RUN_FRONT: tuple(objectives), **PAIR_FRONTS}.items():
        rankable = _rankable(originals, axes, throughput_id)
        dominated = is_dominated(minimised(rankable, axes)).tolist()
        members += [{"front_name": name, **row} for row, is_out in zip(rankable, dominated, strict=True) if not is_out]
    return members


def front_members(rows: Sequence[Row]) -> list[Row]:
    """The members of the run's front among rows that `ranked` gave; every architecture once."""
    return [row for row in rows if row["front"] == 0 and row["reused_from"] is None]


def is_timed(objectives: Sequence[str]) -> bool:
    """Whether one of these objectives is timed, and so varies when measured again."""
    return not _TIMED.isdisjoint(objectives)


def timed_front(rows: Sequence[Row], objectives: Sequence[str]) -> list[Row]:
    """The members of the run's front among rows that `ranked` gave; none where no objective is timed."""
    return front_members(rows) if is_timed(objectives) else []


def write_trials(rows: Sequence[Row], folder: Path) -> None:
    """Replace trials.parquet in one step; rows have every column of SCHEMA."""

    def write(path: Path) -> None:
        with path.open("wb") as file, pq.ParquetWriter(file, SCHEMA, write_page_checksum=True) as writer:
            for start in range(0, max(1, len(rows)), _BLOCK):  # so that no second copy of a long run is in memory
                writer.write_table(_table(rows[start : start + _BLOCK], SCHEMA))

    _replace(folder / TRIALS_FILE, write)


def write_front(rows: Sequence[Row], folder: Path, objectives: Sequence[str], throughput_id: str | None = None) -> None:
    """Replace front.parquet in one step, from the rows that `ranked` gave."""
    table = _table(front_rows(rows, objectives, throughput_id), FRONT_SCHEMA)
    _replace(folder / FRONT_FILE, lambda path: write_parquet(table, path))


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


def write_manifest(manifest: Mapping[str, Any], folder: Path) -> None:
    """Replace manifest.json in one step, without passwords."""
    text = json.dumps(_without_passwords({"format_version": MANIFEST_VERSION, **manifest}), indent=2) + "\n"
    _replace(folder / MANIFEST_FILE, lambda path: path.write_text(text, encoding="utf-8"))


def _without_passwords(value: Any) -> Any:
    """A document without the passwords in its texts."""
    if isinstance(value, str):
        return without_passwords(value)
    if isinstance(value, Mapping):
        return {key: _without_passwords(item) for key, item in value.items()}
    return [_without_passwords(item) for item in value] if isinstance(value, (list, tuple)) else value


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    replace_file(path, write, kept="everything measured so far is kept in the run's storage")


def read_trials(folder: Path) -> pd.DataFrame:
    """trials.parquet as a frame, columns as in SCHEMA. Raises UserError when it is missing or damaged."""
    return _read(folder / TRIALS_FILE, SCHEMA)


def read_rows(folder: Path, without: Sequence[str] = ()) -> list[Row]:
    """The rows of trials.parquet as plain values, None for an empty one. Raises UserError when the file is missing or damaged.

    Columns named in `without` are left out, which saves time and memory: `arch` is as large as all others together.
    """
    path = folder / TRIALS_FILE
    schema = pa.schema([field for field in SCHEMA if field.name not in without])
    table = _read_table(path, schema)
    try:
        rows: list[Row] = _without_nan(table.cast(schema)).to_pylist()
    except (pa.ArrowException, ValueError) as error:
        raise UserError(f"{folder}: trials.parquet does not hold what its columns say ({first_line(error)})") from error
    return with_throughput_ids(rows)


def _without_nan(table: pa.Table) -> pa.Table:
    """The table with nothing in place of what is not a number."""
    for place, field in enumerate(table.schema):
        if pa.types.is_floating(field.type):
            column = table.column(place)
            empty = pa.scalar(None, field.type)
            table = table.set_column(place, field, pc.if_else(pc.is_nan(column), empty, column))
    return table


def read_front(folder: Path) -> pd.DataFrame:
    """front.parquet as a frame: `front_name` and the columns of SCHEMA. Raises UserError when it is missing or damaged."""
    return _read(folder / FRONT_FILE, FRONT_SCHEMA)


def _read(path: Path, schema: pa.Schema) -> pd.DataFrame:
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
        # Read at once: pyarrow opens a path twice, and a run may replace the file in between.
        file = pq.ParquetFile(pa.BufferReader(path.read_bytes()), page_checksum_verification=True)
        table = file.read([name for name in schema.names if name in file.schema_arrow.names])
        if any(map(_is_damaged_text, table.columns)):
            raise ValueError("its texts are damaged")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable parquet file ({first_line(error)}); {again}") from error
    for name in schema.names:
        if name not in table.column_names:
            if name not in _LATER:
                raise UserError(f"{path}: lacks the column {name!r}; {again}")
            table = table.append_column(schema.field(name), pa.nulls(len(table), schema.field(name).type))
    return table.select(schema.names)


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a run. Raises UserError when it is missing or damaged."""
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        is_missing = isinstance(error, FileNotFoundError)
        problem = "there is no such file" if is_missing else f"not a readable manifest ({error})"
        raise UserError(
            f"{path}: {problem}; name the folder of a run, or give its `archsearch run` command again"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format_version") != MANIFEST_VERSION:
        raise UserError(
            f"{path}: not a manifest of format {MANIFEST_VERSION}; give the run's `archsearch run` command again"
        )
    document: dict[str, Any] = _without_passwords(manifest)  # earlier versions wrote them
    return document


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


def study_name(manifest: Mapping[str, Any]) -> str:
    """The name of the run's study, which it keeps where its folder is renamed."""
    return str(manifest.get("study") or manifest["name"])


def run_state(folder: Path, manifest: Mapping[str, Any]) -> str:
    """The state that the manifest says, or `killed` where it says `running` and no process of this machine is at work in the folder."""
    state = str(manifest.get("state"))
    if state != "running" or sys.platform == "win32":  # which has no such lock
        return state
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return "killed"
    try:
        with flocked(descriptor, exclusive=False, wait=False) as is_free:
            return "killed" if is_free else state
    finally:
        os.close(descriptor)


def missing_words(missing: Mapping[str, int], asked: int) -> str:
    """`17 of 22 trials, the second timing of 3 members of the front`; empty where nothing is missing."""
    words = {
        "trials": f"{missing.get('trials')} of {asked} trials",
        "anew": f"the timing anew of {missing.get('anew')} trials",
        "again": f"the second timing of {missing.get('again')} members of the front",
        "seeds": f"{missing.get('seeds')} trainings of the front with further seeds",
    }
    return ", ".join(text for name, text in words.items() if missing.get(name))


def latest_run(root: Path) -> Path:
    """The folder of the run under `root` that was written last. Raises UserError when there is none."""
    manifests = list(root.glob(f"*/{MANIFEST_FILE}"))
    if not manifests:
        raise UserError(
            f"{root}: holds no run; start one with `archsearch run --budget 4.5GFLOPs`, or name a run's folder"
        )
    return max(manifests, key=lambda path: path.stat().st_mtime_ns).parent
