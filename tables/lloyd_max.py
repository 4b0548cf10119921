"""Lloyd-Max codebooks: the scalar quantizers of N(0, 1) with the least mean squared error.

S. P. Lloyd, "Least squares quantization in PCM" (IEEE Trans. Inf. Theory 28, 1982); J. Max, "Quantizing for minimum
distortion" (IRE Trans. Inf. Theory 6, 1960). Every centroid is the mean of its cell, every boundary the middle of two
centroids. The density is log-concave, so there is one such codebook; it is symmetric, and its positive half is solved.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy.linalg import solve_banded
from scipy.special import erfcx, ndtri

#: Gauss-Legendre on [-1, 1]: exact to rounding on the cells, the widest of which is 1 long.
NODES, WEIGHTS = np.polynomial.legendre.leggauss(40)
TAIL = 14.0  # beyond it N(0, 1) has a mass of 1e-44


def density(x):
    """Return the density of N(0, 1)."""
    return np.exp(-x * x / 2) / np.sqrt(2 * np.pi)


def cells(centroids):
    """Boundaries of the cells of the positive half: 0, the middles, infinity."""
    return np.concatenate([[0], (centroids[:-1] + centroids[1:]) / 2, [np.inf]])


def moments(low, high, about, power):
    """Integrate (x - about)**power over the cells; the last one, in pieces, to ``TAIL``."""
    total = np.zeros(len(low))
    for cell, (start, end, centre) in enumerate(zip(low, high, about, strict=True)):
        edges = [start, end] if np.isfinite(end) else np.linspace(start, TAIL, 17)
        for a, b in pairwise(edges):
            x = (a + b) / 2 + (b - a) / 2 * NODES
            total[cell] += (b - a) / 2 * np.sum(WEIGHTS * (x - centre) ** power * density(x))
    return total


def solve(bits):
    """Return the positive centroids, ascending, by Newton's method on "every centroid is the mean of its cell"."""
    n = 2 ** (bits - 1)
    # Panter and Dite: the best density of centroids goes as the cube root of that of the numbers.
    centroids = np.sqrt(3) * ndtri((np.arange(n) + n + 0.5) / (2 * n))
    for _ in range(100):
        edges = cells(centroids)
        low, high = edges[:-1], edges[1:]
        mass = moments(low, high, centroids, 0)
        offset = moments(low, high, centroids, 1) / mass
        # Mills' ratio in closed form: the tail's mean needs no integral.
        offset[-1] = np.sqrt(2 / np.pi) / erfcx(low[-1] / np.sqrt(2)) - centroids[-1]
        # A cell's mean moves by density * (edge - mean) / mass with its edges, an edge by half with each neighbour.
        mean = centroids + offset
        from_low = -density(low) * (low - mean) / mass / 2
        from_high = np.where(np.isfinite(high), density(high) * (np.where(np.isfinite(high), high, 0) - mean), 0)
        from_high = from_high / mass / 2
        from_low[0] = 0
        jacobian = np.zeros((3, n))
        jacobian[0, 1:], jacobian[1], jacobian[2, :-1] = from_high[:-1], from_low + from_high - 1, from_low[1:]
        step = solve_banded((1, 1), jacobian, offset) if n > 1 else offset / jacobian[1]
        centroids = centroids - step
        if np.max(np.abs(step)) < 4e-16 * centroids[-1]:
            break
    return centroids


def distortion(centroids):
    """Return E[(Z - Q(Z))**2]."""
    edges = cells(centroids)
    return float(2 * np.sum(moments(edges[:-1], edges[1:], centroids, 2)))


def tables():
    """By bits: centroids and boundaries of the positive half, and the distortion."""
    result = {}
    for bits in range(1, 9):
        centroids = solve(bits)
        result[bits] = (centroids, cells(centroids)[1:-1], distortion(centroids))
    return result
