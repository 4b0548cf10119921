"""Time one inner step of HALP on integers beside SVRG's in float32: in NumPy, and in the same Rust.

``benches/README.md`` tells what is measured.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from measure import processor

import lowbit as lb
from lowbit import _core, convex, theory
from lowbit.convex import _halp, _steps

HERE = Path(__file__).parent
GOAL = 3.0  # NumPy's float32 over 8 bits, at d = 1000
COLUMNS = (
    *("utc", "cpu", "level", "n", "d", "contender"),
    *("ns", "q1", "q3", "times_int8", "goal", "met", "load", "versions"),
)


def contenders(n: int, d: int, steps: int) -> dict[str, Callable[[], Any]]:
    """Set up one run of `steps` inner steps each, all from the same centre of the same problem."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d)) / np.sqrt(d)
    problem = convex.LeastSquares(x, x @ rng.normal(size=d))
    w = np.zeros(d)
    shift, gradient, lr, words = x @ w, problem.gradient(w), 0.25 / problem.smoothness, _steps.Words.of(1)
    anchor, nowhere, norm = problem.slopes(shift), np.zeros(n), float(np.linalg.norm(problem.gradient(w)))
    x32 = x.astype(np.float32)
    float32 = _steps.Floats(problem, x32, lr, words)
    published = _halp._Floats(problem, lr, 8, words, True)
    drawn = rng.integers(0, n, steps).tolist()

    def integers(bits: int) -> Callable[[], Any]:
        loop, scale = _halp._Integers(problem, lr, bits, words), theory.halp_scale(norm, 0.01, bits)
        return lambda: loop.run(gradient, shift, anchor, scale, 0, steps)

    def in_numpy() -> Any:
        z, g, rate = np.zeros(d, np.float32), gradient.astype(np.float32), np.float32(lr)
        y, at_centre = problem.y.astype(np.float32), anchor.astype(np.float32)
        for i in drawn:
            row = x32[i]
            z -= rate * ((row @ z - y[i] - at_centre[i]) * row + g)
        return z

    scale = theory.halp_scale(norm, 0.01, 8)
    start = np.zeros(d, np.float32)
    return {
        "HALP int8": integers(8),
        "HALP int16": integers(16),
        "SVRG float32": lambda: float32.run(start, gradient, nowhere, anchor, None, 0, steps),
        "HALP float64, 8 bits": lambda: published.run(gradient, shift, anchor, scale, 0, steps),
        "SVRG float32, NumPy": in_numpy,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", type=int, default=[1000, 10000])
    parser.add_argument("--columns", nargs="+", type=int, default=[100, 1000])
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--record", action=argparse.BooleanOptionalAction, default=True, help="write benches/records")
    options = parser.parse_args()
    now, cpu = datetime.now(UTC), processor()
    versions = f"python={platform.python_version()} lowbit={lb.__version__} numpy={np.__version__}"
    rows = []
    for n in options.rows:
        for d in options.columns:
            calls = contenders(n, d, options.steps)
            times: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(options.repeats):
                for name, call in calls.items():
                    start = time.process_time_ns()
                    call()
                    times[name].append((time.process_time_ns() - start) / options.steps)
            quartiles = {name: np.quantile(some, [0.5, 0.25, 0.75]).tolist() for name, some in times.items()}
            print(f"\nn = {n}, d = {d}: ns for a step (median, quartiles), times of int8")
            for name, (ns, q1, q3) in quartiles.items():
                over = ns / quartiles["HALP int8"][0]
                wanted = {"SVRG float32, NumPy": GOAL, "SVRG float32": 1.0}.get(name) if d == 1000 else None
                met = "" if wanted is None else "yes" if over >= wanted else "NO"
                print(f"{name:22} {ns:8.0f}  {q1:8.0f} {q3:8.0f}  {over:6.2f}  {met and f'goal {wanted:g}: {met}'}")
                what = (now.strftime("%H:%M:%S"), cpu, _core.cpu_level(), n, d, name)
                load = f"{os.getloadavg()[0]:.2f}"
                rows.append(
                    (*what, f"{ns:.1f}", f"{q1:.1f}", f"{q3:.1f}", f"{over:.3f}", wanted or "", met, load, versions)
                )
    if options.record:
        folder = HERE / "records" / re.sub(r"[^a-z0-9]+", "-", cpu.lower()).strip("-")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{now:%Y-%m-%d}-convex.csv"
        fresh = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerows([COLUMNS, *rows] if fresh else rows)


if __name__ == "__main__":
    main()
