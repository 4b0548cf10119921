"""Where low-precision SGD stops: gaps and noise floors."""

from __future__ import annotations

import math

from lowbit import _core
from lowbit.theory._checks import nonnegative, positive


def rounding_variance(
    *, lr: float, delta: float, gradient_l1: float, zeta: float = 0.0, norm: float = 0.0, gradient_l2: float = 0.0
) -> float:
    """Bound the squared error that rounding one step adds: E ||Q(u) - u||_2^2 for u = w - lr g, w on the grid.

    Parameters
    ----------
    lr : float
        The learning rate.
    delta, zeta : float
        The grid's gaps are at most delta + zeta |w_j|; zeta = 0 is fixed point.
    gradient_l1, gradient_l2, norm : float
        ||g||_1, and for a logarithmic grid ||g||_2 and ||w||_2.

    Returns
    -------
    float
        lr delta ||g||_1 + lr zeta ||w||_2 ||g||_2 + lr^2 zeta ||g||_2^2.

    Notes
    -----
    Li and De Sa's lemma, re-derived. Unbiased rounding of a number at fraction p of a gap h has variance h^2 p (1 - p)
    <= h (h p). From w_j on the grid, the nearer end of u_j's gap is at most lr |g_j| away: h min(p, 1 - p) <= lr |g_j|. So a
    coordinate's variance is at most lr h_j |g_j| with h_j <= delta + zeta (|w_j| + lr |g_j|); sum, and use Cauchy-Schwarz.
    The usual bound, d delta^2 / 4, grows with d; this one vanishes with the learning rate.

    Examples
    --------
    >>> from lowbit import theory
    >>> theory.rounding_variance(lr=0.5, delta=0.125, gradient_l1=2.0)
    0.125
    """
    lr, delta, l1, zeta, norm, l2 = nonnegative(
        lr=lr, delta=delta, gradient_l1=gradient_l1, zeta=zeta, norm=norm, gradient_l2=gradient_l2
    )
    return lr * delta * l1 + lr * zeta * norm * l2 + lr * lr * zeta * l2 * l2


def fixed_point_gap(
    *, lr: float, steps: int, distance: float, delta: float, mu: float, L: float, L1: float, sigma: float, sigma1: float
) -> float:  # noqa: N803 (the papers' names)
    """Bound E f(mean of w_0, ..., w_(T-1)) - f* for LP-SGD on a fixed-point grid (T1).

    Parameters
    ----------
    lr : float
        At most 1 / (4 L).
    steps : int
        T, at least 1.
    distance : float
        ||w_0 - w*||_2.
    delta : float
        The grid's step.
    mu, L, L1, sigma, sigma1 : float
        As `constants` has them.

    Returns
    -------
    float
        distance^2 / (lr T) + 2 lr sigma^2 + delta sigma1 + delta^2 L1^2 / (4 mu).

    Raises
    ------
    lowbit.Error
        A number is out of range, or `lr` above 1 / (4 L).

    Notes
    -----
    Re-derived. With D = ||w_t - w*||^2, `rounding_variance` and convexity give E D' <= D - 2 lr (f - f*) - lr mu D +
    lr^2 E||g||^2 + lr delta E||g||_1. Then E||g||^2 <= 4 L (f - f*) + 2 sigma^2, E||g||_1 <= sigma1 + L1 sqrt(D), and
    delta L1 sqrt(D) <= mu D + delta^2 L1^2 / (4 mu). With lr <= 1/(4L) at least lr (f - f*) is left; sum over t.

    Examples
    --------
    >>> from lowbit import theory
    >>> theory.fixed_point_gap(lr=0.25, steps=400, distance=1, delta=0, mu=0.1, L=1, L1=1, sigma=0, sigma1=0)
    0.01
    """
    lr, steps_, mu, smooth = positive(lr=lr, steps=steps, mu=mu, L=L)
    distance, delta, lip, sigma, sigma1 = nonnegative(distance=distance, delta=delta, L1=L1, sigma=sigma, sigma1=sigma1)
    if lr > (1 + 1e-12) / (4 * smooth):
        raise _core.Error(f"lr: {lr} is above 1 / (4 L) = {1 / (4 * smooth):.6g}, up to which the bound holds")
    return distance**2 / (lr * steps_) + 2 * lr * sigma**2 + delta * sigma1 + (delta * lip) ** 2 / (4 * mu)


def fixed_point_floor(*, delta: float, mu: float, L1: float, sigma1: float) -> float:  # noqa: N803
    """Bound where LP-SGD on a fixed-point grid ends as lr -> 0 and lr T -> infinity: T1's noise floor.

    Returns
    -------
    float
        delta sigma1 / 2 + delta^2 L1^2 / (8 mu).

    Notes
    -----
    `fixed_point_gap`'s derivation, divided by 2 lr instead of lr. d is not in it. The analysis that knows only sigma and L
    is this with sigma1 = sqrt(d) sigma and L1 = sqrt(d) L.

    Examples
    --------
    >>> from lowbit import theory
    >>> theory.fixed_point_floor(delta=0.5, mu=1.0, L1=2.0, sigma1=1.0)
    0.375
    """
    (mu,) = positive(mu=mu)
    delta, lip, sigma1 = nonnegative(delta=delta, L1=L1, sigma1=sigma1)
    return delta * sigma1 / 2 + (delta * lip) ** 2 / (8 * mu)


def logarithmic_floor(
    *, delta: float, zeta: float, mu: float, L: float, L1: float, sigma: float, sigma1: float, norm: float
) -> float:  # noqa: N803
    """Bound where LP-SGD on a logarithmic (or float) grid ends as lr -> 0: T2's noise floor.

    Parameters
    ----------
    delta, zeta : float
        The gap at v is at most delta + zeta |v|; a float format with m fraction bits has zeta = 2^-m and delta its
        subnormal step. zeta is at most mu / (2 L).
    mu, L, L1, sigma, sigma1, norm : float
        As `constants` has them.

    Returns
    -------
    float
        (delta sigma1 + zeta sigma ||w*|| + (delta L1 + zeta L ||w*|| + zeta sigma)^2 / (2 mu)) / 2.

    Raises
    ------
    lowbit.Error
        A number is out of range, or `zeta` above mu / (2 L): then nothing is proved.

    Notes
    -----
    Re-derived as `fixed_point_gap`, with lr zeta E ||w|| ||g|| <= lr zeta (||w*|| + D)(sigma + L D) more, D = ||w - w*||. Its
    D^2 takes zeta L <= mu / 2 of the strong convexity; with b what stands before D, b D - mu D^2 / 2 <= b^2 / (2 mu).

    Examples
    --------
    >>> from lowbit import theory
    >>> theory.logarithmic_floor(delta=0.5, zeta=0, mu=1.0, L=1.0, L1=2.0, sigma=1.0, sigma1=1.0, norm=1.0)
    0.5
    """
    mu, smooth = positive(mu=mu, L=L)
    delta, zeta, lip, sigma, sigma1, norm = nonnegative(
        delta=delta, zeta=zeta, L1=L1, sigma=sigma, sigma1=sigma1, norm=norm
    )
    if zeta > (1 + 1e-12) * mu / (2 * smooth):
        raise _core.Error(f"zeta: {zeta} is above mu / (2 L) = {mu / (2 * smooth):.6g}, up to which the bound holds")
    before = delta * lip + zeta * smooth * norm + zeta * sigma
    return (delta * sigma1 + zeta * sigma * norm + before**2 / (2 * mu)) / 2


def linear_regression_gap(
    *, lr: float, delta: float, x_l1: float, x_l2: float, noise_l1: float, noise_l2: float
) -> float:
    """Bound LP-SGD's stationary gap f - f* for linear regression on a fixed-point grid, without mu or d (T3).

    Parameters
    ----------
    lr, delta : float
        The learning rate, below 2 / x_l2^2, and the grid's step.
    x_l1, x_l2 : float
        ||x_i||_1 and ||x_i||_2, the same for all rows (or bounds on them).
    noise_l1, noise_l2 : float
        E |e| and sqrt E e^2 of the noise y - x . w*, independent of x.

    Returns
    -------
    float
        The root g of (4 - 2 lr x_l2^2) g - delta x_l1 sqrt(2 g) = lr x_l2^2 E e^2 + delta x_l1 E |e|.

    Raises
    ------
    lowbit.Error
        A number is out of range.

    Notes
    -----
    Re-derived. With v = w - w*, the gap is E (x . v)^2 / 2 and a step's gradient x (x . v - e). Where E ||v||^2 stays the same,
    0 <= -2 lr (2 g) + lr^2 x_l2^2 (2 g + E e^2) + lr delta x_l1 E |x . v - e|, and E |x . v| <= sqrt(2 g).

    Examples
    --------
    >>> from lowbit import theory
    >>> theory.linear_regression_gap(lr=0.1, delta=2**-5, x_l1=8**0.5, x_l2=1, noise_l1=0.04, noise_l2=0.05) < 3e-3
    True
    """
    lr, l1, l2 = positive(lr=lr, x_l1=x_l1, x_l2=x_l2)
    delta, noise_l1, noise_l2 = nonnegative(delta=delta, noise_l1=noise_l1, noise_l2=noise_l2)
    lead = 4 - 2 * lr * l2**2
    if lead <= 0:
        raise _core.Error(f"lr: {lr} is out of range; give less than 2 / x_l2^2 = {2 / l2**2:.6g}")
    slope, right = delta * l1 * math.sqrt(2), lr * (l2 * noise_l2) ** 2 + delta * l1 * noise_l1
    root = (slope + math.sqrt(slope**2 + 4 * lead * right)) / (2 * lead)
    return root**2
