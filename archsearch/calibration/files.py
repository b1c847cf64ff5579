"""A calibration's file: `results/calibration/<device-key>.parquet`, written when it is finished and read by whoever predicts."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from archsearch.calibration.calibration import Calibration, steady_slopes
from archsearch.calibration.fitting import FORMS, INTERCEPT, REST, Fit, Slopes
from archsearch.calibration.interpolation import UNITS, KindModel, by_kind
from archsearch.calibration.key import CalibrationKey
from archsearch.calibration.store import FOLDER, SCHEMA, read_rows, write_rows
from archsearch.errors import ArchsearchError, UserError

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
