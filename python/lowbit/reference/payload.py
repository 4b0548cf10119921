"""What codecs share: a payload's bytes taken from the front, its floats, dither, and what a codec has to have."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from lowbit.reference.quantizers import unpack
from lowbit.reference.rotation import Words
from lowbit.reference.stream import fold, random_bits

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

F = np.float32


class Reader:
    """Bytes that are taken from the front."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, n: int) -> bytes:
        """Give the next `n` bytes."""
        if self.at + n > len(self.data):
            raise ValueError(f"{n} bytes wanted at {self.at} of {len(self.data)}")
        self.at += n
        return self.data[self.at - n : self.at]

    def unpack(self, layout: str) -> tuple[Any, ...]:
        """Give the fields of a `struct` layout, little-endian and without gaps."""
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))

    def array(self, dtype: str, n: int) -> NDArray[Any]:
        """Give `n` numbers."""
        made = np.dtype(dtype)
        return np.frombuffer(self.take(n * made.itemsize), made).astype(made.newbyteorder("="))

    def codes(self, bits: int, n: int) -> NDArray[Any]:
        """Give `n` packed codes; what is left of the last byte must be zero."""
        packed = np.frombuffer(self.take(-(-n * bits // 8)), np.uint8)
        if n * bits % 8 and packed[-1] >> (n * bits % 8):
            raise ValueError("bits after the last code are not zero")
        return unpack(packed, bits, n)


def is_finite(x: NDArray[np.float32]) -> bool:
    """Whether there is neither NaN nor infinity."""
    return bool(np.isfinite(x).all())


def nans(n: int) -> NDArray[np.float32]:
    """Give what a block or an array with a number that is not finite decodes to."""
    return np.full(n, np.nan, F)


def floats(*values: ArrayLike) -> bytes:
    """Little-endian float32; every NaN is the quiet one 0x7fc00000."""
    x = np.concatenate([np.atleast_1d(np.asarray(v, F)) for v in values])
    return np.where(np.isnan(x), F(np.nan), x).astype("<f4").tobytes()


def dither(words: Words, sender: int, n: int, start: int = 0) -> NDArray[np.float32]:
    """Subtractive dither in (-1/2, 1/2), exact: an odd number of 2^-25."""
    word = random_bits(fold(words, "dither", sender), n, start)
    return np.asarray(((word >> np.uint32(8)) + 0.5) * 2.0**-24 - 0.5, F)


class Codec(Protocol):
    """What every codec has."""

    id: ClassVar[int]
    shared: ClassVar[bool]
    """Whether all senders share one rotation, so that `decode` gives rotated numbers and `finish` undoes it."""

    @property
    def needs_key(self) -> bool:
        """Whether a receiver needs the key."""

    def parameters(self) -> bytes:
        """Give the codec's parameters as the header has them."""

    def sends(self, x: NDArray[np.float32]) -> bool:
        """Whether the array counts as finite: all numbers are, and the scales that this codec sends."""

    def encode(self, x: NDArray[np.float32], words: Words, sender: int) -> bytes:
        """Give the payload of one array."""

    def decode(self, data: Reader, shape: tuple[int, ...], words: Words, sender: int) -> NDArray[np.float32]:
        """Read it again, flat."""

    def finish(self, z: NDArray[np.float32], n: int, words: Words) -> NDArray[np.float32]:
        """Turn what `decode` gave, or a mean of such, into the array's `n` numbers."""
