"""Grids: the values of a format, how to round to them, and their codes; `floats` has those with fields of bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_WORDS = 2.0**32  # the number of different random words
ignore = np.errstate(all="ignore")  # infinities and NaN follow IEEE 754 and are part of the contract


def f32(a: ArrayLike) -> NDArray[np.float32]:
    """Round to float32."""
    return np.asarray(a, np.float32)


@dataclass(frozen=True, kw_only=True)
class Grid(ABC):
    """What every format has; rounding is on t, the number in units of its scale."""

    name: str
    bits: int
    scale_rules: tuple[str, ...] = ("amax",)
    default_scale: str = "amax"
    default_block: int | None = None
    uniform: ClassVar[bool] = False
    """Whether the steps are equal: what offsets and dither need."""

    @property
    def coded(self) -> bool:
        """Whether numbers have codes of at most 16 bits."""
        return self.bits <= 16

    @property
    def scale_format(self) -> str | None:
        """The format of a block's scale."""
        return None

    @property
    def reference(self) -> float:
        """What the rule ``"amax"`` puts the largest magnitude on."""
        return float(np.max(np.abs(self.values)))

    @cached_property
    def values(self) -> NDArray[np.float32]:
        """The numbers that rounding gives, ascending; zero once."""
        if not self.coded:
            raise ValueError(f"{self.name} has no codes")
        all_ = self.decode(np.arange(2**self.bits, dtype=np.uint16))
        all_ = all_[np.isfinite(all_)]
        return np.unique(all_[self.nearest(all_) == all_] + np.float32(0))

    @property
    def max(self) -> float:
        """The largest number."""
        return float(self.values[-1])

    @property
    def smallest(self) -> float:
        """The smallest positive number."""
        return float(self.values[self.values > 0][0])

    @abstractmethod
    def nearest(self, t: NDArray[np.float32]) -> NDArray[np.float32]:
        """Round to the nearest number."""

    @abstractmethod
    def stochastic(self, t: NDArray[np.float32], words: NDArray[np.uint32]) -> NDArray[np.float32]:
        """Round to a neighbour by one random word for each element; beyond the grid to its end."""

    @abstractmethod
    def encode(self, values: NDArray[np.float32]) -> NDArray[np.unsignedinteger]:
        """Give the codes of numbers of the grid."""

    @abstractmethod
    def decode(self, codes: NDArray[np.unsignedinteger]) -> NDArray[np.float32]:
        """Give the values of codes; every code has one, written or not."""

    def _code(self, codes: NDArray[np.int64]) -> NDArray[np.unsignedinteger]:
        return codes.astype(np.uint8 if self.bits <= 8 else np.uint16)


def below(words: NDArray[np.uint32], q: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether a word's 31 high bits are below the first 31 binary digits of the chance `q`.

    What rounding has made a chance of 1 counts as the largest float32 below it.
    """
    digits = np.trunc(np.minimum(q, np.float32(1 - 2.0**-24)).astype(np.float64) * 2.0**31)
    return (words >> np.uint32(1)).astype(np.float64) < digits


def away(t: NDArray[np.float32], q: NDArray[np.float32], words: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Whether a magnitude takes its larger neighbour: `below`, with every bit of the word turned where t is negative.

    So a word for which a negative number goes up (toward zero) is small, as for a positive one.
    """
    return below(np.where(np.signbit(t), ~words, words), q)


def exactly_away(t: NDArray[np.float32], q: NDArray[np.float32], words: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Whether a magnitude takes its larger neighbour, by all 32 bits of the word: integers and radix-4.

    Toward plus infinity iff word < floor(p 2^32), with p = q for positive t and p = 1 - q for negative t; the second
    is written with 2^32 - floor((1 - q) 2^32) = ceil(q 2^32), because 1 - q may not fit a float.
    """
    chance = q.astype(np.float64) * _WORDS
    word = words.astype(np.float64)
    return np.where(t < 0, _WORDS - 1.0 - word < np.ceil(chance), word < np.floor(chance))


def integer_nearest(t: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to the nearest integer, ties to even; never to -0.0."""
    return f32(np.rint(t) + np.float32(0))


def integer_stochastic(t: NDArray[np.float32], words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Round to one of the two integers beside t, up with probability t - floor(t); never to -0.0."""
    near = np.floor(np.abs(t))
    return f32(np.copysign(near + exactly_away(t, np.abs(t) - near, words), t) + np.float32(0))


def signed(codes: NDArray[np.unsignedinteger], bits: int) -> NDArray[np.int64]:
    """Read codes as two's complement."""
    wide = codes.astype(np.int64)
    return np.where(wide >= 2 ** (bits - 1), wide - 2**bits, wide)


@dataclass(frozen=True, kw_only=True)
class Integer(Grid):
    """The integers `lowest`, ..., `highest`, coded as the low `bits` bits of their two's complement."""

    lowest: int
    highest: int
    sawb: tuple[float, float, float] | None = None
    """The factors of sqrt(E[x^2]) and E[|x|], and what number the clip goes to."""
    uniform: ClassVar[bool] = True

    @property
    def reference(self) -> float:
        """The highest."""
        return float(self.highest)

    @cached_property
    def values(self) -> NDArray[np.float32]:
        """All of them."""
        return np.arange(self.lowest, self.highest + 1, dtype=np.float32)

    def _clip(self, t: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.clip(t, np.float32(self.lowest), np.float32(self.highest))

    @ignore
    def nearest(self, t: NDArray[np.float32]) -> NDArray[np.float32]:
        """Round to the nearest integer in range, ties to even; never to -0.0."""
        return integer_nearest(self._clip(t))

    @ignore
    def stochastic(self, t: NDArray[np.float32], words: NDArray[np.uint32]) -> NDArray[np.float32]:
        """Round to a neighbour in range, up with probability t - floor(t)."""
        return integer_stochastic(self._clip(t), words)

    def encode(self, values: NDArray[np.float32]) -> NDArray[np.unsignedinteger]:
        """Cut the two's complement."""
        return self._code(values.astype(np.int64) & (2**self.bits - 1))

    def decode(self, codes: NDArray[np.unsignedinteger]) -> NDArray[np.float32]:
        """Continue the sign."""
        return f32(signed(codes, self.bits) if self.lowest < 0 else codes)


@dataclass(frozen=True, kw_only=True)
class Ternary(Integer):
    """-1, 0 and 1, coded 0, 1, 2."""

    def encode(self, values: NDArray[np.float32]) -> NDArray[np.unsignedinteger]:
        """Count from -1."""
        return self._code(values.astype(np.int64) + 1)

    def decode(self, codes: NDArray[np.unsignedinteger]) -> NDArray[np.float32]:
        """Count from -1; the code 3 that is never written would be 2."""
        return f32(codes.astype(np.int64) - 1)


@dataclass(frozen=True, kw_only=True)
class Sign(Grid):
    """-1 (code 0) and 1 (code 1): zero of either sign is 1."""

    @ignore
    def nearest(self, t: NDArray[np.float32]) -> NDArray[np.float32]:
        """Take the sign."""
        return f32(np.where(np.isnan(t), np.nan, np.where(t >= 0, 1, -1)))

    @ignore
    def stochastic(self, t: NDArray[np.float32], words: NDArray[np.uint32]) -> NDArray[np.float32]:
        """Take 1 with probability (t + 1) / 2."""
        q = (np.clip(t, np.float32(-1), np.float32(1)) + np.float32(1)) * np.float32(0.5)
        up = (t >= 1) | below(words, q)
        return f32(np.where(np.isnan(t), np.nan, np.where(up, 1, -1)))

    def encode(self, values: NDArray[np.float32]) -> NDArray[np.unsignedinteger]:
        """1 for 1."""
        return self._code((values > 0).astype(np.int64))

    def decode(self, codes: NDArray[np.unsignedinteger]) -> NDArray[np.float32]:
        """1 for 1."""
        return f32(2 * codes.astype(np.int64) - 1)


@dataclass(frozen=True, kw_only=True)
class Table(Grid):
    """Any ascending numbers, coded by their index; ties go to the lower one, as bitsandbytes has it."""

    levels: tuple[float, ...]

    @cached_property
    def values(self) -> NDArray[np.float32]:
        """The table; its zero is +0.0."""
        return f32(self.levels) + np.float32(0)

    @cached_property
    def _thresholds(self) -> NDArray[np.float32]:
        """The largest float32 at or below each midpoint: what lies above that lies above the midpoint itself."""
        found = []
        for low, high in zip(self.values[:-1], self.values[1:], strict=True):
            middle = (Fraction(float(low)) + Fraction(float(high))) / 2
            near = np.float32(float(middle))
            found.append(near if Fraction(float(near)) <= middle else np.nextafter(near, np.float32(-np.inf)))
        return f32(found)

    @ignore
    def nearest(self, t: NDArray[np.float32]) -> NDArray[np.float32]:
        """Count the midpoints below t."""
        return f32(np.where(np.isnan(t), np.nan, self.values[np.searchsorted(self._thresholds, t, "left")]))

    @ignore
    def stochastic(self, t: NDArray[np.float32], words: NDArray[np.uint32]) -> NDArray[np.float32]:
        """Round to a neighbour, up with probability (t - lo) (1 / (hi - lo)) in float32."""
        t = np.clip(t, self.values[0], self.values[-1])
        index = np.clip(np.searchsorted(self.values, t, "right") - 1, 0, len(self.values) - 2)
        low, high = self.values[index], self.values[index + 1]
        up = below(words, (t - low) * (np.float32(1) / (high - low))) | (t == high)
        return f32(np.where(np.isnan(t), np.nan, np.where(up, high, low)))

    def encode(self, values: NDArray[np.float32]) -> NDArray[np.unsignedinteger]:
        """Look them up."""
        return self._code(np.searchsorted(self.values, values))

    def decode(self, codes: NDArray[np.unsignedinteger]) -> NDArray[np.float32]:
        """Look them up; codes beyond the table stand for its highest value."""
        return f32(self.values[np.minimum(codes, len(self.values) - 1)])


def log_levels(bits: int, zeta: float, delta: float) -> tuple[float, ...]:
    """Li and De Sa's grid +-q_i: q_0 = 0, q_(i+1) = (1 + zeta) q_i + delta for i < 2^(bits - 1), in float64."""
    q = [0.0]
    while len(q) < 2 ** (bits - 1):
        q.append((1.0 + zeta) * q[-1] + delta)
    return tuple([-value for value in reversed(q[1:])] + q)
