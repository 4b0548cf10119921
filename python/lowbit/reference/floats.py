"""Grids with fields of bits: small floats of any exponent, mantissa and bias, and fixed point."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from lowbit.reference.formats import (
    Grid,
    away,
    f32,
    ignore,
    integer_nearest,
    integer_stochastic,
    signed,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Minifloat(Grid):
    """Sign, exponent field E and mantissa field M: 2^(E - bias) (1 + M / 2^m), for E = 0 2^(1 - bias) M / 2^m.

    Everything follows from the position of a magnitude: its code without the sign, continued linearly between codes.
    """

    exponent_bits: int
    mantissa_bits: int
    bias: int
    inf_nan: str = "none"
    """"none": every code is a number. "ieee": the last E is infinity (M = 0) and NaN. "fn": the last code is NaN.
    "fnuz": the code that would be -0 is NaN."""
    subnormals: bool = True
    """If not, E = 0 is zero whatever M is, and rounding gives nothing between zero and 2^(1 - bias)."""
    has_sign: bool = True
    biases: tuple[int, int] | None = None
    """The least and the largest bias that the rule ``"bias"`` may choose in place of `bias`."""

    @property
    def coded(self) -> bool:
        """Up to 16 bits."""
        return self.bits <= 16

    @property
    def _last(self) -> int:
        """The position of the largest number."""
        end = 2 ** (self.exponent_bits + self.mantissa_bits) - 1
        return int({"ieee": end - 2**self.mantissa_bits, "fn": end - 1}.get(self.inf_nan, end))

    def _magnitude(self, position: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give the number at a whole position."""
        steps = 2.0**self.mantissa_bits
        field, mantissa = np.divmod(position, steps)
        normal = np.exp2(field - self.bias) * (1 + mantissa / steps)
        small = np.exp2(1.0 - self.bias) * (mantissa / steps) * self.subnormals
        return np.asarray(np.where(field > 0, normal, small))

    def _position(self, a: NDArray[np.float32]) -> NDArray[np.float64]:
        """Where a finite magnitude lies; exact in float64."""
        wide = a.astype(np.float64)
        steps, least = 2.0**self.mantissa_bits, np.exp2(1.0 - self.bias)
        exponent = np.frexp(wide)[1] - 1.0
        normal = (exponent + self.bias) * steps + (np.ldexp(wide, -exponent.astype(np.int64)) - 1) * steps
        return np.where(wide < least, wide / least * steps, normal)

    @property
    def max(self) -> float:
        """The largest finite number."""
        return float(self._magnitude(np.array(self._last, np.float64)))

    @property
    def smallest(self) -> float:
        """The smallest positive number."""
        first = 1 if self.subnormals and self.mantissa_bits else 2**self.mantissa_bits
        return float(self._magnitude(np.array(first, np.float64)))

    @property
    def reference(self) -> float:
        """The largest finite number."""
        return self.max

    def _round(self, t: NDArray[np.float32], words: NDArray[np.uint32] | None) -> NDArray[np.float32]:
        if not self.has_sign:
            t = np.where(t < 0, np.float32(0), np.abs(t))
        a = np.minimum(np.abs(t), f32(self.max))
        position = self._position(np.where(np.isnan(a), np.float32(0), a))
        if words is None:
            rounded = np.rint(position)  # ties to even: to the even code
        else:
            rounded = np.floor(position)
            rounded = rounded + away(t, f32(position - rounded), words)
        if not self.subnormals:  # between zero and the first number after it
            first = 2.0**self.mantissa_bits
            share = position / first
            up = share > 0.5 if words is None else away(t, f32(share), words)
            rounded = np.where(share < 1, np.where(up, first, 0.0), rounded)
        value = np.copysign(f32(self._magnitude(rounded)), t)
        if self.inf_nan == "fnuz":
            value = value + np.float32(0)
        return f32(np.where(np.isnan(t), np.nan, value))

    @ignore
    def nearest(self, t: NDArray[np.float32]) -> NDArray[np.float32]:
        """Round to the nearest number, ties to the even code; what becomes zero keeps its sign if it can."""
        return self._round(t, None)

    @ignore
    def stochastic(self, t: NDArray[np.float32], words: NDArray[np.uint32]) -> NDArray[np.float32]:
        """Round to a neighbour, the larger magnitude with the share of the way there as probability, exactly."""
        return self._round(t, words)

    def encode(self, values: NDArray[np.float32]) -> NDArray[np.unsignedinteger]:
        """Position and sign."""
        position = self._position(np.abs(values)).astype(np.int64)
        return self._code(np.signbit(values) * 2 ** (self.exponent_bits + self.mantissa_bits) + position)

    @ignore
    def decode(self, codes: NDArray[np.unsignedinteger]) -> NDArray[np.float32]:
        """Read the fields."""
        half = 2 ** (self.exponent_bits + self.mantissa_bits)
        position, negative = codes.astype(np.int64) % half, codes.astype(np.int64) >= half
        value = f32(self._magnitude(position.astype(np.float64)))
        value = np.where(position <= self._last, value, np.float32(np.nan))
        if self.inf_nan == "ieee":
            value = np.where(position == self._last + 1, np.float32(np.inf), value)
        if self.inf_nan == "fnuz":
            value = np.where(negative & (position == 0), np.float32(np.nan), value)
        return f32(np.where(negative & ~np.isnan(value), -value, value))


@dataclass(frozen=True, kw_only=True)
class Fixed(Grid):
    """Multiples k of 2^-fraction_bits for all k that `bits` bits hold in two's complement."""

    fraction_bits: int
    symmetric: bool = False
    clamp: bool = True

    @property
    def coded(self) -> bool:
        """Up to 16 bits, unless the numbers go on for ever."""
        return self.clamp and self.bits <= 16

    @property
    def _step(self) -> np.float32:
        return np.float32(2.0**-self.fraction_bits)

    @property
    def _ends(self) -> tuple[int, int]:
        """The least and the largest k."""
        half = 2 ** (self.bits - 1)
        return (1 - half if self.symmetric else -half), half - 1

    @cached_property
    def values(self) -> NDArray[np.float32]:
        """All multiples."""
        if not self.coded:
            raise ValueError(f"{self.name} has no codes")
        return np.arange(self._ends[0], self._ends[1] + 1, dtype=np.float32) * self._step

    @property
    def max(self) -> float:
        """The largest number."""
        return self.reference if self.clamp else np.inf

    @property
    def smallest(self) -> float:
        """The step."""
        return float(self._step)

    @property
    def reference(self) -> float:
        """The largest number in range."""
        return float(self._step * np.float32(self._ends[1]))

    def _round(self, t: NDArray[np.float32], words: NDArray[np.uint32] | None) -> NDArray[np.float32]:
        k = t * np.float32(2.0**self.fraction_bits)
        if self.clamp:
            k = np.clip(k, np.float32(self._ends[0]), np.float32(self._ends[1]))
        rounded = integer_nearest(k) if words is None else integer_stochastic(k, words)
        # From 2^23 steps on every float32 is a multiple.
        return f32(np.where(np.abs(k) >= 2.0**23, t if not self.clamp else k * self._step, rounded * self._step))

    @ignore
    def nearest(self, t: NDArray[np.float32]) -> NDArray[np.float32]:
        """Round to the nearest multiple, ties to even k; never to -0.0."""
        return self._round(t, None)

    @ignore
    def stochastic(self, t: NDArray[np.float32], words: NDArray[np.uint32]) -> NDArray[np.float32]:
        """Round to a neighbour, up with the share of the way there as probability; never to -0.0."""
        return self._round(t, words)

    def encode(self, values: NDArray[np.float32]) -> NDArray[np.unsignedinteger]:
        """Cut k's two's complement."""
        return self._code((values / self._step).astype(np.int64) & (2**self.bits - 1))

    def decode(self, codes: NDArray[np.unsignedinteger]) -> NDArray[np.float32]:
        """Continue k's sign."""
        return f32(signed(codes, self.bits)) * self._step
