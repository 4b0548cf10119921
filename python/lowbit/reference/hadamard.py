"""The Hadamard transform and the rotation made of it, stage by stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.reference.stream import HasWords, fold, key_words, random_bits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_ignore = np.errstate(all="ignore")  # infinities and NaN follow IEEE 754


@_ignore
def butterflies(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Transform the last axis, unnormalised: (a, b) -> (a + b, a - b) of numbers 1, 2, 4, ... apart."""
    shape, stride = x.shape, 1
    while stride < shape[-1]:
        pairs = x.reshape(-1, 2, stride)
        a, b = pairs[:, 0], pairs[:, 1]
        x = np.stack([a + b, a - b], axis=1)
        stride *= 2
    return x.reshape(shape)


@_ignore
def _scaled(x: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Multiply by a factor that float32 holds, and make every NaN the same."""
    y = x * np.float32(factor)
    return np.where(np.isnan(y), np.float32(np.nan), y)


def hadamard_transform(x: NDArray[np.floating]) -> NDArray[np.float32]:
    """Transform the last axis, orthonormal."""
    with np.errstate(over="ignore"):
        y = x.astype(np.float32)
    return _scaled(butterflies(y), 1 / np.sqrt(float(x.shape[-1])))


def _flipped(x: NDArray[np.float32], words: tuple[int, int], start: int) -> NDArray[np.float32]:
    """Flip the signs of positions `start`, `start` + 1, ...: bit p % 32 of word p // 32."""
    position = start + np.arange(x.shape[-1], dtype=np.uint64)
    stream = random_bits(words, int(x.shape[-1]) // 32 + 2, start // 32)
    word = stream[(position // np.uint64(32) - np.uint64(start // 32)).astype(np.int64)]
    bit = word >> (position % np.uint64(32)).astype(np.uint32) & np.uint32(1)
    return np.where(bit == 1, -x, x)


def rotate(
    x: NDArray[np.float32], words: tuple[int, int], start: int, *, rounds: int = 2, inverse: bool = False
) -> NDArray[np.float32]:
    """Rotate the last axis, a block at position `start`, or undo that; B**(rounds / 2) times too long.

    `words` are those of a key that is already folded by its purpose.
    """
    for r in reversed(range(rounds)) if inverse else range(rounds):
        if inverse:
            x = _flipped(butterflies(x), fold(words, r), start)
        else:
            x = butterflies(_flipped(x, fold(words, r), start))
    return x


def blocks(n: int, least: int) -> Iterator[tuple[int, int]]:
    """Cut `n` positions, padded to a multiple of `least`: 65536s, then the powers of two of the rest, descending."""
    start, end = 0, -(-n // least) * least
    while start < end:
        size = min(1 << ((end - start).bit_length() - 1), 65536)
        yield start, start + size
        start += size


def randomized_hadamard_transform(
    x: NDArray[np.floating], key: HasWords | int, *, rounds: int = 2, inverse: bool = False
) -> NDArray[np.float32]:
    """Rotate the last axis, of any length, by the blocks of what fits, then the end once more as one block."""
    words = fold(key_words(key), "rotation")
    with np.errstate(over="ignore"):
        y = x.astype(np.float32)
    d = y.shape[-1]
    if d == 0:
        return y
    least = min(128, 1 << (d.bit_length() - 1))
    fits = d - d % least
    # Where a block lies, and the position of its first sign.
    places = [(start, end, start) for start, end in blocks(fits, least)]
    if fits < d:
        places.append((d - least, d, fits))
    for start, end, position in reversed(places) if inverse else places:
        turned = rotate(y[..., start:end], words, position, rounds=rounds, inverse=inverse)
        y[..., start:end] = _scaled(turned, float(end - start) ** (-rounds / 2))
    return y
