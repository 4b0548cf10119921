"""How each family of formats rounds, on ``t`` in float64 (`floats`); the records are those of `lowbit.reference`.

``words`` are the random words of stochastic rounding, one for each number as int64, or None for rounding to nearest.
"""

from __future__ import annotations

from functools import singledispatch
from typing import TYPE_CHECKING

import torch

from lowbit.reference.blocks import BlockFormat
from lowbit.reference.floats import Fixed, Minifloat
from lowbit.reference.formats import Grid, Integer, Sign, Table
from lowbit.reference.radix import RADIX4, Radix, Radix4
from lowbit.torch._plain.floats import exp2, exponent, f32, positive_zero

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_WORDS = 2.0**32
_MASK = (1 << 32) - 1
# Constants of float32 arithmetic.
_THIRD = float(torch.tensor(1.0) / 3.0)
_BELOW_ONE = 1 - 2.0**-24


def _float32(number: float) -> float:
    return float(torch.tensor(number, dtype=torch.float64).to(torch.float32))


def _table(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor([float(v) for v in values], dtype=torch.float64, device=like.device)


def _below(words: Tensor, q: Tensor) -> Tensor:
    """Whether the 31 high bits of a word are below the first 31 binary digits of the chance `q`."""
    digits = torch.trunc(q.clamp(max=_BELOW_ONE) * 2.0**31)
    return (words >> 1).to(torch.float64) < digits


def _away(t: Tensor, q: Tensor, words: Tensor) -> Tensor:
    """Whether a magnitude takes its larger neighbour: `_below`, with all bits turned where t is negative."""
    return _below(torch.where(torch.signbit(t), words ^ _MASK, words), q)


def _exactly_away(t: Tensor, q: Tensor, words: Tensor) -> Tensor:
    """Whether a magnitude takes its larger neighbour, by all 32 bits of the word."""
    chance, word = q * _WORDS, words.to(torch.float64)
    return torch.where(t < 0, _WORDS - 1.0 - word < torch.ceil(chance), word < torch.floor(chance))


def _whole(t: Tensor, words: Tensor | None) -> Tensor:
    """Round to an integer, ties to even, or to one of the two beside t; never to -0.0."""
    if words is None:
        return positive_zero(torch.round(t))
    near = torch.floor(t.abs())
    return positive_zero(torch.copysign(near + _exactly_away(t, t.abs() - near, words), t))


def _nan_where(t: Tensor, value: Tensor) -> Tensor:
    return torch.where(torch.isnan(t), torch.nan, value)


@singledispatch
def rounded(grid: Grid, t: Tensor, words: Tensor | None) -> Tensor:
    """Round to a number of the grid."""
    raise AssertionError(f"{grid.name}: a {type(grid).__name__} has no rounding in torch operations")


@rounded.register(BlockFormat)
def _(grid: BlockFormat, t: Tensor, words: Tensor | None) -> Tensor:
    return rounded(grid.element, t, words)


@rounded.register(Integer)
def _(grid: Integer, t: Tensor, words: Tensor | None) -> Tensor:
    return _whole(t.clamp(grid.lowest, grid.highest), words)


@rounded.register(Sign)
def _(grid: Sign, t: Tensor, words: Tensor | None) -> Tensor:
    up = t >= 0
    if words is not None:
        up = (t >= 1) | _below(words, f32(t.clamp(-1, 1) + 1.0) * 0.5)
    return _nan_where(t, torch.where(up, 1.0, -1.0).to(t.dtype))


@rounded.register(Table)
def _(grid: Table, t: Tensor, words: Tensor | None) -> Tensor:
    values = _table(grid.values.tolist(), t)
    if words is None:
        thresholds = _table(grid._thresholds.tolist(), t)
        return _nan_where(t, values[torch.searchsorted(thresholds, t.contiguous())])
    t = t.clamp(float(grid.values[0]), float(grid.values[-1]))
    index = (torch.searchsorted(values, t.contiguous(), right=True) - 1).clamp(0, len(values) - 2)
    low, high = values[index], values[index + 1]
    up = _below(words, f32(f32(t - low) * f32(1.0 / f32(high - low)))) | (t == high)
    return _nan_where(t, torch.where(up, high, low))


@rounded.register(Radix4)
def _(grid: Radix4, t: Tensor, words: Tensor | None) -> Tensor:
    if grid.odd:
        return rounded(RADIX4, f32(2.0 * t), words) / 2.0
    if words is None:
        y = f32(_float32(1.6) * t.abs())
        k = torch.div(exponent(y), 2, rounding_mode="floor").clamp(-3, 3)
        magnitude = torch.where(y >= 64, 64.0, torch.where(y < 1 / 64, 0.0, exp2(2 * k)))
        return _nan_where(t, torch.copysign(magnitude, t))
    a = t.abs().clamp(max=64)
    power = exp2(2 * torch.div(exponent(a), 2, rounding_mode="floor").clamp(-3, 3))
    under = a < 1 / 64
    near = torch.where(under, 0.0, power)
    far = torch.where(under, 1 / 64, power * 4.0)
    q = torch.where(under, a * 64.0, f32((a / power - 1.0) * _THIRD))
    return _nan_where(t, torch.copysign(torch.where(_exactly_away(t, q, words), far, near), t))


@rounded.register(Radix)
def _(grid: Radix, t: Tensor, words: Tensor | None) -> Tensor:
    magnitudes, last = _table(grid.magnitudes.tolist(), t), len(grid.magnitudes) - 1
    smallest, radix = float(grid._smallest), float(grid.radix)
    if words is None:
        a = t.abs()
        y = f32(a * _float32(2.0 * radix / (1.0 + radix)))
        e = (torch.searchsorted(magnitudes, y.contiguous(), right=True) - 1).clamp(0, last)
        if grid.half_underflow:
            e = torch.where((e == 0) & (a >= smallest / 2), 1, e)
        return _nan_where(t, torch.copysign(magnitudes[e], t))
    a = t.abs().clamp(max=float(grid.magnitudes[-1]))
    e = (torch.searchsorted(magnitudes, a.contiguous(), right=True) - 1).clamp(0, last)
    near, far = magnitudes[e], magnitudes[(e + 1).clamp(max=last)]
    steps = f32(f32(f32(a * f32(1.0 / near)) - 1.0) * _float32(1.0 / (radix - 1.0)))
    q = torch.where(a < smallest, f32(a * (1.0 / smallest)), steps)
    value = torch.copysign(torch.where(_away(t, q, words), far, near), t)
    if not grid.zero:  # between -smallest and smallest
        up = _below(words, f32(f32(t * (1.0 / (2.0 * smallest))) + 0.5))
        value = torch.where(a < smallest, torch.where(up, smallest, -smallest).to(t.dtype), value)
    return _nan_where(t, value)


@rounded.register(Minifloat)
def _(grid: Minifloat, t: Tensor, words: Tensor | None) -> Tensor:
    if not grid.has_sign:
        t = torch.where(t < 0, 0.0, t.abs())
    steps, least = 2.0**grid.mantissa_bits, 2.0 ** (1 - grid.bias)
    a = torch.nan_to_num(t.abs(), nan=0.0).clamp(max=_float32(grid.max))
    # Where the magnitude lies among the codes, which count 0, 1, 2 ... without the sign.
    exponents = exponent(a)
    normal = (exponents + grid.bias) * steps + (a * exp2(-exponents.clamp(-1000, 1000)) - 1.0) * steps
    position = torch.where(a < least, a / least * steps, normal)
    if words is None:
        place = torch.round(position)
    else:
        place = torch.floor(position)
        place = place + _away(t, f32(position - place), words)
    if not grid.subnormals:  # between zero and the first number after it
        share = position / steps
        up = share > 0.5 if words is None else _away(t, f32(share), words)
        place = torch.where(share < 1, torch.where(up, steps, 0.0).to(t.dtype), place)
    field = torch.floor(place / steps)
    mantissa = (place - field * steps) / steps
    small = least * mantissa if grid.subnormals else torch.zeros_like(mantissa)
    value = torch.where(field > 0, exp2(field - grid.bias) * (1.0 + mantissa), small)
    value = torch.copysign(value, t)
    return _nan_where(t, positive_zero(value) if grid.inf_nan == "fnuz" else value)


@rounded.register(Fixed)
def _(grid: Fixed, t: Tensor, words: Tensor | None) -> Tensor:
    k, step = f32(t * 2.0**grid.fraction_bits), 2.0**-grid.fraction_bits
    if grid.clamp:
        lowest, highest = grid._ends
        k = k.clamp(_float32(lowest), _float32(highest))
    # From 2^23 steps on every float32 is a multiple.
    far = f32(k * step) if grid.clamp else t
    return torch.where(k.abs() >= 2.0**23, far, f32(_whole(k, words) * step))
