"""How a grid's parameters, bits and reach depend on each other."""

from __future__ import annotations

import math

from lowbit import _arguments, _core
from lowbit.theory._checks import positive


def fixed_point_delta(bits: int, radius: float) -> float:
    """Give the step of the fixed-point grid of `bits` (2 to 64) that just reaches `radius`: radius / (2^(bits-1) - 1).

    Examples
    --------
    >>> from lowbit import theory
    >>> theory.fixed_point_delta(8, 127.0)
    1.0
    """
    (radius,) = positive(radius=radius)
    return radius / (2 ** (_arguments.within(bits, "bits", 2, 64) - 1) - 1)


def logarithmic_levels(zeta: float, delta: float, radius: float) -> float:
    """Count the positive levels that a logarithmic grid takes to reach `radius`: log(1 + zeta R / delta) / log(1 + zeta).

    The grid is 0 and +-q_i with q_(i+1) = (1 + zeta) q_i + delta, so q_i = delta / zeta ((1 + zeta)^i - 1), and the gap
    above q_i is delta + zeta q_i. Its bits are log2(2 levels + 1).

    Examples
    --------
    >>> from lowbit import theory
    >>> round(theory.logarithmic_levels(1 / 8, 2**-10, 1.0), 1)
    41.3
    """
    zeta, delta, radius = positive(zeta=zeta, delta=delta, radius=radius)
    return math.log1p(zeta * radius / delta) / math.log1p(zeta)


def logarithmic_delta(bits: int, zeta: float, radius: float) -> float:
    """Give the first step of the logarithmic grid of `bits` (2 to 64) that just reaches `radius`.

    With N = 2^(bits-1) - 1 positive levels: radius zeta / ((1 + zeta)^N - 1).

    Raises
    ------
    lowbit.Error
        The step is below what float64 holds: so large a `zeta` with so many bits wastes levels.

    Examples
    --------
    >>> from lowbit import theory
    >>> round(theory.logarithmic_delta(8, 2**-5, 4.0), 4)
    0.0026
    """
    zeta, radius = positive(zeta=zeta, radius=radius)
    exponent = (2 ** (_arguments.within(bits, "bits", 2, 64) - 1) - 1) * math.log1p(zeta)
    if exponent > 700:
        raise _core.Error(
            f"zeta: {zeta} with {bits} bits has a first step below float64's numbers; give less of either"
        )
    return radius * zeta / math.expm1(exponent)
