"""Keys and the shared random stream, version 1 (``docs/stream.md``)."""

from __future__ import annotations

import hashlib
import operator
from functools import lru_cache
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np

from lowbit import _core

if TYPE_CHECKING:
    from numpy.typing import NDArray

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _mix(z: int) -> int:
    """SplitMix64's finalizer."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return z ^ (z >> 31)


def _word(value: SupportsIndex, argument: str) -> int:
    """Check that ``value`` is an integer that fits 64 unsigned bits."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{argument}: a bool is not an integer here; give an int from 0 to 2**64 - 1")
    try:
        word = operator.index(value)
    except TypeError:
        raise TypeError(f"{argument}: expected an int from 0 to 2**64 - 1, got {type(value).__name__}") from None
    if not 0 <= word <= _WORD:
        raise _core.Error(f"{argument}: {word} is out of range; give an int from 0 to 2**64 - 1")
    return word


def _hash(data: bytes, person: bytes) -> tuple[int, int]:
    digest = hashlib.blake2b(data, digest_size=16, person=person).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


@lru_cache(maxsize=1024)
def _label(label: str) -> tuple[int, int]:
    try:
        data = label.encode()
    except UnicodeEncodeError:
        raise _core.Error(f"fold: a label is text that UTF-8 can hold, got {label!a}") from None
    return _hash(data, b"lowbit.label.v1")


class Key:
    """Name one random stream; everyone who has the key reads the same words.

    Parameters
    ----------
    seed : int or bytes
        An integer from 0 to 2**64 - 1 (the key is the first two outputs of SplitMix64 from there), or any bytes
        (hashed by BLAKE2b-128, person ``lowbit.key.v1``).

    Raises
    ------
    TypeError
        `seed` is neither an int nor bytes; a bool is not an int here.
    lowbit.Error
        `seed` is out of range.

    Notes
    -----
    A key is immutable and hashable. It is not cryptographic: who sees enough of a stream can find its key.

    Examples
    --------
    >>> import lowbit as lb
    >>> key = lb.Key(1234).fold("step", 7)
    >>> key == lb.Key(1234).fold("step").fold(7)
    True
    >>> lb.random_bits(key, 3)
    array([1929125150, 1487857934, 3116012465], dtype=uint32)
    """

    __slots__ = ("_words",)
    _words: tuple[int, int]

    def __init__(self, seed: int | bytes) -> None:
        if isinstance(seed, (bytes, bytearray, memoryview)):
            words = _hash(bytes(seed), b"lowbit.key.v1")
        else:
            start = _word(seed, "seed")
            words = (_mix((start + _GOLDEN) & _WORD), _mix((start + 2 * _GOLDEN) & _WORD))
        object.__setattr__(self, "_words", words)

    @classmethod
    def from_words(cls, k0: int, k1: int) -> Key:
        """Make the key whose ``words`` are `k0` and `k1`, two integers from 0 to 2**64 - 1."""
        key = cls.__new__(cls)
        object.__setattr__(key, "_words", (_word(k0, "k0"), _word(k1, "k1")))
        return key

    @property
    def words(self) -> tuple[int, int]:
        """The two 64-bit words that are the key."""
        return self._words

    def fold(self, *parts: int | str) -> Key:
        """Derive a child key: ``key.fold(a, b) == key.fold(a).fold(b)``.

        Parameters
        ----------
        *parts : int or str
            Each an integer from 0 to 2**64 - 1 or a label.

        Returns
        -------
        Key

        Raises
        ------
        TypeError
            A part is neither an int nor a str; a bool is not an int here.
        lowbit.Error
            An integer is out of range, or a label holds what UTF-8 cannot (lone surrogates).
        """
        k0, k1 = self._words
        for part in parts:
            for word in _label(part) if isinstance(part, str) else (_word(part, "fold"),):
                k0 = _mix((k0 + _GOLDEN * (word + 1)) & _WORD)
                k1 = _mix(k1 ^ k0)
        return Key.from_words(k0, k1)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a Key cannot be changed; fold makes another")

    def __eq__(self, other: object) -> bool:
        return self._words == other._words if isinstance(other, Key) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._words)

    def __repr__(self) -> str:
        return f"Key.from_words({self._words[0]:#x}, {self._words[1]:#x})"

    def __reduce__(self) -> tuple[object, tuple[int, int]]:
        return Key.from_words, self._words


def random_bits(key: Key | int, n: SupportsIndex, start: SupportsIndex = 0) -> NDArray[np.uint32]:
    """Read the stream of a key: words `start`, ..., `start` + `n` - 1.

    Parameters
    ----------
    key : Key or int
        Which stream; an int stands for ``Key(int)``.
    n : int
        How many words.
    start : int, optional
        The first element's number; the stream has 2**64 elements, so `start` + `n` is at most that.

    Returns
    -------
    numpy.ndarray
        Shape (n,), uint32: element i is a pure function of (key, start + i).

    Raises
    ------
    TypeError
        `key` is neither a Key nor an int; `n` or `start` is no int.
    lowbit.Error
        `start` + `n` passes 2**64, or `n` is more than an array can hold.
    MemoryError
        `n` is more than there is memory for.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> whole = lb.random_bits(7, 1000)
    >>> bool(np.array_equal(lb.random_bits(7, 10, start=500), whole[500:510]))
    True
    """
    key = key if isinstance(key, Key) else Key(key)
    return _core.random_bits(*key.words, _word(n, "n"), _word(start, "start"))
