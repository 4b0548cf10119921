"""The codecs that rotate: every number of a block becomes a sum of all of them, near normal whatever the vector.

A record holds parameters and knows what to expect of them; the core does the work.
"""

from __future__ import annotations

import math
import struct
from dataclasses import KW_ONLY, dataclass
from typing import Literal, Self, SupportsIndex

import numpy as np

from lowbit import _arguments, _core, _expected, _tables
from lowbit._codec import Codec, Noise, Unbiased, bytes_of

#: No block that is rotated is smaller: small ones stay biased.
LEAST = 128
_SCALES = ("unbiased", "min_error", "norm")


def rounds_of(value: SupportsIndex) -> int:
    """Check a number of rotations."""
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
        Rotations, 1 to 8. One is biased for some vectors whatever their length, two are not; blocks of fewer than
        4,096 numbers, for which two are not always enough, take four unless one was asked for.
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
        self._put(bits=bits, scale=scale, rounds=rounds_of(self.rounds), entropy_coded=bool(self.entropy_coded))

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
        return min(max(LEAST, 1 << (need - 1).bit_length()), _expected.BLOCK_MAX)

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
        def error(size: int, share: float) -> float:
            kept = self._kept(size)
            # What is decoded is a multiple of the block and something orthogonal to it, which alone the padding shares.
            if self.scale == "unbiased":
                return (1 / kept - 1) * share
            along, across = (kept, kept * (1 - kept)) if self.scale == "min_error" else (math.sqrt(kept), 1 - kept)
            return (1 - along) ** 2 + across * share

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
        Rotations, 1 to 8, as for `Eden`.

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
        self._put(rounds=rounds_of(self.rounds))

    @property
    def unbiased(self) -> Unbiased:
        """``"asymptotic"``."""
        return "asymptotic"

    @property
    def _noise(self) -> Noise:
        return "shared"

    def _error(self, d: int) -> float:
        return _expected.over_blocks(d, LEAST, lambda _, share: (math.pi / 2 - 1) * share)

    def _payload(self, d: int) -> int:
        return sum(b.many * (8 + bytes_of(b.size)) for b in _expected.blocks(d, LEAST))

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
        Rotations, 1 to 8, as for `Eden`.

    Raises
    ------
    TypeError
        An argument is no int.
    lowbit.Error
        An argument is out of range.

    Notes
    -----
    R. Ben Basat et al., "Accelerating Federated Learning with Quick Distributed Mean Estimation", ICML 2024,
    arXiv:2205.13341; the tables are solved anew. All senders share the rotation, so that `decode_mean` adds in
    rotated space and rotates back once.

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
        self._put(bits=_arguments.within(self.bits, "bits", 1, 4), rounds=rounds_of(self.rounds))

    @property
    def unbiased(self) -> Unbiased:
        """``"exact"``, whatever the rotation."""
        return "exact"

    @property
    def _noise(self) -> Noise:
        return "shared"

    def _error(self, d: int) -> float:
        return _expected.over_blocks(d, LEAST, lambda _, share: _tables.QUICFL_ERROR[self.bits] * share)

    def _payload(self, d: int) -> float:
        outliers = 2 * _expected.beyond(_expected.TAIL)
        cut = _expected.blocks(d, LEAST)
        return float(sum(b.many * (8 + bytes_of(b.size * self.bits) + 6 * outliers * b.size) for b in cut))

    def _parameters(self) -> bytes:
        return bytes([self.bits, self.rounds])

    @classmethod
    def _read(cls, parameters: bytes) -> Self:
        return cls(parameters[0], rounds=parameters[1])
