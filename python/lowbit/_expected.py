"""What codecs can expect: how vectors are cut into blocks, and the errors of normal numbers.

Plain float64 arithmetic that describes messages; no bit of a message depends on it.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

#: The largest block that is rotated.
BLOCK_MAX = 1 << 16

#: Where QuicFl sends numbers exactly and Summable clips them: 2^-9 of normal numbers are beyond.
TAIL = 3.0972691

_NORMAL = NormalDist()


class Block(NamedTuple):
    """Blocks of `size` places, of which `used` hold numbers; there are `many` of them."""

    size: int
    used: int
    many: int


def blocks(d: int, least: int) -> list[Block]:
    """Cut a vector of `d` numbers as rotating codecs do: the padding is in the last block, less than `least`."""
    whole, rest = divmod(-(-d // least) * least, BLOCK_MAX)
    sizes = [(BLOCK_MAX, whole)] if whole else []
    sizes += [(1 << k, 1) for k in reversed(range(rest.bit_length())) if rest >> k & 1]
    cut = [Block(size, size, count) for size, count in sizes]
    padding = -d % least
    if padding:
        size, _, count = cut.pop()
        cut += [Block(size, size, count - 1)] if count > 1 else []
        cut.append(Block(size, size - padding, 1))
    return cut


def over_blocks(d: int, least: int, error: Callable[[int, float], float]) -> float:
    """Average a block's error over a vector. `error` takes a block's length and the share of it that holds numbers.

    Of an error in no particular direction only that share falls on the numbers, the rest on padding.
    """
    return sum(b.many * (b.used / d) * error(b.size, b.used / b.size) for b in blocks(d, least))


def density(z: float) -> float:
    """Give the density of N(0, 1)."""
    return _NORMAL.pdf(z)


def beyond(z: float) -> float:
    """Give the probability that N(0, 1) is above `z`, precise in the tail too."""
    return math.erfc(z / math.sqrt(2)) / 2


def largest(n: int) -> float:
    """Give the magnitude that one of `n` normal numbers is expected to pass."""
    return _NORMAL.inv_cdf(1 - 1 / (2 * max(n, 2)))


def clipped(tail: float) -> float:
    """Give the squared error of clipping N(0, 1) to plus and minus `tail`."""
    return 2 * ((1 + tail * tail) * beyond(tail) - tail * density(tail))


def stochastic(step: float) -> float:
    """Give the variance of rounding N(0, 1) to multiples of `step` without bias.

    With r the fraction of z / step it is step^2 E r(1 - r). The mean of r(1 - r), which is 1/6 less the sum over k of
    cos(2 pi k r) / (pi k)^2, follows from the characteristic function of N(0, 1).
    """
    if step > 8:
        return math.sqrt(2 / math.pi) * step - 1
    waves = sum(math.exp(-2 * (math.pi * k / step) ** 2) / (math.pi * k) ** 2 for k in range(1, 13))
    return step * step * (1 / 6 - waves)


def mean_over_largest(n: int, value: Callable[[float], float]) -> float:
    """Average a function of the largest magnitude of `n` numbers from N(0, 1), over 64 of its quantiles."""
    # Quantiles at 1 - t^4, which come close where magnitudes are large.
    t = (np.arange(64) + 0.5) / 64
    tails = -np.expm1(np.log1p(-(t**4)) / n) / 2
    weights = t**3 / (t**3).sum()
    return math.fsum(
        w * value(-_NORMAL.inv_cdf(tail)) for w, tail in zip(weights.tolist(), tails.tolist(), strict=True)
    )


def rounded(values: NDArray[np.float64], bound: float, *, stochastically: bool) -> tuple[float, float]:
    """Round N(0, 1) within plus and minus `bound` to `values` (ascending).

    Returns
    -------
    inside, edge : float
        The mean squared error of a number inside, and of one at the bound (either side alike likely).
    """
    x = np.linspace(-bound, bound, 8193)
    near = np.clip(x, values[0], values[-1])
    above = np.clip(np.searchsorted(values, near), 1, values.size - 1)
    down, up = near - values[above - 1], values[above] - near
    # Either way x - near is what clipping costs; a coin keeps the mean, so that its variance is added.
    error = (x - near) ** 2 + down * up if stochastically else (np.abs(x - near) + np.minimum(down, up)) ** 2
    weight = np.exp(-x * x / 2)
    return float((error * weight).sum() / weight.sum()), float(error[0] + error[-1]) / 2
