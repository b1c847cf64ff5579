"""What is measured again at a run's end: its front, in another order than the first time."""

import random
from collections.abc import Sequence

from archsearch.results import Row, front_members

# Throughput is what changes from one minute to the next; a front of exact figures needs no second look.
_TIMED = frozenset({"throughput_img_s", "latency_ms"})

PHASE = "again"


def is_due(objectives: Sequence[str]) -> bool:
    """Whether a run over these objectives has something to measure again."""
    return not _TIMED.isdisjoint(objectives)


def timed_front(rows: Sequence[Row], objectives: Sequence[str]) -> list[Row]:
    """The front's members whose speed placed them there, among rows that `ranked` gave; none where speed is no objective."""
    return front_members(rows) if is_due(objectives) else []


def to_remeasure(rows: Sequence[Row], seed: int) -> list[Row]:
    """Members not yet measured again, shuffled: what drifts with time then falls on others than the first time."""
    left = sorted((row for row in rows if row["throughput_again_img_s"] is None), key=lambda row: int(row["trial"]))
    random.Random(seed).shuffle(left)
    return left
