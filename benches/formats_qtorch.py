"""The QPyTorch recipes: its C++ loops, which have no scales but those of its block floating point.

It must find ``ninja`` on the path, with which it compiles itself when it is imported first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peers_torch import tensor
from qtorch.quant import block_quantize, fixed_point_quantize, float_quantize

if TYPE_CHECKING:
    from collections.abc import Callable

    from formats import Grid
    from problems import Problem

RECIPES = {
    "fp8_e4m3fn": lambda x, rounding: float_quantize(x, 4, 3, rounding),
    "fp4_e2m1": lambda x, rounding: float_quantize(x, 2, 1, rounding),
    "fixed_8_4": lambda x, rounding: fixed_point_quantize(x, 8, 4, rounding=rounding),
    "bfp8": lambda x, rounding: block_quantize(x, 8, -1, rounding),
}


def fake_quantize(problem: Problem, grid: Grid, rounding: str) -> Callable[[], Any] | None:
    if grid.label not in RECIPES:
        return None
    x, recipe = tensor(problem.x), RECIPES[grid.label]
    return lambda: recipe(x, rounding)


def quantize_bfloat16(problem: Problem) -> Callable[[], Any]:
    x = tensor(problem.x)
    return lambda: float_quantize(x, 8, 7, "stochastic").bfloat16().view(torch.int16).numpy()
