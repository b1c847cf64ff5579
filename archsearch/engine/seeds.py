"""What is trained again at a run's end: its front, with other seeds, so that scores come with the noise of training."""

from collections.abc import Sequence

from archsearch.config import SEED_PHASE
from archsearch.results import Row, front_members


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
