"""From slopes to the latency of whole networks: a ridge fit of correction factors, its form and penalty chosen by leave-one-out error."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from archsearch.metrics import Array
from archsearch.space import Arch
from archsearch.throughput.calibration.interpolation import KindModel
from archsearch.throughput.calibration.regression import left_out_residuals, ridge
from archsearch.throughput.calibration.sites import Site, arch_sites

_NETWORKS_A_FACTOR = 2  # with fewer networks for each factor, the fit would follow their noise
INTERCEPT, REST = "intercept", "layers of no hybrid"
_PENALTIES = tuple(float(value) for value in np.geomspace(1e-4, 10, 16))

# Ways to group layers: those of a group share one correction factor.
FORMS: dict[str, Callable[[Site], str]] = {
    "all": lambda site: "layers",
    "role": lambda site: site.layer.role,
    "kind": lambda site: f"{site.layer.role} {site.layer.kind}" if site.layer.role == "block" else site.layer.role,
    "transition": lambda site: f"{site.layer.role} {site.layer.kind}",
}


@dataclass(frozen=True, kw_only=True)
class LatencyFit:
    """latency in ms a batch = intercept (ms) + sum over groups of factor (ms/ms) * summed slopes; `form` names the grouping.

    `penalty` is the strength of the ridge towards factors of 1 and an intercept of 0, `left_out_mape` the mean absolute
    error (a fraction) by leave-one-out on the training hybrids.
    """

    form: str
    penalty: float
    factors: Mapping[str, float]
    intercept: float
    left_out_mape: float

    def factor(self, site: Site) -> float:
        """The correction factor of a layer's slope; the average one where no hybrid had a layer of its group."""
        return self.factors.get(FORMS[self.form](site), self.factors[REST])


class Slopes:
    """Slope of any site: as timed, or else interpolated by the model of its kind."""

    def __init__(self, timed: Mapping[Site, float], models: Mapping[tuple[str, str], KindModel]) -> None:
        self.timed, self.models = timed, models

    def __call__(self, site: Site) -> float | None:
        """Milliseconds a batch; None for a kind that was never timed."""
        measured = self.timed.get(site)
        if measured is not None:
            return measured
        model = self.models.get(site.kind)
        return None if model is None else model.predict(site)


def fit_latency(archs: Sequence[Arch], latencies_ms: Sequence[float], slopes: Slopes) -> LatencyFit:
    """The fit with the smallest leave-one-out error; for at least two networks, all of whose kinds were timed."""
    measured = np.array(latencies_ms)
    found = [_fit_form(form, archs, measured, slopes) for form in FORMS]
    allowed = [each for each in found if len(each.factors) * _NETWORKS_A_FACTOR <= len(archs)]
    return min(allowed or found[:1], key=lambda each: each.left_out_mape)


def _fit_form(form: str, archs: Sequence[Arch], measured: Array, slopes: Slopes) -> LatencyFit:
    """The fit of one form with its best penalty. Rows are divided by the measured latency: errors are relative, and every network counts the same."""
    sums: list[dict[str, float]] = [defaultdict(float) for _ in archs]  # of the layers' slopes in ms, by group
    for arch, row in zip(archs, sums, strict=True):
        for site in arch_sites(arch):
            ms = slopes(site)
            assert ms is not None, f"{site} was never timed"
            row[FORMS[form](site)] += ms
    groups = sorted({group for row in sums for group in row})
    design = np.array([[row.get(group, 0.0) for group in groups] + [1.0] for row in sums]) / measured[:, None]
    target, prior = np.ones(len(archs)), np.array([1.0] * len(groups) + [0.0])
    # The intercept is scaled by the mean latency, so that the penalty weighs on a share of the latency as it does for the factors.
    scale = np.array([1.0] * len(groups) + [float(np.mean(measured))])
    design = design * scale

    def left_out(penalty: float) -> float:
        return float(np.mean(np.abs(left_out_residuals(design, target, np.full(len(scale), penalty), prior))))

    penalty = min(_PENALTIES, key=left_out)
    found = ridge(design, target, np.full(len(scale), penalty), prior) * scale
    shares = np.mean(design[:, :-1], axis=0)
    rest = float(shares @ found[:-1] / shares.sum())
    return LatencyFit(
        form=form,
        penalty=penalty,
        factors={**dict(zip(groups, found[:-1].tolist(), strict=True)), REST: rest},
        intercept=float(found[-1]),
        left_out_mape=left_out(penalty),
    )
