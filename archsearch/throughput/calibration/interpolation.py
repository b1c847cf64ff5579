"""Slopes of sites that were not timed: a linear model of a kind's cost, corrected by the most similar timed sites."""

import math
import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from archsearch.blocks import Scalar
from archsearch.metrics import Array
from archsearch.throughput.calibration.regression import non_negative
from archsearch.throughput.calibration.sites import Site

# The terms of a slope: ms per 1e9 dense multiply-adds (they grow with the width squared), per 1e9 others (attention, depthwise; they grow with
# the width), per 1e6 elements of input and output, and ms a layer.
UNITS = {"dense": "ms/GMAC", "sparse": "ms/GMAC", "elements": "ms/M", "layer": "ms"}
_PENALTY = 1e-3
# Weight of a timed site in the correction of another: a factor for each field that differs, for another width, and for another map.
_OTHER_FIELD, _OTHER_WIDTH, _OTHER_MAP = 0.4, 0.3, 0.05
_MODEL_WEIGHT = 0.05  # of the uncorrected model
_LEAST_SHARE = 0.05  # of the kind's median slope: smaller slopes get no more weight in the fit
_MOST_LOG_RATIO = 1.5  # a site 4.5 times slower or faster than the model is a bad measurement, or unlike all others


class Timed(NamedTuple):
    """A site and its measured milliseconds."""

    site: Site
    ms: float


def features(site: Site) -> Array:
    """(4,) in the order of UNITS, for one image."""
    layer, shape = site
    width = getattr(layer, "width", None)  # a stem and a downsample have one
    widened = layer if width is None else replace(layer, width=2 * width)  # type: ignore[call-arg]  # it has the field
    macs, norm_macs = layer.cost(shape).macs, layer.cost(shape).norm_macs
    doubled = widened.cost(shape._replace(channels=2 * shape.channels)).macs
    dense = max(0.0, (doubled - 2 * macs) / 2)
    out = site.out
    elements = shape.channels * shape.positions + out.channels * out.positions
    return np.array([dense / 1e9, max(0.0, macs - dense - norm_macs) / 1e9, elements / 1e6, 1.0])


class _Traits(NamedTuple):
    """The properties in which two sites of a kind can differ."""

    fields: tuple[Scalar, ...]
    widths: tuple[int, int]
    map: tuple[int, ...]

    @classmethod
    def from_site(cls, site: Site) -> "_Traits":
        values = tuple(value for name, value in site.values().items() if name not in ("width", "num_classes"))
        return cls(values, (site.shape.channels, site.out.channels), site.shape[1:])

    def similarity(self, other: "_Traits") -> float:
        """1 for the same site, less for every difference."""
        differing = sum(map(operator.ne, self.fields, other.fields))
        similarity: float = _OTHER_FIELD**differing
        if self.widths != other.widths:
            similarity *= _OTHER_WIDTH
        return similarity if self.map == other.map else similarity * _OTHER_MAP


@dataclass(frozen=True, kw_only=True)
class KindModel:
    """A model of one kind's slopes: coefficients in the order of UNITS, and for each timed site its traits and log(measured / expected)."""

    coefficients: Array
    traits: tuple[_Traits, ...]
    log_ratios: tuple[float, ...]

    @classmethod
    def fit(cls, timed: Sequence[Timed]) -> "KindModel":
        """Least squares of relative errors: a slope of 1 ms counts like one of 20, but one so small that noise dominates counts less."""
        measured = np.array([item.ms for item in timed])
        weights = 1 / np.maximum(measured, _LEAST_SHARE * np.median(measured))
        design = np.array([features(item.site) for item in timed]) * weights[:, None]
        return cls.with_coefficients(timed, non_negative(design, measured * weights, _PENALTY))

    @classmethod
    def with_coefficients(cls, timed: Sequence[Timed], coefficients: Array) -> "KindModel":
        """The model with these coefficients, corrected by the timed sites."""
        log_ratios = []
        for item in timed:
            log_ratio = math.log(item.ms / max(1e-9, float(features(item.site) @ coefficients)))
            log_ratios.append(max(-_MOST_LOG_RATIO, min(_MOST_LOG_RATIO, log_ratio)))
        traits = tuple(_Traits.from_site(item.site) for item in timed)
        return cls(coefficients=coefficients, traits=traits, log_ratios=tuple(log_ratios))

    def predict(self, site: Site) -> float:
        """Slope of the site, in ms a batch."""
        own = _Traits.from_site(site)
        weights = [own.similarity(traits) for traits in self.traits]
        shift = sum(map(operator.mul, weights, self.log_ratios)) / (sum(weights) + _MODEL_WEIGHT)
        return max(1e-9, float(features(site) @ self.coefficients)) * math.exp(shift)


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
    """Relative error of every slope when it is interpolated from the others of its kind; kinds timed once are left out."""
    errors: dict[Site, float] = {}
    for timed in by_kind(slopes).values():
        for index, item in enumerate(timed):
            others = [*timed[:index], *timed[index + 1 :]]
            if others:
                errors[item.site] = KindModel.fit(others).predict(item.site) / item.ms - 1
    return errors
