"""The constants of a problem, measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lowbit.convex import Problem


@dataclass(frozen=True)
class Constants:
    """What the bounds ask about a problem; names as in the papers.

    Attributes
    ----------
    mu, L : float
        Strong convexity of f, smoothness of every f_i.
    L1 : float
        ||grad f_i(w) - grad f_i(v)||_1 <= L1 ||w - v||_2.
    sigma, sigma1 : float
        sqrt E ||grad f_i(w*)||_2^2 and E ||grad f_i(w*)||_1.
    radius, norm : float
        max_j |w*_j| (what a grid must reach) and ||w*||_2.
    d : int
        The dimension.
    """

    mu: float
    L: float
    L1: float
    sigma: float
    sigma1: float
    radius: float
    norm: float
    d: int

    @property
    def kappa(self) -> float:
        """The condition number L / mu; infinite where mu is 0."""
        return self.L / self.mu if self.mu else float("inf")


def constants(problem: Problem) -> Constants:
    """Measure the constants of a problem, at its minimum where they ask for it.

    Parameters
    ----------
    problem : lowbit.convex.LeastSquares or lowbit.convex.Logistic

    Returns
    -------
    Constants

    Raises
    ------
    lowbit.Error
        The problem has no minimum.

    Notes
    -----
    For a linear model with second derivatives of the loss at most c, |grad f_i(w) - grad f_i(v)| <= c |x_i . (w - v)| |x_i|
    + l2 |w - v| in each coordinate, so L1 = max_i c ||x_i||_1 ||x_i||_2 + sqrt(d) l2.

    Examples
    --------
    >>> import lowbit as lb
    >>> problem = lb.convex.LeastSquares([[3.0, 4.0], [0.0, 1.0]], [7.0, 1.0])
    >>> found = lb.theory.constants(problem)
    >>> found.L, found.L1
    (25.0, 35.0)
    """
    w = problem.minimum().w
    rows = problem.gradients(w)
    l1, l2 = np.abs(problem.x).sum(axis=1), np.sqrt((problem.x**2).sum(axis=1))
    d = problem.shape[1]
    return Constants(
        mu=problem.strong_convexity,
        L=problem.smoothness,
        L1=float(problem.curvature * (l1 * l2).max() + np.sqrt(d) * problem.l2),
        sigma=float(np.sqrt((rows**2).sum(axis=1).mean())),
        sigma1=float(np.abs(rows).sum(axis=1).mean()),
        radius=float(np.abs(w).max()),
        norm=float(np.linalg.norm(w)),
        d=d,
    )
