"""A calibration's parquet file, `results/calibration/<device-key>.parquet`: its schema, reading and writing."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from archsearch.errors import ArchsearchError, UserError, first_line
from archsearch.results import write_parquet
from archsearch.system import replace_file
from archsearch.throughput.calibration.calibration import Calibration, CalibrationRow, steady_slopes
from archsearch.throughput.calibration.fitting import FORMS, INTERCEPT, REST, LatencyFit, Slopes
from archsearch.throughput.calibration.interpolation import UNITS, KindModel, by_kind
from archsearch.throughput.calibration.key import CalibrationKey

FOLDER = "calibration"
FORMAT_VERSION = 1
_METADATA = b"archsearch.calibration"

# One row a record: a layer's slope (record "slope"; value in ms a batch, error its standard error), a whole network ("network"; value in img/s, error
# its relative interquartile range, group train, held_out or paper) or a coefficient of the fit ("coefficient"). Columns that a record does not have are null.
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


def calibration_path(root: Path, key: CalibrationKey) -> Path:
    """The file of a key's calibration under a results folder."""
    return root / FOLDER / key.file_name


def load_calibration(root: Path, key: CalibrationKey) -> Calibration | None:
    """The calibration of these conditions, or None where there is none; UserError when its file is damaged or of other conditions."""
    path = calibration_path(root, key)
    if not path.is_file():
        return None
    calibration = read_calibration(path)
    if calibration.key != key:
        raise UserError(
            f"{path}: a calibration of other conditions ({calibration.key}) under this name; delete it or rename it"
        )
    return calibration


def read_calibration(path: Path) -> Calibration:
    """The calibration of a file, for the conditions that stand in it. UserError when the file is damaged or of another version."""
    rows, about = read_rows(path)
    try:
        return _restore(rows, about, CalibrationKey.from_dict(about["key"]), path)
    except (ArchsearchError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: damaged, or of another version ({type(error).__name__}: {error}); delete it and give `archsearch calibrate` again"
        ) from error


def _restore(rows: Sequence[CalibrationRow], about: Mapping[str, Any], key: CalibrationKey, path: Path) -> Calibration:
    """The calibration of a file's rows, with the coefficients in it instead of a new fit."""
    timed = steady_slopes(rows)
    coefficients: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        if row["record"] == "coefficient":
            coefficients[row["group"]][row["name"]] = float(row["value"])
    models = {
        kind: KindModel.with_coefficients(group, np.array([coefficients[" ".join(kind)][name] for name in UNITS]))
        for kind, group in by_kind(timed).items()
    }
    factors = coefficients["fit"]
    fit = LatencyFit(
        form=about["fit"]["form"],
        penalty=about["fit"]["penalty"],
        left_out_mape=about["fit"]["left_out_mape"],
        intercept=factors.pop(INTERCEPT),
        factors=factors,
    )
    if fit.form not in FORMS or REST not in factors:
        raise ValueError(f"no fit of the form {fit.form!r}")
    return Calibration(key=key, path=path, about=about, slopes=Slopes(timed, models), fit=fit, rows=rows)


def save_calibration(calibration: Calibration) -> None:
    """Write the calibration's file: slopes, measured networks with their predictions, and coefficients. UserError where it cannot be written."""
    predicted = {network.arch_id: network.predicted_img_s for network in calibration.networks}
    rows = [row for row in calibration.rows if row["record"] != "coefficient"]
    measured = [{**row, "predicted_img_s": predicted.get(row["arch_id"])} for row in rows]
    fit = calibration.fit
    about = {
        **calibration.about,
        "key": calibration.key.to_dict(),
        "fit": {"form": fit.form, "penalty": fit.penalty, "left_out_mape": fit.left_out_mape},
    }
    write_rows([*measured, *coefficient_rows(calibration)], about, calibration.path)


def coefficient_rows(calibration: Calibration) -> list[CalibrationRow]:
    """Rows of the fit's factors and intercept (group `fit`), and of the coefficients of each kind's model for sites that were not timed."""
    fit = calibration.fit
    values = [("fit", INTERCEPT, fit.intercept, "ms"), *(("fit", *factor, "ms/ms") for factor in fit.factors.items())]
    for kind, model in calibration.slopes.models.items():
        pairs = zip(UNITS.items(), model.coefficients.tolist(), strict=True)
        values += [(" ".join(kind), name, value, unit) for (name, unit), value in pairs]
    names = ("record", "group", "name", "value", "unit")
    return [{**dict.fromkeys(SCHEMA.names), **dict(zip(names, ("coefficient", *row), strict=True))} for row in values]


def write_rows(rows: Sequence[CalibrationRow], about: Mapping[str, Any], path: Path) -> None:
    """Write a whole file with `about` as JSON in its metadata, in one step; UserError where it cannot be written."""
    document = json.dumps({"format_version": FORMAT_VERSION, **about}, allow_nan=False)
    schema = SCHEMA.with_metadata({_METADATA: document.encode()})
    table = pa.Table.from_pylist(list(rows), schema=schema)

    def write(temporary: Path) -> None:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(table, temporary)

    replace_file(path, write)


def read_rows(path: Path) -> tuple[list[CalibrationRow], dict[str, Any]]:
    """The rows and `about` of a file that `write_rows` wrote; UserError when it is damaged or no calibration."""
    advice = "delete it and give `archsearch calibrate` again"
    try:
        # Read as bytes at once: pyarrow opens a path twice, and a calibration may replace the file in between.
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
        about = json.loads((table.schema.metadata or {})[_METADATA])
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: damaged or unreadable ({first_line(error)}); {advice}") from error
    except KeyError as error:
        raise UserError(f"{path}: a parquet file, but no calibration; {advice}") from error
    if not isinstance(about, dict) or about.get("format_version") != FORMAT_VERSION or table.schema != SCHEMA:
        raise UserError(f"{path}: not the calibration format of this version ({FORMAT_VERSION}); {advice}")
    rows: list[CalibrationRow] = table.to_pylist()
    return rows, about
