"""The codecs that treat every number by itself (``docs/wire.md``); `rotated` has those that rotate first.

A codec turns the float32 numbers of one array (at least one of them) into bytes and back. ``words`` are those of the
key, of an array in a mapping those of ``key.fold("array", k)``.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lowbit.reference.blocks import BlockFormat
from lowbit.reference.formats import Integer
from lowbit.reference.names import get_format
from lowbit.reference.onebit import onebit_decode, onebit_encode
from lowbit.reference.payload import Reader, dither, floats, is_finite, nans
from lowbit.reference.quantizers import Options, grouping, pack
from lowbit.reference.rotation import Words, exponent, power, total, within
from lowbit.reference.scales import scales, spread
from lowbit.reference.stream import fold, random_bits

if TYPE_CHECKING:
    from numpy.typing import NDArray

F = np.float32
SCHEMES = ("deterministic", "randomized", "dither", "clipped_dither", "optimal_biased", "optimal_unbiased")


class Elementwise:
    """A codec without rotation."""

    shared: ClassVar[bool] = False
    needs_key = False

    def parameters(self) -> bytes:
        """Give none, unless a codec says otherwise."""
        return b""

    def sends(self, x: NDArray[np.float32]) -> bool:
        """Whether all numbers are finite."""
        return is_finite(x)

    def finish(self, z: NDArray[np.float32], n: int, words: Words) -> NDArray[np.float32]:  # noqa: ARG002
        """Return what is there."""
        return z


@dataclass(frozen=True)
class Float32(Elementwise):
    """The numbers themselves."""

    id: ClassVar[int] = 1

    def encode(self, x: NDArray[np.float32], words: Words, sender: int) -> bytes:  # noqa: ARG002
        """Copy."""
        return x.astype("<f4").tobytes()

    def decode(self, data: Reader, shape: tuple[int, ...], words: Words, sender: int) -> NDArray[np.float32]:  # noqa: ARG002
        """Copy."""
        return data.array("<f4", math.prod(shape))


@dataclass(frozen=True)
class Packed(Elementwise):
    """A format by its default scale rule."""

    format: str
    block_size: int | None = None
    rounding: str = "nearest"
    id: ClassVar[int] = 2

    def parameters(self) -> bytes:
        """Give rounding, block size (0: none) and the format's name."""
        return struct.pack("<BI", self.rounding == "stochastic", self.block_size or 0) + self.format.encode("ascii")

    def _groups(self, ndim: int) -> tuple[int | None, int | None]:
        return grouping(ndim, get_format(self.format), Options(block_size=self.block_size))

    def encode(self, x: NDArray[np.float32], words: Words, sender: int) -> bytes:
        """Write scales (of block formats: the one of the array, then the blocks' codes), then codes."""
        grid, groups = get_format(self.format), self._groups(x.ndim)
        scale, _, encode, tensor = scales(x, grid, grid.default_scale, *groups)
        head = floats(scale.ravel())
        if isinstance(grid, BlockFormat):
            head = (b"" if tensor is None else floats(tensor)) + grid.scale_codes(scale).tobytes()
        if not is_finite(x):
            nothing = floats(np.full(scale.size, np.nan))
            if isinstance(grid, BlockFormat):
                nothing = (b"" if tensor is None else floats(np.nan)) + bytes([255] * scale.size)
            return nothing + pack(np.zeros(x.size, np.uint8), grid.bits).tobytes()
        t = np.asarray(x * spread(F(1) / (scale if encode is None else encode), x.shape, *groups), F)
        if self.rounding == "stochastic":
            values = grid.stochastic(t, random_bits(fold(words, "rounding", sender), x.size).reshape(x.shape))
        else:
            values = grid.nearest(t)
        return head + pack(grid.encode(values), grid.bits).tobytes()

    def decode(self, data: Reader, shape: tuple[int, ...], words: Words, sender: int) -> NDArray[np.float32]:  # noqa: ARG002
        """Multiply values and scales."""
        grid, (axis, size) = get_format(self.format), self._groups(len(shape))
        counts = [1] * len(shape)
        if size is not None and grid.default_scale != "one":
            counts = [*shape[:-1], -(-shape[-1] // size)]
        n = math.prod(counts)
        if isinstance(grid, BlockFormat):
            tensor = data.array("<f4", 1)[0] if grid.scale_format == "e4m3" else F(1)
            scale = grid.decode_scales(data.array("u1", n)) * tensor
        else:
            scale = data.array("<f4", n)
        values = grid.decode(data.codes(grid.bits, math.prod(shape)).reshape(shape))
        return np.asarray(values * spread(scale.reshape(counts), shape, axis, size), F).ravel()


@dataclass(frozen=True)
class Dither(Elementwise):
    """Subtractive dither on 2^bits levels between `low` and `high`, or between the smallest and the largest number."""

    bits: int
    low: float | None = None
    high: float | None = None
    id: ClassVar[int] = 3
    needs_key = True

    @property
    def given(self) -> bool:
        """Whether the ends are the caller's."""
        return self.low is not None

    def parameters(self) -> bytes:
        """Give bits, whether the ends are given, and the ends or zeros."""
        return struct.pack("<BBff", self.bits, self.given, self.low or 0.0, self.high or 0.0)

    def _step(self, low: np.float32, high: np.float32) -> np.float32:
        with np.errstate(over="ignore"):
            step, span = F((float(high) - float(low)) / (2**self.bits - 1)), high - low
        if not np.isfinite(span):
            raise ValueError("x: spans more than float32 holds")
        return max(step, power(-126)) if high > low else step

    def encode(self, x: NDArray[np.float32], words: Words, sender: int) -> bytes:
        """Write ends or a byte, then codes."""
        codes, finite = np.zeros(x.size, np.uint8), is_finite(x)
        if not finite:
            head = b"\0" if self.given else floats(np.nan, np.nan)
            return head + pack(codes, self.bits).tobytes()
        low, high = (F(self.low), F(self.high)) if self.given else (x.min() + F(0), x.max() + F(0))
        outside = np.flatnonzero((x.ravel() < low) | (x.ravel() > high))
        if outside.size:
            raise ValueError(f"x: element {outside[0]} is {x.flat[outside[0]]}, outside [{low}, {high}]")
        step = self._step(low, high)
        if step:
            t = (x.ravel() - low) * (F(1) / step)
            codes = np.clip(np.rint(t + dither(words, sender, x.size)), F(0), F(2**self.bits - 1)).astype(np.uint8)
        return (b"\1" if self.given else floats(low, high)) + pack(codes, self.bits).tobytes()

    def decode(self, data: Reader, shape: tuple[int, ...], words: Words, sender: int) -> NDArray[np.float32]:
        """Take the dither off again."""
        n = math.prod(shape)
        if self.given:
            low, high = F(self.low), F(self.high)
            finite = data.take(1) != b"\0"
        else:
            low, high = data.array("<f4", 2)
            finite = bool(np.isfinite([low, high]).all())
        v = data.codes(self.bits, n).astype(F)
        if not finite:
            return nans(n)
        step = self._step(low, high)
        return np.asarray((v - dither(words, sender, n)) * step + low if step else np.full(n, low), F)


@dataclass(frozen=True)
class OneBit(Elementwise):
    """One bit for each number in [low, high] (``docs/onebit.md``)."""

    scheme: str
    low: float = 0.0
    high: float = 1.0
    shared_bits: int | None = None
    id: ClassVar[int] = 4

    @property
    def needs_key(self) -> bool:  # type: ignore[override]
        """Where the receiver reads shared words."""
        return self.scheme not in ("deterministic", "randomized") and self.shared_bits != 0

    def parameters(self) -> bytes:
        """Give scheme, shared bits (255: None), ends."""
        bits = 255 if self.shared_bits is None else self.shared_bits
        return struct.pack("<BBff", SCHEMES.index(self.scheme), bits, self.low, self.high)

    def _options(self, words: Words, sender: int) -> dict[str, Any]:
        own = {"scheme": self.scheme, "shared_bits": self.shared_bits, "low": self.low, "high": self.high}
        return own | {"key": Holder(words), "sender": sender}

    def encode(self, x: NDArray[np.float32], words: Words, sender: int) -> bytes:
        """Write a byte, then bits."""
        if not is_finite(x):
            return bytes(1 + -(-x.size // 8))
        return b"\1" + onebit_encode(x, **self._options(words, sender)).tobytes()

    def decode(self, data: Reader, shape: tuple[int, ...], words: Words, sender: int) -> NDArray[np.float32]:
        """Read every bit as one of its two values."""
        n, finite = math.prod(shape), data.take(1) != b"\0"
        bits = np.packbits(data.codes(1, n), bitorder="little")
        return onebit_decode(bits, n, **self._options(words, sender)) if finite else nans(n)


@dataclass(frozen=True)
class Holder:
    """The words of a key."""

    words: Words


@dataclass(frozen=True)
class Sign(Elementwise):
    """The sign of every number and one scale."""

    scale: str = "l1"
    id: ClassVar[int] = 5

    def parameters(self) -> bytes:
        """Give 0 for "l1", 1 for "l2"."""
        return struct.pack("<B", self.scale == "l2")

    def encode(self, x: NDArray[np.float32], words: Words, sender: int) -> bytes:  # noqa: ARG002
        """Write scale, then bits."""
        x, n = x.ravel(), x.size
        wide = x.astype(np.float64)
        scale = math.sqrt(total(wide * wide) / n) if self.scale == "l2" else total(np.abs(wide)) / n
        if not is_finite(x) or F(scale) == 0:
            return floats(0.0 if is_finite(x) else np.nan) + bytes(-(-n // 8))
        return floats(scale) + np.packbits(x >= 0, bitorder="little").tobytes()

    def decode(self, data: Reader, shape: tuple[int, ...], words: Words, sender: int) -> NDArray[np.float32]:  # noqa: ARG002
        """Plus or minus the scale."""
        (scale,) = data.array("<f4", 1)
        bits = data.codes(1, math.prod(shape))
        if np.isnan(scale):
            return nans(bits.size)
        return np.where(bits == 1, scale, -scale) if scale else np.zeros(bits.size, F)


class Levels(Elementwise):
    """Stochastic rounding to integers -L..L times a scale."""

    @property
    def top(self) -> int:
        """L."""
        return 1

    def _scale(self, amax: float, norm: float) -> tuple[float, float]:
        """Scale, and what it is of the array: the largest magnitude here."""
        del norm
        return amax, amax

    def encode(self, x: NDArray[np.float32], words: Words, sender: int) -> bytes:
        """Write scale, then codes."""
        x = x.ravel()
        if not self.sends(x):
            return floats(np.nan) + self._pack(np.zeros(x.size, np.int64))
        amax, wide = np.abs(x).max(), x.astype(np.float64)
        norm, top = math.sqrt(total(wide * wide)), self.top
        scale, reached = self._scale(float(amax), norm)
        if F(scale) == 0:
            return floats(0.0) + self._pack(np.zeros(x.size, np.int64))
        e = exponent(amax)
        t = (x * power(-e)) * F(2.0**e * top / reached)
        grid = Integer(name="levels", bits=0, lowest=-top, highest=top)
        v = grid.stochastic(np.asarray(t, F), random_bits(fold(words, "coin", sender), x.size))
        return floats(scale) + self._pack(v.astype(np.int64) + top)

    def decode(self, data: Reader, shape: tuple[int, ...], words: Words, sender: int) -> NDArray[np.float32]:  # noqa: ARG002
        """Multiply integers and scale."""
        n = math.prod(shape)
        (scale,) = data.array("<f4", 1)
        codes = self._unpack(data, n)
        v = codes.astype(F) - F(self.top)
        if np.isnan(scale):
            return nans(n)
        return np.where((v == 0) | (scale == 0), F(0), v * scale).astype(F)

    def _pack(self, codes: NDArray[np.int64]) -> bytes:
        if self.top > 1:
            return pack(codes, (2 * self.top).bit_length()).tobytes()
        five = np.zeros(-(-codes.size // 5) * 5, np.int64)
        five[: codes.size] = codes
        return bytes((five.reshape(-1, 5) @ 3 ** np.arange(5)).astype(np.uint8))

    def _unpack(self, data: Reader, n: int) -> NDArray[np.int64]:
        if self.top > 1:
            codes = data.codes((2 * self.top).bit_length(), n).astype(np.int64)
        else:
            five = data.array("u1", -(-n // 5)).astype(np.int64)
            each = five[:, np.newaxis] // 3 ** np.arange(5) % 3
            if (five > 242).any() or each.ravel()[n:].any():
                raise ValueError("no five trits, or trits after the last one that are not zero")
            codes = each.ravel()[:n]
        if (codes > 2 * self.top).any():
            raise ValueError(f"a code beyond {2 * self.top}")
        return codes


@dataclass(frozen=True)
class TernGrad(Levels):
    """-1, 0 or 1 times the largest magnitude."""

    id: ClassVar[int] = 6


@dataclass(frozen=True)
class Qsgd(Levels):
    """Integers times the norm over `levels`."""

    levels: int
    id: ClassVar[int] = 7

    @property
    def top(self) -> int:
        """L."""
        return self.levels

    def parameters(self) -> bytes:
        """Give the number of levels."""
        return struct.pack("<H", self.levels)

    def sends(self, x: NDArray[np.float32]) -> bool:
        """Whether all numbers are finite, and the scale is one of float32."""
        return is_finite(x) and not np.isnan(within(math.sqrt(total(x.astype(np.float64).ravel() ** 2)) / self.levels))

    def _scale(self, amax: float, norm: float) -> tuple[float, float]:
        """Scale, and what it is of the array: the norm."""
        del amax
        return norm / self.levels, norm
