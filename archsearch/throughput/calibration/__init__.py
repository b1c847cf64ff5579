"""Predicting an architecture's throughput without building it, from a table of timed layers and a fit to timed networks."""

from archsearch.throughput.calibration.calibration import Calibration, fit_calibration
from archsearch.throughput.calibration.collect import measure_plan, partial_path
from archsearch.throughput.calibration.file import calibration_path, load_calibration, save_calibration
from archsearch.throughput.calibration.key import CalibrationKey
from archsearch.throughput.calibration.plan import CalibrationPlan

__all__ = [
    "Calibration",
    "CalibrationKey",
    "CalibrationPlan",
    "calibration_path",
    "fit_calibration",
    "load_calibration",
    "measure_plan",
    "partial_path",
    "save_calibration",
]
