"""Keys and the shared random stream, version 1 (``docs/stream.md``)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: SplitMix64's step


def random_bits(words: tuple[int, int], n: int, start: int = 0) -> NDArray[np.uint32]:
    """Words `start`, ..., `start` + `n` - 1 of the stream of the key with these ``words`` (``docs/stream.md``)."""
    start64, odd = np.uint64(words[0]), words[1] | 1
    step = np.uint64(odd ^ 0xAAAAAAAAAAAAAAAA if (odd ^ (odd >> 1)).bit_count() < 24 else odd)
    element = np.arange(n, dtype=np.uint64) + np.uint64(start)
    word = mix(start64 + (element // np.uint64(2) + np.uint64(1)) * step)
    return (word >> (element % np.uint64(2) * np.uint64(32))).astype(np.uint32)


def mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _mixed(z: int) -> int:
    return int(mix(np.array([z % 2**64], np.uint64))[0])


class HasWords(Protocol):
    """What a ``lowbit.Key`` is here."""

    @property
    def words(self) -> tuple[int, int]:
        """The two 64-bit words of the key."""


def key_words(key: HasWords | int | np.random.Generator) -> tuple[int, int]:
    """Give the words of a key, of the key that an int seeds, or two raw words of a generator."""
    if isinstance(key, np.random.Generator):
        k0, k1 = key.integers(0, 2**64, size=2, dtype=np.uint64)
        return int(k0), int(k1)
    return (_mixed(key + _GOLDEN), _mixed(key + 2 * _GOLDEN)) if isinstance(key, int) else key.words


def fold(words: tuple[int, int], *parts: str | int) -> tuple[int, int]:
    """Derive a child key; a label is both halves of its BLAKE2b-128, folded in as integers."""
    k0, k1 = words
    for part in parts:
        numbers = [part] if isinstance(part, int) else np.frombuffer(_digest(part), "<u8").tolist()
        for number in numbers:
            k0 = _mixed(k0 + _GOLDEN * (number + 1))
            k1 = _mixed(k1 ^ k0)
    return k0, k1


def _digest(label: str) -> bytes:
    return hashlib.blake2b(label.encode(), digest_size=16, person=b"lowbit.label.v1").digest()
