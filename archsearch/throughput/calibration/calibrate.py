"""`archsearch calibrate` without its options: from what was asked to a calibration's file, and how it is told."""

import contextlib
import datetime
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn

from archsearch.device import conditions, use_cpu
from archsearch.report_tables import conditions_line
from archsearch.search.config import make_settings
from archsearch.space.papers import choose_papers, reference_arch
from archsearch.space.space import load_space
from archsearch.tables import make_table, titled
from archsearch.throughput.calibration import (
    Calibration,
    CalibrationKey,
    CalibrationPlan,
    Step,
    at_image_size,
    calibration_path,
    carry_out,
    conclude,
    partial_path,
    save_calibration,
)
from archsearch.throughput.calibration.calibration import TRUSTED_TAU
from archsearch.throughput.calibration.interpolation import left_out_errors
from archsearch.throughput.calibration.plan import MOST_SLOPES
from archsearch.units import format_count, format_seconds
from archsearch.version import __version__

_CALIBRATION_LINES = 20


@dataclass(frozen=True, kw_only=True)
class CalibrateRequest:
    """What was asked for on the command line; `measuring` are the keywords of `make_settings` that say how."""

    space: str
    budget_macs: int
    tolerance: float
    hybrids: int
    held_out: int
    slopes: int | None
    seed: int
    image_size: int | None
    measuring: Mapping[str, Any]


def calibration_plan(request: CalibrateRequest) -> CalibrationPlan:
    """Checked before anything is timed, threads set; UserError for anything asked for that cannot be."""
    space = at_image_size(load_space(request.space), request.image_size)
    image_size = space.plan.image_size
    settings = make_settings(**request.measuring, image_size=image_size)
    use_cpu(settings["threads"], settings["cpus"])
    return CalibrationPlan(
        key=CalibrationKey.here(settings),
        space=space,
        budget_macs=request.budget_macs,
        tolerance=request.tolerance,
        seed=request.seed,
        hybrids=request.hybrids,
        held_out=request.held_out,
        slopes=request.slopes or MOST_SLOPES[settings["mode"]],
        papers=choose_papers("nearest", request.budget_macs, image_size),
        reference=reference_arch(),
    )


def calibrate(plan: CalibrationPlan, results_root: Path, console: Console) -> Calibration:
    """Measure what the plan has not measured yet, fit, and write the file; progress goes to `console`."""
    path = calibration_path(results_root, plan.key)
    with calibration_progress(console) as tick:
        rows = carry_out(plan, path, tick)
    where = conditions(torch.device(plan.key.device))
    about = {
        "identity": plan.identity,
        "archsearch_version": __version__,
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": sum(row["seconds"] for row in rows),
        "conditions": where,
        "reference": plan.reference.name,
        "space_settings": len(plan.space_sites),
        "space_settings_timed": len(set(plan.space_sites) & set(plan.sites)),
    }
    calibration = conclude(rows, plan.key, path, about)
    save_calibration(calibration)
    partial_path(path).unlink(missing_ok=True)
    return calibration


@contextlib.contextmanager
def calibration_progress(console: Console) -> Iterator[Callable[[Step], None]]:
    """A bar with the time left on a terminal, some twenty lines elsewhere."""
    clock = _CalibrationClock()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("starting", total=1.0, left="")
        said = 0

        def tick(step: Step) -> None:
            nonlocal said
            left = clock.words(step)
            progress.update(bar, completed=step.done, total=step.total, description=f"timed {step.name}", left=left)
            if not console.is_terminal and step.is_new and step.done * _CALIBRATION_LINES // step.total > said:
                said = int(step.done * _CALIBRATION_LINES // step.total)
                console.print(f"{step.done / step.total:.0%} measured, {left}; last: {step.name}", soft_wrap=True)

        yield tick


class _CalibrationClock:
    """Time left by what this session measured; what an earlier one had measured took no time now."""

    def __init__(self) -> None:
        self._start, self._measured, self._last = time.monotonic(), 0.0, 0.0

    def words(self, step: Step) -> str:
        """`5m12s, about 12m03s left`."""
        self._measured += (step.done - self._last) * step.is_new
        self._last = step.done
        elapsed = time.monotonic() - self._start
        if not self._measured:
            return format_seconds(elapsed)
        left = elapsed / self._measured * (step.total - step.done)
        return f"{format_seconds(elapsed)}, about {format_seconds(left)} left"


def calibration_document(calibration: Calibration) -> dict[str, Any]:
    """Everything the table says and what it is made of, for JSON."""
    about, key = calibration.about, calibration.key
    networks = calibration.networks
    errors = [abs(error) for error in left_out_errors(calibration.slopes.timed).values()]
    plan = about["identity"]
    return {
        "file": str(calibration.path),
        "key": key.to_dict(),
        "conditions": about["conditions"],
        "archsearch_version": about["archsearch_version"],
        "created_at": about["created_at"],
        "seconds": about["seconds"],
        "space": plan["space"],
        "budget_macs": plan["budget_macs"],
        "tolerance": plan["tolerance"],
        "seed": plan["seed"],
        "slopes": len(calibration.slopes.timed),
        "space_settings": about["space_settings"],
        "space_settings_timed": about["space_settings_timed"],
        "interpolation_error_median": statistics.median(errors) if errors else None,
        "networks": [asdict(network) for network in networks],
        "not_measured": [row["reason"] for row in calibration.rows if row["reason"]],
        "fit": asdict(calibration.fit),
        "scores": {group: asdict(score) if score else None for group, score in calibration.scores.items()},
        "is_trusted": calibration.is_trusted,
        "trusted_from_tau": TRUSTED_TAU,
        "kinds": _kinds(calibration),
    }


def _kinds(calibration: Calibration) -> list[dict[str, Any]]:
    """Milliseconds a GMAC and image of every block kind, the fastest first."""
    rates: dict[str, list[float]] = defaultdict(list)
    for site, ms in calibration.slopes.timed.items():
        macs = site.layer.cost(site.shape).macs
        if site.layer.role == "block" and macs:
            rates[site.layer.kind].append(ms / calibration.key.batch_size / (macs / 1e9))
    found = [
        {
            "kind": kind,
            "slopes": len(each),
            "ms_per_gmac": statistics.median(each),
            "least": min(each),
            "most": max(each),
        }
        for kind, each in rates.items()
    ]
    return sorted(found, key=lambda kind: float(kind["ms_per_gmac"]))


_GROUPS = {"held_out": "hybrids held out", "paper": "papers' models"}


def calibration_parts(document: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Scores, block kinds, and sentences on what was measured, under which conditions, and what it is good for."""
    rows = [_score_row(_GROUPS[group], score) for group, score in document["scores"].items()]
    columns = ["predicted against measured", "networks", "MAPE", "95 %", "Kendall tau", "95 %"]
    yield make_table(columns, rows, left=columns[:1])
    columns = ["block", "slopes", "ms/GMAC", "least", "most"]
    yield titled(
        "Time of an image's blocks per 1e9 multiply-adds, the fastest first",
        make_table(columns, [_kind_row(kind) for kind in document["kinds"]], left=columns[:1]),
    )
    yield _measured_sentence(document)
    yield conditions_line({**document["conditions"], **document["key"]})
    yield _use_sentence(document)


def _score_row(name: str, score: Mapping[str, Any] | None) -> list[str]:
    if score is None:
        return [name, "fewer than 3", "-", "-", "-", "-"]
    error, tau = score["mape"], score["tau"]
    return [
        name,
        str(score["count"]),
        f"{error['value']:.1%}",
        f"{error['low']:.1%} to {error['high']:.1%}",
        f"{tau['value']:.3f}",
        f"{tau['low']:.3f} to {tau['high']:.3f}",
    ]


def _kind_row(kind: Mapping[str, Any]) -> list[str]:
    return [kind["kind"], str(kind["slopes"]), *(f"{kind[name]:.2f}" for name in ("ms_per_gmac", "least", "most"))]


def _measured_sentence(document: Mapping[str, Any]) -> str:
    """What was timed, how long it took, and how the rest is filled in."""
    timed, known = document["space_settings_timed"], document["space_settings"]
    train = sum(network["group"] == "train" for network in document["networks"])
    interpolated = ""
    if known > timed and document["interpolation_error_median"] is not None:
        interpolated = f" (median error {document['interpolation_error_median']:.1%} when a timed one is left out)"
    failed = f" {len(document['not_measured'])} networks could not be measured." if document["not_measured"] else ""
    return (
        f"{document['slopes']} slopes and {len(document['networks'])} networks ({train} hybrids to fit on) in {format_seconds(document['seconds'])}, "
        f"{document['created_at'][:10]}, archsearch {document['archsearch_version']}: measure anew after an update that changes the blocks. "
        f"Of {known} settings of layers in {document['space']}, {timed} were timed and {known - timed} are interpolated{interpolated}.{failed}"
    )


def _use_sentence(document: Mapping[str, Any]) -> str:
    """Whether a search will use it."""
    band = f"within {document['tolerance']:.0%} of {format_count(document['budget_macs'])} MACs"
    if document["is_trusted"]:
        return f"`archsearch run` will use it: {document['file']} orders hybrids {band} with a Kendall tau of {document['trusted_from_tau']} or more."
    return f"`archsearch run` will not use it: {document['file']} orders hybrids {band} with a Kendall tau below {document['trusted_from_tau']}."
