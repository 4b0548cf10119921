"""``Summable``: messages whose integers can be added by whoever knows no key."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Self, SupportsIndex

import numpy as np

from lowbit import _arguments, _core, _expected
from lowbit._codec import Codec, Noise, Unbiased, bytes_of
from lowbit._rotating import LEAST, rounds_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from lowbit._keys import Key


def _agreed(norms: ArrayLike, d: int) -> tuple[NDArray[np.float32], int]:
    """Check the norms of a vector of `d` numbers; also give the places that its blocks have."""
    cut = _expected.blocks(d, LEAST)
    given, many = _arguments.float32(norms, "norms"), sum(b.many for b in cut)
    if given.shape != (many,):
        raise _core.Error(f"norms: {d} numbers have ({many},) of them, not {given.shape}; take those of Summable.norms")
    return given, sum(b.size * b.many for b in cut)


@dataclass(frozen=True, slots=True)
class Summable(Codec):
    """Small integers that anyone can add: one rotation and one scale for all, equal steps, subtractive dither.

    The integers of many senders can be summed by whoever knows no key: an integer all_reduce, a switch, secure
    aggregation. For that, senders first agree on scales (`norms`, combined by maximum), then send `integers`; the sum
    is read by `decode_sum`. As an ordinary message (`encode`, `decode_mean`) every sender uses its own norms.

    Parameters
    ----------
    bits : int
        1 to 8 for each number; n senders' sum takes log2(n) bits more.
    rounds : int, optional
        Rotations, 1 to 8, as for `Eden`.

    Raises
    ------
    TypeError
        An argument is no int.
    lowbit.Error
        An argument is out of range.

    Notes
    -----
    The idea is that of M. Li et al., "THC: Accelerating Distributed Deep Learning Using Tensor Homomorphic
    Compression", NSDI 2024, arXiv:2302.08545; here with dither in place of its tables, so that every sum of integers is
    a sum of estimates. The only bias is from clipping at 3.097 standard deviations: 2.8e-4 of the vector's energy, the
    same for all senders of a round, since they share the rotation; over many keys (2**-9)**2 of it remain.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> codec, key, senders = lb.Summable(4), lb.Key(2024).fold("step", 1), range(8)
    >>> vectors = [np.random.default_rng(s).normal(1, 1, 5000) for s in senders]
    >>> norms = np.maximum.reduce([codec.norms(x) for x in vectors])
    >>> sent = [codec.integers(x, norms, key=key, sender=s, senders=8, dtype=None) for s, x in zip(senders, vectors)]
    >>> sent[0].dtype                              # eight times 15 fit a byte, so bytes can be added
    dtype('uint8')
    >>> total = codec.decode_sum(np.add.reduce(sent), norms, 5000, key=key, senders=senders)
    >>> exact = np.sum(vectors, axis=0)
    >>> bool(np.sum((total - exact) ** 2) < 0.01 * np.sum(exact**2))
    True
    """

    bits: int
    _: KW_ONLY
    rounds: int = 2

    _id = 11

    def __post_init__(self) -> None:
        self._put(bits=_arguments.within(self.bits, "bits", 1, 8), rounds=rounds_of(self.rounds))

    @property
    def unbiased(self) -> Unbiased:
        """``"no"``: numbers are clipped."""
        return "no"

    @property
    def _noise(self) -> Noise:
        return "shared"

    @property
    def _largest(self) -> int:
        return (1 << self.bits) - 1

    def _error(self, d: int) -> float:
        step = 2 * _expected.TAIL / self._largest
        whole = step * step / 12 + _expected.clipped(_expected.TAIL)
        return _expected.over_blocks(d, LEAST, lambda _, share: whole * share)

    def _payload(self, d: int) -> int:
        return sum(b.many * (4 + bytes_of(b.size * self.bits)) for b in _expected.blocks(d, LEAST))

    def _parameters(self) -> bytes:
        return bytes([self.bits, self.rounds])

    @classmethod
    def _read(cls, parameters: bytes) -> Self:
        return cls(parameters[0], rounds=parameters[1])

    def norms(self, x: ArrayLike) -> NDArray[np.float32]:
        """Measure the blocks of a vector.

        Parameters
        ----------
        x : array_like
            Any shape and float dtype.

        Returns
        -------
        numpy.ndarray
            float32, one norm for each block; NaN where a number is not finite. Senders combine theirs by
            ``np.maximum``.

        Raises
        ------
        TypeError
            `x` is not of a float type.
        """
        return _core.summable_norms(_arguments.floats(x, "x"), self._parameters())

    def integers(
        self,
        x: ArrayLike,
        norms: ArrayLike,
        *,
        key: Key | int,
        sender: SupportsIndex = 0,
        senders: SupportsIndex | None = None,
        dtype: DTypeLike | None = np.int32,
    ) -> NDArray[Any]:
        """Round a vector to integers from 0 to ``2**bits - 1``, to be added to those of others.

        Parameters
        ----------
        x : array_like
            Any shape and float dtype.
        norms : array_like
            What all senders agreed on: the maximum of their `norms`.
        key : Key or int
            This round's key, the same for all.
        sender : int, optional
            Who sends: another number for each, or errors would not average out.
        senders : int, optional
            How many will be added.
        dtype : dtype-like, optional
            Of the integers. None: the smallest unsigned one that holds the sum of `senders` of them.

        Returns
        -------
        numpy.ndarray
            One dimension, `x.size` rounded up to a multiple of 128.

        Raises
        ------
        TypeError
            An argument has the wrong type.
        lowbit.Error
            `dtype` cannot hold the sum, `norms` are not those of such a vector, or a number is not finite: there is no
            integer for it.
        """
        words = _arguments.words(key, private=False)
        many = 1 if senders is None else _arguments.within(senders, "senders", 1, (1 << 56) - 1)
        most = many * self._largest
        if dtype is None:
            if senders is None:
                raise _core.Error("senders: the smallest dtype depends on it; say how many will be added")
            chosen = np.min_scalar_type(most)
        else:
            chosen = _arguments.dtype(dtype)
            if chosen.kind not in "iu":
                raise TypeError(f"dtype: expected integers, got {chosen}")
            if most > np.iinfo(chosen).max:
                raise _core.Error(f"dtype: {chosen} cannot hold the sum of {many} times {self._largest}")
        array, number = _arguments.floats(x, "x"), _arguments.sender(sender)
        given, _ = _agreed(norms, array.size)
        return _core.summable_integers(array, self._parameters(), given, words, number).astype(chosen, copy=False)

    def decode_sum(
        self,
        total: NDArray[Any],
        norms: ArrayLike,
        shape: SupportsIndex | tuple[SupportsIndex, ...],
        *,
        key: Key | int,
        senders: Iterable[SupportsIndex],
    ) -> NDArray[np.float32]:
        """Estimate the sum of the vectors whose integers were added.

        Parameters
        ----------
        total : numpy.ndarray
            The sum of what `integers` gave, of any integer dtype.
        norms : array_like
            Those that all senders used.
        shape : int or tuple of int
            The shape of the vectors.
        key : Key or int
            This round's key.
        senders : iterable of int
            Whose integers are in the sum: the numbers given as `sender`.

        Returns
        -------
        numpy.ndarray
            float32, of the given shape: the sum; divide by the number of senders for the mean.

        Raises
        ------
        TypeError
            `total` is not of an integer dtype, or another argument has the wrong type.
        lowbit.Error
            `total` or `norms` has not the length that `shape` takes, a sum is more than so many senders can have, or a
            sender is there twice or none is.
        """
        words = _arguments.words(key, private=False)
        who = [_arguments.within(sender, "senders", 0, (1 << 64) - 1) for sender in senders]
        if not who or len(set(who)) < len(who):
            raise _core.Error("senders: give everyone whose integers were added, once")
        sums = _arguments.array(total, "total")
        if sums.dtype.kind not in "iu":
            raise TypeError(f"total: expected integers, got {sums.dtype}")
        most = len(who) * self._largest
        if sums.size and not 0 <= int(sums.min()) <= int(sums.max()) <= most:
            raise _core.Error(f"total: {len(who)} senders add up to 0 to {most}, not {sums.min()} to {sums.max()}")
        dims = _arguments.shape(shape)
        given, places = _agreed(norms, math.prod(dims))
        if sums.shape != (places,):
            raise _core.Error(f"total: {dims} takes ({places},) integers, not {sums.shape}")
        return _core.summable_decode(np.ascontiguousarray(sums, np.int64), self._parameters(), given, dims, words, who)
