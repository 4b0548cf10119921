"""How many bits LP-SGD needs for a gap."""

from __future__ import annotations

import math

from lowbit import _core
from lowbit.theory._checks import nonnegative, positive
from lowbit.theory._floors import fixed_point_floor, logarithmic_floor
from lowbit.theory._grids import fixed_point_delta, logarithmic_delta

_MOST = 64
#: zeta is searched for on a grid of powers of 2^(1/8), from mu / (2 L) down to 2^-40 of it.
_ZETAS = [2.0 ** (-k / 8) for k in range(8 * 40 + 1)]


def bits_fixed_point(gap: float, *, radius: float, mu: float, L1: float, sigma1: float) -> int:  # noqa: N803
    """Count the bits with which LP-SGD on a fixed-point grid is proved to reach a gap, as lr -> 0.

    Parameters
    ----------
    gap : float
        f - f*, above 0.
    radius : float
        How far the grid must reach: max |w*_j|.
    mu, L1, sigma1 : float
        As `constants` has them.

    Returns
    -------
    int
        The fewest bits, from 2 on, whose `fixed_point_floor` is at most `gap`; about log2(radius sigma1 / gap).

    Raises
    ------
    lowbit.Error
        A number is out of range, or more than 64 bits would be needed.

    Examples
    --------
    >>> from lowbit import theory
    >>> for d in (2**8, 2**16):  # the analysis that knows only sigma and L adds half a bit each time that d doubles
    ...     print(theory.bits_fixed_point(1e-3, radius=1, mu=0.1, L1=d**0.5, sigma1=0.1 * d**0.5))
    13
    17
    """
    (gap,) = positive(gap=gap)
    for bits in range(2, _MOST + 1):
        if fixed_point_floor(delta=fixed_point_delta(bits, radius), mu=mu, L1=L1, sigma1=sigma1) <= gap:
            return bits
    raise _core.Error(f"gap: {gap} takes more than {_MOST} bits of fixed point; ask for more")


def bits_logarithmic(
    gap: float, *, radius: float, norm: float, mu: float, L: float, L1: float, sigma: float, sigma1: float
) -> tuple[int, float]:  # noqa: N803
    """Count the bits with which LP-SGD on the best logarithmic grid is proved to reach a gap, as lr -> 0.

    Parameters
    ----------
    gap : float
        f - f*, above 0.
    radius, norm, mu, L, L1, sigma, sigma1 : float
        As `constants` has them.

    Returns
    -------
    bits : int
        The fewest bits, from 2 on, for which some zeta has a `logarithmic_floor` of at most `gap`; about log2(radius
        sigma / gap) and log log(sigma1 / sigma) more: d hardly counts.
    zeta : float
        The best zeta of those tried (powers of 2^(1/8) times mu / (2 L), above which nothing is proved); the grid's delta
        is then ``logarithmic_delta(bits, zeta, radius)``.

    Raises
    ------
    lowbit.Error
        A number is out of range, or more than 64 bits would be needed.

    Examples
    --------
    >>> from lowbit import theory
    >>> for d in (2**8, 2**16):
    ...     L1, sigma1 = d**0.5, 0.1 * d**0.5
    ...     print(theory.bits_logarithmic(1e-3, radius=1, norm=1, mu=0.1, L=1, L1=L1, sigma=0.1, sigma1=sigma1)[0])
    12
    12
    """
    gap, radius, mu, smooth = positive(gap=gap, radius=radius, mu=mu, L=L)
    norm, lip, sigma, sigma1 = nonnegative(norm=norm, L1=L1, sigma=sigma, sigma1=sigma1)
    for bits in range(2, _MOST + 1):
        found = []
        for zeta in (mu / (2 * smooth) * factor for factor in _ZETAS):
            if (2 ** (bits - 1) - 1) * math.log1p(zeta) <= 700:
                delta = logarithmic_delta(bits, zeta, radius)
                floor = logarithmic_floor(
                    delta=delta, zeta=zeta, mu=mu, L=smooth, L1=lip, sigma=sigma, sigma1=sigma1, norm=norm
                )
                found.append((floor, zeta))
        if found and min(found)[0] <= gap:
            return bits, min(found)[1]
    raise _core.Error(f"gap: {gap} takes more than {_MOST} bits of a logarithmic grid; ask for more")
