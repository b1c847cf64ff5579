"""Limits of a run: what a candidate's figures may be. The front holds only what keeps all of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from archsearch.units import format_bytes, format_count

Ends = tuple[float | None, float | None]


def _plain(number: float) -> str:
    return f"{number:.4g}"


# How the figures of each column that may be limited are written, and the options that limit them from below and from above.
_WRITTEN = {
    "params": format_count,
    "latency_ms": lambda number: f"{_plain(number)} ms",
    "throughput_img_s": lambda number: f"{_plain(number)} img/s",
    "peak_memory_bytes": format_bytes,
    "train_memory_bytes": format_bytes,
    "proxy_score": _plain,
}
_OPTIONS = {
    "params": ("--params", "--params"),
    "latency_ms": ("", "--max-latency"),
    "throughput_img_s": ("--min-throughput", ""),
    "peak_memory_bytes": ("", "--max-memory"),
    "train_memory_bytes": ("", "--max-train-memory"),
    "proxy_score": ("--min proxy_score", ""),
}
# Behind a number in an option.
_UNITS = {"latency_ms": "ms", "peak_memory_bytes": "B", "train_memory_bytes": "B"}
_TINY = 1e-9  # below any figure but a score of 0
# Limits on what each phase of an evaluation measures before the training.
LIMITED_BY_PHASE = {
    "count": ("train_memory_bytes",),
    "throughput": ("latency_ms", "throughput_img_s", "peak_memory_bytes"),
}


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The least and the most that a column may be, both allowed themselves; None is no limit."""

    column: str
    low: float | None = None
    high: float | None = None

    def excess(self, value: float) -> float:
        """The logarithm of how many times `value` is beyond the nearer end; up to 0 inside."""
        logarithm = math.log(max(value, _TINY))
        ends = (
            None if self.low is None else math.log(self.low) - logarithm,
            None if self.high is None else logarithm - math.log(self.high),
        )
        return max(end for end in ends if end is not None)

    def explain(self, value: float) -> str:
        """`latency_ms is 9.12 ms, --max-latency allows 8 ms`."""
        write, (least, most) = _WRITTEN[self.column], _OPTIONS[self.column]
        is_low = self.low is not None and value < self.low
        end, option = (self.low, least) if is_low else (self.high, most)
        assert end is not None, "a value that is outside"
        allowed = f"asks for {write(end)}" if is_low else f"allows {write(end)}"
        return f"{self.column} is {write(value)}, {option} {allowed}"

    @property
    def option(self) -> str:
        """The option of `archsearch run` that asks for it."""
        least, most = _OPTIONS[self.column]
        if self.column == "params":
            return f"{least} {self.low:.0f}-{self.high:.0f}"
        name, end = (least, self.low) if self.low is not None else (most, self.high)
        return f"{name}{'=' if ' ' in name else ' '}{end:.15g}{_UNITS.get(self.column, '')}"

    def __str__(self) -> str:
        """`latency_ms up to 8 ms`."""
        write = _WRITTEN[self.column]
        low = [] if self.low is None else [f"from {write(self.low)}"]
        high = [] if self.high is None else [f"up to {write(self.high)}"]
        return " ".join([self.column, *low, *high])


def limits_of(stored: Mapping[str, Sequence[float | None]]) -> tuple[Limit, ...]:
    """The limits of a run, which stores them as [least, most] by column."""
    return tuple(Limit(column=column, low=low, high=high) for column, (low, high) in stored.items())


def outside(row: Mapping[str, Any], limits: Sequence[Limit]) -> list[Limit]:
    """The limits that a row does not keep; a figure that is not known yet keeps them."""
    return [limit for limit in limits if row[limit.column] is not None and limit.excess(row[limit.column]) > 0]
