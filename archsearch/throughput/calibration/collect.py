"""Carrying out a plan: every finished measurement goes to a side file, from which the same plan goes on after an interruption."""

import datetime
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from archsearch.device import device_lock, is_out_of_memory
from archsearch.errors import RunError, UserError
from archsearch.models.build import build
from archsearch.system import Progress, ignore
from archsearch.throughput.calibration.file import SCHEMA, read_rows, write_rows
from archsearch.throughput.calibration.plan import CalibrationPlan, NetworkTask
from archsearch.throughput.calibration.sites import Site
from archsearch.throughput.calibration.slopes import Yardstick, network_protocol, time_slope
from archsearch.throughput.measure import measure

Row = dict[str, Any]
_NETWORK_WEIGHT = 5.0  # a network takes about as long as five slopes
_KEEP_EVERY_S = 5.0


class Journal:
    """Measurements of one plan, kept in `<device-key>.partial.parquet` while it is not finished."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path, self.identity = path, identity
        self.rows: list[Row] = []
        self._kept_at = time.monotonic()
        if path.exists():
            self.rows, found = read_rows(path)
            self._check(found.get("identity"))

    def _check(self, found: object) -> None:
        """Refuse another plan's measurements, and say in what it differs."""
        if found == self.identity:
            return
        other = found if isinstance(found, dict) else {}
        words = [f"{name} {other.get(name)}" for name, value in self.identity.items() if other.get(name) != value]
        raise UserError(
            f"{self.path}: measurements of another, unfinished calibration, of {', '.join(words)}; finish it with its own command, or delete the file"
        )

    def add(self, row: Row) -> None:
        """Remember a measurement; on disk some seconds later at most, or with `keep`."""
        now = datetime.datetime.now(datetime.UTC)
        self.rows.append({**dict.fromkeys(SCHEMA.names), **row, "measured_at": now})
        if time.monotonic() - self._kept_at > _KEEP_EVERY_S:
            self.keep()

    def keep(self) -> None:
        """Write all of it."""
        if self.rows:
            write_rows(self.rows, {"identity": self.identity}, self.path)
        self._kept_at = time.monotonic()


def partial_path(path: Path) -> Path:
    """The side file of a calibration's file."""
    return path.with_name(f"{path.stem}.partial.parquet")


def carry_out(plan: CalibrationPlan, path: Path, progress: Progress = ignore) -> list[Row]:
    """All measurements of the plan, as rows of `SCHEMA`; those found in the side file of `path` are not made again.

    Whatever ends it (Ctrl-C too), what is finished stays in the side file. The device is locked for each measurement alone.
    """
    journal = Journal(partial_path(path), plan.identity)
    known = {(row["record"], row["layer"] or row["arch_id"]) for row in journal.rows}
    tasks = _mixed(plan.sites, plan.networks)
    total = sum(map(_weight, tasks))
    left = [task for task in tasks if _identity(task) not in known]
    done = total - sum(map(_weight, left))
    progress(done, total, "starting")
    bench: _Bench | None = None
    try:
        for task in left:
            with device_lock(torch.device(plan.key.device), exclusive=True):
                bench = bench or _Bench(plan)
                journal.add(bench.measure(task))
            done += _weight(task)
            progress(done, total, f"timed {_name(task)}")
    finally:
        journal.keep()
    return journal.rows


def _mixed(sites: list[Site], networks: list[NetworkTask]) -> list[Site | NetworkTask]:
    """Networks spread evenly among the slopes: an hour that is slow is slow for both."""
    tasks: list[Site | NetworkTask] = [*sites, *networks]
    places = [(number + 0.5) / len(group) for group in (sites, networks) for number in range(len(group))]
    return [task for _, task in sorted(zip(places, tasks, strict=True), key=lambda item: item[0])]


def _weight(task: Site | NetworkTask) -> float:
    return 1.0 if isinstance(task, Site) else _NETWORK_WEIGHT


def _identity(task: Site | NetworkTask) -> tuple[str, str]:
    if isinstance(task, Site):
        return "slope", site_json(task)
    return "network", task.arch.arch_id


def _name(task: Site | NetworkTask) -> str:
    if isinstance(task, Site):
        return f"{task.layer.kind} at {'x'.join(map(str, task.shape[:3]))}"
    return task.name


def site_json(site: Site) -> str:
    """The site as it stands in a file."""
    return json.dumps(site.to_dict(), sort_keys=True)


class _Bench:
    """Measures tasks of a plan, each beside the reference."""

    def __init__(self, plan: CalibrationPlan) -> None:
        self._key, self._device = plan.key, torch.device(plan.key.device)
        self._reference = build(plan.reference, image_size=plan.key.image_size)
        # A compiler forgets every network between two tasks: the yardstick stays as it is.
        self._yardstick = Yardstick(self._reference, replace(plan.key, mode="eager"))

    def measure(self, task: Site | NetworkTask) -> Row:
        """One row."""
        began = time.perf_counter()
        row = self._slope(task) if isinstance(task, Site) else self._network(task)
        return {**row, "seconds": time.perf_counter() - began}

    def _slope(self, site: Site) -> Row:
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
            "reference_img_s": self._yardstick.img_s(),
            "macs": site.layer.cost(site.shape).macs,
            "layer": site_json(site),
        }

    def _network(self, task: NetworkTask) -> Row:
        """A network that does not fit into memory is kept with the reason and without a figure."""
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
        assert ratio is not None, "it was timed beside the reference"
        return {
            **row,
            "value": figures.throughput_img_s,
            "error": figures.throughput_iqr,
            "rounds": figures.num_blocks,
            "noisy": figures.noisy,
            "drifted": figures.drifted,
            "reference_img_s": figures.throughput_img_s / ratio,  # beside the network's own blocks
        }
