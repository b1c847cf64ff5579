"""What is measured again at a run's end: its front, in another order than the first time."""

import random
from collections.abc import Sequence

from archsearch.results import Row

PHASE = "again"


def to_remeasure(rows: Sequence[Row], seed: int) -> list[Row]:
    """Members not yet measured again, shuffled: what drifts with time then falls on others than the first time."""
    left = sorted((row for row in rows if row["throughput_again_img_s"] is None), key=lambda row: int(row["trial"]))
    random.Random(seed).shuffle(left)
    return left
