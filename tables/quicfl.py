"""Tables of QUIC-FL: the unbiased quantizer of N(0, 1) on [-T, T] that a few shared random bits allow.

R. Ben Basat, S. Vargaftik, A. Portnoy, G. Einziger, Y. Ben-Itzhak, M. Mitzenmacher, "QUIC-FL: Quick Unbiased
Compression for Federated Learning" (arXiv 2205.13341, ICML 2024) pose the problem on a grid of quantiles, with the
sender's probabilities as unknowns. Here the only unknowns are what the receiver reads: r[h, x] for shared bits h (H of
them) and message x (ascending). The best unbiased sender follows. A row's step from x to x + 1 is a *gap*. In order of
the gaps' middles, knots K start at the mean of r[:, 0], and each gap adds (r[h, x + 1] - r[h, x]) / H. A number z
crosses the gaps that end below it, and the one it lies in with probability (z - K) / (its end - K). The mean of what is
read is z. Of all ways to cross that have the mean z this one has the least E[r^2] (fractional knapsack), a convex,
piecewise linear function of z, so that E[(Z - r)^2] over the normal density is a closed form in the knots.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import ndtr

#: Beyond it numbers travel as they are: P(|Z| > T) = 2^-9. A float32 number's digits.
T = 3.0972691
#: Shared bits by message bits, as the paper chose them.
SHARED_BITS = {1: 6, 2: 5, 3: 4, 4: 4}


def density(x):
    """Return the density of N(0, 1)."""
    return np.exp(-x * x / 2) / np.sqrt(2 * np.pi)


def gaps(r):
    """Return the order of the gaps by their middles (ties by row), their flat widths / H in that order, the knots."""
    order = np.argsort((r[:, 1:] + r[:, :-1]).ravel(), kind="stable")
    width = np.diff(r, axis=1).ravel()[order] / len(r)
    return order, width, np.mean(r[:, 0]) + np.concatenate([[0], np.cumsum(width)])


def objective(r):
    """Return E[(Z - r)^2; |Z| <= T] and its gradient by r."""
    rows = len(r)
    order, width, knots = gaps(r)
    slope = (r[:, 1:] + r[:, :-1]).ravel()[order]  # of E[r^2], per unit of z
    square = np.mean(r[:, 0] ** 2) + np.concatenate([[0], np.cumsum(slope * width)])
    edges = np.clip(knots, -T, T)
    mass = np.diff(ndtr(edges))
    first = -np.diff(density(edges))
    # The first and second moments of the whole interval.
    second = 2 * ndtr(T) - 1 - 2 * T * density(T)
    value = np.sum((square[:-1] - slope * knots[:-1]) * mass + slope * first) - second
    # By the envelope theorem dE[r^2 | z] / dr[h, x] = (2 r[h, x] - slope at z) P(row h reads x | z) / H.
    crossed = (first - knots[:-1] * mass) / width  # z lies in the gap's interval and crosses it
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    rank = rank.reshape(rows, -1)
    gradient = np.zeros_like(r)
    for weight, sign in ((np.ones_like(slope), 2 * r), (slope, -np.ones_like(r))):
        after = np.sum(weight * mass) - np.cumsum(weight * mass)
        above = (weight * crossed + after)[rank]  # mass of the row beyond the gap, weighted
        whole = np.sum(weight * mass)
        reached = np.concatenate([np.full((rows, 1), whole), above, np.zeros((rows, 1))], axis=1)
        gradient += sign * -np.diff(reached, axis=1)
    return value, gradient / rows


def mirrored(half):
    """Add the rows' mirror images: row H - 1 - h is row h backwards, times -1."""
    return np.concatenate([half, -half[::-1, ::-1]])


def start(shared_bits, bits, shift):
    """Return the first half of the rows of companded subtractive dither.

    Gaps lie as densely as the cube root of the normal density (Panter and Dite, Proc. IRE 39, 1951). On the axis where
    they are even, row h reads x + offset; ``shift`` moves the offsets.
    """
    rows, last = 2**shared_bits, 2**bits - 1
    z = np.linspace(-T, T, 4001)
    mass = ndtr(z / np.sqrt(3))  # the cube root of the normal density is a normal density, sqrt(3) as wide
    axis = (mass - mass[0]) / (mass[-1] - mass[0]) * last
    place = np.arange(last + 1) + ((np.arange(rows // 2) + 0.5 + shift) / rows - 0.5)[:, None]
    beyond = np.clip(place, None, 0) + np.clip(place - last, 0, None)
    return np.interp(place, axis, z) + beyond * (z[1] - z[0]) / (axis[1] - axis[0])


def descend(half):
    """Find the local optimum near these rows, among tables whose knots begin at -T and so end at T."""
    shape, rows = half.shape, 2 * len(half)
    # mean(r[:, 0]) = -T is constraint . half = -T; the search runs in the plane through it.
    constraint = np.zeros(shape)
    constraint[:, 0], constraint[:, -1] = 1 / rows, -1 / rows
    constraint = constraint.ravel()
    normal = constraint / (constraint @ constraint)

    def on_plane(flat):
        return flat - normal * (constraint @ flat + T)

    def cost(flat):
        value, gradient = objective(mirrored(on_plane(flat).reshape(shape)))
        gradient = (gradient[: rows // 2] - gradient[rows // 2 :][::-1, ::-1]).ravel()
        return value * 1e3, (gradient - normal * (constraint @ gradient)) * 1e3

    flat = minimize(cost, on_plane(half.ravel()), jac=True, method="BFGS", options={"gtol": 1e-9}).x
    # Newton's method to the last digits, so that every machine finds the same float32 numbers.
    for _ in range(3):
        h = 1e-6
        hessian = [(cost(flat + h * e)[1] - cost(flat - h * e)[1]) / (2 * h) for e in np.eye(flat.size)]
        flat = on_plane(flat - np.linalg.lstsq(np.array(hessian), cost(flat)[1], rcond=1e-9)[0])
    return cost(flat)[0] / 1e3, flat.reshape(shape)


def solve(bits, starts=40):
    """Return the best table of many starts: r, rows in order of their means."""
    shared_bits = SHARED_BITS[bits]
    rng = np.random.default_rng(bits)
    shifts = [spread * rng.standard_normal(2 ** (shared_bits - 1)) for spread in np.linspace(0, 2, starts)]
    _, half = min((descend(start(shared_bits, bits, shift)) for shift in shifts), key=lambda found: found[0])
    # Of each pair of mirror images the one with the lower mean.
    half = np.where(half.sum(1, keepdims=True) > 0, -half[:, ::-1], half)
    return mirrored(half[np.argsort(half.sum(1))])


def rounded(r):
    """Round to float32 numbers whose knots still reach from -T to T: only then are they unbiased up to T."""
    half = np.float32(r[: len(r) // 2])
    while np.mean(mirrored(np.float64(half))[:, 0]) > -max(T, float(np.float32(T))):
        row, column = divmod(int(np.argmax(np.abs(half[:, [0, -1]]))), 2)
        half[row, -column] = np.nextafter(half[row, -column], np.float32(np.inf if column else -np.inf))
    return mirrored(half)


def tables():
    """By bits: r as float32, knots and widths of its gaps (their ranges on z) as float32, and the objective."""
    result = {}
    for bits in SHARED_BITS:
        r = np.float64(rounded(solve(bits)))
        order, width, knots = gaps(r)
        place = np.argsort(order, kind="stable")
        shape = (len(r), r.shape[1] - 1)
        arrays = [np.float32(table) for table in (r, knots[:-1][place].reshape(shape), width[place].reshape(shape))]
        result[bits] = (*arrays, float(objective(r)[0]))
    return result
