"""The audit of scores without training against the published top-1 of timm's networks, beside the papers' models."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from archsearch.device import pick_device, use_cpu
from archsearch.metrics import Array, estimate, kendall_tau
from archsearch.proxy.audit.statistics import Document, plain_estimate
from archsearch.proxy.audit.store import AUDIT_FILE, FOLDER, AuditStore
from archsearch.proxy.audit.timm_networks import (
    BATCH_SIZE,
    IMAGE_SIZE,
    SEED,
    Network,
    Scores,
    paper_networks,
    require_timm,
    score_all,
    timm_networks,
)
from archsearch.proxy.training_free import aggregate
from archsearch.space import Band, choose_papers
from archsearch.system import Progress, Say, ignore, replace_file, utc_now
from archsearch.version import __version__

COUNTS = ("params", "macs", "activations")
JUDGES = (*COUNTS, "nsc", "az_nas", "naswot", "zico")
SUM = "fitted sum"
_FEWEST_FAMILIES = 5  # of a set, whose intervals would mean nothing with fewer
_FEWEST_TO_FIT = 10  # networks
_LIKE_PARAMS = 0.1  # difference of two networks' parameters, as a share of the larger number
_NAME = "timm"


@dataclass(frozen=True, kw_only=True)
class TimmRequest:
    """What the command line asks for."""

    bands: Sequence[Band]
    papers: str
    budget_macs: int
    device: str
    threads: int | None


def audit_against_timm(
    request: TimmRequest,
    results_root: Path,
    output: Path | None = None,
    *,
    say: Say = ignore,
    progress: Progress = ignore,
) -> Document:
    """Score what was not scored before, write the audit's folder, and return its document. Raises UserError without timm."""
    require_timm()
    device = pick_device(request.device)
    use_cpu(request.threads)
    by_band = {str(band): timm_networks(band) for band in request.bands}
    papers = paper_networks(choose_papers(request.papers, request.budget_macs, IMAGE_SIZE))
    store = AuditStore(output or results_root / FOLDER / _NAME)
    networks = list(dict.fromkeys([*(one for band in by_band.values() for one in band), *papers]))
    found = score_all(networks, store, device, say=say, progress=progress)
    document: Document = {
        "created_at": utc_now(),
        "folder": str(store.folder),
        "image_size": IMAGE_SIZE,
        "batch_size": BATCH_SIZE,
        "seed": SEED,
        "bands": [{"band": band, "sets": _band_sets(members, found)} for band, members in by_band.items()],
        "papers": _set("papers", papers, found),
        "networks": [{**asdict(one), "top1": one.top1, "scores": found.get(one.name)} for one in networks],
        "seconds": sum(scores["seconds"] for scores in found.values()),
        "versions": {"archsearch": __version__},
    }
    text = json.dumps(document, indent=2) + "\n"
    replace_file(store.folder / AUDIT_FILE, lambda path: path.write_text(text, encoding="utf-8"))
    return document


def _band_sets(networks: Sequence[Network], found: Mapping[str, Scores]) -> list[Document]:
    """All of a band's networks; those with a checkpoint of ImageNet-1k alone; pairs of like parameters; and each kind of mixer."""
    sets = {"all": networks, "in1k only": [one for one in networks if one.top1_in1k is not None]}
    kinds = {kind: [one for one in networks if one.mixer == kind] for kind in ("attention", "mixed", "convolution")}
    like = _set("like params", sets["in1k only"], found, like_params_tau)
    documents = [*(_set(name, members, found) for name, members in sets.items()), like]
    return [*documents, *(_set(name, members, found) for name, members in kinds.items())]


def _set(
    name: str,
    networks: Sequence[Network],
    found: Mapping[str, Scores],
    statistic: Callable[..., float] = kendall_tau,
) -> Document:
    """Each judge's tau with the published top-1, without judges for fewer than five families.

    The interval draws whole families, whose networks share their recipes.
    """
    scored = [one for one in networks if one.name in found and np.isfinite(list(found[one.name].values())).all()]
    families = [one.family for one in scored]
    judges = []
    if len(set(families)) >= _FEWEST_FAMILIES:
        target = np.array([one.top1 for one in scored])
        extra = [np.array([one.params for one in scored])] if statistic is like_params_tau else []
        for judge, values in _series(scored, found, target).items():
            tau = estimate(statistic, values, target, *extra, clusters=families)
            judges.append({"judge": judge, **plain_estimate(tau)})
    return {"set": name, "count": len(scored), "families": len(set(families)), "judges": judges}


def _series(networks: Sequence[Network], found: Mapping[str, Scores], target: Array) -> dict[str, Array]:
    """The values of every judge."""
    rows = [{**found[one.name], **{name: float(getattr(one, name)) for name in COUNTS}} for one in networks]
    ranked = aggregate(rows)
    table = [{**row, "az_nas": value} for row, value in zip(rows, ranked, strict=True)]
    series = {judge: np.array([row[judge] for row in table]) for judge in JUDGES}
    families = np.array([one.family for one in networks])
    if len(networks) >= _FEWEST_TO_FIT:
        series[SUM] = fitted_sum(np.column_stack(list(series.values())), target, families)
    return series


def fitted_sum(values: Array, target: Array, families: Array) -> Array:
    """A weighted sum of the ranks of `values` (networks, judges); the weights of a family's networks are fitted to the other families' `target`.

    Ridge regression on standardised ranks with a penalty of 1 a network, which was not tuned. A constant is left out: fitted without a good family it would
    be lower for that family, and so order the families the wrong way round.
    """
    ranks = rankdata(values, axis=0)
    ranks = (ranks - ranks.mean(0)) / np.maximum(ranks.std(0), 1e-12)
    found = np.empty(len(target))
    for family in np.unique(families):
        others, own = families != family, families == family
        known, wanted = ranks[others], target[others] - target[others].mean()
        penalty = others.sum() * np.eye(values.shape[1])
        found[own] = ranks[own] @ np.linalg.solve(known.T @ known + penalty, known.T @ wanted)
    return found


def like_params_tau(values: Array, target: Array, params: Array) -> float:
    """(concordant - discordant) / pairs, over the pairs whose parameters differ by less than a tenth and whose targets differ; nan without any."""
    near = np.abs(np.subtract.outer(params, params)) < _LIKE_PARAMS * np.maximum.outer(params, params)
    wanted = np.where(near, np.sign(np.subtract.outer(target, target)), 0)
    pairs = np.count_nonzero(wanted)
    return float((wanted * np.sign(np.subtract.outer(values, values))).sum()) / pairs if pairs else float("nan")
