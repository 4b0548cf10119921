"""Scale rules: groups of numbers -> one scale (and offset) for each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lowbit.reference.blocks import BlockFormat, e4m3, e8m0, tensor_scale
from lowbit.reference.floats import Minifloat
from lowbit.reference.formats import Grid, Integer, f32, ignore

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Scales(NamedTuple):
    """What a rule gives for every group."""

    scale: NDArray[np.float32]
    """What is stored, and what values are multiplied by."""
    offset: NDArray[np.float32] | None = None
    encode: NDArray[np.float32] | None = None
    """What numbers are divided by, where that is something else."""
    tensor: np.float32 | None = None
    """Another factor of every scale."""


def ordered_sum(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum each row in the one order of the contract.

    Pieces of 4096; in a piece element j is added to lane j % 8; the lanes are joined pairwise, the pieces in order.
    """
    total = np.zeros(len(rows))
    for start in range(0, rows.shape[1], 4096):
        piece = rows[:, start : start + 4096]
        lanes = np.zeros((len(rows), 8))
        for first in range(0, piece.shape[1], 8):
            eight = piece[:, first : first + 8]
            lanes[:, : eight.shape[1]] += eight
        a, b, c, d, e, f, g, h = lanes.T
        total += ((a + b) + (c + d)) + ((e + f) + (g + h))
    return total


def _zeros(grid: Grid) -> float:
    """Give the scale of a group of zeros: the smallest one where the grid has no zero to make of them."""
    return 1.0 if grid.nearest(np.zeros(1, np.float32))[0] == 0 else 2.0**-126


def _safe(scale: NDArray[np.float64], zeros: float = 1.0) -> NDArray[np.float32]:
    """Clamp to where reciprocals are exact enough; zero becomes 1, or what is given.

    Two roundings of a quotient of float32 numbers, to float64 and then to float32, give what one to float32 gives.
    """
    return f32(np.where(scale == 0, zeros, np.clip(scale, 2.0**-126, 2.0**126)))


def _amax(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(np.max(np.abs(rows), axis=1), np.float64)


def rule_amax(rows: NDArray[np.float32], grid: Grid) -> Scales:
    """``"amax"``: the largest magnitude goes to the format's reference."""
    return Scales(_safe(_amax(rows) / grid.reference, _zeros(grid)))


def rule_minmax(rows: NDArray[np.float32], grid: Grid) -> Scales:
    """``"minmax"``: the smallest goes to the lowest code, the largest to the highest one."""
    low, high = np.min(rows, axis=1) + np.float32(0), np.max(rows, axis=1)  # + 0: an offset is never -0.0
    low = np.where(np.isfinite(high - low), low, np.float32(np.nan))  # too far apart for x - offset
    return Scales(_safe((high.astype(np.float64) - low.astype(np.float64)) / (len(grid.values) - 1)), low)


def rule_sawb(rows: NDArray[np.float32], grid: Grid) -> Scales:
    """``"sawb"``: Choi et al. 2018 (arXiv:1807.06964), with the factors of the format's levels, in float64.

    The clip c1 sqrt(E[x^2]) - c2 E[|x|] goes to the highest level; where it is not positive the largest magnitude does.
    """
    if not isinstance(grid, Integer) or grid.sawb is None:
        raise ValueError(f"scale: {grid.name} has no SAWB factors")
    c1, c2, levels = grid.sawb
    n, wide = rows.shape[1], rows.astype(np.float64)
    alpha = c1 * np.sqrt(ordered_sum(wide * wide) / n) - c2 * (ordered_sum(np.abs(wide)) / n)
    return Scales(_safe(np.where(alpha > 0, alpha, _amax(rows)) / levels))


def rule_mean(rows: NDArray[np.float32], grid: Grid) -> Scales:
    """``"mean"``: the mean magnitude becomes 1 (BitNet b1.58, XNOR-Net)."""
    return Scales(_safe(ordered_sum(np.abs(rows.astype(np.float64))) / rows.shape[1], _zeros(grid)))


def rule_twn(rows: NDArray[np.float32], grid: Grid) -> Scales:  # noqa: ARG001
    """``"twn"``: Li et al. (arXiv:1605.04711): threshold 0.7 E[|x|], scale the mean magnitude above it.

    Numbers are divided by twice the threshold, which brings it to 1/2, where ternary rounding has its own.
    """
    size = np.abs(rows.astype(np.float64))
    threshold = f32(0.7 * (ordered_sum(size) / rows.shape[1]))
    above = np.abs(rows) > threshold[:, np.newaxis]
    count = above.sum(axis=1)
    scale = np.where(count > 0, ordered_sum(np.where(above, size, 0.0)) / np.maximum(count, 1), 0.0)
    return Scales(_safe(scale), encode=_safe((np.float32(2) * threshold).astype(np.float64)))


def rule_bias(rows: NDArray[np.float32], grid: Grid) -> Scales:
    """``"bias"``: the least power of two by which nothing is clipped, and which the format's bias can hold."""
    if not isinstance(grid, Minifloat) or grid.biases is None:
        raise ValueError(f"scale: {grid.name} has a fixed bias")
    amax = _amax(rows)
    (mantissa, exponent), (most, last) = np.frexp(amax), math.frexp(grid.max)
    k = exponent - last + (mantissa > most)
    k = np.clip(k, grid.bias - grid.biases[1], grid.bias - grid.biases[0])
    return Scales(f32(np.where(amax == 0, 1.0, np.exp2(k.astype(np.float64)))))


def rule_e8m0(rows: NDArray[np.float32], grid: Grid, rule: str) -> Scales:
    """``"floor"``, ``"ceil"``, ``"rceil"``, ``"even"``: see `blocks.e8m0`."""
    if not isinstance(grid, BlockFormat):
        raise ValueError(f"scale: {grid.name} is no block format")
    return Scales(f32(e8m0(np.max(np.abs(rows), axis=1), grid, rule)))


def rule_e4m3(rows: NDArray[np.float32], grid: BlockFormat, rule: str, tensor: np.float32) -> Scales:
    """``"amax"`` and ``"four_over_six"`` (arXiv:2512.02010) of formats with E4M3 scales.

    The second lets a block's largest magnitude become 4 in place of 6 where that makes its squared error smaller.
    """
    amax = np.max(np.abs(rows), axis=1)
    scale = e4m3(amax, grid.element.max, tensor)
    if rule == "four_over_six":
        other = e4m3(amax, 4.0, tensor)
        better = _squared_error(rows, other * tensor, grid) < _squared_error(rows, scale * tensor, grid)
        scale = f32(np.where(better, other, scale))
    return Scales(scale)


def _squared_error(rows: NDArray[np.float32], scale: NDArray[np.float32], grid: Grid) -> NDArray[np.float64]:
    """Sum the squared errors of rounding each row to nearest at a scale."""
    t = rows * (np.float32(1) / scale)[:, np.newaxis]
    error = (grid.nearest(t) * scale[:, np.newaxis] - rows).astype(np.float64)
    return ordered_sum(error * error)


Rule = Callable[["NDArray[np.float32]", Grid], Scales]

_RULES: dict[str, Rule] = {
    "amax": rule_amax,
    "minmax": rule_minmax,
    "sawb": rule_sawb,
    "mean": rule_mean,
    "twn": rule_twn,
    "bias": rule_bias,
    "floor": lambda rows, grid: rule_e8m0(rows, grid, "floor"),
    "ceil": lambda rows, grid: rule_e8m0(rows, grid, "ceil"),
    "rceil": lambda rows, grid: rule_e8m0(rows, grid, "rceil"),
    "even": lambda rows, grid: rule_e8m0(rows, grid, "even"),
}


def _observe(groups: NDArray[np.float32], grid: Grid, rule: str, observe: Rule) -> Scales:
    """Scale and offset of each group (the last axis), NaN where an element is not finite."""
    kept, n = groups.shape[:-1], groups.shape[-1]
    if n == 0:
        return Scales(np.ones(kept, np.float32), np.zeros(kept, np.float32) if rule == "minmax" else None)
    rows = groups.reshape(math.prod(kept), n)
    scale, offset, encode, _ = observe(rows, grid)
    scale = np.where(np.isfinite(rows).all(axis=1), scale, np.float32(np.nan))
    return Scales(
        scale.reshape(kept),
        None if offset is None else offset.reshape(kept),
        None if encode is None else encode.reshape(kept),
    )


def _blocks(x: NDArray[np.float32], axis: int, size: int) -> NDArray[np.float32]:
    """Cut an axis into blocks of `size`, which divides it; the elements of a block become the last axis."""
    shape = (*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])
    return np.moveaxis(x.reshape(shape), axis + 1, -1)


def _join(parts: list[Scales], axis: int) -> Scales:
    scale = np.concatenate([part.scale for part in parts], axis)
    offset = [part.offset for part in parts if part.offset is not None]
    encode = [part.scale if part.encode is None else part.encode for part in parts]
    is_other = any(part.encode is not None for part in parts)
    return Scales(
        scale, np.concatenate(offset, axis) if offset else None, np.concatenate(encode, axis) if is_other else None
    )


@ignore
def scales(
    x: NDArray[np.float32], grid: Grid, rule: str, axis: int | None = None, block_size: int | None = None
) -> Scales:
    """Compute the scales of an array by a rule.

    Parameters
    ----------
    x : numpy.ndarray
        Any shape, float32.
    grid : Grid
        What `get_format` gives.
    rule : str
        One of ``grid.scale_rules``.
    axis, block_size : int or None
        One scale for the array (both None), for each index along `axis`, or for each `block_size` elements along
        `axis` (the last by default; the last block may be short).

    Returns
    -------
    Scales
        float32; shape (1, ..., 1), or 1 everywhere but at `axis`, or the shape of `x` with blocks for elements there.
        The scale is NaN for a group with an element that is not finite (with a tensor scale: for all groups); 1 for an
        empty one, for zeros and, in ``"minmax"``, for equal elements. The rule ``"one"`` looks at nothing, and gives
        one scale whatever the groups are.
    """
    if rule == "one":
        return Scales(np.ones((1,) * x.ndim, np.float32))
    if isinstance(grid, BlockFormat) and grid.scale_format == "e4m3":
        block, tensor = grid, tensor_scale(x, grid, rule)
        found = _by_groups(x, grid, rule, lambda rows, _: rule_e4m3(rows, block, rule, tensor), axis, block_size)
        scale = np.where(np.isnan(tensor), tensor, found.scale)
        return Scales(scale, None, f32(scale * tensor), tensor)
    return _by_groups(x, grid, rule, _RULES[rule], axis, block_size)


def _by_groups(
    x: NDArray[np.float32], grid: Grid, rule: str, observe: Rule, axis: int | None, block_size: int | None
) -> Scales:
    if axis is None and block_size is None:
        return _observe(x.reshape((1,) * x.ndim + (x.size,)), grid, rule, observe)
    axis = range(x.ndim)[-1 if axis is None else axis]
    length = x.shape[axis]
    if block_size is None:
        kept = tuple(n if i == axis else 1 for i, n in enumerate(x.shape))
        rows = np.moveaxis(x, axis, 0).reshape(*kept, x.size // max(length, 1))
        return _observe(rows, grid, rule, observe)
    short = length % block_size
    head, tail = np.split(x, [length - short], axis)
    parts = [_observe(_blocks(head, axis, block_size), grid, rule, observe)]
    if short:
        parts.append(_observe(_blocks(tail, axis, short), grid, rule, observe))
    return _join(parts, axis)


def spread(
    a: NDArray[np.float32], shape: tuple[int, ...], axis: int | None, block_size: int | None
) -> NDArray[np.float32]:
    """Give every element of an array of this shape its group's number."""
    if block_size is None:
        return np.broadcast_to(a, shape)
    axis = range(len(shape))[-1 if axis is None else axis]
    blocked = tuple(-(-n // block_size) if i == axis else n for i, n in enumerate(shape))
    return np.repeat(np.broadcast_to(a, blocked), block_size, axis).take(np.arange(shape[axis]), axis)
