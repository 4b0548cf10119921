"""One real number in one bit (``docs/onebit.md``)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lowbit.reference.stream import HasWords, fold, key_words, random_bits

if TYPE_CHECKING:
    from numpy.typing import NDArray

_F = np.float32
_HALF = {  # the pairs (read for a zero, read for a one) of facts; the mirror images (1 - b, 1 - a) follow
    ("biased", 1): [(0.1, 0.7)],
    ("biased", 2): [(0.0, 0.681899), (0.126862, 0.728051)],
    ("biased", 3): [(0.0, 0.683122), (0.0, 0.683122), (0.064655, 0.706802), (0.160421, 0.765555)],
    ("unbiased", 2): [(-9 / 22, 15 / 22), (-1 / 22, 19 / 22)],
    ("unbiased", 3): [(-0.53548, 0.66290), (-0.28066, 0.74183), (-0.12389, 0.79040), (0.01812, 0.88296)],
}


def _series(z: NDArray[np.float32], orders: list[int]) -> NDArray[np.float32]:
    """Sum z**k / orders[k]!, Horner's way, from the last to the first."""
    total = np.full_like(z, _F(1) / _F(math.factorial(orders[-1])))
    for order in reversed(orders[:-1]):
        total = total * z + _F(1) / _F(math.factorial(order))
    return total


def _sinh(h: NDArray[np.float32]) -> NDArray[np.float32]:
    return h * _series(h * h, [1, 3, 5, 7, 9, 11])


def _onebit(
    scheme: str, bits: int | None, shared: NDArray[np.uint32], coin: NDArray[np.uint32]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Threshold (as the sum of two float32, the second tiny), and what a zero and a one are read as."""
    if scheme in ("deterministic", "randomized"):
        scheme, bits = {"deterministic": "optimal_biased", "randomized": "dither"}[scheme], 0
    if scheme == "optimal_unbiased" and bits in (0, 1):
        scheme = "dither"
    used = 24 if bits is None else bits
    cell = (shared.astype(np.uint64) >> np.uint64(32 - used)).astype(np.int64)
    centre = (2 * cell + 1 - 2**used).astype(_F) * _F(2.0**-used)
    fraction = (2 * (coin >> np.uint32(9)).astype(np.int64) + 1).astype(_F) * _F(2.0**-24)
    none = np.zeros(shared.shape, _F)
    if scheme in ("dither", "clipped_dither"):
        word = (cell << (32 - used)) | (coin.astype(np.int64) >> used)
        zero, one = _F(0.5) * centre, _F(1) + _F(0.5) * centre
        if scheme == "clipped_dither":
            zero, one = (np.clip(v, _F(0.17349), _F(1) - _F(0.17349)) for v in (zero, one))
        return (word >> 8).astype(_F) * _F(2.0**-24), none + _F(2.0**-25), zero, one
    if bits is not None and bits <= 3:
        if bits == 0:
            pairs = [(0.25, 0.75)]
        else:
            half = _HALF[scheme.removeprefix("optimal_"), bits]
            pairs = half + [(1 - b, 1 - a) for a, b in reversed(half)]
        zeros, ones = (np.array([pair[i] for pair in pairs]) for i in (0, 1))
        if scheme == "optimal_biased":
            threshold = ((zeros + ones) / 2).astype(_F)[cell]
        else:
            steps = (ones - zeros) / len(pairs)
            knots = [sum(zeros.tolist()) / len(pairs)]
            for step in steps[:-1]:
                knots.append(knots[-1] + float(step))
            threshold = np.array(knots).astype(_F)[cell] + fraction * steps.astype(_F)[cell]
        return threshold, none, zeros.astype(_F)[cell], ones.astype(_F)[cell]
    biased = scheme == "optimal_biased"
    amplitude = _F(0.5 * math.exp(-0.5)) if biased else _F(1 / (math.e - 1 / math.e))
    h = np.clip(centre, _F(-0.5), _F(0.5)) if biased else centre
    size = np.array(amplitude)
    if biased or bits is None:
        threshold = _F(0.5) + amplitude * _sinh(h)
    else:
        ends = _F(2.0**-used)
        low, high = _sinh(centre - ends), _sinh(centre + ends)
        threshold = _F(0.5) + amplitude * (low + fraction * (high - low))
        size = amplitude * _series(np.array(ends * ends), [1, 3, 5, 7, 9, 11])
    zero, one = (_F(0.5) + s * (size * _series(s * h, list(range(12)))) for s in (_F(-1), _F(1)))
    return threshold, none, zero, one


def _onebit_words(n: int, key: HasWords | int, sender: int) -> list[NDArray[np.uint32]]:
    return [random_bits(fold(key_words(key), purpose, sender), n) for purpose in ("dither", "coin")]


def onebit_encode(
    x: NDArray[np.floating],
    *,
    scheme: str,
    key: HasWords | int,
    sender: int = 0,
    shared_bits: int | None = None,
    low: float = 0.0,
    high: float = 1.0,
) -> NDArray[np.uint8]:
    """Send every number in one bit: whether it reaches its threshold."""
    x, bottom = x.astype(_F).ravel(), _F(low)
    y = np.minimum((x - bottom) * (_F(1) / (_F(high) - bottom)), _F(1))
    words = _onebit_words(x.size, key, sender)
    threshold, rest, _, _ = _onebit(scheme, shared_bits, *words)
    return np.packbits((y - threshold) - rest >= 0, bitorder="little")


def onebit_decode(
    bits: NDArray[np.uint8],
    n: int,
    *,
    scheme: str,
    key: HasWords | int,
    sender: int = 0,
    shared_bits: int | None = None,
    low: float = 0.0,
    high: float = 1.0,
) -> NDArray[np.float32]:
    """Read every bit as one of its two values."""
    words = _onebit_words(n, key, sender)
    _, _, zero, one = _onebit(scheme, shared_bits, *words)
    sent = np.unpackbits(bits, count=n, bitorder="little").astype(bool)
    return np.where(sent, one, zero) * (_F(high) - _F(low)) + _F(low)
