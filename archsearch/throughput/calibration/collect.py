"""Measuring what a plan lists; finished measurements are kept in a partial file, from which an interrupted plan is continued."""

import datetime
import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from archsearch.device import device_lock, is_out_of_memory
from archsearch.errors import RunError, UserError
from archsearch.lock import waiting_line
from archsearch.models import build
from archsearch.system import Progress, ignore
from archsearch.throughput.calibration.calibration import CalibrationRow
from archsearch.throughput.calibration.file import SCHEMA, read_rows, write_rows
from archsearch.throughput.calibration.plan import CalibrationPlan, NetworkTask
from archsearch.throughput.calibration.sites import Site
from archsearch.throughput.calibration.slopes import ReferenceSpeed, network_protocol, time_slope
from archsearch.throughput.throughput import measure

_NETWORK_WEIGHT = 5.0  # a network takes about as long as five slopes
_WRITE_EVERY_S = 5.0


class Journal:
    """Measurements of an unfinished plan, kept in `<device-key>.partial.parquet`; UserError when that file has those of another plan."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path, self.identity = path, identity
        self.rows: list[CalibrationRow] = []
        self._written_at = time.monotonic()
        if not path.exists():
            return
        self.rows, about = read_rows(path)
        found = about.get("identity")
        if found != identity:
            other = found if isinstance(found, dict) else {}
            differing = [f"{name} {other.get(name)}" for name, value in identity.items() if other.get(name) != value]
            raise UserError(
                f"{path}: measurements of another, unfinished calibration, of {', '.join(differing)}; finish it with its own command, or delete the file"
            )

    def add(self, row: CalibrationRow) -> None:
        """Add a measurement; the file has it some seconds later at most, or after `write`."""
        now = datetime.datetime.now(datetime.UTC)
        self.rows.append({**dict.fromkeys(SCHEMA.names), **row, "measured_at": now})
        if time.monotonic() - self._written_at > _WRITE_EVERY_S:
            self.write()

    def write(self) -> None:
        """Write the file."""
        if self.rows:
            write_rows(self.rows, {"identity": self.identity}, self.path)
        self._written_at = time.monotonic()


def partial_path(path: Path) -> Path:
    """The file for the measurements of an unfinished calibration, in the same folder as its final file."""
    return path.with_name(f"{path.stem}.partial.parquet")


def measure_plan(plan: CalibrationPlan, path: Path, progress: Progress = ignore) -> list[CalibrationRow]:
    """All measurements of the plan, as rows of `SCHEMA`; those in the partial file of `path` are not made again.

    However it ends (by Ctrl-C too), finished measurements stay in the partial file. The device is locked for one measurement at a time.
    UserError for a partial file of another plan, RunError when a chain of layers does not fit into memory.
    """
    journal = Journal(partial_path(path), plan.identity)
    known = {row["layer"] or row["arch_id"] for row in journal.rows}
    tasks = _interleaved(plan.sites, plan.networks)
    total = sum(map(_weight, tasks))
    left = [task for task in tasks if (site_json(task) if isinstance(task, Site) else task.arch.arch_id) not in known]
    done = total - sum(map(_weight, left))
    progress(done, total, "starting")
    timer: _TaskTimer | None = None
    try:
        for task in left:
            on_wait = waiting_line(partial(progress, done, total))
            with device_lock(torch.device(plan.key.device), exclusive=True, on_wait=on_wait):
                timer = timer or _TaskTimer(plan)
                journal.add(timer.measure(task))
            done += _weight(task)
            progress(done, total, f"timed {_name(task)}")
    finally:
        journal.write()
    return journal.rows


def _interleaved(sites: list[Site], networks: list[NetworkTask]) -> list[Site | NetworkTask]:
    """Networks spread evenly among the slopes, so that a slow hour of the machine affects both."""
    tasks: list[Site | NetworkTask] = [*sites, *networks]
    places = [(number + 0.5) / len(group) for group in (sites, networks) for number in range(len(group))]
    return [task for _, task in sorted(zip(places, tasks, strict=True), key=lambda item: item[0])]


def _weight(task: Site | NetworkTask) -> float:
    """Share of the progress."""
    return 1.0 if isinstance(task, Site) else _NETWORK_WEIGHT


def _name(task: Site | NetworkTask) -> str:
    return f"{task.layer.kind} at {'x'.join(map(str, task.shape[:3]))}" if isinstance(task, Site) else task.name


def site_json(site: Site) -> str:
    """The site as JSON, as in the column `layer`."""
    return json.dumps(site.to_dict(), sort_keys=True)


class _TaskTimer:
    """Measures sites and networks of a plan, each together with the reference."""

    def __init__(self, plan: CalibrationPlan) -> None:
        self._key, self._device = plan.key, torch.device(plan.key.device)
        self._reference = build(plan.reference, image_size=plan.key.image_size, in_chans=plan.key.in_chans)
        # Eager, since the compiler is reset before every task.
        self._reference_speed = ReferenceSpeed(self._reference, replace(plan.key, mode="eager"))

    def measure(self, task: Site | NetworkTask) -> CalibrationRow:
        """One row, with the seconds it took."""
        began = time.perf_counter()
        row = self._slope(task) if isinstance(task, Site) else self._network(task)
        return {**row, "seconds": time.perf_counter() - began}

    def _slope(self, site: Site) -> CalibrationRow:
        try:
            slope = time_slope(site, self._key)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise RunError(
                f"calibrate: five of {_name(site)} do not fit into memory at batch size {self._key.batch_size}; choose a smaller --batch-size"
            ) from None
        return {
            "record": "slope",
            "group": site.layer.role,
            "name": site.layer.kind,
            "value": slope.ms,
            "unit": "ms",
            "error": slope.error,
            "rounds": slope.rounds,
            "reference_img_s": self._reference_speed.img_s(),
            "macs": site.layer.cost(site.shape).macs,
            "layer": site_json(site),
        }

    def _network(self, task: NetworkTask) -> CalibrationRow:
        """A network that cannot be measured, for example for lack of memory, gets a row with the reason instead of a figure."""
        image_size = self._key.image_size
        row = {
            "record": "network",
            "group": task.group,
            "name": task.name,
            "unit": "img/s",
            "macs": task.arch.cost(image_size).macs,
            "arch_id": task.arch.arch_id,
            "arch": json.dumps(task.arch.to_dict()),
        }
        model = build(task.arch, image_size=image_size)
        try:
            figures = measure(model, network_protocol(self._key), self._device, reference=self._reference)
        except RunError as error:
            return {**row, "reason": str(error)}
        ratio = figures.ratio_to_reference
        assert ratio is not None, "it was timed with a reference"
        return {
            **row,
            "value": figures.throughput_img_s,
            "error": figures.throughput_iqr,
            "rounds": figures.num_blocks,
            "noisy": figures.noisy,
            "drifted": figures.drifted,
            "reference_img_s": figures.throughput_img_s / ratio,  # timed between the network's own blocks
        }
