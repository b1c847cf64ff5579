"""What a run has measured already, as an audit's records, and which of its candidates are audited."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from archsearch.proxy.audit.plan import Subject
from archsearch.proxy.audit.store import Record
from archsearch.results import Row
from archsearch.space.arch import Arch


def run_hybrids(rows: Sequence[Row], number: int) -> list[Subject]:
    """So many complete candidates, from the worst score to the best at equal steps of rank: a sample of all, not of the front."""
    candidates = [row for row in own_rows(rows) if not row["is_fixed"]]
    candidates.sort(key=lambda row: (float(row["proxy_score"]), str(row["arch_id"])))
    last, number = len(candidates) - 1, min(number, len(candidates))
    places = [round(place * last / max(1, number - 1)) for place in range(number)]
    return [Subject(arch=_arch(candidates[place]), group="hybrids") for place in places]


def run_records(rows: Sequence[Row], settings: Mapping[str, Any]) -> Iterator[Record]:
    """The trainings of the complete rows: the first with its scores at the rungs, those of other seeds with the last one alone."""
    recipe, num_val = settings["proxy"]["recipe"], settings["proxy_num_val"]
    for row in own_rows(rows):
        points = json.loads(row["learning_curve"] or "[]")
        last = {"steps": recipe["steps"], "score": row["proxy_score"], "standard_error": row["proxy_score_se"]}
        yield _record(row, recipe, recipe["seed"], [*points, last], row["seconds_proxy"])
        for number, score in enumerate(json.loads(row["proxy_seed_scores"] or "[]")[1:], start=1):
            error = math.sqrt(score * (1 - score) / num_val)
            point = {"steps": recipe["steps"], "score": score, "standard_error": error}
            yield _record(row, recipe, recipe["seed"] + number, [point], row["seconds_proxy"])


def own_rows(rows: Sequence[Row]) -> list[Row]:
    """Complete rows with a score, each architecture once."""
    found = [row for row in rows if row["state"] == "complete" and row["proxy_score"] is not None]
    return list({row["arch_id"]: row for row in reversed(found) if row["reused_from"] is None}.values())[::-1]


def _arch(row: Row) -> Arch:
    return Arch.from_dict(json.loads(row["arch"]), f"trial {row['trial']}")


def _record(
    row: Row, recipe: Mapping[str, Any], seed: int, points: Sequence[Mapping[str, Any]], seconds: float | None
) -> Record:
    curve = {str(point["steps"]): [point["score"], point["standard_error"] or 0.0] for point in points}
    return Record(
        proxy_id=row["proxy_id"],
        arch_id=row["arch_id"],
        name=row["paper"],
        arch=json.loads(row["arch"]),
        seed=seed,
        steps=recipe["steps"],
        curve=curve,
        seconds=seconds or 0.0,
        macs=row["macs"],
        params=row["params"],
        conditions=json.loads(row["conditions"] or "{}"),
    )
