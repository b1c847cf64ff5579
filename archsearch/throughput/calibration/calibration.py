"""A finished calibration: images per second of an architecture that was never built, and how far that is to be trusted."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from archsearch.blocks.base import Layer, Shape
from archsearch.errors import RunError
from archsearch.metrics import Array, kendall_tau
from archsearch.space.arch import Arch
from archsearch.space.budget import Band
from archsearch.throughput.calibration.fitting import Fit, Slopes, fit
from archsearch.throughput.calibration.interpolation import fit_kinds
from archsearch.throughput.calibration.key import CalibrationKey
from archsearch.throughput.calibration.plan import MIN_HYBRIDS
from archsearch.throughput.calibration.regression import Score, mape, score
from archsearch.throughput.calibration.sites import Site

Row = dict[str, Any]
TRUSTED_TAU = 0.9
_AROUND = 2  # slopes before and after


@dataclass(frozen=True, kw_only=True)
class Network:
    """A measured network: images/s as timed, with the drift of the reference taken out, and as predicted (None: not possible)."""

    group: str
    name: str
    arch_id: str
    macs: int
    measured_img_s: float
    steady_img_s: float
    predicted_img_s: float | None

    @classmethod
    def of(cls, row: Row, predicted_img_s: float | None) -> "Network":
        """From a row that `steady` gave."""
        return cls(
            group=row["group"],
            name=row["name"],
            arch_id=row["arch_id"],
            macs=row["macs"],
            measured_img_s=row["value"],
            steady_img_s=row["steady_img_s"],
            predicted_img_s=predicted_img_s,
        )


def steady(rows: Sequence[Row]) -> list[Row]:
    """Measured networks with `steady_img_s`: what they would do while the reference runs at its median speed."""
    measured = [row for row in rows if row["record"] == "network" and row["value"] is not None]
    if not measured:
        return []
    usual = statistics.median(row["reference_img_s"] for row in measured)
    return [{**row, "steady_img_s": row["value"] * usual / row["reference_img_s"]} for row in measured]


def steady_slopes(rows: Sequence[Row]) -> dict[Site, float]:
    """Slopes in ms, the same way; a single glance at the reference is noisy, so the median of some around is taken."""
    slopes = [row for row in rows if row["record"] == "slope"]
    speeds = [row["reference_img_s"] for row in slopes]
    usual = statistics.median(speeds) if speeds else 1.0
    found: dict[Site, float] = {}
    for index, row in enumerate(slopes):
        speed = statistics.median(speeds[max(0, index - _AROUND) : index + _AROUND + 1])
        found[Site.from_dict(json.loads(row["layer"]))] = row["value"] * speed / usual
    return found


def _arch(row: Row) -> Arch:
    return Arch.from_dict(json.loads(row["arch"]), row["name"])


class _Share(NamedTuple):
    """What a layer adds to a latency (None: its kind was never timed), and the shape after it."""

    ms: float | None
    out: Shape


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Slopes of layers, a fit over hybrids, and its scores; `about` holds conditions, plan and date."""

    key: CalibrationKey
    path: Path
    about: Mapping[str, Any]
    slopes: Slopes
    fit: Fit
    rows: Sequence[Row]
    _shares: dict[tuple[Layer, Shape], _Share] = field(default_factory=dict, repr=False, compare=False)

    def predict(self, arch: Arch) -> float | None:
        """Images/s of the architecture at the key's batch size, in 50 microseconds once its settings have been met.

        None where nothing can be said: a layer of a kind that was never timed, or an architecture for another image size.
        """
        latency = self.latency_ms(arch)
        return None if latency is None else 1000 * self.key.batch_size / latency

    def latency_ms(self, arch: Arch) -> float | None:
        """Milliseconds of a batch; None as for `predict`."""
        if arch.image_size != self.key.image_size:
            return None
        total = self.fit.intercept
        for ms in arch.along(self._share):
            if ms is None:
                return None
            total += ms
        return max(total, 1e-3)

    def _share(self, layer: Layer, shape: Shape) -> _Share:
        """Remembered from one architecture to the next."""
        key = (layer, shape)
        share = self._shares.get(key)
        if share is None:
            site = Site(layer, shape)
            ms = self.slopes(site)
            share = self._shares[key] = _Share(None if ms is None else ms * self.fit.factor(site), site.out)
        return share

    @cached_property
    def networks(self) -> list[Network]:
        """The measured networks in their order, each with its prediction."""
        return [Network.of(row, self.predict(_arch(row))) for row in steady(self.rows)]

    @cached_property
    def scores(self) -> dict[str, Score | None]:
        """On the hybrids held out and on the papers' models, none of which the fit has seen, with intervals; None for fewer than three."""
        return {group: score(*self._pairs(group)) for group in ("held_out", "paper")}

    def _pairs(self, group: str) -> tuple[Array, Array]:
        """Predicted and measured images/s of a group."""
        pairs = [
            (network.predicted_img_s, network.steady_img_s)
            for network in self.networks
            if network.group == group and network.predicted_img_s is not None
        ]
        return np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])

    @cached_property
    def tau(self) -> float:
        """Kendall's tau between predicted and measured throughput of the hybrids held out; nan where there is no order."""
        return kendall_tau(*self._pairs("held_out"))

    @cached_property
    def mape(self) -> float:
        """Mean absolute error on the same, as a fraction; nan where there are none."""
        predicted, measured = self._pairs("held_out")
        return mape(predicted, measured) if len(measured) else math.nan

    @property
    def is_trusted(self) -> bool:
        """Whether a search may rank candidates by it: tau of at least 0.9 inside the band."""
        return self.tau >= TRUSTED_TAU

    @property
    def band(self) -> Band:
        """The MACs in which it was judged."""
        plan = self.about["identity"]
        return Band.around(plan["budget_macs"], plan["tolerance"])


def conclude(rows: Sequence[Row], key: CalibrationKey, path: Path, about: Mapping[str, Any]) -> Calibration:
    """The calibration that a plan's measurements give; RunError when too few hybrids could be measured to fit anything."""
    timed = steady_slopes(rows)
    slopes = Slopes(timed, fit_kinds(timed))
    train = [row for row in steady(rows) if row["group"] == "train"]
    if len(train) < MIN_HYBRIDS:
        raise RunError(f"calibrate: only {len(train)} hybrids could be measured, and {MIN_HYBRIDS} are needed to fit")
    latencies = [1000 * key.batch_size / row["steady_img_s"] for row in train]
    found = fit([_arch(row) for row in train], latencies, slopes)
    return Calibration(key=key, path=path, about=about, slopes=slopes, fit=found, rows=rows)
