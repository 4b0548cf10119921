"""Scale rules: groups of numbers -> one scale (and offset) for each, in float64 that holds float32 (`floats`)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from lowbit.reference.blocks import E4M3, BlockFormat
from lowbit.reference.formats import Grid, Integer
from lowbit.torch._plain.floats import exp2, exponent, f32, ordered_sum, pattern, positive_zero, value
from lowbit.torch._plain.grids import rounded

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class Scales(NamedTuple):
    """What a rule gives for every group."""

    scale: Tensor
    """What is stored, and what values are multiplied by."""
    offset: Tensor | None = None
    encode: Tensor | None = None
    """What numbers are divided by, where that is something else."""
    tensor: Tensor | None = None
    """Another factor of every scale, of no dimensions."""


def _safe(scale: Tensor, zeros: float = 1.0) -> Tensor:
    """Clamp to where reciprocals are exact enough; zero becomes 1, or what is given."""
    return f32(torch.where(scale == 0, zeros, scale.clamp(2.0**-126, 2.0**126)))


def _zeros(grid: Grid) -> float:
    """Give the scale of a group of zeros: the smallest one where the grid has no zero to make of them."""
    at_zero = rounded(grid, torch.zeros(1, dtype=torch.float64), None)
    return 1.0 if at_zero.item() == 0 else 2.0**-126


def _largest(rows: Tensor) -> Tensor:
    return rows.abs().amax(1)


def _mean(rows: Tensor) -> Tensor:
    return ordered_sum(rows.abs()) / rows.shape[1]


def _amax(rows: Tensor, grid: Grid) -> Scales:
    return Scales(_safe(_largest(rows) / grid.reference, _zeros(grid)))


def _minmax(rows: Tensor, grid: Grid) -> Scales:
    low, high = positive_zero(rows.amin(1)), rows.amax(1)
    # Too far apart for x - offset: as a group that is not finite.
    low = torch.where(torch.isfinite(f32(high - low)), low, torch.nan)
    return Scales(_safe((high - low) / (len(grid.values) - 1)), low)


def _sawb(rows: Tensor, grid: Grid) -> Scales:
    assert isinstance(grid, Integer)
    assert grid.sawb is not None
    c1, c2, levels = grid.sawb
    alpha = c1 * torch.sqrt(ordered_sum(rows * rows) / rows.shape[1]) - c2 * _mean(rows)
    return Scales(_safe(torch.where(alpha > 0, alpha, _largest(rows)) / levels))


def _of_mean(rows: Tensor, grid: Grid) -> Scales:
    return Scales(_safe(_mean(rows), _zeros(grid)))


def _twn(rows: Tensor, grid: Grid) -> Scales:
    size = rows.abs()
    threshold = f32(0.7 * _mean(rows))
    above = size > threshold[:, None]
    count = above.sum(1)
    mean = ordered_sum(torch.where(above, size, 0.0)) / count.clamp(min=1)
    return Scales(_safe(torch.where(count > 0, mean, 0.0)), encode=_safe(f32(2.0 * threshold)))


def _bias(rows: Tensor, grid: Grid) -> Scales:
    amax = _largest(rows)
    last, biases = math.frexp(grid.max)[1] - 1, grid.biases  # type: ignore[attr-defined]
    # One more where the mantissa is beyond the largest number's.
    k = exponent(amax) - last
    k = k + (amax > grid.max * exp2(k.clamp(-300, 300)))
    k = k.clamp(grid.bias - biases[1], grid.bias - biases[0])  # type: ignore[attr-defined]
    return Scales(torch.where(amax == 0, 1.0, exp2(k)))


def _e8m0(rows: Tensor, grid: BlockFormat, rule: str) -> Scales:
    """OCP MX v1.0, section 6.3, and its variants, from the bits of the largest magnitude."""
    amax = _largest(rows)
    bits = pattern(amax).to(torch.int64)
    if rule == "even":
        bits = bits + (1 << (22 - grid.mantissa_bits))
    power = (bits >> 23) - 127 - grid.emax
    if rule == "ceil":
        power = power + (bits & 0x7FFFFF != 0)
    if rule == "rceil":
        bits = pattern(f32(amax / float(grid.element.max))).to(torch.int64)
        normal = (bits >> 23) - 127 + (bits & 0x7FFFFF != 0)
        power = torch.where(bits >= 0x800000, normal, torch.where(bits <= 0x400000, -127, -126))
    return Scales(torch.where(amax == 0, 1.0, exp2(power.clamp(-127, 127))))


def _tensor_scale(x: Tensor, grid: BlockFormat, rule: str) -> Tensor:
    """Choose the scale above the blocks': the largest number of all gets the largest block scale (or 256)."""
    if x.numel() == 0:
        return x.new_ones(())
    amax, top = x.abs().amax(), float(grid.element.max) * (256 if rule == "four_over_six" else 448)
    scale = f32(amax / top).clamp(2.0**-117, 2.0**117)
    scale = torch.where(amax == 0, 1.0, scale)
    return torch.where(torch.isfinite(x).all(), scale, torch.nan)


def _e4m3(rows: Tensor, grid: BlockFormat, rule: str, tensor: Tensor) -> Scales:
    """Take the rule "amax", or "four_over_six" (arXiv:2512.02010): in each block the better of two largest values."""
    amax = _largest(rows)

    def scale_for(largest: float) -> Tensor:
        share = f32(f32(amax / largest) * f32(1.0 / tensor))
        scale = rounded(E4M3, share, None).clamp(2.0**-9, 448)
        return torch.where(amax == 0, 1.0, scale)

    def squared_error(scale: Tensor) -> Tensor:
        t = f32(rows * f32(1.0 / scale)[:, None])
        error = f32(f32(rounded(grid, t, None) * scale[:, None]) - rows)
        return ordered_sum(error * error)

    scale = scale_for(float(grid.element.max))
    if rule == "four_over_six":
        other = scale_for(4.0)
        better = squared_error(f32(other * tensor)) < squared_error(f32(scale * tensor))
        scale = torch.where(better, other, scale)
    return Scales(scale)


_RULES: dict[str, Callable[[Tensor, Grid], Scales]] = {
    "amax": _amax,
    "minmax": _minmax,
    "sawb": _sawb,
    "mean": _of_mean,
    "twn": _twn,
    "bias": _bias,
}


def scales(x: Tensor, grid: Grid, rule: str, axis: int | None, block_size: int | None, tensor: Tensor | None) -> Scales:
    """Compute the scales of numbers by a rule, as `lowbit.reference.scales` does; `tensor` is given, or found."""
    if rule == "one":
        return Scales(x.new_ones((1,) * x.ndim))
    if not isinstance(grid, BlockFormat):
        return _by_groups(x, rule, lambda rows: _RULES[rule](rows, grid), axis, block_size)
    if grid.scale_format == "e8m0":
        return _by_groups(x, rule, lambda rows: _e8m0(rows, grid, rule), axis, block_size)
    above = _tensor_scale(x, grid, rule) if tensor is None else tensor
    found = _by_groups(x, rule, lambda rows: _e4m3(rows, grid, rule, above), axis, block_size)
    scale = torch.where(torch.isnan(above), above, found.scale)
    return Scales(scale, None, f32(scale * above), above)


def _by_groups(
    x: Tensor, rule: str, observe: Callable[[Tensor], Scales], axis: int | None, block_size: int | None
) -> Scales:
    if axis is None and block_size is None:
        return _observe(x.reshape((1,) * x.ndim + (x.numel(),)), rule, observe)
    axis = range(x.ndim)[-1 if axis is None else axis]
    length = x.shape[axis]
    if block_size is None:
        kept = tuple(n if i == axis else 1 for i, n in enumerate(x.shape))
        return _observe(x.movedim(axis, 0).reshape(*kept, x.numel() // max(length, 1)), rule, observe)
    short = length % block_size
    parts = [_observe(_blocks(x.narrow(axis, 0, length - short), axis, block_size), rule, observe)]
    if short:
        parts.append(_observe(_blocks(x.narrow(axis, length - short, short), axis, short), rule, observe))
    scale, offset, encode = (
        None if part[0] is None else torch.cat(part, axis) for part in zip(*(part[:3] for part in parts), strict=True)
    )
    assert scale is not None
    return Scales(scale, offset, encode)


def _blocks(x: Tensor, axis: int, size: int) -> Tensor:
    """Cut an axis into blocks of `size`, which divides it; the elements of a block become the last axis."""
    return x.reshape(*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :]).movedim(axis + 1, -1)


def _observe(groups: Tensor, rule: str, observe: Callable[[Tensor], Scales]) -> Scales:
    """Scale and offset of each group (the last axis), NaN where an element is not finite."""
    kept, n = groups.shape[:-1], groups.shape[-1]
    if n == 0 or groups.numel() == 0:
        return Scales(
            groups.new_ones(kept),
            groups.new_zeros(kept) if rule == "minmax" else None,
            groups.new_ones(kept) if rule == "twn" else None,
        )
    rows = groups.reshape(-1, n)
    scale, offset, encode, _ = observe(rows)
    scale = torch.where(torch.isfinite(rows).all(1), scale, torch.nan)
    return Scales(
        scale.reshape(kept),
        None if offset is None else offset.reshape(kept),
        None if encode is None else encode.reshape(kept),
    )


def scale_codes(grid: BlockFormat, scale: Tensor) -> Tensor:
    """Give the codes of scales: E8M0's is the exponent plus 127; E4M3's comes from the bits of a float32."""
    if grid.scale_format == "e8m0":
        return (exponent(scale) + 127).to(torch.uint8)
    # E4M3's fields of 4 and 3 bits are float32's, biased by 7 for 127; below 2^-6 they count 2^-9.
    normal = (pattern(scale) >> 20) - ((127 - 7) << 3)
    return torch.where(scale < 2.0**-6, (scale * 2.0**9).to(torch.int32), normal).to(torch.uint8)


def decode_scales(grid: BlockFormat, codes: Tensor) -> Tensor:
    """Give the scales of codes."""
    wide = codes.to(torch.int32)
    if grid.scale_format == "e8m0":
        return torch.where(wide == 255, torch.nan, exp2(wide - 127))
    field, mantissa = (wide & 127) >> 3, wide & 7
    normal = value(((field + 127 - 7) << 23) | (mantissa << 20))
    magnitude = torch.where(field == 0, mantissa.to(torch.float64) * 2.0**-9, normal)
    signed = torch.where(wide > 127, -magnitude, magnitude)
    return torch.where(wide & 127 == 127, torch.nan, signed)


def spread(a: Tensor, shape: torch.Size, axis: int | None, block_size: int | None) -> Tensor:
    """Give every element of a tensor of this shape its group's number."""
    if block_size is None:
        return a.expand(shape)
    axis = range(len(shape))[-1 if axis is None else axis]
    blocked = [-(-n // block_size) if i == axis else n for i, n in enumerate(shape)]
    return a.expand(blocked).repeat_interleave(block_size, axis).narrow(axis, 0, shape[axis])
