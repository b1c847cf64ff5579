"""The audit of a proxy: statistics against scipy, the verdict by cases, its line in the report, and the choice of architectures."""

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau
from support.audits import NAMES, PROXY, STEPS, make_plan, make_record
from support.report_runs import PROXY_ID, SIX, write_run
from support.settings import settings_for

from archsearch.metrics import estimate, kendall_tau
from archsearch.proxy import AuditStore, read_audit
from archsearch.proxy.audit.from_run import run_hybrids, run_records
from archsearch.proxy.audit.plan import LONGER_SEED, hybrid_subjects
from archsearch.proxy.audit.statistics import conclude
from archsearch.proxy.audit.store import audit_folder
from archsearch.proxy.audit.verdict import verdict
from archsearch.report import build_report
from archsearch.report.caveats import audit_sentence
from archsearch.space import paper, paper_names


def find_comparison(document: Mapping[str, Any], group: str, target: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A comparison, and its judges by name."""
    found = next(one for one in document["comparisons"] if (one["group"], one["target"]) == (group, target))
    return found, {judge["judge"]: judge for judge in found["judges"]}


def test_the_interval_is_that_of_all_resamples() -> None:
    first, second = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 1.0, 4.0, 3.0])
    every = [list(draw) for draw in itertools.product(range(4), repeat=4)]
    taus = [kendalltau(first[draw], second[draw]).statistic for draw in every if len(set(draw)) > 1]
    low, high = np.quantile([tau for tau in taus if np.isfinite(tau)], [0.025, 0.975])
    found = estimate(kendall_tau, first, second)
    assert found.value == pytest.approx(kendalltau(first, second).statistic)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.06)


def test_taus_are_scipys_of_means_over_seeds_and_of_single_seeds() -> None:
    plan, rng = make_plan(longer=4, hybrids=NAMES[:5]), random.Random(1)
    scores = {(name, seed): {1: rng.random(), STEPS: rng.random()} for name in NAMES for seed in (0, 1)}
    papers = [subject for subject in plan.subjects if subject.group == "papers"]
    records = [make_record(one, seed, scores[str(one.name), seed]) for one in papers for seed in (0, 1)]
    longer = {name: rng.random() for name in NAMES[:5]}
    records += [
        make_record(one, LONGER_SEED, {4 * STEPS: longer[str(one.name)]}, "p-longer", steps=4 * STEPS)
        for one in papers[:5]
    ]
    free = {one.arch.arch_id: {"naswot": rng.random()} for one in papers}
    document = conclude(plan, {record.key: record for record in records}, free)

    def tau(first: Sequence[float | None], second: Sequence[float | None]) -> float:
        return float(kendalltau(first, second).statistic)

    full = np.array([[scores[name, seed][STEPS] for name in NAMES] for seed in (0, 1)])
    early = np.array([[scores[name, seed][1] for name in NAMES] for seed in (0, 1)])
    top1 = [one.top1 for one in papers]
    params = [one.arch.cost().params for one in papers]
    comparison, judges = find_comparison(document, "papers", "top1")
    assert judges["proxy"]["value"] == pytest.approx(tau(full.mean(0), top1))
    assert judges["proxy"]["single"] == pytest.approx((tau(full[0], top1) + tau(full[1], top1)) / 2)
    assert judges["params"]["value"] == pytest.approx(tau(params, top1))
    assert judges["naswot"]["value"] == pytest.approx(tau([free[one.arch.arch_id]["naswot"] for one in papers], top1))
    assert comparison["ceiling"]["value"] == pytest.approx(tau(full[0], full[1]))
    assert comparison["minus_params"]["value"] == pytest.approx(tau(full.mean(0), top1) - tau(params, top1))
    _, judges = find_comparison(document, "papers", "proxy")
    assert judges["after 1 steps"]["value"] == pytest.approx(tau(early.mean(0), full.mean(0)))
    assert judges["after 1 steps"]["single"] == pytest.approx((tau(early[0], full[0]) + tau(early[1], full[1])) / 2)
    comparison, judges = find_comparison(document, "hybrids", "longer")
    assert comparison["count"] == 5
    assert judges["proxy"]["value"] == pytest.approx(tau(full.mean(0)[:5], list(longer.values())))
    noise = document["groups"]["papers"]
    assert noise["sd_between_seeds"] == pytest.approx(np.sqrt(np.mean(np.square(full[0] - full[1]) / 2)))
    assert noise["sd_between_architectures"] == pytest.approx(np.std(full.mean(0), ddof=1))


def test_architectures_that_failed_are_left_out_and_named() -> None:
    plan = make_plan(seeds=1)
    records = [make_record(one, 0, {STEPS: place / 10}) for place, one in enumerate(plan.subjects)]
    records[2] = make_record(plan.subjects[2], 0, {}, reason="diverged twice")
    document = conclude(plan, {record.key: record for record in records}, {})
    comparison, judges = find_comparison(document, "papers", "top1")
    assert comparison["count"] == len(NAMES) - 1
    assert comparison["ceiling"] is None
    assert judges["proxy"]["value"] == pytest.approx(
        kendalltau(range(5), [one.top1 for one in plan.subjects if one.name != NAMES[2]]).statistic
    )
    assert [row["name"] for row in document["architectures"] if row["reason"]] == [NAMES[2]]


def make_verdict(
    value: float, low: float, high: float, minus: tuple[float, float], ceiling: float | None, count: int = 10
) -> str:
    """The verdict of these figures."""
    proxy = {"judge": "proxy", "value": value, "low": low, "high": high, "single": value}
    params = {"judge": "params", "value": 0.33, "low": -0.2, "high": 0.7, "single": None}
    comparison = {
        "group": "papers",
        "target": "top1",
        "count": count,
        "judges": [proxy, params],
        "minus_params": {"value": 0.1, "low": minus[0], "high": minus[1]},
        "ceiling": ceiling and {"value": ceiling, "low": ceiling - 0.2, "high": ceiling + 0.1},
    }
    return verdict({"comparisons": [comparison], "longer": 4})


@pytest.mark.parametrize(
    ("figures", "words", "never"),
    [
        ((0.42, -0.10, 0.81, (-0.3, 0.5), 0.8), "holds 0, so it is not shown to order them at all", "better"),
        ((0.42, 0.10, 0.81, (-0.3, 0.5), 0.8), "is not shown to be better than counting parameters", "bounds"),
        ((0.62, 0.30, 0.81, (0.1, 0.5), 0.9), "it orders them, and better than counting parameters", "not shown"),
        ((0.22, 0.05, 0.41, (-0.5, -0.1), 0.9), "but worse than counting parameters", "not shown"),
        ((-0.5, -0.8, -0.1, (-1.0, -0.4), 0.9), "the wrong way round", "not shown"),
        (
            (0.42, 0.10, 0.81, (-0.3, 0.5), 0.5),
            "two of its seeds agree by 0.50, so its noise may be what bounds it",
            "-0",
        ),
        ((0.42, 0.10, 0.81, (-0.3, 0.5), None), "its noise is not known", "agree"),
        ((1.00, 1.00, 1.00, (0.1, 0.5), 0.9, 4), "too few to show anything", "better"),
    ],
)
def test_the_verdict_claims_what_the_intervals_show(figures: Any, words: str, never: str) -> None:
    sentence = make_verdict(*figures)
    assert words in sentence
    assert never not in sentence
    assert (
        f"tau {figures[0]:.2f} (95 %: {figures[1]:.2f} to {figures[2]:.2f}), counting parameters with 0.33" in sentence
    )


def test_the_report_shows_the_last_verdict_or_that_there_is_none(tmp_path: Path) -> None:
    folder = write_run(tmp_path, SIX)
    document = build_report(folder)
    assert document["audit"] is None
    assert f"has not been audited; `archsearch audit {folder}`" in audit_sentence(document)
    store = AuditStore(audit_folder(folder.parent, PROXY_ID))
    with store.locked("written"):
        pass
    store.write(
        {"proxy_id": PROXY_ID, "verdict": "This proxy orders nothing.", "created_at": "2026-01-02T03:04:05+00:00"}
    )
    document = build_report(folder)
    assert document["audit"]["verdict"] == "This proxy orders nothing."
    assert audit_sentence(document) == "Audit of 2026-01-02: This proxy orders nothing."


def test_the_embedded_proxy_comes_with_an_audit_that_the_users_own_replaces(tmp_path: Path) -> None:
    proxy_id = settings_for()["proxy_id"]
    shipped = read_audit(tmp_path, proxy_id)
    assert shipped
    assert shipped["is_shipped"]
    assert "10 papers' models" in shipped["verdict"]
    own = {**shipped, "verdict": "This proxy orders nothing."}
    store = AuditStore(audit_folder(tmp_path, proxy_id))
    with store.locked("written"):
        pass
    store.write(own)
    found = read_audit(tmp_path, proxy_id)
    assert found
    assert (found["verdict"], found["is_shipped"]) == ("This proxy orders nothing.", False)
    assert read_audit(tmp_path, f"{proxy_id}/other") is None


@pytest.mark.slow
def test_hybrids_are_in_the_band_spread_and_the_same_each_time() -> None:
    found = hybrid_subjects(8, 4_500_000_000)
    archs = [one.arch for one in found]
    assert archs == [one.arch for one in hybrid_subjects(8, 4_500_000_000)]
    assert len(set(archs)) == 8
    assert all(4_275_000_000 <= arch.cost().macs <= 4_725_000_000 for arch in archs)
    assert len({arch.stages[0].block for arch in archs}) >= 4
    assert len({arch.stages[-1].block for arch in archs}) >= 4
    params = sorted(arch.cost().params for arch in archs)
    assert params[-1] > 1.5 * params[0]


def test_a_run_is_audited_from_worst_to_best_with_what_it_has_measured(tmp_path: Path) -> None:
    rows = [dict(row) for row in build_rows(9)]
    chosen = run_hybrids(rows, 3)
    ids = [one.arch.arch_id for one in chosen]
    by_score = sorted(rows, key=lambda row: float(row["proxy_score"]))
    assert ids == [by_score[place]["arch_id"] for place in (0, 4, 8)]
    proxy = replace(PROXY, recipe=replace(PROXY.recipe, steps=400))
    found = {(record.arch_id, record.seed): record for record in run_records(rows, proxy)}
    assert len(found) == 10
    first, second = found[rows[0]["arch_id"], 0], found[rows[0]["arch_id"], 1]
    assert first.scores == {50: 0.3, 400: rows[0]["proxy_score"]}
    assert second.scores == {400: 0.61}
    assert second.standard_error == pytest.approx((0.61 * 0.39 / 2000) ** 0.5)


def build_rows(count: int) -> list[dict[str, Any]]:
    """Complete candidates of a run; the first was trained with two seeds and rungs."""
    archs = [paper(name) for name in paper_names()[:count]]
    rows = []
    for number, arch in enumerate(archs):
        row = {**SIX[2], "trial": number, "arch_id": arch.arch_id, "arch": json.dumps(arch.to_dict())}
        rows.append(row | {"state": "complete", "proxy_score": 0.5 + (number * 5 % count) / 100, "is_fixed": False})
    curve = [{"steps": 50, "score": 0.3, "standard_error": 0.01}]
    rows[0] |= {"learning_curve": json.dumps(curve), "proxy_seed_scores": json.dumps([0.5, 0.61])}
    return rows
