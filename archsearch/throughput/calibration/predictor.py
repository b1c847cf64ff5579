"""The calibration a run foresees throughput with, if this machine has one that can be trusted."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archsearch.errors import UserError
from archsearch.space.arch import Arch
from archsearch.system import Say, ignore
from archsearch.throughput.calibration import Calibration, CalibrationKey, load_calibration
from archsearch.throughput.calibration.file import FOLDER
from archsearch.throughput.measurement import Measurement


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A trusted calibration as the engine uses it; `source` (file, tau and mean error on held-out hybrids) is for the manifest."""

    calibration: Calibration
    source: Mapping[str, Any]

    def predict(self, arch: Arch) -> float | None:
        """Images/s; None for an architecture with a layer that was never timed."""
        return self.calibration.predict(arch)


def find_predictor(root: Path, measurement: Measurement, say: Say = ignore) -> Predictor | None:
    """The predictor under these conditions on this machine; None without a calibration, and with one of no use, which is said."""
    if not (root / FOLDER).is_dir():
        return None  # without asking the device for its name, which wakes a GPU
    try:
        calibration = load_calibration(root, CalibrationKey.here(measurement))
    except UserError as error:
        # A search can do without: it only foresees what is measured anyway.
        say(f"throughput is not predicted: {error}")
        return None
    if calibration is None:
        return None
    if not calibration.is_trusted:
        why = (
            "it has too few hybrids held out to be judged"
            if math.isnan(calibration.tau)
            else f"its order of held-out hybrids agrees with the measured one to a Kendall tau of only {calibration.tau:.2f}"
        )
        say(f"throughput is not predicted by {calibration.path}: {why}")
        return None
    source = {"file": str(calibration.path), "kendall_tau": calibration.tau, "mape": calibration.mape}
    return Predictor(calibration=calibration, source=source)
