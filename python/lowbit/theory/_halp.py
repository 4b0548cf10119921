"""When HALP converges, and how fast."""

from __future__ import annotations

import math

from lowbit import _arguments, _core
from lowbit.theory._checks import nonnegative, positive


def halp_scale(gradient_norm: float, mu: float, bits: int) -> float:
    """Give the step of HALP's grid around a centre: ||grad f(W)||_2 / (mu (2^(bits-1) - 1)), bits 2 to 64.

    As ||W - w*|| <= ||grad f(W)|| / mu, the box of 2^bits points a side reaches the minimum. The norm may be infinite or NaN:
    so is the step.

    Examples
    --------
    >>> from lowbit import theory
    >>> theory.halp_scale(12.7, 0.1, 8)
    1.0
    """
    (mu,) = positive(mu=mu)
    return float(gradient_norm) / (mu * (2 ** (_arguments.within(bits, "bits", 2, 64) - 1) - 1))


def halp_lr(L: float, gamma: float = 0.5) -> float:  # noqa: N803 (the papers' name)
    """Give the learning rate of the theorem: gamma / (4 L (1 + gamma)).

    Examples
    --------
    >>> from lowbit import theory
    >>> theory.halp_lr(1.0, gamma=1.0)
    0.125
    """
    (smooth,) = positive(L=L)
    gamma = _gamma(gamma)
    return gamma / (4 * smooth * (1 + gamma))


def halp_inner(kappa: float, d: int, bits: int, gamma: float = 0.5) -> int:
    """Count the inner steps after which HALP's gap is expected to be `gamma` times what it was.

    Parameters
    ----------
    kappa : float
        The condition number L / mu, at least 1; mu as in the grid's scale.
    d : int
        The dimension.
    bits : int
        2 to 64.
    gamma : float, optional
        Above 0, at most 1.

    Returns
    -------
    int
        The least T with T >= 8 kappa (1 + gamma) / (gamma^2 - 2 kappa^2 d (1 + gamma) / (2^(bits-1) - 1)^2).

    Raises
    ------
    lowbit.Error
        A number is out of range, or the bits are too few: the denominator is not positive.

    Notes
    -----
    Re-derived for the mean of the inner points (the paper's theorem has the same form). With K = 2^(bits-1) - 1, rounding adds at
    most d s^2 / 4 a step, and s^2 = ||grad f(W)||^2 / (mu K)^2 <= 2 L (f(W) - f*) / (mu K)^2. SVRG's inequality then reads
    E D' <= D - 2 a (f - f*) + 4 a^2 L ((f - f*) + (f(W) - f*)) + d s^2 / 4. Sum over T steps from D_0 <= 2 (f(W) - f*) / mu:
    the mean gap is at most (2 / (mu T) + 4 a^2 L + d kappa^2 / (2 L K^2)) / (2 a - 4 a^2 L) of the centre's. Ask that it be
    gamma with a = `halp_lr`. Clipping to the box only helps: w* is inside.

    Examples
    --------
    >>> from lowbit import theory
    >>> theory.halp_inner(10, 20, bits=16)
    481
    """
    kappa, d, gamma = _kappa(kappa), _arguments.within(d, "d", 1, 1 << 62), _gamma(gamma)
    levels = 2 ** (_arguments.within(bits, "bits", 2, 64) - 1) - 1
    room = gamma**2 - 2 * kappa**2 * d * (1 + gamma) / levels**2
    if room <= 0:
        least = bits_halp(kappa, d, gamma, inner=None)
        raise _core.Error(
            f"bits: {bits} are too few for kappa = {kappa:.6g}, d = {d}, gamma = {gamma}; give at least {least}"
        )
    return math.ceil(8 * kappa * (1 + gamma) / room)


def halp_contraction(*, lr: float, inner: int, kappa: float, L: float, d: int, bits: int | None) -> float:  # noqa: N803
    """Bound the factor by which one round of HALP shrinks the expected gap, for any learning rate below 1 / (2 L).

    Parameters
    ----------
    lr, inner : float, int
        The learning rate and the steps from a centre.
    kappa, L : float
        L / mu and L.
    d : int
        The dimension.
    bits : int or None
        None is SVRG: no rounding.

    Returns
    -------
    float
        (2 / (mu T) + 4 lr^2 L + d kappa^2 / (2 L K^2)) / (2 lr - 4 lr^2 L): nothing is proved where it is 1 or more.

    Raises
    ------
    lowbit.Error
        A number is out of range.

    Notes
    -----
    `halp_inner`'s derivation before its learning rate is put in.

    Examples
    --------
    >>> from lowbit import theory
    >>> lr, inner = theory.halp_lr(1.0), theory.halp_inner(10, 20, bits=16)
    >>> round(theory.halp_contraction(lr=lr, inner=inner, kappa=10, L=1.0, d=20, bits=16), 3)
    0.5
    """
    (lr, smooth), kappa = positive(lr=lr, L=L), _kappa(kappa)
    steps, d = _arguments.within(inner, "inner", 1, 1 << 62), _arguments.within(d, "d", 1, 1 << 62)
    gain = 2 * lr - 4 * lr**2 * smooth
    if gain <= 0:
        raise _core.Error(f"lr: {lr} is out of range; give less than 1 / (2 L) = {1 / (2 * smooth):.6g}")
    rounding = 0.0
    if bits is not None:
        levels = 2 ** (_arguments.within(bits, "bits", 2, 64) - 1) - 1
        rounding = d * kappa**2 / (2 * smooth * levels**2)
    return (2 * kappa / (smooth * steps) + 4 * lr**2 * smooth + rounding) / gain


def bits_halp(kappa: float, d: int, gamma: float = 0.5, *, inner: int | None = None) -> int:
    """Count the bits that HALP needs to shrink its gap by `gamma` a round, whatever the accuracy asked for.

    Parameters
    ----------
    kappa : float
        The condition number L / mu, at least 1.
    d : int
        The dimension.
    gamma : float, optional
        Above 0, at most 1 (any progress at all).
    inner : int, optional
        How many inner steps a round may take; None: as many as it needs.

    Returns
    -------
    int
        The fewest bits with which `halp_inner` is at most `inner`: for None, 2^(bits-1) - 1 > kappa sqrt(2 d (1 + gamma)) / gamma.

    Raises
    ------
    lowbit.Error
        A number is out of range, or no bits make so few steps enough.

    Examples
    --------
    >>> from lowbit import theory
    >>> theory.bits_halp(10, 20), theory.bits_halp(10, 20, inner=1000)
    (9, 9)
    >>> theory.bits_halp(307, 100, gamma=1.0)
    14
    """
    kappa, d, gamma = _kappa(kappa), _arguments.within(d, "d", 1, 1 << 62), _gamma(gamma)
    room = gamma**2
    if inner is not None:
        steps = _arguments.within(inner, "inner", 1, 1 << 62)
        room -= 8 * kappa * (1 + gamma) / steps
        if room <= 0:
            most = math.floor(8 * kappa * (1 + gamma) / gamma**2) + 1
            raise _core.Error(f"inner: {steps} steps are too few whatever the bits; give at least {most}")
    levels = kappa * math.sqrt(2 * d * (1 + gamma) / room)
    for bits in range(2, 1024):
        if 2 ** (bits - 1) - 1 > levels:
            return bits
    raise _core.Error(f"kappa: {kappa} is more than float64 can reckon with")


def _kappa(kappa: float) -> float:
    (value,) = nonnegative(kappa=kappa)
    if value < 1:
        raise _core.Error(f"kappa: {value} is out of range; L / mu is at least 1")
    return value


def _gamma(gamma: float) -> float:
    (value,) = positive(gamma=gamma)
    if value > 1:
        raise _core.Error(f"gamma: {value} is out of range; give above 0, at most 1")
    return value
