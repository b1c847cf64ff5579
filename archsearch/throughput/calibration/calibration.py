"""A finished calibration: predicted images per second of an architecture, and how accurate the predictions are."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from archsearch.blocks import Layer, Shape
from archsearch.errors import RunError
from archsearch.metrics import Array, kendall_tau
from archsearch.space import Arch, Band
from archsearch.throughput.calibration.fitting import LatencyFit, Slopes, fit_latency
from archsearch.throughput.calibration.interpolation import fit_kinds
from archsearch.throughput.calibration.key import CalibrationKey
from archsearch.throughput.calibration.plan import MIN_HYBRIDS
from archsearch.throughput.calibration.regression import PredictionScore, mape, score_predictions
from archsearch.throughput.calibration.sites import Site

CalibrationRow = dict[str, Any]
TRUSTED_TAU = 0.9
_NEIGHBOURS = 2  # slopes before and after


@dataclass(frozen=True, kw_only=True)
class MeasuredNetwork:
    """A measured network: images/s as timed, corrected for the drift of the reference, and as predicted (None: not possible)."""

    group: str
    name: str
    arch_id: str
    macs: int
    measured_img_s: float
    steady_img_s: float
    predicted_img_s: float | None


def steady_networks(rows: Sequence[CalibrationRow]) -> list[CalibrationRow]:
    """Rows of measured networks with `steady_img_s`: images/s corrected to the median speed of the reference."""
    measured = [row for row in rows if row["record"] == "network" and row["value"] is not None]
    if not measured:
        return []
    usual = statistics.median(row["reference_img_s"] for row in measured)
    return [{**row, "steady_img_s": row["value"] * usual / row["reference_img_s"]} for row in measured]


def steady_slopes(rows: Sequence[CalibrationRow]) -> dict[Site, float]:
    """Slopes in ms, corrected likewise; a single timing of the reference is noisy, so the median of five successive ones is taken."""
    slopes = [row for row in rows if row["record"] == "slope"]
    speeds = [row["reference_img_s"] for row in slopes]
    usual = statistics.median(speeds) if speeds else 1.0
    found: dict[Site, float] = {}
    for index, row in enumerate(slopes):
        speed = statistics.median(speeds[max(0, index - _NEIGHBOURS) : index + _NEIGHBOURS + 1])
        found[Site.from_dict(json.loads(row["layer"]))] = row["value"] * speed / usual
    return found


def _arch(row: CalibrationRow) -> Arch:
    return Arch.from_dict(json.loads(row["arch"]), row["name"])


class _LayerTime(NamedTuple):
    """Milliseconds that a layer adds to a latency (None: its kind was never timed), and the shape after it."""

    ms: float | None
    out: Shape


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Slopes of layers, a fit to hybrids, and its scores; `about` holds conditions, plan and date.

    A slope is the time in ms that one more layer adds to a batch. Rows are those of the file, as in `file.SCHEMA`.
    """

    key: CalibrationKey
    path: Path
    about: Mapping[str, Any]
    slopes: Slopes
    fit: LatencyFit
    rows: Sequence[CalibrationRow]
    _layer_times: dict[tuple[Layer, Shape], _LayerTime] = field(default_factory=dict, repr=False, compare=False)

    def predict(self, arch: Arch) -> float | None:
        """Images/s of the architecture at the key's batch size; takes 50 microseconds once its layers are cached.

        None for an architecture with a layer of a kind that was never timed, or for other images.
        """
        latency = self.latency_ms(arch)
        return None if latency is None else 1000 * self.key.batch_size / latency

    def latency_ms(self, arch: Arch) -> float | None:
        """Milliseconds a batch; None as for `predict`."""
        if (arch.image_size, arch.in_chans) != (self.key.image_size, self.key.in_chans):
            return None
        total = self.fit.intercept
        for ms in arch.map_layers(self._layer_time):
            if ms is None:
                return None
            total += ms
        return max(total, 1e-3)

    def _layer_time(self, layer: Layer, shape: Shape) -> _LayerTime:
        """Cached from one architecture to the next."""
        key = (layer, shape)
        found = self._layer_times.get(key)
        if found is None:
            site = Site(layer, shape)
            ms = self.slopes(site)
            found = _LayerTime(None if ms is None else ms * self.fit.factor(site), site.out)
            self._layer_times[key] = found
        return found

    @cached_property
    def reference_img_s(self) -> float | None:
        """The reference's images/s that predictions belong to: its median around the measured networks; None without any."""
        rates = [row["reference_img_s"] for row in self.rows if row["record"] == "network" and row["value"] is not None]
        return statistics.median(rates) if rates else None

    @cached_property
    def networks(self) -> list[MeasuredNetwork]:
        """The measured networks in the order of measuring, each with its prediction."""
        return [
            MeasuredNetwork(
                group=row["group"],
                name=row["name"],
                arch_id=row["arch_id"],
                macs=row["macs"],
                measured_img_s=row["value"],
                steady_img_s=row["steady_img_s"],
                predicted_img_s=self.predict(_arch(row)),
            )
            for row in steady_networks(self.rows)
        ]

    @cached_property
    def scores(self) -> dict[str, PredictionScore | None]:
        """Scores on the held-out hybrids and on the papers' models, which the fit has not seen; None for fewer than three networks."""
        return {group: score_predictions(*self._pairs(group)) for group in ("held_out", "paper")}

    def _pairs(self, group: str) -> tuple[Array, Array]:
        """Predicted and measured images/s (N,) of a group's networks that can be predicted."""
        pairs = [
            (network.predicted_img_s, network.steady_img_s)
            for network in self.networks
            if network.group == group and network.predicted_img_s is not None
        ]
        return np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])

    @cached_property
    def tau(self) -> float:
        """Kendall's tau between predicted and measured throughput of the held-out hybrids; nan where it is undefined."""
        return kendall_tau(*self._pairs("held_out"))

    @cached_property
    def mape(self) -> float:
        """Mean absolute percentage error on the held-out hybrids, as a fraction; nan where there are none."""
        predicted, measured = self._pairs("held_out")
        return mape(predicted, measured) if len(measured) else math.nan

    @property
    def is_trusted(self) -> bool:
        """Whether a search may rank candidates by it: tau of at least 0.9 inside the band."""
        return self.tau >= TRUSTED_TAU

    @property
    def band(self) -> Band:
        """The band of MACs from which its hybrids were drawn."""
        plan = self.about["identity"]
        return Band.around(plan["budget_macs"], plan["tolerance"])

    @property
    def source(self) -> dict[str, Any]:
        """For a run's manifest: the file, and its tau and mean error on held-out hybrids."""
        return {"file": str(self.path), "kendall_tau": self.tau, "mape": self.mape}


def fit_calibration(
    rows: Sequence[CalibrationRow], key: CalibrationKey, path: Path, about: Mapping[str, Any]
) -> Calibration:
    """The calibration from a plan's measurements; RunError when fewer than four hybrids could be measured to fit on."""
    timed = steady_slopes(rows)
    slopes = Slopes(timed, fit_kinds(timed))
    train = [row for row in steady_networks(rows) if row["group"] == "train"]
    if len(train) < MIN_HYBRIDS:
        raise RunError(f"calibrate: only {len(train)} hybrids could be measured, and {MIN_HYBRIDS} are needed to fit")
    latencies = [1000 * key.batch_size / row["steady_img_s"] for row in train]
    found = fit_latency([_arch(row) for row in train], latencies, slopes)
    return Calibration(key=key, path=path, about=about, slopes=slopes, fit=found, rows=rows)
