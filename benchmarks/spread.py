"""A figure with its spread: median, quartiles, how many samples. Pure; everything goes to JSON and comes back."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any


@dataclass(frozen=True, slots=True)
class Spread:
    """Quartiles of `samples`: half of them lie between `low` and `high`. One sample is all three."""

    median: float
    low: float
    high: float
    samples: tuple[float, ...]

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Spread":
        """Raises ValueError for no samples."""
        if not samples:
            raise ValueError("no samples")
        ordered = sorted(samples)
        return cls(quantile(ordered, 0.5), quantile(ordered, 0.25), quantile(ordered, 0.75), tuple(samples))

    @classmethod
    def read(cls, stored: dict[str, Any]) -> "Spread":
        """What `as_json` wrote."""
        return cls.of(stored["samples"])

    def as_json(self) -> dict[str, Any]:
        return {
            "median": self.median,
            "q1": self.low,
            "q3": self.high,
            "n": len(self.samples),
            "samples": list(self.samples),
        }

    def text(self, unit: str = "") -> str:
        """`41.2x (39.8 to 44.0)`: the median and the quartiles; the median alone where all are the same."""
        median = number(self.median) + unit
        return median if len(set(self.samples)) == 1 else f"{median} ({number(self.low)} to {number(self.high)})"


def quantile(ordered: Sequence[float], share: float) -> float:
    """Of sorted samples, between neighbours in proportion."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least `percent` of a hundred do not exceed: always one that was measured.

    Raises ValueError for no samples.
    """
    if not samples:
        raise ValueError("no samples")
    return sorted(samples)[max(0, ceil(percent / 100 * len(samples)) - 1)]


def number(value: float) -> str:
    """Three significant digits, thousands apart, never in exponents; of a whole number no decimals."""
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}"
