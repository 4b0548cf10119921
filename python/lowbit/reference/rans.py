"""A range coder by asymmetric numeral systems: four interleaved states, 16-bit words, frequencies that sum to 2^14.

Duda, "Asymmetric numeral systems", arXiv:1311.2540. Integers only: its bytes are the same everywhere.
"""

from __future__ import annotations

import struct
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

PRECISION = 14
TOTAL = 1 << PRECISION
LOW = 1 << 16  # the states stay in [LOW, 2^32)
STATES = 4


def normalize(counts: Sequence[int]) -> list[int]:
    """Scale counts to frequencies that sum to 2^14, at least 1 for whatever occurs.

    Parameters
    ----------
    counts : sequence of int
        How often each symbol occurs; not all zero, at most 2^14 of them positive.

    Returns
    -------
    list of int
    """
    n = sum(counts)
    frequencies = [max(1, count * TOTAL // n) if count else 0 for count in counts]
    rest = TOTAL - sum(frequencies)
    while rest:
        largest = frequencies.index(max(frequencies))
        step = rest if rest > 0 else -1
        frequencies[largest] += step
        rest -= step
    return frequencies


def encode(symbols: Sequence[int], frequencies: Sequence[int]) -> bytes:
    """Code the symbols (indices into `frequencies`), the last one first, number i with state i % 4."""
    below = [0, *accumulate(frequencies)]
    states, words = [LOW] * STATES, []
    for i in reversed(range(len(symbols))):
        frequency, x = frequencies[symbols[i]], states[i % STATES]
        if x >= frequency << (32 - PRECISION):
            words.append(x & 0xFFFF)
            x >>= 16
        states[i % STATES] = (x // frequency << PRECISION) + x % frequency + below[symbols[i]]
    return struct.pack(f"<{STATES}I{len(words)}H", *states, *reversed(words))


def decode(data: bytes, frequencies: Sequence[int], n: int) -> list[int]:
    """Read `n` symbols.

    Raises
    ------
    ValueError
        The bytes are not exactly those of `n` symbols.
    """
    if len(data) < 4 * STATES or len(data) % 2:
        raise ValueError(f"{len(data)} bytes are not {STATES} states and whole words")
    below = [0, *accumulate(frequencies)]
    slots = [symbol for symbol, frequency in enumerate(frequencies) for _ in range(frequency)]
    states = list(struct.unpack_from(f"<{STATES}I", data))
    if min(states) < LOW:
        raise ValueError("a state below 2^16")
    words = iter(struct.unpack_from(f"<{len(data) // 2 - 2 * STATES}H", data, 4 * STATES))
    symbols = []
    for i in range(n):
        x = states[i % STATES]
        slot = x & (TOTAL - 1)
        symbol = slots[slot]
        x = frequencies[symbol] * (x >> PRECISION) + slot - below[symbol]
        if x < LOW:
            word = next(words, None)
            if word is None:
                raise ValueError("the words end before the symbols")
            x = x << 16 | word
        states[i % STATES] = x
        symbols.append(symbol)
    if states != [LOW] * STATES or next(words, None) is not None:
        raise ValueError("the words do not end with the symbols")
    return symbols
