"""The columns of trials.parquet and front.parquet, and the objectives that they may be ranked by."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa

from archsearch.errors import UserError

Row = dict[str, Any]
Direction = Literal["maximize", "minimize"]

TRIALS_FILE, FRONT_FILE = "trials.parquet", "front.parquet"
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
TIMED = frozenset({"throughput_img_s", "latency_ms"})
# Objectives that depend on the device and its conditions: ranked only within one identity of the throughput (see `identity`).
DEVICE_OBJECTIVES = frozenset({*TIMED, "peak_memory_bytes"})

RUN_FRONT = "objectives"
PAIR_FRONTS: dict[str, tuple[str, str]] = {
    f"proxy_score/{other}": ("proxy_score", other) for other in ("macs", "params", "throughput_img_s")
}

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
        pa.field("compile_s", pa.float64()),
        pa.field("proxy_peak_memory_bytes", pa.int64()),
        pa.field("activations", pa.int64()),
        pa.field("outside", pa.string()),
        pa.field("train_memory_bytes", pa.int64()),
        pa.field("taken_from", pa.string()),
    ]
)
# Grows by one when a column is added or gets another meaning; null in files from before there was one.
SCHEMA_VERSION = 5
# Columns that a file of an earlier version may lack; they are then read as empty.
LATER_COLUMNS = frozenset(SCHEMA.names[SCHEMA.names.index("throughput_predicted_img_s") :])
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
    "activations",
    "outside",
    "taken_from",
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


def compile_error(row: Row) -> str | None:
    """Why the network of a row does not compile, in one line, where it was timed eager for that; else None."""
    if "compile_error" not in (row["conditions"] or ""):  # of thousands of rows few are parsed
        return None
    reason: str | None = json.loads(row["conditions"]).get("compile_error")
    return reason


def check_objectives(names: Sequence[str], where: str = "--objectives") -> None:
    """Raise UserError for no, unknown or repeated objectives."""
    unknown = [name for name in names if name not in OBJECTIVES]
    if unknown or not names or len(set(names)) < len(names):
        got = f"unknown objective {unknown[0]!r}" if unknown else f"got {','.join(names) or 'nothing'!r}"
        raise UserError(f"{where}: {got}; write one or more of {', '.join(OBJECTIVES)}, each once")
