"""From slopes to whole networks: a ridge fit of corrections, whose form and strength leave-one-out chooses on the training hybrids."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from archsearch.metrics import Array
from archsearch.space.arch import Arch
from archsearch.throughput.calibration.interpolation import KindModel
from archsearch.throughput.calibration.regression import left_out_residuals, ridge
from archsearch.throughput.calibration.sites import Site, sites_of

_NETWORKS_A_FACTOR = 2  # fewer networks than that for a factor would tell more of their noise than of the machine
INTERCEPT, REST = "intercept", "layers of no hybrid"
_PENALTIES = tuple(float(value) for value in np.geomspace(1e-4, 10, 16))

# Ways to group layers; the slopes of a group share one correction factor.
FORMS: dict[str, Callable[[Site], str]] = {
    "all": lambda site: "layers",
    "role": lambda site: site.layer.role,
    "kind": lambda site: f"{site.layer.role} {site.layer.kind}" if site.layer.role == "block" else site.layer.role,
    "transition": lambda site: f"{site.layer.role} {site.layer.kind}",
}


@dataclass(frozen=True, kw_only=True)
class Fit:
    """latency in ms a batch = intercept (ms) + sum over groups of factor (ms/ms) * summed slopes; `form` names the grouping.

    `penalty` is the ridge's strength towards factors of 1 and an intercept of 0, `left_out_mape` its error by leave-one-out on the training hybrids.
    """

    form: str
    penalty: float
    factors: Mapping[str, float]
    intercept: float
    left_out_mape: float

    def factor(self, site: Site) -> float:
        """The correction of a layer's slope; of all layers together where its group was in no hybrid."""
        return self.factors.get(FORMS[self.form](site), self.factors[REST])


class Slopes:
    """Milliseconds of any site: its own slope where it was timed, else its kind's model; None for a kind that was never timed."""

    def __init__(self, timed: Mapping[Site, float], models: Mapping[tuple[str, str], KindModel]) -> None:
        self.timed, self.models = timed, models

    def __call__(self, site: Site) -> float | None:
        """ms a batch."""
        own = self.timed.get(site)
        if own is not None:
            return own
        model = self.models.get(site.kind)
        return None if model is None else model.predict(site)


def fit(archs: Sequence[Arch], latencies_ms: Sequence[float], slopes: Slopes) -> Fit:
    """The form and penalty with the smallest leave-one-out error; at least two networks, all of whose kinds were timed."""
    measured = np.array(latencies_ms)
    found = [_fit_form(form, archs, measured, slopes) for form in FORMS]
    allowed = [each for each in found if len(each.factors) * _NETWORKS_A_FACTOR <= len(archs)]
    return min(allowed or found[:1], key=lambda each: each.left_out_mape)


def _fit_form(form: str, archs: Sequence[Arch], measured: Array, slopes: Slopes) -> Fit:
    """The best penalty of one form. Rows are divided by what was measured: errors are relative, and every network counts the same."""
    sums = [_sums(arch, FORMS[form], slopes) for arch in archs]
    groups = sorted({group for row in sums for group in row})
    design = np.array([[row.get(group, 0.0) for group in groups] + [1.0] for row in sums]) / measured[:, None]
    target, prior = np.ones(len(archs)), np.array([1.0] * len(groups) + [0.0])
    # The intercept in milliseconds and the factors in shares of the latency: a penalty weighs on what they move.
    scale = np.array([1.0] * len(groups) + [float(np.mean(measured))])
    design = design * scale

    def left_out(penalty: float) -> float:
        return float(np.mean(np.abs(left_out_residuals(design, target, np.full(len(scale), penalty), prior))))

    penalty = min(_PENALTIES, key=left_out)
    found = ridge(design, target, np.full(len(scale), penalty), prior) * scale
    shares = np.mean(design[:, :-1], axis=0)
    return Fit(
        form=form,
        penalty=penalty,
        factors={
            **dict(zip(groups, found[:-1].tolist(), strict=True)),
            REST: float(shares @ found[:-1] / shares.sum()),
        },
        intercept=float(found[-1]),
        left_out_mape=left_out(penalty),
    )


def _sums(arch: Arch, group_of: Callable[[Site], str], slopes: Slopes) -> dict[str, float]:
    """Summed slopes by group, ms."""
    sums: dict[str, float] = defaultdict(float)
    for site in sites_of(arch):
        ms = slopes(site)
        assert ms is not None, f"{site} was never timed"
        sums[group_of(site)] += ms
    return sums
