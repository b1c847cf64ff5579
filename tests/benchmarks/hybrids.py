"""The table of our own small hybrids (tests/data/hybrid_table.parquet) as a search problem: look-ups instead of trainings."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from archsearch.metrics import hypervolume, is_dominated
from archsearch.search import Curve, RungScore

TABLE = Path(__file__).resolve().parents[1] / "data" / "hybrid_table.parquet"
SECOND_TABLE = TABLE.with_name("hybrid_table_2.parquet")  # another space and budget
_FIGURES = (
    "arch_id macs params throughput_img_s throughput_iqr throughput_ratio seed steps train_images score standard_error train_loss train_s"
).split()
_REFERENCE = 1.1  # after scaling each objective to 0..1 over the whole table

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Hybrid:
    """One row of the search: what it costs, how fast it is, and its score and training images at each rung."""

    choices: dict[str, Any]
    params: int
    throughput_img_s: float
    scores: tuple[RungScore, ...]
    images: tuple[int, ...]

    @property
    def minimised(self) -> tuple[float, float, float]:
        """Final score, throughput and parameters, all to be minimised."""
        return -self.scores[-1].value, -self.throughput_img_s, float(self.params)

    def curve(self, trial: int, rungs: int) -> Curve:
        """As the rungs see it once it has finished that many of them."""
        return Curve(trial=trial, costs=self.minimised[1:], scores=self.scores[:rungs])


class HybridTable:
    """Every hybrid with its curve of one seed; `of(choices)` looks one up."""

    def __init__(self, rows: Sequence[Hybrid]) -> None:
        self.rows = list(rows)
        self._by_choices = {tuple(sorted(row.choices.items())): row for row in self.rows}

    @staticmethod
    def load(path: Path = TABLE, seed: int = 0) -> "HybridTable":
        """From the parquet file."""
        points = [row for row in pq.read_table(path).to_pylist() if row["seed"] == seed]
        by_id: dict[str, list[dict[str, Any]]] = {}
        for point in sorted(points, key=lambda point: point["steps"]):
            by_id.setdefault(point["arch_id"], []).append(point)
        return HybridTable([_hybrid(curve) for curve in by_id.values()])

    def of(self, choices: dict[str, Any]) -> Hybrid:
        """The hybrid of these parameters."""
        return self._by_choices[tuple(sorted(choices.items()))]

    @property
    def choices(self) -> dict[str, list[Any]]:
        """Every parameter with its values, in order."""
        return {name: sorted({row.choices[name] for row in self.rows}) for name in self.rows[0].choices}

    @cached_property
    def _scale(self) -> tuple[Floats, Floats]:
        values = np.array([row.minimised for row in self.rows])
        return values.min(axis=0), values.max(axis=0) - values.min(axis=0)

    @cached_property
    def full_hypervolume(self) -> float:
        """Of the whole table's front."""
        return self._hypervolume(self.rows)

    def share(self, found: Sequence[Hybrid]) -> float:
        """Hypervolume of these over that of the whole table's front."""
        return self._hypervolume(found) / self.full_hypervolume if found else 0.0

    def _hypervolume(self, rows: Sequence[Hybrid]) -> float:
        low, span = self._scale
        values = (np.array([row.minimised for row in rows]) - low) / span
        return hypervolume(values[~is_dominated(values)], np.full(3, _REFERENCE))


def front(rows: Sequence[Hybrid]) -> list[bool]:
    """Which of these no other dominates."""
    values = np.array([row.minimised for row in rows])
    return [bool(out) for out in ~is_dominated(values)]


def _hybrid(curve: Sequence[dict[str, Any]]) -> Hybrid:
    first = curve[0]
    return Hybrid(
        choices={name: value for name, value in first.items() if name not in _FIGURES and value is not None},
        params=first["params"],
        throughput_img_s=first["throughput_img_s"],
        scores=tuple(RungScore(value=point["score"], standard_error=point["standard_error"]) for point in curve),
        images=tuple(point["train_images"] for point in curve),
    )
