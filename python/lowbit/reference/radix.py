"""Grids of powers: Sun et al.'s radix-4 FP4, and the same idea in other radices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from lowbit.reference.formats import Grid, away, below, exactly_away, f32, ignore

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Radix4(Grid):
    """Zero and +-4^n, n = -3..3, or (odd phase) the halves of all these: Sun et al., NeurIPS 2020, figure 2c.

    Code: the sign, then three bits e; e = 0 is zero (of either sign), e = 1..7 is 4^(e - 4).
    """

    odd: bool

    @property
    def reference(self) -> float:
        """64 in both phases: the odd one clips, so that both round at one shared scale."""
        return 64.0

    @ignore
    def nearest(self, t: NDArray[np.float32]) -> NDArray[np.float32]:
        """Round to the nearest value, ties (0.625 * 4^n) away from zero; what becomes zero keeps its sign."""
        if self.odd:
            return f32(RADIX4.nearest(np.float32(2) * t) / np.float32(2))
        y = np.float32(1.6) * np.abs(t)
        k = (np.frexp(y)[1] - 1) // 2  # floor(log4(y)), from the exponent
        power = np.ldexp(np.float32(1), 2 * np.clip(k, -3, 3))
        magnitude = np.where(y >= 64, np.float32(64), np.where(y < 1 / 64, np.float32(0), power))
        return f32(np.where(np.isnan(t), np.nan, np.copysign(magnitude, t)))

    @ignore
    def stochastic(self, t: NDArray[np.float32], words: NDArray[np.uint32]) -> NDArray[np.float32]:
        """Round to a neighbour, up with probability (t - lo) / (hi - lo) in float32, by one word for each element."""
        if self.odd:
            return f32(RADIX4.stochastic(np.float32(2) * t, words) / np.float32(2))
        a = np.minimum(np.abs(t), np.float32(64))
        n = np.clip((np.frexp(a)[1] - 1) // 2, -3, 3)
        power = np.ldexp(np.float32(1), 2 * n)
        under = a < 1 / 64
        near = np.where(under, np.float32(0), power)
        far = np.where(under, np.float32(1 / 64), power * np.float32(4))
        third = np.float32(1) / np.float32(3)
        q = np.where(under, a * np.float32(64), (a / power - np.float32(1)) * third)
        value = np.copysign(np.where(exactly_away(t, q, words), far, near), t)
        return f32(np.where(np.isnan(t), np.nan, value))

    def encode(self, values: NDArray[np.float32]) -> NDArray[np.unsignedinteger]:
        """Take sign and exponent."""
        even = np.abs(values) * np.float32(2 if self.odd else 1)
        exponent = np.where(even == 0, 0, (np.frexp(even)[1] - 1) // 2 + 4)
        return self._code(np.signbit(values) * 8 + exponent)

    def decode(self, codes: NDArray[np.unsignedinteger]) -> NDArray[np.float32]:
        """Put sign and exponent together."""
        exponent = (codes & 7).astype(np.int64)
        magnitude = np.where(exponent == 0, np.float32(0), np.ldexp(np.float32(1), 2 * (exponent - 4)))
        return f32(np.where(codes < 8, magnitude, -magnitude) / np.float32(2 if self.odd else 1))


RADIX4 = Radix4(name="radix4", bits=4, odd=False)


@dataclass(frozen=True, kw_only=True)
class Radix(Grid):
    """Powers of `radix`, radix^(E - shift) for E = 1, 2, ..., and zero (or one more power) for E = 0.

    Code: the sign, then E in ``bits - 1`` bits.
    """

    radix: int
    shift: int
    zero: bool = True
    half_underflow: bool = False
    """Whether everything from half of the smallest power on becomes that (LUQ's threshold), not only from its share."""

    @cached_property
    def magnitudes(self) -> NDArray[np.float32]:
        """By E."""
        powers = [float(self.radix) ** (e - self.shift) for e in range(2 ** (self.bits - 1))]
        return f32([0.0 if self.zero else powers[0], *powers[1:]])

    @property
    def _smallest(self) -> np.float32:
        return np.float32(self.magnitudes[1 if self.zero else 0])

    @ignore
    def nearest(self, t: NDArray[np.float32]) -> NDArray[np.float32]:
        """Round to the nearest power, ties away from zero; below the last tie to zero, which keeps its sign.

        The middle of two powers is (1 + radix) / (2 radix) of the larger one: what is above it is brought to at least
        that power by the factor 2 radix / (1 + radix), for radix 4 Sun et al.'s 1.6.
        """
        a = np.abs(t)
        y = a * f32(2.0 * self.radix / (1.0 + self.radix))
        e = np.maximum(np.searchsorted(self.magnitudes, y, "right") - 1, 0)
        e = np.minimum(e, len(self.magnitudes) - 1)
        if self.half_underflow:
            e = np.where((e == 0) & (a >= self._smallest / np.float32(2)), 1, e)
        return f32(np.where(np.isnan(t), np.nan, np.copysign(self.magnitudes[e], t)))

    @ignore
    def stochastic(self, t: NDArray[np.float32], words: NDArray[np.uint32]) -> NDArray[np.float32]:
        """Round to a neighbour, the larger magnitude with probability q, the share of the way there, in float32."""
        smallest, last = self._smallest, len(self.magnitudes) - 1
        a = np.minimum(np.abs(t), self.magnitudes[-1])
        e = np.maximum(np.searchsorted(self.magnitudes, a, "right") - 1, 0)
        e = np.minimum(e, last)  # where NaN would be
        near, far = self.magnitudes[e], self.magnitudes[np.minimum(e + 1, last)]
        steps = (a * (np.float32(1) / near) - np.float32(1)) * f32(1.0 / (self.radix - 1.0))
        q = np.where(a < smallest, a * (np.float32(1) / smallest), steps)
        value = np.copysign(np.where(away(t, q, words), far, near), t)
        if not self.zero:  # between -smallest and smallest
            up = below(words, t * (np.float32(1) / (np.float32(2) * smallest)) + np.float32(0.5))
            value = np.where(a < smallest, np.where(up, smallest, -smallest), value)
        return f32(np.where(np.isnan(t), np.nan, value))

    def encode(self, values: NDArray[np.float32]) -> NDArray[np.unsignedinteger]:
        """Look the magnitude up, and add the sign."""
        e = np.searchsorted(self.magnitudes, np.abs(values))
        return self._code(np.signbit(values) * 2 ** (self.bits - 1) + e)

    def decode(self, codes: NDArray[np.unsignedinteger]) -> NDArray[np.float32]:
        """Look the magnitude up, and add the sign."""
        half = 2 ** (self.bits - 1)
        magnitude = self.magnitudes[codes % half]
        return f32(np.where(codes < half, magnitude, -magnitude))
