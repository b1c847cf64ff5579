"""The calibration that a run predicts throughput with, if this machine has a trusted one."""

import math
from pathlib import Path

from archsearch.errors import UserError
from archsearch.system import Say, ignore
from archsearch.throughput.calibration.calibration import Calibration
from archsearch.throughput.calibration.file import FOLDER, load_calibration
from archsearch.throughput.calibration.key import CalibrationKey
from archsearch.throughput.measurement import Measurement


def find_predictor(root: Path, measurement: Measurement, say: Say = ignore) -> Calibration | None:
    """The calibration under `root` for these conditions on this machine; None without one, and for other runtimes than torch. Says why one is not used."""
    if measurement.runtime != "torch" or not (root / FOLDER).is_dir():
        return None  # before the device's name is read, which initialises CUDA
    try:
        calibration = load_calibration(root, CalibrationKey.for_this_machine(measurement))
    except UserError as error:
        # No reason to stop a run: what it would predict is measured anyway.
        say(f"throughput is not predicted: {error}")
        return None
    if calibration is None:
        return None
    if calibration.is_trusted:
        return calibration
    why = f"its order of held-out hybrids agrees with the measured one to a Kendall tau of only {calibration.tau:.2f}"
    if math.isnan(calibration.tau):
        why = "it has too few hybrids held out to be judged"
    say(f"throughput is not predicted by {calibration.path}: {why}")
    return None
