"""The same functions in slow, obvious NumPy: the specification in code, and the oracle of the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def random_bits(words: tuple[int, int], n: int, start: int = 0) -> NDArray[np.uint32]:
    """Words `start`, ..., `start` + `n` - 1 of the stream of the key with these ``words`` (``docs/stream.md``)."""
    start64, odd = np.uint64(words[0]), words[1] | 1
    step = np.uint64(odd ^ 0xAAAAAAAAAAAAAAAA if (odd ^ (odd >> 1)).bit_count() < 24 else odd)
    element = np.arange(n, dtype=np.uint64) + np.uint64(start)
    return (mix(start64 + (element // np.uint64(2) + np.uint64(1)) * step) >> (element % np.uint64(2) * np.uint64(32))).astype(np.uint32)


def mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finalizer."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
