"""No one-bit protocol does better: lower bounds on the worst case by linear programming.

By Yao's principle the worst case of any protocol, with any amount of shared randomness, is at least what the best
protocol without randomness costs on average over numbers drawn from a prior. For unbiased protocols the constraint
E[estimate | x] = x is priced by multipliers. For weights mu and multipliers nu = 2 mu z on a grid of x,

    min over one-bit quantizers of  sum mu (v - z)^2   -   sum mu (z - x)^2

is a lower bound (z = x for biased protocols), and the minimum is exact: two groups that are contiguous in z, each read
as its mean. The program finds the best mu and z on the grid, adding the quantizers that undercut it until none does.

Run ``python experiments/onebit_bound.py [points]``; it takes some seconds (51 points) and needs scipy.
"""

from __future__ import annotations

import sys

import numpy as np
from scipy.optimize import linprog

from lowbit import onebit


def quantizers(x, mu, z):
    """Cost of every split in order of z, and what each reads at every x: (splits,), (splits, points)."""
    order = np.argsort(z, kind="stable")
    weight, first, second = (np.cumsum((mu * z**power)[order]) for power in (0, 1, 2))
    low = np.where(weight > 0, first / np.maximum(weight, 1e-300), 0)[:-1]
    rest = weight[-1] - weight
    high = np.where(rest > 1e-15, (first[-1] - first) / np.maximum(rest, 1e-300), 1)[:-1]
    cost = second[-1] - low**2 * weight[:-1] - high**2 * rest[:-1]
    rank = np.empty(len(x), int)
    rank[order] = np.arange(len(x))
    reads = np.where(rank[None, :] <= np.arange(len(x) - 1)[:, None], low[:, None], high[:, None])
    return cost - np.sum(mu * (z - x) ** 2), reads


def bound(points: int, unbiased: bool) -> float:
    """Return a lower bound on the worst case of every (unbiased) one-bit protocol."""
    x = np.linspace(0, 1, points)
    ends = [0, -1] if unbiased else []
    free = len(ends)
    _, reads = quantizers(x, np.full(points, 1 / points), x)
    best = 0.0
    for _ in range(100):
        # Variables mu, nu at the ends, V: maximize V, which no quantizer found so far undercuts. Inside, z = x.
        square = (reads - x) ** 2
        square[:, ends] = (reads**2 - x * x)[:, ends]
        rows = np.hstack([-square, (reads - x)[:, ends], np.ones((len(reads), 1))])
        for place, end in enumerate(ends):
            # z stays within [-2, 3]: a restriction of the bound, not of the protocols.
            near, far = np.zeros((2, points + free + 1))
            near[end % points], near[points + place] = -4, -1
            far[end % points], far[points + place] = -6, 1
            rows = np.vstack([rows, near, far])
        total = np.concatenate([np.ones(points), np.zeros(free + 1)])[None]
        goal = np.concatenate([np.zeros(points + free), [-1]])
        limits = [(0, None)] * points + [(None, None)] * (free + 1)
        solution = linprog(goal, rows, np.zeros(len(rows)), total, [1], limits, "highs")
        mu, z = np.maximum(solution.x[:points], 0), x.copy()
        mu /= mu.sum()
        for place, end in enumerate(ends):
            z[end] = solution.x[points + place] / max(2 * mu[end], 1e-9)
        cost, found = quantizers(x, mu, z)
        best = max(best, cost.min())
        if -solution.fun - best < 1e-7:
            break
        reads = np.vstack([reads, found[cost < -solution.fun - 1e-9]])
    return float(best)


def main() -> None:
    points = int(sys.argv[1]) if len(sys.argv) > 1 else 51
    for scheme, unbiased in (("optimal_biased", False), ("optimal_unbiased", True)):
        lower, upper = bound(points, unbiased), onebit.worst_case_error(scheme)
        print(f"{scheme}: no protocol is below {lower:.6f}; ours attains {upper:.6f}, {upper / lower - 1:.2%} above")


if __name__ == "__main__":
    main()
