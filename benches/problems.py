"""What an operation is, and the data that all contenders run on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

KEY = 1234  # of every random contender, so that a decoder can draw what its encoder drew


@dataclass(frozen=True)
class Operation:
    """One row of the table; a contender is a function of a ``peers_*`` module (or ``ours``)."""

    name: str
    bytes_moved: float
    """Bytes for each element that every implementation must read and write."""
    goal: float | None
    """Times a memcpy of the same float32 array: 2^24 elements, one thread, AVX-512."""
    check: Callable[[Problem, Any], None]
    """Raises AssertionError if a contender's result is not what the operation is."""
    cached_goal: float | None = None
    """Nanoseconds for each element at 2^17 elements, one thread, AVX-512."""
    fused_goal: float = 2.0
    """How many times faster than the best compiled recipes: 2 where codes are packed, unpacked or random, else 1."""
    speedup_goal: float = 1.7
    """Of two threads."""
    arguments: tuple[Any, ...] = ()
    """What the function takes after the problem; it gives None where its library cannot do it."""
    recipe: str = ""
    """The function's name, if not the operation's: of one that does several operations, told apart by `arguments`."""


class Problem:
    """The arrays of one size, their pages touched, shared by all contenders."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.x = np.random.default_rng(1).standard_normal(n, dtype=np.float32)
        amax = np.abs(self.x).max()
        self.scale = np.float32(amax / np.float32(7))
        self.radix_scale = np.float32(amax / np.float32(64))

    @cached_property
    def unit(self) -> NDArray[np.float32]:
        """Numbers in [0, 1), to be sent in one bit each."""
        return np.random.default_rng(2).random(self.n, dtype=np.float32)

    @cached_property
    def codes(self) -> NDArray[np.int8]:
        """Given INT4 values, -8 to 7, one a byte, to be dequantized."""
        return np.random.default_rng(3).integers(-8, 8, self.n, dtype=np.int8)

    @cached_property
    def block_scales(self) -> NDArray[np.float32]:
        """One scale for each 128 of `codes`."""
        return np.random.default_rng(4).random(self.n // 128, dtype=np.float32) + np.float32(0.5)

    def rows(self, longest: int | None = None) -> int:
        """Tell how long rows to transform are: the largest power of two that fits n and the limit."""
        return min(self.n & -self.n, longest or self.n)

    def empty(self, dtype: Any = np.float32, *, bits: int | None = None) -> NDArray[Any]:
        """Make a touched array for n elements, or for n times `bits` bits of bytes."""
        return np.full(self.n if bits is None else self.n * bits // 8, 1, dtype)


def pack_nibbles(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Pack two values a byte, the first in the low nibble, as lowbit stores INT4."""
    nibbles = codes.view(np.uint8) & 15
    return nibbles[0::2] | (nibbles[1::2] << 4)


def pack_planar(codes: NDArray[np.int8], block: int) -> NDArray[np.uint8]:
    """Pack the first half of each block in the low nibbles, the second in the high ones (what compilers like best)."""
    halves = codes.view(np.uint8).reshape(-1, 2, block // 2) & 15
    return halves[:, 0] | (halves[:, 1] << 4)


def unpack(result: tuple[Any, Any, str]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the values and the scale of each element of a ``(codes, scales, layout)`` that a contender made."""
    codes, scales, layout = np.asarray(result[0]), np.asarray(result[1], np.float32).reshape(-1), result[2]
    if layout != "bytes":
        codes = codes.reshape(scales.size, -1)
        codes = np.stack([codes & 15, codes >> 4], axis=2 if layout == "adjacent" else 1).reshape(-1)
        codes = ((codes ^ 8) - 8).view(np.int8)
    return codes.reshape(-1).astype(np.float32), np.repeat(scales, codes.size // scales.size)


def unbiased(error: NDArray[np.float64], what: str) -> None:
    """Raise AssertionError if errors do not cancel on average."""
    deviation = abs(error.mean()) * np.sqrt(error.size) / (error.std() + 1e-30)
    assert deviation < 6, f"{what}: the mean error is {deviation:.1f} standard deviations from zero"
