"""A band of costs."""

from dataclasses import dataclass

from archsearch.units import format_count


@dataclass(frozen=True)
class Band:
    """The MACs (or parameters) a candidate may have, both ends included."""

    low: int
    high: int
    unit: str = "MACs"

    @classmethod
    def around(cls, budget_macs: int, tolerance: float) -> "Band":
        """budget +- tolerance (a fraction)."""
        return cls(round(budget_macs * (1 - tolerance)), round(budget_macs * (1 + tolerance)))

    def contains(self, number: int) -> bool:
        """True inside the band."""
        return self.low <= number <= self.high

    def distance(self, number: int) -> int:
        """What is missing to the nearer end; 0 inside."""
        return max(self.low - number, number - self.high, 0)

    def __str__(self) -> str:
        return f"{format_count(self.low)} to {format_count(self.high)} {self.unit}"
