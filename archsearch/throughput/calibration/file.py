"""A calibration's file: `results/calibration/<device-key>.parquet`, written when it is finished and read by whoever predicts."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from archsearch.errors import ArchsearchError, UserError
from archsearch.system import replace_file
from archsearch.throughput.calibration.calibration import Calibration, steady_slopes
from archsearch.throughput.calibration.fitting import FORMS, INTERCEPT, REST, Fit, Slopes
from archsearch.throughput.calibration.interpolation import UNITS, KindModel, by_kind
from archsearch.throughput.calibration.key import CalibrationKey

Row = dict[str, Any]


def calibration_path(root: Path, key: CalibrationKey) -> Path:
    """Where the calibration of a key lies under a results folder."""
    return root / FOLDER / key.file_name


def load_calibration(root: Path, key: CalibrationKey) -> Calibration | None:
    """The calibration of these conditions, or None where there is none; UserError when its file is damaged or another's."""
    path = calibration_path(root, key)
    if not path.is_file():
        return None
    rows, about = read_rows(path)
    try:
        found = CalibrationKey.from_dict(about["key"])
        calibration = _restored(rows, about, key, path)
    except (ArchsearchError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: damaged, or of another version ({type(error).__name__}: {error}); delete it and give `archsearch calibrate` again"
        ) from error
    if found != key:
        raise UserError(f"{path}: a calibration of other conditions ({found}) under this name; delete it or rename it")
    return calibration


def _restored(rows: Sequence[Row], about: Mapping[str, Any], key: CalibrationKey, path: Path) -> Calibration:
    """From rows with the coefficients as they were fitted then."""
    timed = steady_slopes(rows)
    coefficients: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        if row["record"] == "coefficient":
            coefficients[row["group"]][row["name"]] = float(row["value"])
    models = {
        kind: KindModel.of(group, np.array([coefficients[" ".join(kind)][name] for name in UNITS]))
        for kind, group in by_kind(timed).items()
    }
    factors = coefficients["fit"]
    fit = Fit(
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
    """Replace the file in one step: slopes, measured networks with their predictions, and every coefficient with its unit."""
    predicted = {network.arch_id: network.predicted_img_s for network in calibration.networks}
    measured = [
        {**row, "predicted_img_s": predicted.get(row["arch_id"])}
        for row in calibration.rows
        if row["record"] != "coefficient"
    ]
    fit = calibration.fit
    about = {
        **calibration.about,
        "key": calibration.key.to_dict(),
        "fit": {"form": fit.form, "penalty": fit.penalty, "left_out_mape": fit.left_out_mape},
    }
    write_rows([*measured, *coefficient_rows(calibration)], about, calibration.path)


def coefficient_rows(calibration: Calibration) -> list[Row]:
    """The fit's factors and intercept (group `fit`), and for each kind of layer what untimed settings are interpolated with."""
    fit = calibration.fit
    rows = [_coefficient("fit", INTERCEPT, fit.intercept, "ms")]
    rows += [_coefficient("fit", name, value, "ms/ms") for name, value in fit.factors.items()]
    for kind, model in calibration.slopes.models.items():
        pairs = zip(UNITS.items(), model.coefficients.tolist(), strict=True)
        rows += [_coefficient(" ".join(kind), name, value, unit) for (name, unit), value in pairs]
    return rows


def _coefficient(group: str, name: str, value: float, unit: str) -> Row:
    known = {"record": "coefficient", "group": group, "name": name, "value": value, "unit": unit}
    return {**dict.fromkeys(SCHEMA.names), **known}


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
