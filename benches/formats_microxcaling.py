"""What microxcaling computes, written here in the torch operations that it is made of.

Its rounding of elements: the exponent of each number by ``log2``, the mantissa in units of the last bit that is kept,
half away from zero (its default) or a uniform number added (its "dither"), saturated. Its blocks: a shared exponent,
that of the largest magnitude less that of the element's largest value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from formats import BLOCK
from peers_torch import tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from formats import Grid
    from problems import Problem
    from torch import Tensor


def elements(x: Tensor, mantissa: int, least: int, largest: float, rounding: str) -> Tensor:
    exponent = torch.floor(torch.log2(torch.abs(x) + (x == 0).to(x.dtype))).clip(min=least)
    unit = 2.0 ** (exponent - mantissa)
    units = torch.abs(x) / unit
    units = torch.floor(units + (0.5 if rounding == "nearest" else torch.rand_like(units)))
    return torch.clamp(torch.sign(x) * units * unit, min=-largest, max=largest)


def fake_quantize(problem: Problem, grid: Grid, rounding: str) -> Callable[[], Any] | None:
    if not grid.small_float:
        return None
    x, (mantissa, least), largest = tensor(problem.x), grid.small_float, float(grid.values[-1])
    return lambda: elements(x, mantissa, least, largest, rounding)


def fake_quantize_blocks(problem: Problem, name: str) -> Callable[[], Any] | None:
    if name != "mxfp4":
        return None
    rows = tensor(problem.x).view(-1, BLOCK[name])

    def call() -> Tensor:
        largest, _ = torch.max(torch.abs(rows), dim=1, keepdim=True)
        shared = torch.floor(torch.log2(largest + 2.0**-126 * (largest == 0).to(rows.dtype))) - 2
        scale = 2.0**shared
        return elements(rows / scale, 1, 0, 6.0, "nearest") * scale

    return call
