"""fht-cpu: a SIMD transform for NumPy, in place; it is not normalised, so the copy before it scales."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import fht_cpu
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from problems import Problem


def _hadamard(problem: Problem, row: int) -> Callable[[], Any]:
    x, out, factor = problem.x.reshape(-1, row), problem.empty().reshape(-1, row), np.float32(row**-0.5)
    target = out if len(out) > 1 else out[0]

    def call() -> Any:
        np.multiply(x, factor, out=out)
        return fht_cpu.fht(target)

    return call


def hadamard(problem: Problem) -> Callable[[], Any]:
    return _hadamard(problem, problem.rows())


def hadamard_1024(problem: Problem) -> Callable[[], Any]:
    return _hadamard(problem, problem.rows(1024))
