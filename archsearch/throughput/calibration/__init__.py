"""Calibrated prediction: a look-up table of measured layers, fitted to measured networks, that tells an architecture's throughput without building it."""

from archsearch.throughput.calibration.calibration import Calibration, conclude
from archsearch.throughput.calibration.collect import carry_out, partial_path
from archsearch.throughput.calibration.file import calibration_path, load_calibration, save_calibration
from archsearch.throughput.calibration.key import CalibrationKey
from archsearch.throughput.calibration.plan import CalibrationPlan, at_image_size

__all__ = [
    "Calibration",
    "CalibrationKey",
    "CalibrationPlan",
    "at_image_size",
    "calibration_path",
    "carry_out",
    "conclude",
    "load_calibration",
    "partial_path",
    "save_calibration",
]
