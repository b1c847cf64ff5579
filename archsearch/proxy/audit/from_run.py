"""From a run to its audit: its finished trainings as records, and which of its candidates are audited."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from archsearch.metrics import binomial_standard_error
from archsearch.proxy.audit.plan import Subject
from archsearch.proxy.audit.store import Record
from archsearch.proxy.task import ProxyTask
from archsearch.results import Row
from archsearch.space import Arch


def run_hybrids(rows: Sequence[Row], number: int) -> list[Subject]:
    """So many complete candidates, from the worst score to the best at equal steps of rank: a sample of all, not of the front."""
    candidates = [row for row in own_rows(rows) if not row["is_fixed"]]
    candidates.sort(key=lambda row: (float(row["proxy_score"]), str(row["arch_id"])))
    last, number = len(candidates) - 1, min(number, len(candidates))
    places = [round(place * last / max(1, number - 1)) for place in range(number)]
    chosen = [candidates[place] for place in places]
    archs = [Arch.from_dict(json.loads(row["arch"]), f"trial {row['trial']}") for row in chosen]
    return [Subject(arch=arch, group="hybrids") for arch in archs]


def run_records(rows: Sequence[Row], proxy: ProxyTask) -> Iterator[Record]:
    """The trainings of the complete rows: the first with its scores at the rungs, those of other seeds with the final score alone."""
    steps, seed = proxy.recipe.steps, proxy.recipe.seed
    for row in own_rows(rows):
        points = json.loads(row["learning_curve"] or "[]")
        last = {"steps": steps, "score": row["proxy_score"], "standard_error": row["proxy_score_se"]}
        yield _record(row, steps, seed, [*points, last])
        for number, score in enumerate(json.loads(row["proxy_seed_scores"] or "[]")[1:], start=1):
            error = binomial_standard_error(score, proxy.num_val)
            yield _record(row, steps, seed + number, [{"steps": steps, "score": score, "standard_error": error}])


def own_rows(rows: Sequence[Row]) -> list[Row]:
    """Complete rows with a score, each architecture once."""
    found = [row for row in rows if row["state"] == "complete" and row["proxy_score"] is not None]
    return list({row["arch_id"]: row for row in reversed(found) if row["reused_from"] is None}.values())[::-1]


def _record(row: Row, steps: int, seed: int, points: Sequence[Mapping[str, Any]]) -> Record:
    curve = {str(point["steps"]): [point["score"], point["standard_error"] or 0.0] for point in points}
    return Record(
        proxy_id=row["proxy_id"],
        arch_id=row["arch_id"],
        name=row["paper"],
        arch=json.loads(row["arch"]),
        seed=seed,
        steps=steps,
        curve=curve,
        seconds=row["seconds_proxy"] or 0.0,
        macs=row["macs"],
        params=row["params"],
        conditions=json.loads(row["conditions"] or "{}"),
    )
