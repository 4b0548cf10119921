"""Blocks of a vector, numbers of any size rotated back, and the sums that scales are made of."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lowbit.reference import hadamard
from lowbit.reference.hadamard import rotate

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

SMALLEST = 128  # blocks smaller than this stay biased even after two rotations

Words = tuple[int, int]


class Block(NamedTuple):
    """``size`` numbers from position `start` on; `used` of them belong to the array, the rest is padding."""

    start: int
    size: int
    used: int


def blocks(n: int, least: int = SMALLEST) -> list[Block]:
    """Cut `n` numbers into blocks of powers of two, largest first, the last one padded up to a multiple of `least`."""
    cut = hadamard.blocks(n, least)
    return [Block(start, end - start, min(end - start, n - start)) for start, end in cut]


def root(size: int, rounds: int) -> float:
    """By what `rotate` makes a block too long: size^(rounds / 2)."""
    power = (size.bit_length() - 1) * rounds
    return 2.0 ** (power // 2) * (math.sqrt(2.0) if power % 2 else 1.0)


def turns(rounds: int, size: int) -> int:
    """Tell how often a block is rotated: a short one four times at least, unless once was asked for."""
    return max(rounds, 4) if rounds > 1 and size < 4096 else rounds


def exponent(largest: np.float32) -> int:
    """Tell which power of two a block is divided by before anything is squared."""
    biased = int(np.float32(largest).view(np.uint32)) >> 23 & 255
    return min(max(biased - 127, -126), 126)


def power(e: int) -> np.float32:
    """2^e in float32."""
    return np.float32(2.0**e)


def levelled_back(q: NDArray[np.float32], words: Words, start: int, rounds: int) -> NDArray[np.float32]:
    """Rotate back numbers of any magnitude, divided by `root`; +0.0 for zeros, NaN where one is not finite."""
    largest = np.abs(q).max()
    if not np.isfinite(largest):
        return np.full(q.size, np.nan, np.float32)
    if largest == 0:
        return np.zeros(q.size, np.float32)
    e, rounds = exponent(largest), turns(rounds, q.size)
    w = rotate(q * power(-e), words, start, rounds=rounds, inverse=True)
    return w * np.float32(1.0 / root(q.size, rounds)) * power(e)


def total(x: NDArray[Any]) -> float:
    """Sum in float64 in the one order of the contract.

    Pieces of 4096; in a piece element j is added to lane j % 8; the lanes are joined pairwise, the pieces in order.
    """
    x = x.astype(np.float64)
    joined = 0.0
    for start in range(0, x.size, 4096):
        piece = x[start : start + 4096]
        lanes = np.zeros(-(-piece.size // 8) * 8)
        lanes[: piece.size] = piece
        # An accumulated sum adds one after the other; numpy.sum may not.
        a, b, c, d, e, f, g, h = np.add.accumulate(lanes.reshape(-1, 8), axis=0)[-1].tolist()
        joined += ((a + b) + (c + d)) + ((e + f) + (g + h))
    return joined


def limited(scale: float) -> np.float32:
    """Round to float32, at most the largest finite one in magnitude."""
    largest = float(np.finfo(np.float32).max)
    return np.float32(min(max(scale, -largest), largest))


def within(scale: float) -> np.float32:
    """Round to float32; NaN beyond the largest finite one: such an array counts as not finite."""
    return np.float32(scale if scale <= float(np.finfo(np.float32).max) else np.nan)


def joined(parts: Iterable[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    """Concatenate, of nothing too."""
    return np.concatenate([np.zeros(0, dtype), *parts])
