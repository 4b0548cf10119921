"""What codecs can expect: how vectors are cut into blocks, and the errors of normal numbers.

Plain float64 arithmetic that describes messages; no bit of a message depends on it.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

#: The largest block that is rotated.
BLOCK_MAX = 1 << 16

#: Where QuicFl sends numbers exactly and Summable clips them: 2^-9 of normal numbers are beyond.
TAIL = 3.0972691

#: Where N(0, 1) has no more probability that float64 could tell.
EVERYWHERE = 39.0

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


def mean_over_largest(
    n: int,
    value: Callable[[float], float],
    *,
    below: float = math.inf,
    jumps: Sequence[float] = (),
    points: int = 64,
) -> float:
    """Average a function of the largest magnitude of `n` numbers from N(0, 1), over quantiles.

    Given that it is `below` a bound. Between two `jumps` of the function there are as many quantiles as `points`.
    """
    # Quantiles at 1 - t^4, which come close where magnitudes are large, of the share that is below the bound.
    share = n * _log_within(below)
    ends = [1 - math.exp(n * _log_within(jump) - share) for jump in jumps if 0 < jump < below]
    edges = np.array([0.0, *sorted(end**0.25 for end in ends), 1.0])
    t = (edges[:-1, None] + np.diff(edges)[:, None] * (np.arange(points) + 0.5) / points).ravel()
    weights = t**3 * np.repeat(np.diff(edges), points)
    some = weights > 1e-12 * weights.max()
    tails = -np.expm1((np.log1p(-(t[some] ** 4)) + share) / n) / 2
    weights = weights[some] / weights[some].sum()
    return math.fsum(
        w * value(-_NORMAL.inv_cdf(tail)) for w, tail in zip(weights.tolist(), tails.tolist(), strict=True)
    )


def _log_within(bound: float) -> float:
    """Give the logarithm of the probability that a magnitude is within `bound`."""
    return math.log1p(-2 * beyond(bound))


class Rounding(NamedTuple):
    """The squared error of rounding t: between `edges` a quadratic each, whose coefficients are the rows of three."""

    edges: NDArray[np.float64]
    quadratics: NDArray[np.float64]

    @classmethod
    def nearest(cls, values: NDArray[np.float64], edges: NDArray[np.float64]) -> Self:
        """To `values`, one after another from edge to edge."""
        return cls(edges, np.array([values * values, -2 * values, np.ones_like(values)]))

    @classmethod
    def stochastic(cls, values: NDArray[np.float64]) -> Self:
        """To the neighbours among `values`, by a coin that keeps the mean; to the ends what is beyond."""
        low, high, (least, *_, most) = values[:-1], values[1:], values.tolist()
        inside = np.array([-low * high, low + high, -np.ones_like(low)])
        outside = np.array([[least * least, most * most], [-2 * least, -2 * most], [1, 1]])
        return cls(values, np.concatenate([outside[:, :1], inside, outside[:, 1:]], axis=1))

    def at(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give the error at each t."""
        constant, linear, square = self.quadratics[:, np.searchsorted(self.edges, t)]
        error: NDArray[np.float64] = constant + t * (linear + t * square)
        return error

    def within(self, bound: float, scale: float) -> float:
        """Average the error of numbers from N(0, 1), those within plus and minus `bound`, rounded at this scale."""
        z = np.clip(scale * self.edges, -bound, bound)
        first, last = np.searchsorted(z, -bound, side="right"), np.searchsorted(z, bound)
        z = np.concatenate([[-bound], z[first:last], [bound]])
        constant, linear, square = self.quadratics[:, first : last + 1]
        densities = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        mass = np.diff([math.erf(end / math.sqrt(2)) / 2 for end in z.tolist()])
        mean, second = -np.diff(densities), mass - np.diff(z * densities)
        total = scale * (scale * constant @ mass + linear @ mean) + square @ second
        return float(total / mass.sum())

    def edge(self, bound: float, scale: float) -> float:
        """Give the error of a number at the bound, either side alike likely."""
        return scale * scale * float(self.at(np.array([-bound, bound]) / scale).mean())

    def by_mean(self, n: int) -> float:
        """Average the error where the scale is the mean magnitude of `n` numbers from N(0, 1), this one among them.

        That of the others is represented by two points, of its mean and variance, which are all that matters where
        they are many.
        """
        x = np.linspace(-9, 9, 1 << 13)
        weights = np.exp(-x * x / 2) / np.exp(-x * x / 2).sum()
        others, deviation = math.sqrt(2 / math.pi), math.sqrt((1 - 2 / math.pi) / max(n - 1, 1))
        scales = [(np.abs(x) + (n - 1) * (others + side * deviation)) / n for side in (-1, 1)]
        return float(sum(weights @ (scale * scale * self.at(x / scale)) for scale in scales) / 2)
