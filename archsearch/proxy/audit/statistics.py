"""Rank statistics of an audit: Kendall's tau of the proxy, of parameter counts and of training-free scores against each target, and the proxy's noise."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from archsearch.metrics import TIE_SE, Array, Estimate, estimate, kendall_tau
from archsearch.proxy.audit.plan import LONGER_SEED, AuditPlan, Group, Subject
from archsearch.proxy.audit.store import Key, Record

Document = dict[str, Any]
Free = Mapping[str, Mapping[str, float]]  # arch_id -> training-free score -> value

FEWEST = 3  # architectures of a comparison
BASELINE = "params"


@dataclass(frozen=True, kw_only=True)
class ScoredGroup:
    """The architectures of a group that were trained with every seed.

    `curves` are step -> scores (S, N), a row a seed; all of a row is nan where the seed was not scored at that step.
    """

    group: Group
    subjects: Sequence[Subject]
    records: Sequence[Sequence[Record]]  # (S, N)
    curves: Mapping[int, Array]

    @property
    def full(self) -> Array:
        """Scores of the whole trainings (S, N)."""
        return self.curves[max(self.curves)]


def collect_scores(plan: AuditPlan, records: Mapping[Key, Record], group: Group) -> ScoredGroup | None:
    """The group's scores; None when fewer than three architectures have all of theirs."""
    subjects, table = [], []
    for subject in plan.subjects:
        found = [records.get((plan.proxy.proxy_id, subject.arch.arch_id, seed)) for seed in plan.seeds]
        whole = [record for record in found if record is not None and record.score is not None]
        if subject.group == group and len(whole) == len(found):
            subjects.append(subject)
            table.append(whole)
    if len(subjects) < FEWEST:
        return None
    by_seed = list(zip(*table, strict=True))
    curves: dict[int, Array] = {}
    for point in sorted({point for row in table for record in row for point in record.scores}):
        curve = np.array([[record.scores.get(point, math.nan) for record in row] for row in by_seed], dtype=np.float64)
        curve[~np.isfinite(curve).all(axis=1)] = math.nan  # an order needs all scores of a seed
        if np.isfinite(curve).any():  # a run's trainings with other seeds have a final score only
            curves[point] = curve
    return ScoredGroup(group=group, subjects=subjects, records=by_seed, curves=curves)


def conclude(plan: AuditPlan, records: Mapping[Key, Record], free: Free) -> Document:
    """Groups with their noise, and comparisons with the proxy's whole training and with every target, as plain values; None stands for nan."""
    groups = [found for group in ("papers", "hybrids") if (found := collect_scores(plan, records, group))]
    comparisons = []
    for group in groups:
        mean, full = group.full.mean(axis=0), group.full
        rungs = [_judge(f"after {point} steps", curve, mean, full) for point, curve in group.curves.items()][:-1]
        comparisons.append(_comparison(group, "proxy", mean, [*rungs, *_baselines(group, mean, free)]))
        comparisons += _against_target(plan, group, records, free)
    return {
        "groups": {group.group: _noise(group) for group in groups},
        "comparisons": comparisons,
        "architectures": [_architecture(plan, subject, records, free) for subject in plan.subjects],
    }


def _against_target(plan: AuditPlan, group: ScoredGroup, records: Mapping[Key, Record], free: Free) -> list[Document]:
    """The proxy against the papers' top-1, or against longer training, for the architectures that have it."""
    longer = [records.get((plan.longer_id or "", one.arch.arch_id, LONGER_SEED)) for one in group.subjects]
    values = [record.score if record else None for record in longer]
    if group.group == "papers":
        values = [subject.top1 for subject in group.subjects]
    has = [index for index, value in enumerate(values) if value is not None]
    if len(has) < FEWEST:
        return []
    part = ScoredGroup(
        group=group.group,
        subjects=[group.subjects[index] for index in has],
        records=[[row[index] for index in has] for row in group.records],
        curves={point: curve[:, has] for point, curve in group.curves.items()},
    )
    target = np.array([values[index] for index in has], dtype=np.float64)
    lower = [_judge(f"after {point} steps", curve, target) for point, curve in part.curves.items()][:-1]
    judges = [_judge("proxy", part.full, target), *lower, *_baselines(part, target, free)]
    document = _comparison(part, "top1" if group.group == "papers" else "longer", target, judges)
    document["minus_params"] = plain_estimate(estimate(_tau_difference, part.full.mean(axis=0), _params(part), target))
    return [document]


def _tau_difference(proxy: Array, params: Array, target: Array) -> float:
    """How much better than the number of parameters the proxy orders."""
    return kendall_tau(proxy, target) - kendall_tau(params, target)


def _judge(name: str, scores: Array, target: Array, per_seed: Array | None = None) -> Document:
    """Tau of the mean over seeds, and the mean tau of single seeds: with the target, or with the same seed's row of `per_seed`."""
    is_scored = np.isfinite(scores).all(axis=1)
    scores = scores[is_scored]
    targets = itertools.repeat(target) if per_seed is None else per_seed[is_scored]
    single = [kendall_tau(row, own) for row, own in zip(scores, targets, strict=False)]
    found = plain_estimate(estimate(kendall_tau, scores.mean(axis=0), target))
    return {"judge": name, **found, "single": _number(np.mean(single))}


def _baselines(group: ScoredGroup, target: Array, free: Free) -> list[Document]:
    """Parameters, MACs and training-free scores, of the full architectures."""
    macs = np.array([record.macs for record in group.records[0]], dtype=np.float64)
    series = {BASELINE: _params(group), "macs": macs}
    ids = [subject.arch.arch_id for subject in group.subjects]
    for name in free.get(ids[0], {}):
        if name not in series and all(name in free.get(arch_id, {}) for arch_id in ids):
            series[name] = np.array([free[arch_id][name] for arch_id in ids])
    taus = {name: plain_estimate(estimate(kendall_tau, values, target)) for name, values in series.items()}
    return [{"judge": name, **tau, "single": None} for name, tau in taus.items()]


def _params(group: ScoredGroup) -> Array:
    return np.array([record.params for record in group.records[0]], dtype=np.float64)


def _comparison(group: ScoredGroup, target: str, values: Array, judges: Sequence[Document]) -> Document:
    return {
        "group": group.group,
        "target": target,
        "count": len(values),
        "judges": list(judges),
        "ceiling": plain_estimate(estimate(_mean_pair_tau, *group.full)) if len(group.full) > 1 else None,
        "minus_params": None,
    }


def _mean_pair_tau(*seeds: Array) -> float:
    """How far two seeds of the proxy agree, the mean of all pairs: no more can be expected of one training."""
    return float(np.mean([kendall_tau(first, second) for first, second in itertools.combinations(seeds, 2)]))


def _noise(group: ScoredGroup) -> Document:
    """Spread between architectures against the noise of their scores."""
    full, mean = group.full, group.full.mean(axis=0)
    binomial = statistics.fmean(record.standard_error for row in group.records for record in row)
    between_seeds = math.sqrt(float(np.mean(full.var(axis=0, ddof=1)))) if len(full) > 1 else None
    error = max(binomial, between_seeds or 0.0)
    pairs = [abs(a - b) < TIE_SE * math.sqrt(2) * error for row in full for a, b in itertools.combinations(row, 2)]
    return {
        "count": len(mean),
        "seeds": len(full),
        "lowest": float(mean.min()),
        "highest": float(mean.max()),
        "range": float(np.ptp(mean)),
        "sd_between_architectures": float(mean.std(ddof=1)),
        "binomial_standard_error": binomial,
        "sd_between_seeds": between_seeds,
        "tied_pairs_share": float(np.mean(pairs)),
        "tie_standard_errors": TIE_SE,
        "seconds_per_training": statistics.median(record.seconds for row in group.records for record in row),
    }


def _architecture(plan: AuditPlan, subject: Subject, records: Mapping[Key, Record], free: Free) -> Document:
    """One architecture with its scores."""
    arch_id = subject.arch.arch_id
    own = {seed: records.get((plan.proxy.proxy_id, arch_id, seed)) for seed in plan.seeds}
    longer = records.get((plan.longer_id or "", arch_id, LONGER_SEED))
    cost = subject.arch.cost()
    scores = {str(seed): record.score for seed, record in own.items() if record and record.score is not None}
    reasons = [record.reason for record in (*own.values(), longer) if record and record.reason]
    return {
        "arch_id": arch_id,
        "group": subject.group,
        "name": subject.name,
        "architecture": subject.arch.describe(),
        "macs": cost.macs,
        "params": cost.params,
        "top1": subject.top1,
        "scores": scores,
        "mean": statistics.fmean(scores.values()) if scores else None,
        "longer": longer.score if longer else None,
        "training_free": {name: _number(value) for name, value in free.get(arch_id, {}).items()},
        "reason": reasons[0] if reasons else None,
    }


def plain_estimate(found: Estimate) -> Document:
    """As plain values; None stands for nan."""
    return {name: _number(value) for name, value in asdict(found).items()}


def _number(value: float | np.floating[Any]) -> float | None:
    return float(value) if math.isfinite(value) else None
