"""The codecs that rotate: every number of a block becomes a sum of all of them, near normal whatever the vector.

A record holds parameters and knows what to expect of them; the core does the work.
"""

from __future__ import annotations

import math
import struct
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, SupportsIndex

import numpy as np

from lowbit import _arguments, _core, _expected, _tables
from lowbit._codec import Codec, Noise, Unbiased, bytes_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from lowbit._keys import Key

_LEAST = 128
_SCALES = ("unbiased", "min_error", "norm")


def _rounds(value: SupportsIndex) -> int:
    return _arguments.within(value, "rounds", 1, 8)


@dataclass(frozen=True, slots=True)
class Eden(Codec):
    """Rotate, round to the best codebook for normal numbers, send codes and one scale for each block.

    Parameters
    ----------
    bits : float
        Bits for each number, any real number from 0.05 to 8. With a fraction f, a share f of a block gets one bit more
        than the others; below one bit the others get none.
    scale : {"unbiased", "min_error", "norm"}
        ``"unbiased"`` makes the estimate right on average, for many senders; ``"min_error"`` makes the error of one
        message least; ``"norm"`` keeps the vector's norm.
    rounds : int, optional
        Rotations, 1 to 8. One is biased for some vectors whatever their length, two are not.
    entropy_coded : bool, optional
        Round to equal steps in place of a codebook, and code the integers by their frequencies: less error for the
        same bits, most below one bit.

    Raises
    ------
    TypeError
        An argument has the wrong type.
    lowbit.Error
        An argument is out of range or not known.

    Notes
    -----
    S. Vargaftik et al., "EDEN", ICML 2022, arXiv:2108.08842, after DRIVE, NeurIPS 2021,
    arXiv:2105.08339. Every sender has a rotation of its own. The error of n senders' mean
    is ``expected_error / n`` where it is unbiased; "min_error" is better for one or two senders only (at one bit).

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> [round(lb.Eden(bits).expected_error(1 << 20), 4) for bits in (0.5, 1, 2, 4)]
    [2.1416, 0.5708, 0.1331, 0.0096]
    >>> x = np.random.default_rng(0).lognormal(size=1 << 14)
    >>> y = lb.decode(lb.encode(x, lb.Eden(2), key=0), key=0)
    >>> round(float(np.sum((y - x) ** 2) / np.sum(x**2)), 2)
    0.13
    """

    bits: float
    scale: Literal["unbiased", "min_error", "norm"] = "unbiased"
    _: KW_ONLY
    rounds: int = 2
    entropy_coded: bool = False

    _id = 8

    def __post_init__(self) -> None:
        bits = _arguments.real(self.bits, "bits")
        if not 0.05 <= bits <= 8:
            raise _core.Error(f"bits: {bits} is out of range; give 0.05 to 8")
        if not isinstance(self.entropy_coded, (bool, np.bool_)):
            raise TypeError(f"entropy_coded: expected a bool, got {type(self.entropy_coded).__name__}")
        scale = _arguments.choice(self.scale, "scale", _SCALES)
        self._put(bits=bits, scale=scale, rounds=_rounds(self.rounds), entropy_coded=bool(self.entropy_coded))

    @property
    def unbiased(self) -> Unbiased:
        """``"asymptotic"`` with the unbiased scale, else ``"no"``."""
        return "asymptotic" if self.scale == "unbiased" else "no"

    @property
    def _noise(self) -> Noise:
        return "shared"

    @property
    def _least(self) -> int:
        """The smallest block, so that no fewer than 128 bits are spent on any."""
        need = math.ceil(128 / self.bits)
        return min(max(_LEAST, 1 << (need - 1).bit_length()), _expected.BLOCK_MAX)

    def _split(self, size: int) -> tuple[int, int]:
        """Bits that all numbers of a block get, and how many get one more."""
        low = math.floor(self.bits)
        return low, round((self.bits - low) * size)

    def _kept(self, size: int) -> float:
        """Give (E ZQ)^2 / E Q^2: the share of a block's energy that its codes explain."""
        if self.entropy_coded:
            product, square = _tables.grid_moments(_core.entropy_step(self.bits))
            return product * product / square
        low, more = self._split(size)
        # Codebooks hold centroids, so that E ZQ = E Q^2 = 1 - distortion; at 8 bits nothing gets more.
        high = _tables.LLOYD_MAX_DISTORTION[low + 1] if more else 0.0
        return 1 - ((size - more) * _tables.LLOYD_MAX_DISTORTION[low] + more * high) / size

    def _error(self, d: int) -> float:
        def error(size: int) -> float:
            kept = self._kept(size)
            return {"unbiased": 1 / kept - 1, "min_error": 1 - kept, "norm": 2 - 2 * math.sqrt(kept)}[self.scale]

        return _expected.over_blocks(d, self._least, error)

    def _payload(self, d: int) -> float:
        cut = _expected.blocks(d, self._least)
        if self.entropy_coded:
            places = sum(b.size * b.many for b in cut)
            symbols = 2 * round(_expected.largest(places) / _core.entropy_step(self.bits)) + 1
            # A scale and a length for each block, and what its coder's four states waste: each starts from 16 bits that
            # say nothing, and ends in 32 bits of which 24 say something on average.
            return 4 + 2 * symbols + sum(b.many * (8 + 12 + b.size * self.bits / 8) for b in cut)
        return sum(b.many * (4 + self._codes(b.size)) for b in cut)

    def _codes(self, size: int) -> int:
        low, more = self._split(size)
        return bytes_of(more * (low + 1)) + bytes_of((size - more) * low)

    def _parameters(self) -> bytes:
        step = _core.entropy_step(self.bits) if self.entropy_coded else 0.0
        return struct.pack("<dBBBf", self.bits, _SCALES.index(self.scale), self.rounds, self.entropy_coded, step)

    @classmethod
    def _read(cls, parameters: bytes) -> Self:
        bits, scale, rounds, coded, _ = struct.unpack("<dBBBf", parameters)
        scales: tuple[Literal["unbiased"], Literal["min_error"], Literal["norm"]] = ("unbiased", "min_error", "norm")
        return cls(bits, scales[scale], rounds=rounds, entropy_coded=bool(coded))


def Drive() -> Eden:  # noqa: N802 - it stands for a record
    """Return ``Eden(1)``: rotate and send signs.

    Returns
    -------
    Eden

    Notes
    -----
    S. Vargaftik et al., "DRIVE: One-bit Distributed Mean Estimation", NeurIPS 2021, arXiv:2105.08339.

    Examples
    --------
    >>> import lowbit as lb
    >>> lb.Drive()
    Eden(bits=1.0, scale='unbiased', rounds=2, entropy_coded=False)
    """
    return Eden(1)


@dataclass(frozen=True, slots=True)
class DrivePlus(Codec):
    """Rotate and send one bit for each number: which of two values, the best two for each block.

    Parameters
    ----------
    rounds : int, optional
        Rotations, 1 to 8.

    Raises
    ------
    TypeError
        `rounds` is no int.
    lowbit.Error
        `rounds` is out of range.

    Notes
    -----
    S. Vargaftik et al., "DRIVE", NeurIPS 2021, arXiv:2105.08339 (its DRIVE+), with three steps of Lloyd's algorithm.
    Where a block is near normal, as it is after two rotations, there is little to gain over `Drive`.

    Examples
    --------
    >>> import lowbit as lb
    >>> round(lb.DrivePlus().expected_error(1 << 16), 4)
    0.5708
    """

    _: KW_ONLY
    rounds: int = 2

    _id = 9

    def __post_init__(self) -> None:
        self._put(rounds=_rounds(self.rounds))

    @property
    def unbiased(self) -> Unbiased:
        """``"asymptotic"``."""
        return "asymptotic"

    @property
    def _noise(self) -> Noise:
        return "shared"

    def _error(self, d: int) -> float:
        return _expected.over_blocks(d, _LEAST, lambda _: math.pi / 2 - 1)

    def _payload(self, d: int) -> int:
        return sum(b.many * (8 + bytes_of(b.size)) for b in _expected.blocks(d, _LEAST))

    def _parameters(self) -> bytes:
        return bytes([self.rounds])

    @classmethod
    def _read(cls, parameters: bytes) -> Self:
        return cls(rounds=parameters[0])


@dataclass(frozen=True, slots=True)
class QuicFl(Codec):
    """One rotation that all senders share, and unbiased rounding of each number by shared and private coins.

    Parameters
    ----------
    bits : int
        1 to 4 for each number; of 512 numbers one, the largest, goes as it is in 6 bytes more.
    rounds : int, optional
        Rotations, 1 to 8.

    Raises
    ------
    TypeError
        An argument is no int.
    lowbit.Error
        An argument is out of range.

    Notes
    -----
    R. Ben Basat et al., "Accelerating Federated Learning with Quick Distributed Mean Estimation", ICML 2024,
    arXiv:2205.13341; the tables are solved anew. `decode_mean` adds in rotated space and rotates back once for all
    senders, so that a server's work for each message is small.

    Examples
    --------
    >>> import lowbit as lb
    >>> [round(lb.QuicFl(bits).expected_error(1 << 16), 3) for bits in (2, 3)]
    [0.214, 0.043]
    """

    bits: int
    _: KW_ONLY
    rounds: int = 2

    _id = 10

    def __post_init__(self) -> None:
        self._put(bits=_arguments.within(self.bits, "bits", 1, 4), rounds=_rounds(self.rounds))

    @property
    def unbiased(self) -> Unbiased:
        """``"exact"``, whatever the rotation."""
        return "exact"

    @property
    def _noise(self) -> Noise:
        return "shared"

    def _error(self, d: int) -> float:
        return _expected.over_blocks(d, _LEAST, lambda _: _tables.QUICFL_ERROR[self.bits])

    def _payload(self, d: int) -> float:
        outliers = 2 * _expected.beyond(_expected.TAIL)
        cut = _expected.blocks(d, _LEAST)
        return float(sum(b.many * (8 + bytes_of(b.size * self.bits) + 6 * outliers * b.size) for b in cut))

    def _parameters(self) -> bytes:
        return bytes([self.bits, self.rounds])

    @classmethod
    def _read(cls, parameters: bytes) -> Self:
        return cls(parameters[0], rounds=parameters[1])


def _agreed(norms: ArrayLike, d: int) -> tuple[NDArray[np.float32], int]:
    """Check the norms of a vector of `d` numbers; also give the places that its blocks have."""
    cut = _expected.blocks(d, _LEAST)
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
        Rotations, 1 to 8.

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
        self._put(bits=_arguments.within(self.bits, "bits", 1, 8), rounds=_rounds(self.rounds))

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
        return _expected.over_blocks(d, _LEAST, lambda _: step * step / 12 + _expected.clipped(_expected.TAIL))

    def _payload(self, d: int) -> int:
        return sum(b.many * (4 + bytes_of(b.size * self.bits)) for b in _expected.blocks(d, _LEAST))

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
