"""E1 to E4: LP-SGD on streams of fresh samples, ``w := Q(w - lr (x.w - y) x)``, many runs side by side.

Samples are y = x.w* + e with E[x x^T] = I/d, so that f(w) - f* is |w - w*|^2 / (2 d): the gap. Q rounds stochastically,
by lowbit's own formats. Weights that x does not touch are on the grid and stay there, so sparse designs round only what
is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plan
from numpy.typing import NDArray
from records import Cell

import lowbit as lb

Array = NDArray[np.float32]
BLOCK = 256  # steps whose samples are drawn at once
EVERY = 16  # steps from one look at the gap to the next


@dataclass(frozen=True)
class Grid:
    """What weights are rounded to."""

    format: lb.Format
    scale: float | None = None

    def round(self, x: Array, key: lb.Key) -> Array:
        """Round stochastically."""
        return lb.fake_quantize(x, self.format, scale=self.scale, rounding="stochastic", key=key)


@dataclass(frozen=True)
class Stream:
    """A linear regression that never shows a sample twice."""

    d: int
    lr: float
    noise: float
    steps: int
    runs: int
    #: Draws w*, (runs, d).
    target: Callable[[np.random.Generator, tuple[int, int]], NDArray[Any]]
    #: Whether x has 8 coordinates +-1/sqrt(8), one in each eighth of them, or is N(0, I/d).
    sparse: bool = True
    seed: int = field(default=0)

    def samples(self, rng: np.random.Generator) -> Iterator[tuple[Any, Array, Array]]:
        """Give touched coordinates, x and e of every step, for all runs."""
        s, rows = plan.NONZERO, np.arange(self.runs)[:, None]
        first = np.arange(s) * (self.d // s)
        for _ in range(0, self.steps, BLOCK):
            noise = np.float32(self.noise) * rng.standard_normal((BLOCK, self.runs), np.float32)
            if self.sparse:
                index = first + rng.integers(0, self.d // s, (BLOCK, self.runs, s))
                x = rng.choice(np.float32([-1, 1]), (BLOCK, self.runs, s)) / np.float32(np.sqrt(s))
                for k in range(BLOCK):
                    yield (rows, index[k]), x[k], noise[k]
            else:
                for k in range(BLOCK):
                    x = rng.standard_normal((self.runs, self.d), np.float32) / np.float32(np.sqrt(self.d))
                    yield slice(None), x, noise[k]

    def iterates(self, grid: Grid | None, name: str) -> Iterator[tuple[int, Array, Array]]:
        """Give step, weights (changed in place) and w* after every step."""
        rng = np.random.default_rng(self.seed)
        target = self.target(rng, (self.runs, self.d)).astype(np.float32)
        w, key, lr = np.zeros_like(target), lb.Key(self.seed).fold(name), np.float32(self.lr)
        for step, (where, x, noise) in zip(range(self.steps), self.samples(rng), strict=False):
            there = w[where]
            error = ((there - target[where]) * x).sum(1, dtype=np.float32) - noise
            moved = there - (lr * error)[:, None] * x
            w[where] = moved if grid is None else grid.round(moved, key.fold(step))
            yield step, w, target

    def gap(self, grid: Grid | None, name: str) -> dict[str, Any]:
        """Average the gap over the second half, for each run; a mean and its standard error."""
        total, looks = np.zeros(self.runs), 0
        for step, w, target in self.iterates(grid, name):
            if step >= self.steps // 2 and step % EVERY == 0:
                total += np.square(w - target, dtype=np.float64).sum(1) / (2 * self.d)
                looks += 1
        gaps = total / looks
        return {"gap": gaps.mean(), "error": gaps.std(ddof=1) / np.sqrt(self.runs), "steps": self.steps}


def on_grid(step: float) -> Callable[[np.random.Generator, tuple[int, int]], NDArray[Any]]:
    """Draw w* from U[-1, 1], moved to multiples of a step."""
    return lambda rng, shape: np.rint(rng.uniform(-1, 1, shape) / step) * step


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[Any]:
    """Draw w* from 0.3 N(0, I)."""
    return 0.3 * rng.standard_normal(shape)


def dimension() -> Iterator[Cell]:
    """E1: the same problem in more and more dimensions, sparse and dense."""
    grid = Grid(lb.fixed_point(7, 5))  # steps of 2^-5 from -2 to 2
    for sparse in (True, False):
        for d in plan.DIMENSIONS:

            def run(less: int, d: int = d, sparse: bool = sparse) -> dict[str, Any]:
                steps = max(BLOCK, min(1200 * d, 160_000) // less)
                runs = 16 if sparse else 4
                stream = Stream(d, plan.E1_LR, plan.E1_NOISE, steps, runs, on_grid(plan.E1_DELTA), sparse)
                return {"d": d, "sparse": sparse, **stream.gap(grid, "E1")}

            yield Cell(f"{'sparse' if sparse else 'dense'} {d}", run)


def _e2(d: int, less: int) -> Stream:
    # The gap forgets its start in d / (2 lr) steps.
    steps = max(BLOCK, (128 * d + 8192) // less)
    return Stream(d, plan.E2_LR, plan.E2_NOISE, steps, 16, normal)


def grids() -> Iterator[Cell]:
    """E2: eight bits as equal steps, and as steps that grow with the number."""
    for d in plan.E2_DIMENSIONS:
        for power in (None, *plan.E2_ZETAS):

            def run(less: int, d: int = d, power: int | None = power) -> dict[str, Any]:
                zeta, delta = plan.steps_of(power)
                if power is None:
                    grid = Grid(lb.fixed_point(plan.E2_BITS, 0, symmetric=True), delta)
                else:
                    grid = Grid(lb.log_grid(zeta=zeta, delta=delta, bits=plan.E2_BITS))
                return {"d": d, "zeta": zeta, "delta": delta, **_e2(d, less).gap(grid, "E2")}

            yield Cell(f"d {d}, {'equal steps' if power is None else f'zeta 2^-{power}'}", run)


def slope() -> Iterator[Cell]:
    """E3: grids from coarse to fine over one range, -4 to 4."""
    for power in plan.E3_POWERS:

        def run(less: int, power: int = power) -> dict[str, Any]:
            grid = Grid(lb.fixed_point(power + 3, power))
            steps = max(BLOCK, 32_768 // less)
            stream = Stream(plan.E3_DIMENSION, plan.E3_LR, plan.E1_NOISE, steps, 16, on_grid(0.5))
            return {"delta": 2.0**-power, "bits": power + 3, **stream.gap(grid, "E3")}

        yield Cell(f"delta 2^-{power}", run)


def exponents() -> Iterator[Cell]:
    """E4: the bits of a float shared out between exponent and mantissa; the largest number is just below 4."""
    for bits, shares in plan.E4_BITS.items():
        for e in shares:

            def run(less: int, bits: int = bits, e: int = e) -> dict[str, Any]:
                grid = Grid(lb.float_format(e, bits - 1 - e, bias=2**e - 2))
                return {"bits": bits, "exponent_bits": e, **_e2(plan.E2_DIMENSIONS[0], less).gap(grid, "E4")}

            yield Cell(f"{bits} bits, {e} for the exponent", run)


PARTS = {"dimension": dimension, "grids": grids, "slope": slope, "exponents": exponents}
