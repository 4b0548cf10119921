"""One real number in one bit, with shared randomness.

The schemes of Ben Basat, Mitzenmacher and Vargaftik, "How to send a real number using a single bit (and some shared
randomness)" (ICALP 2021, arXiv:2010.02331), and the closed forms that ``docs/onebit.md`` derives.

================== =================== ======== ============================================================
scheme             shared_bits         unbiased what it is
================== =================== ======== ============================================================
deterministic      0                   no       nearest of 1/4 and 3/4; needs no key
randomized         0                   yes      one with probability x; noise of the sender only
dither             0 to 16, unlimited  yes      threshold partly shared; unlimited is subtractive dither
clipped_dither     unlimited           no       subtractive dither, estimates clipped to [0.17349, 0.82651]
optimal_biased     0 to 16, unlimited  no       least worst case
optimal_unbiased   0 to 16, unlimited  yes      least worst case among the unbiased
================== =================== ======== ============================================================

``shared_bits=None`` is the last entry of its row. The optimal schemes have tables for up to 3 shared bits; from 4 on
they serve their unlimited form, quantized, which is within 0.5 % (biased, 4 bits) and 0.6 % (unbiased, 4 bits) of the
best known table and nearer with every bit. "Unlimited" is 24 bits, all that a float32 threshold can tell apart.

Numbers are rounded to float32 and mapped from [low, high] to [0, 1] in float32; thresholds are compared in float32.
The mean of the estimates of an unbiased scheme is within 2**-23 of the mapped number, apart from the rounding of each
estimate to float32.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np

from lowbit import _arguments, _core

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from lowbit._formats import KeyLike
    from lowbit._keys import Key

__all__ = ["decode", "encode", "squared_error", "worst_case_error"]

_CLIP = 0.17349
_HALF_EXP = 0.5 * math.exp(-0.5)
_UNBIASED = ("randomized", "dither", "optimal_unbiased")


def encode(
    x: ArrayLike,
    *,
    scheme: str,
    key: KeyLike | None = None,
    sender: int = 0,
    shared_bits: int | None = None,
    low: float = 0.0,
    high: float = 1.0,
) -> NDArray[np.uint8]:
    """Send every number in one bit.

    Parameters
    ----------
    x : array_like
        Any shape; float16, bfloat16, float32 or float64 (rounded to float32), all of it in [`low`, `high`].
    scheme : {"deterministic", "randomized", "dither", "clipped_dither", "optimal_biased", "optimal_unbiased"}
        See the table of the module.
    key : Key, int or numpy.random.Generator, optional
        What the random words are drawn from. Sender and receiver need the same key where bits are shared; use a key
        once. A generator (two words are drawn) will do where nothing is shared, and no key where nothing is random.
    sender : int, optional
        Who sends, 0 to 2**64 - 1. Senders who share a key need different numbers, or their coins would be the same
        and their errors would not average out.
    shared_bits : int, optional
        How many random bits a number's two sides share; None is the scheme's natural value.
    low, high : float, optional
        The interval that is mapped to [0, 1].

    Returns
    -------
    numpy.ndarray
        Shape (ceil(x.size / 8),), uint8: eight numbers a byte in C order, least significant bit first; what is left
        of the last byte is zero.

    Raises
    ------
    TypeError
        `x` is not of a float type; `key` is not a key; `scheme` is no str, `low` or `high` no real number.
    lowbit.Error
        An unknown scheme, shared bits it does not serve, a missing key, an empty interval, or an element of `x`
        outside it (NaN is), which the message names.

    Notes
    -----
    Not cryptographic: who knows the key knows the threshold of every number.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> x = np.array([0.0, 0.1, 0.5, 0.9, 1.0], np.float32)
    >>> bits = lb.onebit.encode(x, scheme="dither", key=7)
    >>> bits
    array([26], dtype=uint8)
    >>> lb.onebit.decode(bits, x.shape, scheme="dither", key=7).round(3)
    array([-0.047,  0.523,  0.405,  1.006,  1.025], dtype=float32)
    """
    chosen = scheme, _arguments.shared_bits(shared_bits)
    if isinstance(key, np.random.Generator) and _core.onebit_noise(*chosen)[0]:
        raise TypeError(f"key: {scheme!r} shares words with the receiver; give a lowbit.Key or an int, not a Generator")
    words = _arguments.words(key, private=True)
    interval = _arguments.real(low, "low"), _arguments.real(high, "high")
    return _core.onebit_encode(_arguments.array(x, "x"), chosen, words, _arguments.sender(sender), interval)


def decode(
    bits: NDArray[np.uint8],
    shape: SupportsIndex | tuple[SupportsIndex, ...],
    *,
    scheme: str,
    key: Key | int | None = None,
    sender: int = 0,
    shared_bits: int | None = None,
    low: float = 0.0,
    high: float = 1.0,
) -> NDArray[np.float32]:
    """Estimate the numbers that were sent.

    Parameters
    ----------
    bits : numpy.ndarray
        What `encode` returned: 1-D, uint8.
    shape : int or tuple of int
        The shape of the numbers.
    scheme, key, sender, shared_bits, low, high
        As they were encoded. No key is needed where nothing is shared.

    Returns
    -------
    numpy.ndarray
        The estimates, float32, of the given shape. Those of an unbiased scheme may lie outside [`low`, `high`]: by
        half its width for dither, 0.6565 of it for the unlimited optimal scheme.

    Raises
    ------
    TypeError
        `bits` is not uint8; `key` is not a key; `scheme` is no str, `low` or `high` no real number.
    lowbit.DecodeError
        Not the number of bytes that the shape takes, or padding that is not zero.
    lowbit.Error
        As for `encode`.

    Examples
    --------
    The mean of many senders' estimates comes near what all of them sent:

    >>> import numpy as np, lowbit as lb
    >>> x, key = np.full(1000, 0.3, np.float32), lb.Key(2024)
    >>> options = {"scheme": "optimal_unbiased", "key": key}
    >>> sent = [lb.onebit.encode(x, sender=s, **options) for s in range(100)]
    >>> mean = np.mean([lb.onebit.decode(b, x.shape, sender=s, **options) for s, b in enumerate(sent)], axis=0)
    >>> bool(np.abs(mean - 0.3).max() < 5 * np.sqrt(lb.onebit.worst_case_error("optimal_unbiased") / 100))
    True
    """
    if isinstance(key, np.random.Generator):
        raise TypeError("key: a Generator cannot repeat the sender's words; give the same lowbit.Key or int, or none")
    dims = _arguments.shape(shape)
    n = math.prod(dims)
    if n >= 1 << 63:
        raise _core.Error(f"shape: {n} numbers are more than an array can hold")
    bits = _arguments.array(bits, "bits")
    if bits.dtype != np.uint8 or bits.ndim != 1:
        raise TypeError(f"bits: expected a 1-D array of uint8, got {bits.ndim}-D of {bits.dtype}")
    chosen, words = (scheme, _arguments.shared_bits(shared_bits)), _arguments.words(key, private=False)
    interval = _arguments.real(low, "low"), _arguments.real(high, "high")
    y = _core.onebit_decode(np.ascontiguousarray(bits), n, chosen, words, _arguments.sender(sender), interval)
    return y if len(dims) == 1 else y.reshape(dims)


def worst_case_error(scheme: str, shared_bits: int | None = None) -> float:
    """Tell the largest mean squared error of any x in [0, 1].

    Parameters
    ----------
    scheme, shared_bits
        As for `encode`.

    Returns
    -------
    float
        The maximum over x of `squared_error`, exact: found where it can lie, not on a grid. For an interval of
        another width multiply by the width squared.

    Raises
    ------
    lowbit.Error
        An unknown scheme or shared bits it does not serve.

    Examples
    --------
    >>> import lowbit as lb
    >>> [round(lb.onebit.worst_case_error(s), 6) for s in ("deterministic", "randomized", "clipped_dither")]
    [0.0625, 0.25, 0.060197]
    >>> [round(lb.onebit.worst_case_error("optimal_biased", bits), 6) for bits in (0, 1, 2, 3, None)]
    [0.0625, 0.05, 0.04781, 0.046459, 0.045985]
    >>> [round(lb.onebit.worst_case_error("optimal_unbiased", bits), 6) for bits in (0, 1, 2, 3, None)]
    [0.25, 0.125, 0.090909, 0.081448, 0.078259]
    """
    pairs = _pairs(scheme, shared_bits)
    if pairs is None:
        # At 0 and wherever 1/2 is read without bias; of clipped dither's two largest errors, at 0 and 1/2, either.
        return float(squared_error(np.array([0.0, 0.5]), scheme, shared_bits).max())
    sums = pairs.sum(axis=1)
    if scheme in _UNBIASED:
        # On each piece the error is linear + sums x - x^2.
        knots = _knots(pairs)
        where = np.clip(sums / 2, knots[:-1], knots[1:])
    else:
        # Between its jumps of slope the error is convex.
        where = np.concatenate([[0.0, 1.0], sums / 2])
    return float(squared_error(np.clip(where, 0.0, 1.0), scheme, shared_bits).max())


def squared_error(x: ArrayLike, scheme: str, shared_bits: int | None = None) -> NDArray[np.float64]:
    """Tell the mean squared error at x, over everything random.

    Parameters
    ----------
    x : array_like
        Numbers in [0, 1], any shape; computed in float64.
    scheme, shared_bits
        As for `encode`.

    Returns
    -------
    numpy.ndarray
        float64, of the shape of `x`, exact up to the rounding of float64 (no sampling, no grid).

    Raises
    ------
    lowbit.Error
        `x` outside [0, 1], an unknown scheme, or shared bits it does not serve.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> x = np.array([0.0, 0.25, 0.5])
    >>> lb.onebit.squared_error(x, "randomized")
    array([0.    , 0.1875, 0.25  ])
    >>> lb.onebit.squared_error(x, "dither").round(6)
    array([0.083333, 0.083333, 0.083333])
    >>> lb.onebit.squared_error(x, "optimal_biased").round(6)
    array([0.045985, 0.022992, 0.045985])
    """
    x = np.asarray(x, dtype=np.float64)
    outside = ~((x >= 0.0) & (x <= 1.0))
    if outside.any():
        index = int(np.argmax(outside))
        raise _core.Error(f"x: element {index} (C order) is {x.flat[index]}, outside [0, 1], where errors are defined")
    pairs = _pairs(scheme, shared_bits)
    if pairs is None:
        return _UNLIMITED[scheme](x)
    if scheme in _UNBIASED:
        # The mean square of the estimate is linear between the knots, because the coin is.
        squares = np.concatenate([[0.0], np.cumsum(pairs[:, 1] ** 2 - pairs[:, 0] ** 2)])
        return np.asarray(np.interp(x, _knots(pairs), np.mean(pairs[:, 0] ** 2) + squares / len(pairs)) - x * x)
    # The pairs below rank read a one, the others a zero.
    rank = np.searchsorted(pairs.sum(axis=1) / 2, x, side="right")
    first, second = (
        np.concatenate([[0.0], np.cumsum(pairs[:, 1] ** power - pairs[:, 0] ** power)]) + np.sum(pairs[:, 0] ** power)
        for power in (1, 2)
    )
    return np.asarray((second[rank] - 2 * x * first[rank]) / len(pairs) + x * x)


def _pairs(scheme: str, shared_bits: int | None) -> NDArray[np.float64] | None:
    """Values read for a zero and for a one, (2**shared_bits, 2) in order of their midpoints; None if unlimited."""
    pairs = _core.onebit_pairs(scheme, _arguments.shared_bits(shared_bits))
    return None if pairs is None else np.array(pairs)


def _knots(pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where the coin passes from one pair to the next."""
    steps = np.concatenate([[0.0], np.cumsum(pairs[:, 1] - pairs[:, 0])]) / len(pairs)
    return np.asarray(pairs[:, 0].mean() + steps)


def _dither_error(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.full_like(x, 1 / 12)


def _optimal_unbiased_error(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.full_like(x, 1 / (2 * math.expm1(2.0)))


def _clipped_dither_error(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Integrate (clip(e) - x)^2 over the estimates e: [1/2, 1/2 + x] after a one, [x - 1/2, 1/2] after a zero."""
    low, high = _CLIP, 1 - _CLIP

    def integral(e: NDArray[np.float64]) -> NDArray[np.float64]:
        inside = ((np.clip(e, low, high) - x) ** 3 - (low - x) ** 3) / 3
        return inside + np.minimum(e - low, 0) * (low - x) ** 2 + np.maximum(e - high, 0) * (high - x) ** 2

    return integral(0.5 + x) - integral(x - 0.5)


def _optimal_biased_error(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Integrate over the shared number, whose clipping leaves 1/4 of the mass at each end and density 1/2 between."""
    y = 2 * x - 1
    turn = np.clip(np.arcsinh(y / (2 * _HALF_EXP)), -0.5, 0.5)

    def side(turn: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Four times the error from all h in [-1/2, turn], after a one."""
        k = 2 * _HALF_EXP
        spread = k * k * (np.exp(2 * turn) - math.exp(-1)) / 2 - 2 * k * y * (np.exp(turn) - math.exp(-0.5))
        return (spread + y * y * (turn + 0.5)) / 2

    def ends(y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Four times the error from h = -1/2, which reads 0 for a zero and (1 + 1/e) / 2 for a one."""
        return np.minimum((1 + y) ** 2, (math.exp(-1) - y) ** 2) / 4

    return (side(turn, y) + side(-turn, -y) + ends(y) + ends(-y)) / 4


_UNLIMITED = {
    "dither": _dither_error,
    "clipped_dither": _clipped_dither_error,
    "optimal_biased": _optimal_biased_error,
    "optimal_unbiased": _optimal_unbiased_error,
}
