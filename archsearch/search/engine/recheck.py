"""What is measured again at a run's end: its front, in another order than the first time."""

import random
from collections.abc import Sequence

from archsearch.results import Row, front_members
from archsearch.search.rungs import SEED_PHASE

PHASE = "again"


def to_remeasure(rows: Sequence[Row], seed: int) -> list[Row]:
    """Members not yet measured again, shuffled: what drifts with time then falls on others than the first time."""
    left = sorted((row for row in rows if row["throughput_again_img_s"] is None), key=lambda row: int(row["trial"]))
    random.Random(seed).shuffle(left)
    return left


def scored_front(rows: Sequence[Row], objectives: Sequence[str]) -> list[Row]:
    """The front's members whose score placed them there, among rows that `ranked` gave; none where the score is no objective."""
    return front_members(rows) if "proxy_score" in objectives else []


def to_reseed(rows: Sequence[Row], seeds: int) -> list[tuple[Row, str]]:
    """Members and the phases they lack for so many seeds, the first training counted; all of one seed before the next."""
    return [
        (row, f"{SEED_PHASE}{number}")
        for number in range(1, seeds)
        for row in rows
        if (row["proxy_seeds"] or 1) <= number
    ]
