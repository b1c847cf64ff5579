"""A report of many trials says what slow and plain ways say: chances, open members, ranks and rows."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.special import ndtr
from support.made_runs import write_made_run

from archsearch.metrics import TIE_SE, front_ranks
from archsearch.report.run import build_report
from archsearch.results import SCHEMA, Row, minimised, read_rows, training_variance

OBJECTIVES = ("proxy_score", "throughput_img_s", "params")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 1500 trials, all complete but for the failed ones."""
    return write_made_run(tmp_path_factory.mktemp("long"), 1500, stopped=0.0)


@pytest.fixture(scope="module")
def complete(folder: Path) -> list[Row]:
    return [row for row in read_rows(folder) if row["state"] == "complete"]


def test_rows_are_those_of_pyarrow(folder: Path) -> None:
    rows = read_rows(folder)
    assert rows == pq.read_table(folder / "trials.parquet").cast(SCHEMA).to_pylist()
    assert rows[0]["started_at"].isoformat() == "2026-01-01T00:00:00+00:00"


def test_chances_are_those_of_all_rivals_one_by_one(folder: Path, complete: list[Row]) -> None:
    error = training_variance(complete) ** 0.5
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    scores = np.array([row["proxy_score"] for row in complete])
    costs = minimised(complete, OBJECTIVES[1:])
    place_of = {row["trial"]: place for place, row in enumerate(complete)}
    document = build_report(folder)
    for row in [*document["front"], *document["near_front"]]:
        place = place_of[row["trial"]]
        is_rival = np.all(costs <= costs[place], axis=1)
        is_rival[place] = False
        own = scores[place] + error * nodes
        chance = weights @ ndtr((own[:, None] - scores[is_rival]) / error).prod(axis=1) / weights.sum()
        assert row["front_chance"] == pytest.approx(chance, rel=1e-9)


def test_open_members_are_those_of_all_pairs(folder: Path, complete: list[Row]) -> None:
    """Errors are .009, spreads of the blocks below the drift of 3 % that is allowed."""

    def sign(one: Row, other: Row, name: str) -> int:
        mine, theirs = one[name], other[name]
        noise = {"proxy_score": TIE_SE * 0.009 * 2**0.5, "throughput_img_s": 0.03 * max(mine, theirs), "params": 0.0}[
            name
        ]
        better = mine < theirs if name == "params" else mine > theirs
        is_tie = mine == theirs or (
            abs(mine - theirs) < noise if name == "proxy_score" else abs(mine - theirs) <= noise
        )
        return 0 if is_tie else 1 if better else -1

    for member in build_report(folder)["front"]:
        expected = []
        for row in complete:
            signs = [sign(row, member, name) for name in OBJECTIVES]
            if min(signs) >= 0 and max(signs) > 0:
                expected.append(row["trial"])
        assert member["unresolved_by"] == expected


def test_ranks_are_those_of_peeling_fronts_off(complete: list[Row]) -> None:
    values = minimised(complete[:300], OBJECTIVES)
    left = set(range(len(values)))
    ranks: dict[int, int] = {}
    for number in itertools.count():
        if not left:
            break
        members = list(left)
        rest = values[members]
        front = [
            place
            for place in members
            if not np.any(np.all(rest <= values[place], axis=1) & np.any(rest < values[place], axis=1))
        ]
        ranks |= dict.fromkeys(front, number)
        left -= set(front)
    assert front_ranks(values).tolist() == [ranks[place] for place in range(len(values))]


def test_the_scatter_has_every_member_and_few_of_the_others(folder: Path) -> None:
    document = build_report(folder)
    scatter = document["scatter"]
    members = [[row["throughput_img_s"], row["proxy_score"]] for row in document["front"] if not row["is_fixed"]]
    assert sorted(scatter["front"]) == sorted(members)
    assert len(scatter["fixed"]) == 10
    assert 100 < len(scatter["dominated"]) <= 80 * 40
