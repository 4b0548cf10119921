"""Paired differences and their t intervals, and what they say about a margin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, from `mean - half` to `mean + half`."""

    mean: float
    half: float

    @property
    def low(self) -> float:
        """The lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """The upper end."""
        return self.mean + self.half

    @property
    def clear(self) -> bool:
        """Whether zero lies outside."""
        return abs(self.mean) > self.half

    def show(self, digits: int = 2, unit: float = 100) -> str:
        """Write it in per cent (or `unit` of one)."""
        return f"{unit * self.mean:+.{digits}f} ± {unit * self.half:.{digits}f}"


def interval(values: Sequence[float]) -> Interval:
    """Give the mean and its t interval.

    Raises
    ------
    ValueError
        Of fewer than two values there is none.
    """
    if len(values) < 2:
        raise ValueError(f"an interval wants at least 2 values, not {len(values)}")
    x = np.asarray(values, np.float64)
    half = t.ppf(0.5 + LEVEL / 2, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5
    return Interval(float(x.mean()), float(half))


def relative(values: Sequence[float], base: Sequence[float]) -> Interval:
    """Compare seed by seed: the interval of ``value / base - 1``."""
    return interval([a / b - 1 for a, b in zip(values, base, strict=True)])


def verdict(change: Interval, margin: float, *, more_is_better: bool) -> str:
    """Say "as good", "worse" or "undecided" by a relative margin."""
    worst, best = (-change.low, -change.high) if more_is_better else (change.high, change.low)
    return "as good" if worst <= margin else "worse" if best > margin else "undecided"
