"""The figures of the page: what was measured as points, what theory says as lines."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import centering
import matplotlib as mpl
import numpy as np
import plan
from averages import RUNS
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lowbit import theory

Rows = dict[str, dict[str, Any]]

# Okabe and Ito's colours, which the colour-blind can tell apart as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10.5,
    "font.size": 9.5,
    "grid.color": "#E6E6E6",
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "savefig.dpi": 110,
}
#: E sum |x_j| |w_j| of E2 and E4.
WEIGHTS = math.sqrt(plan.NONZERO) * 0.3 * math.sqrt(2 / math.pi)


def new(columns: int, width: float = 5.2, height: float = 3.9) -> tuple[Figure, list[Axes]]:
    """Make a figure with axes side by side."""
    mpl.rcParams.update(STYLE)
    figure = Figure(figsize=(width * columns, height), layout="constrained", facecolor="white")
    return figure, list(np.atleast_1d(figure.subplots(1, columns)))


def save(figure: Figure, path: Path) -> None:
    """Write a figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def dimension(rows: Rows, path: Path) -> None:
    """E1: the gap against the dimension."""
    figure, (ax,) = new(1, 6.4)
    ds = np.geomspace(plan.DIMENSIONS[0], plan.DIMENSIONS[-1], 50)
    for name, colour, label in (
        ("sparse", COLOURS[0], "sparse samples: 8 of d coordinates"),
        ("dense", COLOURS[1], "dense samples"),
    ):
        l1 = [plan.x_l1(d, sparse=name == "sparse") for d in ds]
        limit = [plan.bound({"delta": plan.E1_DELTA}, lr=plan.E1_LR, noise=plan.E1_NOISE, x_l1=x) for x in l1]
        ax.plot(ds, limit, "--", color=colour, linewidth=1.3)
        ax.plot(ds, [plan.expected(plan.E1_DELTA, x, plan.E1_NOISE) for x in l1], ":", color=colour)
        found = [rows[f"{name} {d}"] for d in plan.DIMENSIONS]
        errors = [2 * row["error"] for row in found]
        ax.errorbar(plan.DIMENSIONS, [r["gap"] for r in found], errors, fmt="o", color=colour, label=label, capsize=2)
    ax.plot([], [], "--", color="#555555", label="bound T3")
    ax.plot([], [], ":", color="#555555", label="the same without inequalities (Gaussian errors)")
    ax.set(xscale="log", yscale="log", xlabel="dimension d", ylabel="f(w) - f*", title="E1. Grid of steps 1/32")
    ax.set_xticks(plan.DIMENSIONS, [str(d) for d in plan.DIMENSIONS])
    ax.minorticks_off()
    ax.legend(loc="upper left")
    save(figure, path)


def grids(rows: Rows, path: Path) -> None:
    """E2: the gap against zeta."""
    figure, (ax,) = new(1, 6.4)
    for d, colour in zip(plan.E2_DIMENSIONS, COLOURS, strict=False):
        found = [rows[f"d {d}, zeta 2^-{k}"] for k in plan.E2_ZETAS]
        ax.plot([r["zeta"] for r in found], [r["gap"] for r in found], "o-", color=colour, label=f"d = {d}")
        ax.axhline(rows[f"d {d}, equal steps"]["gap"], color=colour, linewidth=1, linestyle=(0, (1, 3)))
    limits = [
        plan.bound(r, lr=plan.E2_LR, noise=plan.E2_NOISE, x_l1=math.sqrt(plan.NONZERO), weights=WEIGHTS) for r in found
    ]
    ax.plot([r["zeta"] for r in found], limits, "--", color="#555555", label="T3 with zeta, any d")
    ax.plot([], [], color="#555555", linewidth=1, linestyle=(0, (1, 3)), label="equal steps of 4/127")
    ax.set(xscale="log", yscale="log", xlabel="zeta", ylabel="f(w) - f*", title="E2. Eight bits from -4 to 4")
    ax.set_xticks([2.0**-k for k in plan.E2_ZETAS], [f"$2^{{-{k}}}$" for k in plan.E2_ZETAS])
    ax.minorticks_off()
    ax.legend()
    save(figure, path)


def slope(rows: Rows, path: Path) -> None:
    """E3: the gap against delta."""
    figure, (ax,) = new(1, 6.4)
    found = [rows[f"delta 2^-{k}"] for k in plan.E3_POWERS]
    deltas = np.array([row["delta"] for row in found])
    l1 = math.sqrt(plan.NONZERO)
    limits = [plan.bound({"delta": x}, lr=plan.E3_LR, noise=plan.E1_NOISE, x_l1=l1) for x in deltas]
    ax.plot(deltas, [row["gap"] for row in found], "o", color=COLOURS[0], label="measured")
    ax.plot(deltas, limits, "--", color="#555555", label="bound T3")
    gaussian = [plan.expected(x, l1, plan.E1_NOISE) for x in deltas]
    ax.plot(deltas, gaussian, ":", color=COLOURS[0], label="the same without inequalities (Gaussian errors)")
    middle = plan.expected(2.0**-8, l1, plan.E1_NOISE) / 2
    ax.plot(deltas[5:], middle * deltas[5:] * 2**8, color=COLOURS[1], linewidth=1, label="slopes 1 and 2")
    top = plan.expected(2.0**-2, l1, plan.E1_NOISE) / 2
    ax.plot(deltas[:4], top * (deltas[:4] * 2**2) ** 2, color=COLOURS[1], linewidth=1)
    ax.set(
        xscale="log", yscale="log", xlabel="step delta of the grid", ylabel="f(w) - f*", title="E3. Grids of -4 to 4"
    )
    ax.set_xticks(deltas[::2], [f"$2^{{-{k}}}$\n{k + 3} bits" for k in plan.E3_POWERS[::2]])
    ax.minorticks_off()
    ax.legend()
    save(figure, path)


def exponents(rows: Rows, path: Path) -> None:
    """E4: the gap against the bits of the exponent."""
    figure, (ax,) = new(1, 6.4)
    for (bits, shares), colour in zip(plan.E4_BITS.items(), COLOURS, strict=False):
        found = [rows[f"{bits} bits, {e} for the exponent"]["gap"] for e in shares]
        ax.plot(list(shares), found, "o-", color=colour, label=f"{bits} bits")
        limits = []
        for e in shares:
            grid = {"zeta": 2.0 ** (e + 1 - bits), "delta": 2.0 ** (1 - (2**e - 2) - (bits - 1 - e))}
            l1 = math.sqrt(plan.NONZERO)
            limits.append(plan.bound(grid, lr=plan.E2_LR, noise=plan.E2_NOISE, x_l1=l1, weights=WEIGHTS))
        ax.plot(list(shares), limits, "--", color=colour, linewidth=1.2)
    ax.plot([], [], "--", color="#555555", label="T3 with zeta, delta of the float")
    ax.set(yscale="log", xlabel="bits of the exponent", ylabel="f(w) - f*", title="E4. Floats from -4 to 4, d = 64")
    figure.legend(loc="outside right center")
    save(figure, path)


LINES = {
    "SGD": ("#555555", "-"),
    "LP-SGD 8": (COLOURS[1], "-"),
    "LP-SVRG 8": (COLOURS[4], "-"),
    "SVRG": ("#000000", "-"),
    "HALP 8, 1 mu": (COLOURS[5], "-"),
    "HALP 8, 3 mu": (COLOURS[0], "-"),
    "HALP 10, 3 mu": (COLOURS[2], "-"),
    "HALP 16, 3 mu": (COLOURS[3], "--"),
}


def _gaps(row: dict[str, Any]) -> list[float]:
    return [math.nan if gap is None else max(gap, 1e-16) for gap in row["gaps"]]


def loops(rows: Rows, path: Path) -> None:
    """E5: the gap against steps, a panel for each problem."""
    figure, axes = new(len(plan.PROBLEMS), 4.7, 4.1)
    for ax, problem in zip(axes, plan.PROBLEMS, strict=True):
        for method, (colour, line) in LINES.items():
            row = rows[f"{problem}, {method}"]
            ax.plot(row["steps"], _gaps(row), line, color=colour, label=method if ax is axes[0] else None)
        ax.set(yscale="log", xlabel="steps", title=problem, ylim=(1e-16, None))
    axes[0].set_ylabel("f(w) - f*")
    figure.legend(loc="outside right center")
    save(figure, path)


def bits(rows: Rows, path: Path) -> None:
    """E5: where each method ends, against bits; and the theorem's rate."""
    figure, axes = new(len(plan.PROBLEMS) + 1, 4.2, 4.1)
    methods: dict[str, tuple[str, Callable[[int], str]]] = {
        "LP-SGD": (COLOURS[1], lambda b: f"LP-SGD {b}"),
        "LP-SVRG": (COLOURS[4], lambda b: f"LP-SVRG {b}"),
        "HALP, mu_h = mu": (COLOURS[5], lambda b: f"HALP {b}, 1 mu"),
        "HALP, mu_h = 3 mu": (COLOURS[0], lambda b: f"HALP {b}, 3 mu"),
        "the same on integers": (COLOURS[2], lambda b: f"HALP {b}, 3 mu, integers"),
    }
    for ax, problem in zip(axes, plan.PROBLEMS, strict=False):
        for label, (colour, name) in methods.items():
            found = [min(max(plan.last(rows, f"{problem}, {name(b)}"), 1e-16), 1e3) for b in plan.BITS]
            ax.plot(plan.BITS, found, "o-", color=colour, label=label if ax is axes[0] else None)
        for method, colour in (("SGD", "#555555"), ("SVRG", "#000000")):
            end = max(plan.last(rows, f"{problem}, {method}"), 1e-16)
            label = f"{method} (float64)" if ax is axes[0] else None
            ax.axhline(end, color=colour, linestyle=(0, (1, 3)), label=label)
        label = "T1, bound of LP-SGD's averages" if ax is axes[0] else None
        ax.plot(plan.BITS, [t1(problem, b) for b in plan.BITS], "--", color=COLOURS[1], linewidth=1.2, label=label)
        ax.set(yscale="log", xlabel="bits", title=problem, ylim=(1e-16, 3e3))
        ax.set_xticks(plan.BITS)
    row = rows["synthetic, HALP as the theorem says"]
    gaps, last = _gaps(row), axes[-1]
    last.plot(range(len(gaps)), gaps, "o-", color=COLOURS[0], label=f"HALP, {row['bits']} bits, T = {row['inner']}")
    rate = [gaps[0] * plan.GAMMA**k for k in range(len(gaps))]
    last.plot(range(len(gaps)), rate, "--", color="#555555", label=f"the theorem: {plan.GAMMA}^K")
    last.set(yscale="log", xlabel="outer loops K", title="synthetic, the theorem's settings", ylim=(1e-16, None))
    last.legend()
    last.set_xticks(range(0, len(gaps), 3))
    axes[0].set_ylabel("f(w) - f*")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    save(figure, path)


def t1(problem: str, b: int) -> float:
    """Bound the average of LP-SGD's weights after all steps (T1), from zero."""
    p, best = centering.problem(problem), centering.minimum(problem)
    c = theory.constants(p)
    return float(
        theory.fixed_point_gap(
            lr=0.25 / p.smoothness,
            steps=plan.OUTERS * plan.INNER,
            distance=float(np.linalg.norm(best.w)),
            delta=centering.delta(problem, b),
            mu=c.mu,
            L=c.L,
            L1=c.L1,
            sigma=c.sigma,
            sigma1=c.sigma1,
        )
    )


def bias(row: dict[str, Any]) -> float:
    """Estimate the gap of averages without end: one is bias + V, the mean of all runs bias + V / runs.

    NaN where chance has it below zero.
    """
    gap = (RUNS * row["together"] - row["average"]) / (RUNS - 1)
    return gap if gap > 0 else math.nan


def averages(rows: Rows, path: Path) -> None:
    """E6: averages against time, and against delta."""
    figure, (left, right) = new(2, 5.6)
    names = [*(f"delta 2^-{k}" for k in plan.E6_POWERS), "no rounding"]
    for name, colour in zip(names, COLOURS, strict=False):
        row = rows[f"least squares, {name}"]
        left.plot(row["times"], row["average"], color=colour, label=name)
        left.axhline(row["iterate"], color=colour, linestyle=(0, (1, 3)))
        if row["delta"]:
            left.plot(row["times"][-1] * 1.25, row["delta"] ** 2 / 12, "<", color=colour, markersize=5)
    left.plot([], [], color="#555555", linestyle=(0, (1, 3)), label="of the weights themselves")
    left.plot([], [], "<", color="#555555", markersize=5, label="delta^2 / 12, of w* to nearest")
    left.set(xscale="log", yscale="log", xlabel="weights in the average", ylabel="mean square of the distance to w*")
    left.set_title("E6. Least squares: averages")
    left.legend()
    found = [rows[f"logistic, delta 2^-{k}"] for k in plan.E6_LOGISTIC]
    deltas = np.array([row["delta"] for row in found])
    longer = [rows[f"longer, delta 2^-{k}"] for k in plan.E6_LONGER]
    steps = np.array([row["delta"] for row in longer])
    lines: tuple[tuple[str, Any, list[float], int, str], ...] = (
        ("weights", deltas, [row["iterate"] for row in found], 1, COLOURS[1]),
        ("averages", deltas, [row["average"] for row in found], 1, COLOURS[0]),
        ("bias of averages", steps, [bias(row) for row in longer], 2, COLOURS[2]),
    )
    for label, x, gaps, power, colour in lines:
        right.plot(x, gaps, "o-", color=colour, label=label)
        right.plot(x, gaps[0] * (x / x[0]) ** power, "--", color=colour, linewidth=1, label=f"slope {power}")
    right.set(xscale="log", yscale="log", xlabel="step delta of the grid", ylabel="f(w) - f*")
    right.set_title("E6. Logistic regression, breast_cancer")
    powers = range(min(plan.E6_LONGER), max(plan.E6_LOGISTIC) + 1)
    right.set_xticks([2.0**-k for k in powers], [f"$2^{{-{k}}}$" for k in powers])
    right.minorticks_off()
    right.legend()
    save(figure, path)
