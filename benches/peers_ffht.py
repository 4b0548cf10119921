"""FFHT's C (Andoni, Indyk, Laarhoven, Razenshteyn, Schmidt), by the package FFHT-unofficial, which binds it to Python.

It is not normalised and works in place or into a fresh array; the better of both is a copy, scaled, and then in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ffht
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from problems import Problem


def _hadamard(problem: Problem, row: int) -> Callable[[], Any]:
    x, out, factor = problem.x.reshape(-1, row), problem.empty().reshape(-1, row), np.float32(row**-0.5)
    target = out if len(out) > 1 else out[0]

    def call() -> Any:
        np.multiply(x, factor, out=out)
        ffht.fht_(target)
        return out

    return call


def hadamard(problem: Problem) -> Callable[[], Any]:
    return _hadamard(problem, problem.rows())


def hadamard_1024(problem: Problem) -> Callable[[], Any]:
    return _hadamard(problem, problem.rows(1024))
