"""The codecs that keep every number in its place; those that rotate are in ``_rotating``.

A record holds parameters and knows what to expect of them; the core does the work.
"""

from __future__ import annotations

import math
import struct
from dataclasses import KW_ONLY, dataclass
from typing import Literal, Self

import numpy as np

from lowbit import _arguments, _core, _expected, onebit
from lowbit._codec import Codec, Noise, Unbiased, bytes_of

_SCHEMES = ("deterministic", "randomized", "dither", "clipped_dither", "optimal_biased", "optimal_unbiased")
_UNLIMITED = 255


def _float32(value: float, argument: str) -> float:
    """Round to float32, which must be finite."""
    rounded = _core.float32(_arguments.real(value, argument))
    if not math.isfinite(rounded):
        raise _core.Error(f"{argument}: {value} is not a finite float32")
    return rounded


def _interval(low: float, high: float) -> tuple[float, float]:
    lowest, highest = _float32(low, "low"), _float32(high, "high")
    if not lowest < highest:
        raise _core.Error(f"high: {high} is not above low, {low}; the interval must hold more than one number")
    return lowest, highest


@dataclass(frozen=True, slots=True)
class Float32(Codec):
    """All 32 bits of every number: the identity, to compare with.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> lb.decode(lb.encode(np.float32([0.1, -2.5]), lb.Float32()))
    array([ 0.1, -2.5], dtype=float32)
    """

    _id = 1

    @property
    def unbiased(self) -> Unbiased:
        """``"exact"``."""
        return "exact"

    @property
    def _noise(self) -> Noise:
        return "nothing"

    def _error(self, d: int) -> float:  # noqa: ARG002 - nothing is lost
        return 0.0

    def _payload(self, d: int) -> int:
        return 4 * d


@dataclass(frozen=True, slots=True)
class Dither(Codec):
    """Equal steps and subtractive dither: the error of every number is uniform, whatever the number.

    Parameters
    ----------
    bits : int
        1 to 8 for each number.
    low, high : float, optional
        The interval that holds all numbers, in float32: one outside is an error. Without them, the least and the
        greatest number of each array, which are sent along.

    Raises
    ------
    TypeError
        An argument has the wrong type.
    lowbit.Error
        `bits` out of range, an empty interval, only one of its ends, or steps not from 2**-126 to 2**126.

    Notes
    -----
    A random number that both sides read off the key is added before rounding and subtracted after, so the error is
    uniform over one step, independent of the number, and its square is step**2 / 12 on average (L. Schuchman, "Dither
    signals and their effect on quantization noise", IEEE Transactions on Communication Technology 12, 1964).

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> x = np.full(1000, 0.3, np.float32)
    >>> message = lb.encode(x, lb.Dither(4, 0, 1), key=7)
    >>> bool(np.abs(lb.decode(message, key=7) - x).max() <= 1 / 30 + 1e-6)
    True
    """

    bits: int
    low: float | None = None
    high: float | None = None

    _id = 3

    def __post_init__(self) -> None:
        self._put(bits=_arguments.within(self.bits, "bits", 1, 8))
        if self.low is None and self.high is None:
            return
        if self.low is None or self.high is None:
            missing = "low" if self.low is None else "high"
            raise _core.Error(f"{missing}: give both ends of the interval, or neither")
        low, high = _interval(self.low, self.high)
        step = (high - low) / self._steps
        if not 2.0**-126 <= step <= 2.0**126:
            raise _core.Error(f"high: steps of {step:g} are out of range; an interval needs steps of 2**-126 to 2**126")
        self._put(low=low, high=high)

    @property
    def unbiased(self) -> Unbiased:
        """``"exact"``."""
        return "exact"

    @property
    def _noise(self) -> Noise:
        return "shared"

    @property
    def _steps(self) -> int:
        return (1 << self.bits) - 1

    def _error(self, d: int) -> float:
        if self.low is None or self.high is None:
            # The square of the range that d numbers from an interval of length 1 have, against 1/12 for one of them.
            return (d - 1) * d / ((d + 1) * (d + 2)) / self._steps**2
        return ((self.high - self.low) / self._steps) ** 2 / 12 / _uniform_square(self.low, self.high)

    def _payload(self, d: int) -> int:
        return (8 if self.low is None else 1) + bytes_of(d * self.bits)

    def _parameters(self) -> bytes:
        return struct.pack("<BBff", self.bits, self.low is not None, self.low or 0.0, self.high or 0.0)

    @classmethod
    def _read(cls, parameters: bytes) -> Self:
        bits, given, low, high = struct.unpack("<BBff", parameters)
        return cls(bits, low, high) if given else cls(bits)


def _uniform_square(low: float, high: float) -> float:
    """Mean square of a number uniform on an interval."""
    return (low * low + low * high + high * high) / 3


@dataclass(frozen=True, slots=True)
class OneBit(Codec):
    """One bit for each number, alone: a scheme of `lowbit.onebit`.

    Parameters
    ----------
    scheme : str
        One of those of `lowbit.onebit.encode`.
    low, high : float, optional
        The interval that holds all numbers, in float32: one outside is an error.
    shared_bits : int, optional
        How many random bits a number's two sides share; None is the scheme's natural value.

    Raises
    ------
    TypeError
        An argument has the wrong type.
    lowbit.Error
        An unknown scheme, shared bits it does not serve, or an empty interval.

    Notes
    -----
    R. Ben Basat, M. Mitzenmacher, S. Vargaftik, "How to send a real number using a single bit (and some shared
    randomness)", ICALP 2021, arXiv:2010.02331; the bits are those of `lowbit.onebit.encode`.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> x = np.full(100_000, 0.3, np.float32)
    >>> y = lb.decode(lb.encode(x, lb.OneBit("optimal_unbiased"), key=7), key=7)
    >>> print(f"mean {y.mean():.2f}, mean squared error {np.mean((y - x) ** 2):.3f}")
    mean 0.30, mean squared error 0.078
    """

    scheme: str
    low: float = 0.0
    high: float = 1.0
    _: KW_ONLY
    shared_bits: int | None = None

    _id = 4

    def __post_init__(self) -> None:
        _core.onebit_noise(_arguments.choice(self.scheme, "scheme", _SCHEMES), _arguments.shared_bits(self.shared_bits))
        low, high = _interval(self.low, self.high)
        self._put(low=low, high=high, shared_bits=_arguments.shared_bits(self.shared_bits))

    @property
    def unbiased(self) -> Unbiased:
        """``"exact"`` if the scheme is, else ``"no"``."""
        return "exact" if self.scheme in onebit._UNBIASED else "no"

    @property
    def _noise(self) -> Noise:
        shared, private = _core.onebit_noise(self.scheme, self.shared_bits)
        return "shared" if shared else "private" if private else "nothing"

    def _error(self, d: int) -> float:  # noqa: ARG002 - every number is alone
        x = (np.arange(1 << 14) + 0.5) / (1 << 14)
        mean = float(onebit.squared_error(x, self.scheme, self.shared_bits).mean())
        return (self.high - self.low) ** 2 * mean / _uniform_square(self.low, self.high)

    def _payload(self, d: int) -> int:
        return 1 + bytes_of(d)

    def _parameters(self) -> bytes:
        shared = _UNLIMITED if self.shared_bits is None else self.shared_bits
        return struct.pack("<BBff", _SCHEMES.index(self.scheme), shared, self.low, self.high)

    @classmethod
    def _read(cls, parameters: bytes) -> Self:
        scheme, shared, low, high = struct.unpack("<BBff", parameters)
        return cls(_SCHEMES[scheme], low, high, shared_bits=None if shared == _UNLIMITED else shared)


@dataclass(frozen=True, slots=True)
class Sign(Codec):
    """The sign of every number, and one scale.

    Parameters
    ----------
    scale : {"l1", "l2"}
        What a sign stands for: the mean magnitude, which makes the error least, or the root of the mean square, which
        keeps the norm.

    Raises
    ------
    TypeError
        `scale` is no str.
    lowbit.Error
        `scale` is not known.

    Notes
    -----
    Biased, so made for `ErrorFeedback`: F. Seide et al., "1-bit stochastic gradient descent", Interspeech 2014; the
    mean magnitude is that of S. P. Karimireddy et al., "Error feedback fixes SignSGD", ICML 2019, arXiv:1901.09847.
    With "l2" a message may be further from a vector of few large numbers than zero is, and error feedback may diverge.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> lb.decode(lb.encode(np.float32([1, -2, 3, 0]), lb.Sign()))
    array([ 1.5, -1.5,  1.5,  1.5], dtype=float32)
    """

    scale: Literal["l1", "l2"] = "l1"

    _id = 5

    def __post_init__(self) -> None:
        _arguments.choice(self.scale, "scale", ("l1", "l2"))

    @property
    def unbiased(self) -> Unbiased:
        """``"no"``."""
        return "no"

    @property
    def _noise(self) -> Noise:
        return "nothing"

    def _error(self, d: int) -> float:
        if self.scale == "l1":
            return (1 - 2 / math.pi) * (1 - 1 / d)
        # The mean magnitude of d normal numbers of a given norm: they are independent of it, as directions are.
        norm = math.sqrt(2) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2)) if d < 1 << 20 else math.sqrt(d)
        return 2 * (1 - math.sqrt(2 * d / math.pi) / norm)

    def _payload(self, d: int) -> int:
        return 4 + bytes_of(d)

    def _parameters(self) -> bytes:
        return bytes([self.scale == "l2"])

    @classmethod
    def _read(cls, parameters: bytes) -> Self:
        return cls("l2" if parameters[0] else "l1")


@dataclass(frozen=True, slots=True)
class TernGrad(Codec):
    """-1, 0 or 1 times the largest magnitude, by coins that keep the mean; five numbers a byte.

    Notes
    -----
    W. Wen et al., "TernGrad", NeurIPS 2017, arXiv:1705.07878, equation 1, without its clipping. The coins are the
    sender's own: encoding needs a key or a ``numpy.random.Generator``, decoding none.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> x = np.float32([1, -2, 4, 0])
    >>> np.mean([lb.decode(lb.encode(x, lb.TernGrad(), key=k)) for k in range(1000)], axis=0).round()
    array([ 1., -2.,  4.,  0.], dtype=float32)
    """

    _id = 6

    @property
    def unbiased(self) -> Unbiased:
        """``"exact"``."""
        return "exact"

    @property
    def _noise(self) -> Noise:
        return "private"

    def _error(self, d: int) -> float:
        def product(amax: float) -> float:
            """Give the largest magnitude times the mean magnitude."""
            others = 2 * (_expected.density(0) - _expected.density(amax)) / (1 - 2 * _expected.beyond(amax))
            return amax * (amax + (d - 1) * others) / d

        return _expected.mean_over_largest(d, product) - 1

    def _payload(self, d: int) -> int:
        return 4 + -(-d // 5)


@dataclass(frozen=True, slots=True)
class Qsgd(Codec):
    """Equal steps of norm / levels, by coins that keep the mean.

    Parameters
    ----------
    levels : int
        Steps from 0 to the norm, 1 to 32767: there are 2 levels + 1 values.

    Raises
    ------
    TypeError
        `levels` is no int.
    lowbit.Error
        `levels` is out of range.

    Notes
    -----
    D. Alistarh et al., "QSGD", NeurIPS 2017, arXiv:1610.02132, section 3.1; codes of equal length in place of its
    Elias codes. The error grows with the length of the vector: sqrt(d) is a sensible number of levels. The coins are
    the sender's own: encoding needs a key or a ``numpy.random.Generator``, decoding none.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> lb.decode(lb.encode(np.float32([3, -4, 0]), lb.Qsgd(5), key=1))
    array([ 3., -4.,  0.], dtype=float32)
    """

    levels: int

    _id = 7

    def __post_init__(self) -> None:
        self._put(levels=_arguments.within(self.levels, "levels", 1, 32767))

    @property
    def unbiased(self) -> Unbiased:
        """``"exact"``."""
        return "exact"

    @property
    def _noise(self) -> Noise:
        return "private"

    def _error(self, d: int) -> float:
        return _expected.stochastic(math.sqrt(d) / self.levels)

    def _payload(self, d: int) -> int:
        return 4 + (-(-d // 5) if self.levels == 1 else bytes_of(d * (2 * self.levels).bit_length()))

    def _parameters(self) -> bytes:
        return struct.pack("<H", self.levels)

    @classmethod
    def _read(cls, parameters: bytes) -> Self:
        return cls(*struct.unpack("<H", parameters))
