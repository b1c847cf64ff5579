"""The work of `archsearch calibrate`: from a request to a plan, and from a plan to a calibration and its file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from archsearch.device import conditions
from archsearch.space import choose_papers, load_space, reference_arch
from archsearch.system import Progress, Say, ignore, utc_now
from archsearch.throughput.calibration.calibration import Calibration, fit_calibration
from archsearch.throughput.calibration.collect import measure_plan, partial_path
from archsearch.throughput.calibration.file import calibration_path, save_calibration
from archsearch.throughput.calibration.key import CalibrationKey
from archsearch.throughput.calibration.plan import DEFAULT_SLOPES, CalibrationPlan
from archsearch.throughput.measurement import Measurement
from archsearch.units import ImageSize
from archsearch.version import __version__


@dataclass(frozen=True, kw_only=True)
class CalibrateRequest:
    """Options of the command line; `measuring` are keyword arguments of `Measurement.resolve`."""

    space: str
    budget_macs: int
    tolerance: float
    hybrids: int
    held_out: int
    slopes: int | None
    seed: int
    image_size: ImageSize | None
    measuring: Mapping[str, Any]


def calibration_plan(request: CalibrateRequest, say: Say = ignore) -> CalibrationPlan:
    """The plan for a request, checked before anything is timed, with threads and cores set; UserError for a request that cannot be met."""
    space = load_space(request.space).resized(request.image_size)
    image_size, in_chans = space.plan.image_size, space.plan.in_chans
    measurement = Measurement.resolve(**request.measuring, image_size=image_size, in_chans=in_chans, say=say)
    measurement.use_device()
    return CalibrationPlan(
        key=CalibrationKey.for_this_machine(measurement),
        space=space,
        budget_macs=request.budget_macs,
        tolerance=request.tolerance,
        seed=request.seed,
        hybrids=request.hybrids,
        held_out=request.held_out,
        slopes=request.slopes or DEFAULT_SLOPES[measurement.mode],
        papers=choose_papers("nearest", request.budget_macs, image_size, in_chans),
        reference=reference_arch(),
    )


def calibrate(plan: CalibrationPlan, results_root: Path, progress: Progress = ignore) -> Calibration:
    """Measure what is left of the plan, fit, and write the file. RunError when too few networks could be measured, UserError for a bad file."""
    path = calibration_path(results_root, plan.key)
    rows = measure_plan(plan, path, progress)
    about = {
        "identity": plan.identity,
        "archsearch_version": __version__,
        "created_at": utc_now(),
        "seconds": sum(row["seconds"] for row in rows),
        "conditions": conditions(torch.device(plan.key.device)),
        "reference": plan.reference.name,
        "space_settings": len(plan.space_sites),
        "space_settings_timed": len(set(plan.space_sites) & set(plan.sites)),
    }
    calibration = fit_calibration(rows, plan.key, path, about)
    save_calibration(calibration)
    partial_path(path).unlink(missing_ok=True)
    return calibration
