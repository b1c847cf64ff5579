"""Slopes of settings that were not timed: a linear model of a kind's cost, corrected by the nearest settings that were timed."""

import math
import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from archsearch.blocks.base import Layer, Scalar
from archsearch.metrics import Array
from archsearch.throughput.calibration.regression import non_negative
from archsearch.throughput.calibration.sites import Site

# What a slope is a sum of: ms per 1e9 dense multiply-adds (they grow with the width squared), per 1e9 others (attention, depthwise; with the width),
# per 1e6 elements that enter and leave, and ms a layer.
UNITS = {"dense": "ms/GMAC", "sparse": "ms/GMAC", "elements": "ms/M", "layer": "ms"}
_PENALTY = 1e-3
# How much a timed setting says about another one: a share for each field that differs, and for another width, and another map.
_OTHER_FIELD, _OTHER_WIDTH, _OTHER_MAP = 0.4, 0.3, 0.05
_DOUBT = 0.05  # weight of the model itself, uncorrected
_LEAST_SHARE = 0.05  # of the kind's median slope, below which a slope weighs no more
_MOST_LOG_RATIO = (
    1.5  # a setting 4.5 times slower or faster than expected is a bad measurement, or says nothing of others
)


class Timed(NamedTuple):
    """A site and its measured milliseconds."""

    site: Site
    ms: float


def features(site: Site) -> Array:
    """(4,) in the order of UNITS, for one image."""
    layer, shape = site
    macs, norm_macs = layer.cost(shape).macs, layer.cost(shape).norm_macs
    doubled = _widened(layer).cost(shape._replace(channels=2 * shape.channels)).macs
    dense = max(0.0, (doubled - 2 * macs) / 2)
    out = site.out
    elements = shape.channels * shape.positions + out.channels * out.positions
    return np.array([dense / 1e9, max(0.0, macs - dense - norm_macs) / 1e9, elements / 1e6, 1.0])


def _widened(layer: Layer) -> Layer:
    """The layer with twice its own width, where it has one (a stem, a downsample)."""
    width = getattr(layer, "width", None)
    return layer if width is None else replace(layer, width=2 * width)  # type: ignore[call-arg]  # it has the field


class _Traits(NamedTuple):
    """What tells two sites of a kind apart."""

    fields: tuple[Scalar, ...]
    widths: tuple[int, int]
    map: tuple[int, ...]

    @classmethod
    def of(cls, site: Site) -> "_Traits":
        values = tuple(value for name, value in site.values().items() if name not in ("width", "num_classes"))
        return cls(values, (site.shape.channels, site.out.channels), site.shape[1:])

    def likeness(self, other: "_Traits") -> float:
        """1 for the same site, less for every difference."""
        differing = sum(map(operator.ne, self.fields, other.fields))
        likeness: float = _OTHER_FIELD**differing
        if self.widths != other.widths:
            likeness *= _OTHER_WIDTH
        return likeness if self.map == other.map else likeness * _OTHER_MAP


@dataclass(frozen=True, kw_only=True)
class KindModel:
    """The slopes of one kind of layer: coefficients in the order of UNITS, and how far each timed setting is from them (log of measured over expected)."""

    coefficients: Array
    traits: tuple[_Traits, ...]
    log_ratios: tuple[float, ...]

    @classmethod
    def fit(cls, timed: Sequence[Timed]) -> "KindModel":
        """Least squares of relative errors: a slope of 1 ms counts like one of 20, but one lost in noise not like a hundred others."""
        measured = np.array([item.ms for item in timed])
        weights = 1 / np.maximum(measured, _LEAST_SHARE * np.median(measured))
        design = np.array([features(item.site) for item in timed]) * weights[:, None]
        return cls.of(timed, non_negative(design, measured * weights, _PENALTY))

    @classmethod
    def of(cls, timed: Sequence[Timed], coefficients: Array) -> "KindModel":
        """The model with these coefficients."""
        expected = (max(1e-9, float(features(item.site) @ coefficients)) for item in timed)
        ratios = tuple(_clipped(math.log(item.ms / ms)) for item, ms in zip(timed, expected, strict=True))
        return cls(coefficients=coefficients, traits=tuple(_Traits.of(item.site) for item in timed), log_ratios=ratios)

    def predict(self, site: Site) -> float:
        """Milliseconds of the layer there."""
        own = _Traits.of(site)
        weights = [own.likeness(traits) for traits in self.traits]
        shift = sum(map(operator.mul, weights, self.log_ratios)) / (sum(weights) + _DOUBT)
        return max(1e-9, float(features(site) @ self.coefficients)) * math.exp(shift)


def _clipped(log_ratio: float) -> float:
    return max(-_MOST_LOG_RATIO, min(_MOST_LOG_RATIO, log_ratio))


def by_kind(slopes: Mapping[Site, float]) -> dict[tuple[str, str], list[Timed]]:
    """Timed sites by role and kind."""
    groups: dict[tuple[str, str], list[Timed]] = defaultdict(list)
    for site, ms in slopes.items():
        groups[site.kind].append(Timed(site, ms))
    return groups


def fit_kinds(slopes: Mapping[Site, float]) -> dict[tuple[str, str], KindModel]:
    """A model for every role and kind that was timed."""
    return {kind: KindModel.fit(timed) for kind, timed in by_kind(slopes).items()}


def left_out_errors(slopes: Mapping[Site, float]) -> dict[Site, float]:
    """Relative error of every slope as interpolated from the others of its kind; kinds timed once are left out."""
    errors: dict[Site, float] = {}
    for timed in by_kind(slopes).values():
        for index, item in enumerate(timed):
            others = [*timed[:index], *timed[index + 1 :]]
            if others:
                errors[item.site] = KindModel.fit(others).predict(item.site) / item.ms - 1
    return errors
