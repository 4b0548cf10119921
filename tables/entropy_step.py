"""The uniform grid whose integers have a given entropy: the step of entropy-coded EDEN, by its bits.

The entropy of rint(Z / step), Z ~ N(0, 1), falls as the step grows. Its inverse is tabulated at (8 + j) / 8 powers of
two, j = 0..7, with its slope, and read by cubic interpolation (Hermite), which takes nothing but adds and multiplies.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

#: The octaves: from 2**FIRST to 2**LAST bits.
FIRST, LAST = -5, 3
#: Intervals of equal width in each octave.
PARTS = 8


def entropy(step):
    """Return the entropy in bits of rint(Z / step), and its derivative by the step."""
    edge = np.arange(int(12 / step) + 2) + 0.5  # in steps; beyond 12 there is nothing to see
    tail = ndtr(-edge * step)
    mass = tail[:-1] - tail[1:]  # of 1, 2, 3, ...
    centre = np.log1p(-2 * tail[0])
    log = np.log(mass)
    slope = -edge * np.exp(-((edge * step) ** 2) / 2) / np.sqrt(2 * np.pi)
    value = -(1 - 2 * tail[0]) * centre - 2 * np.sum(mass * log)
    derivative = 2 * slope[0] * centre - 2 * np.sum((slope[:-1] - slope[1:]) * log)
    return value / np.log(2), derivative / np.log(2)


def solve(bits):
    """Return the step of this entropy, and its derivative by the bits."""
    step = brentq(lambda step: entropy(step)[0] - bits, 0.004, 16, xtol=1e-14, rtol=1e-14)
    return step, 1 / entropy(step)[1]


def tables():
    """Return steps and slopes at the nodes, and at one beyond, so that the last octave's end belongs to the table."""
    nodes = [2.0**octave * (1 + part / PARTS) for octave in range(FIRST, LAST) for part in range(PARTS)]
    return np.array([solve(bits) for bits in [*nodes, 2.0**LAST, 2.0**LAST * (1 + 1 / PARTS)]])
