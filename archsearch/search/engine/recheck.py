"""What is measured again at the end of a run: throughput and, with further seeds, the proxy score of the front's members."""

import random
from collections.abc import Sequence

from archsearch.results import Row, front_members
from archsearch.search.rungs import SEED_PHASE

AGAIN_PHASE = "again"


def to_remeasure(rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows not measured again yet, shuffled: in another order a slow drift affects other trials than the first time."""
    left = sorted((row for row in rows if row["throughput_again_img_s"] is None), key=lambda row: int(row["trial"]))
    random.Random(seed).shuffle(left)
    return left


def scored_front(rows: Sequence[Row], objectives: Sequence[str]) -> list[Row]:
    """The front's members among rows that `ranked` gave; none where the score is no objective."""
    return front_members(rows) if "proxy_score" in objectives else []


def to_reseed(rows: Sequence[Row], num_seeds: int) -> list[tuple[Row, str]]:
    """The trainings that `rows` lack for `num_seeds` seeds, the first one counted: (row, phase), all of one seed before the next."""
    return [
        (row, f"{SEED_PHASE}{number}")
        for number in range(1, num_seeds)
        for row in rows
        if (row["proxy_seeds"] or 1) <= number
    ]
