"""E6: SWALP. The average of LP-SGD's weights beside the weights themselves, on grids too coarse for these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import centering
import numpy as np
import plan
import streams
from records import Cell

import lowbit as lb

RUNS = 16
START = 4096  # steps before the first weights are taken


def _times(steps: int) -> list[int]:
    return sorted({int(t) for t in np.geomspace(64, steps, 24).round()})


def _least_squares(power: int | None, less: int) -> dict[str, Any]:
    """E1's sparse stream in 64 dimensions: mean squares of the distance to w*, for each weight."""
    steps = plan.E6_STEPS // less
    # w* is off every grid: the averages have to find places between its numbers.
    target = streams.on_grid(2.0**-20)
    stream = streams.Stream(64, plan.E1_LR, plan.E1_NOISE, START // less + steps, RUNS, target)
    grid = None if power is None else streams.Grid(lb.fixed_point(power + 3, power))
    total, iterate, times, found = 0.0, 0.0, _times(steps), []
    for step, w, best in stream.iterates(grid, "E6"):
        n = step + 1 - START // less
        if n > 0:
            total = total + w.astype(np.float64)
            iterate += float(np.square(w - best, dtype=np.float64).mean())
            if n in times:
                found.append(float(np.square(total / n - best).mean()))
    return {
        "delta": 0.0 if power is None else 2.0**-power,
        "times": times,
        "average": found,
        "iterate": iterate / steps,
    }


def _logistic(power: int, steps: int) -> dict[str, Any]:
    """Logistic regression on breast_cancer: f - f* of iterates, and of averages over all that was seen."""
    problem = centering.problem("breast_cancer")
    best, n = problem.minimum(), problem.shape[0]
    rng, key = np.random.default_rng(1), lb.Key(power).fold("E6")
    lr = np.float32(0.25 / problem.smoothness)
    x, sign = problem.x.astype(np.float32), (2 * (problem.y > 0) - 1).astype(np.float32)
    grid = streams.Grid(lb.fixed_point(power + 6, power))  # from -32 to 32
    w = grid.round(np.broadcast_to(best.w, (RUNS, x.shape[1])).astype(np.float32), key.fold("start"))
    total, gaps, looks = np.zeros(w.shape), 0.0, 0
    for step in range(steps):
        rows = rng.integers(0, n, RUNS)
        seen, label = x[rows], sign[rows]
        margin = label * (w * seen).sum(1, dtype=np.float32)
        slope = -label / (1 + np.exp(margin))
        w = grid.round(w - lr * (slope[:, None] * seen + np.float32(problem.l2) * w), key.fold(step))
        if step >= steps // 8:
            total += w
            if step % 256 == 0:
                gaps += float(np.mean([problem.value(row.astype(np.float64)) for row in w])) - best.value
                looks += 1
    averages = total / (steps - steps // 8)
    gap = float(np.mean([problem.value(row) for row in averages])) - best.value
    together = problem.value(averages.mean(0)) - best.value
    return {"delta": 2.0**-power, "iterate": gaps / max(looks, 1), "average": gap, "together": together}


def cells() -> Iterator[Cell]:
    """Grids of three steps and none, then a problem that is not quadratic."""
    for power in (*plan.E6_POWERS, None):
        name = "no rounding" if power is None else f"delta 2^-{power}"
        yield Cell(f"least squares, {name}", lambda less, power=power: _least_squares(power, less))
    for power in plan.E6_LOGISTIC:
        steps = plan.E6_LOGISTIC_STEPS
        yield Cell(
            f"logistic, delta 2^-{power}", lambda less, power=power, steps=steps: _logistic(power, steps // less)
        )
    for power in plan.E6_LONGER:
        steps = plan.E6_LONGER_STEPS
        yield Cell(f"longer, delta 2^-{power}", lambda less, power=power, steps=steps: _logistic(power, steps // less))


PARTS = {"averages": cells}
