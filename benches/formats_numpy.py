"""The NumPy recipes for number formats: whole-array operations into preallocated arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from formats import BLOCK, scale_table, stored
from peers_numpy import generator

if TYPE_CHECKING:
    from collections.abc import Callable

    from formats import Grid
    from numpy.typing import NDArray
    from problems import Problem

F = np.float32


def _spacing(a: NDArray[np.float32], out: NDArray[np.float32], mantissa: int, least: int) -> None:
    """Write the distance of neighbours in a small float, by the bits of the exponent."""
    bits = out.view(np.int32)
    np.bitwise_and(a.view(np.int32), np.int32(0x7F800000), out=bits)
    np.maximum(bits, np.int32((least + 127) << 23), out=bits)
    np.subtract(bits, np.int32(mantissa << 23), out=bits)


def _small_float(problem: Problem, grid: Grid, rounding: str) -> Callable[[], Any]:
    a, step, draws, rng = problem.empty(), problem.empty(), problem.empty(), generator()
    mantissa, least = grid.small_float or (0, 0)

    def call() -> Any:
        np.abs(problem.x, out=a)
        np.minimum(a, grid.values[-1], out=a)
        _spacing(a, step, mantissa, least)
        np.divide(a, step, out=a)
        if rounding == "nearest":
            np.rint(a, out=a)
        else:
            np.add(a, rng.random(dtype=F, out=draws), out=a)
            np.floor(a, out=a)
        np.multiply(a, step, out=a)
        return np.copysign(a, problem.x, out=a)

    return call


def _equal_steps(problem: Problem, grid: Grid, rounding: str) -> Callable[[], Any]:
    out, draws, rng, step = problem.empty(), problem.empty(), generator(), F(grid.step)
    low, high = grid.values[0] / step, grid.values[-1] / step

    def call() -> Any:
        unit = F(grid.scale_of(problem.x)) * step if not grid.given else given
        np.multiply(problem.x, F(1) / unit, out=out)
        if rounding == "nearest":
            np.rint(out, out=out)
        else:
            np.add(out, rng.random(dtype=F, out=draws), out=out)
            np.floor(out, out=out)
        np.clip(out, low, high, out=out)
        return np.multiply(out, unit, out=out)

    given = F(grid.scale_of(problem.x)) * step
    return call


def _table(problem: Problem, grid: Grid, rounding: str) -> Callable[[], Any]:
    out, draws, rng, scale = problem.empty(), problem.empty(), generator(), F(grid.scale_of(problem.x))
    gaps = np.append(np.diff(grid.values), F(1))

    def nearest() -> Any:
        np.multiply(problem.x, 1 / scale, out=out)
        scaled.take(grid.middles.searchsorted(out), out=out)
        return out

    def stochastic() -> Any:
        np.multiply(problem.x, 1 / scale, out=out)
        np.clip(out, grid.values[0], grid.values[-1], out=out)
        place = grid.values.searchsorted(out, side="right") - 1
        np.subtract(out, grid.values.take(place), out=out)
        np.divide(out, gaps.take(place), out=out)
        np.add(place, rng.random(dtype=F, out=draws) < out, out=place)
        return scaled.take(place, out=out)

    scaled = grid.values * scale
    return nearest if rounding == "nearest" else stochastic


def fake_quantize(problem: Problem, grid: Grid, rounding: str) -> Callable[[], Any]:
    recipe = _small_float if grid.small_float else _equal_steps if grid.step else _table
    return recipe(problem, grid, rounding)


def quantize_bfloat16(problem: Problem) -> Callable[[], Any]:
    bits, sums, out, rng = problem.x.view(np.uint32), problem.empty(np.uint32), problem.empty(np.uint16), generator()

    def call() -> Any:
        np.add(bits, rng.integers(0, 1 << 16, problem.n, dtype=np.uint16), out=sums)
        np.right_shift(sums, 16, out=sums)
        np.copyto(out, sums, casting="unsafe")
        return out

    return call


def fake_quantize_blocks(problem: Problem, name: str) -> Callable[[], Any] | None:
    if name != "mxfp4":
        return None
    rows = problem.x.reshape(-1, BLOCK[name])
    t, step = np.ones_like(rows), np.ones_like(rows)

    def call() -> Any:
        np.abs(rows, out=t)
        exponents = (t.max(axis=1, keepdims=True).view(np.int32) >> 23) - 127 - 2
        scales = np.ldexp(F(1), exponents)
        np.multiply(t, 1 / scales, out=t)
        np.minimum(t, F(6), out=t)
        _spacing(t, step, 1, 0)
        np.divide(t, step, out=t)
        np.rint(t, out=t)
        np.multiply(t, step, out=t)
        np.multiply(t, scales, out=t)
        return np.copysign(t, rows, out=t)

    return call


def dequantize(problem: Problem, name: str) -> Callable[[], Any]:
    given, out = stored(problem, name), problem.empty()
    if name == "fp8_e4m3fn":
        return lambda: given.table.take(given.codes, out=out)
    # Both values of a byte at once.
    pairs = np.stack([np.tile(given.table, 16), np.repeat(given.table, 16)], axis=1).view(np.uint64).reshape(-1)
    packed, rows, scale_values = given.packed, out.reshape(-1, BLOCK[name]), scale_table(name)

    def call() -> Any:
        pairs.take(packed, out=out.view(np.uint64))
        scales = given.scales if given.scale_codes is None else scale_values.take(given.scale_codes)
        return np.multiply(rows, scales[:, None], out=rows)

    return call
