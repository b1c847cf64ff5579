"""Plans and records of audits for tests."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from archsearch.proxy import AuditPlan, ProxyTask, Subject, load_profile
from archsearch.proxy.audit.plan import paper_subjects
from archsearch.proxy.audit.store import Record
from archsearch.space import paper

NAMES = ("van_b0", "van_b1", "van_b2", "pvt_tiny", "pvt_small", "davit_tiny")
STEPS = 8

_PROFILE = load_profile("fashion-mnist")
PROXY = ProxyTask(
    source={"kind": "fashion-mnist"},
    scale=_PROFILE.scale,
    recipe=replace(_PROFILE.recipe, steps=STEPS),
    proxy_id="p",
    num_val=2000,
)


def make_plan(*, seeds: int = 2, longer: int = 0, hybrids: Sequence[str] = ()) -> AuditPlan:
    """Six papers' models, and `hybrids`, which are papers' models too."""
    subjects = [
        *paper_subjects(NAMES),
        *(Subject(arch=paper(name), group="hybrids") for name in hybrids),
    ]
    return AuditPlan(
        proxy=PROXY,
        device="cpu",
        subjects=subjects,
        num_seeds=seeds,
        longer=longer,
        longer_id="p-longer" if longer else None,
    )


def make_record(
    subject: Subject, seed: int, scores: Mapping[int, float], proxy_id: str = "p", **changes: Any
) -> Record:
    cost = subject.arch.cost()
    values: dict[str, Any] = {
        "proxy_id": proxy_id,
        "arch_id": subject.arch.arch_id,
        "name": subject.name,
        "arch": subject.arch.to_dict(),
        "seed": seed,
        "steps": max(scores, default=STEPS),
        "curve": {str(step): [score, 0.01] for step, score in scores.items()},
        "seconds": 2.0,
        "macs": cost.macs,
        "params": cost.params,
        "conditions": {},
    }
    return Record(**{**values, **changes})
