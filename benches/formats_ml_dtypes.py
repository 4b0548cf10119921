"""The ml_dtypes recipes: casts by ``astype``, which only round to nearest and keep each value in a byte of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from formats import BLOCK, stored

if TYPE_CHECKING:
    from collections.abc import Callable

    from formats import Grid
    from problems import Problem

DTYPES = {
    **{"fp8_e4m3fn": ml_dtypes.float8_e4m3fn, "fp4_e2m1": ml_dtypes.float4_e2m1fn},
    **{"mxfp4": ml_dtypes.float4_e2m1fn, "nvfp4": ml_dtypes.float4_e2m1fn},
}
SCALES = {"mxfp4": ml_dtypes.float8_e8m0fnu, "nvfp4": ml_dtypes.float8_e4m3fn}


def fake_quantize(problem: Problem, grid: Grid, rounding: str) -> Callable[[], Any] | None:
    if grid.name not in DTYPES or rounding != "nearest":
        return None
    out = problem.empty()

    def call() -> Any:
        np.copyto(out, problem.x.astype(DTYPES[grid.name]))
        return out

    return call


def fake_quantize_blocks(problem: Problem, name: str) -> Callable[[], Any] | None:
    if name != "mxfp4":
        return None
    rows, t, out = (array.reshape(-1, BLOCK[name]) for array in (problem.x, problem.empty(), problem.empty()))

    def call() -> Any:
        np.abs(rows, out=t)
        scales = np.ldexp(np.float32(1), (t.max(axis=1, keepdims=True).view(np.int32) >> 23) - 127 - 2)
        np.multiply(rows, 1 / scales, out=t)
        np.copyto(out, t.astype(DTYPES[name]))
        return np.multiply(out, scales, out=out)

    return call


def dequantize(problem: Problem, name: str) -> Callable[[], Any] | None:
    if name not in DTYPES:
        return None
    given, out = stored(problem, name), problem.empty()
    values = given.codes.view(DTYPES[name])
    if given.scale_codes is None:

        def call() -> Any:
            np.copyto(out, values)
            return out

        return call
    rows, scale_codes = out.reshape(-1, BLOCK[name]), given.scale_codes.view(SCALES[name])[:, None]

    def call_scaled() -> Any:
        np.copyto(out, values)
        return np.multiply(rows, scale_codes.astype(np.float32), out=rows)

    return call_scaled
