"""Quantization and packing in torch operations, as `lowbit.reference.quantizers` has it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from lowbit.reference.blocks import BlockFormat
from lowbit.reference.formats import Grid, Integer
from lowbit.reference.names import get_format
from lowbit.torch import _keys
from lowbit.torch._plain.floats import f32, narrow, widen
from lowbit.torch._plain.grids import rounded
from lowbit.torch._plain.scales import Scales, decode_scales, scale_codes, scales, spread

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.torch._options import Options


class Codes(NamedTuple):
    """What `quantize` gives."""

    packed: Tensor
    scale: Tensor
    offset: Tensor | None
    tensor_scale: Tensor | None


class _Plan(NamedTuple):
    """Where the numbers of a tensor go."""

    grid: Grid
    t: Tensor
    """In units of the scale; with an offset, above the lowest value."""
    scales: Scales


def grouping(ndim: int, grid: Grid, options: Options) -> tuple[int | None, int | None]:
    """Axis and block size: block formats have theirs, other formats' default is for who asks for nothing."""
    axis, block_size = options.axis, options.block_size
    if ndim and block_size is None and (axis is None or grid.scale_format):
        block_size = grid.default_block
    return axis, block_size


def _given(value: Tensor, x: Tensor, options: Options) -> Tensor:
    """Give numbers as many dimensions as `x` has; a list lies along `axis`."""
    numbers = f32(value.to(x.device, torch.float64)) if not value.is_floating_point() else widen(value.to(x.device))
    if value.ndim == 1 and options.axis is not None and options.block_size is None:
        return numbers.reshape([-1 if i == options.axis % x.ndim else 1 for i in range(x.ndim)])
    return numbers.reshape((1,) * (x.ndim - numbers.ndim) + numbers.shape)


def _scales(x: Tensor, grid: Grid, options: Options) -> Scales:
    """Take the scales that were given, or those of a rule."""
    tensor = None if options.tensor_scale is None else _given(options.tensor_scale, x, options).reshape(())
    if options.scale is None:
        return scales(x, grid, options.rule or grid.default_scale, *grouping(x.ndim, grid, options), tensor)
    scale = _given(options.scale, x, options)
    if options.offset is not None:
        scale, offset = torch.broadcast_tensors(scale, _given(options.offset, x, options))  # type: ignore[no-untyped-call]
        return Scales(scale, offset)
    if grid.scale_format != "e4m3":
        return Scales(scale)
    tensor = x.new_ones(()) if tensor is None else tensor
    return Scales(scale, None, f32(scale * tensor), tensor)


def _plan(x: Tensor, options: Options) -> _Plan:
    """Find the scales, and t = (x - offset) * (1 / scale)."""
    grid = get_format(options.format)
    groups = grouping(x.ndim, grid, options)
    found = _scales(x, grid, options)
    t = x if found.offset is None else f32(x - spread(found.offset, x.shape, *groups))
    encode = found.scale if found.encode is None else found.encode
    t = f32(t * spread(f32(1.0 / encode), x.shape, *groups))
    if found.offset is not None:
        assert isinstance(grid, Integer)
        grid = Integer(name="steps", bits=grid.bits, lowest=0, highest=grid.highest - grid.lowest)
    return _Plan(grid, t, found)


def _dither(key: Tensor, like: Tensor) -> Tensor:
    """Give the subtractive dither of every number: odd / 2^25 in (-1/2, 1/2), exact."""
    words = _words(key, "dither", like)
    return ((words >> 8).to(torch.float64) + 0.5) * 2.0**-24 - 0.5


def _words(key: Tensor, purpose: str, like: Tensor) -> Tensor:
    return _keys.random_bits(_keys.folded(key.to(like.device), purpose), like.numel()).reshape(like.shape)


def _steps(plan: _Plan, options: Options) -> tuple[Tensor, Tensor | None]:
    """Round t; and the dither that was added."""
    if options.rounding == "nearest":
        return rounded(plan.grid, plan.t, None), None
    assert options.key is not None
    if options.rounding == "stochastic":
        return rounded(plan.grid, plan.t, _words(options.key, "rounding", plan.t)), None
    u = _dither(options.key, plan.t)
    return rounded(plan.grid, f32(plan.t + u), None), u


def _reconstruct(
    steps: Tensor, dither: Tensor | None, found: Scales, axis: int | None, block_size: int | None, dtype: torch.dtype
) -> Tensor:
    """Compute value * scale (+ offset), then round it to `dtype`."""
    steps = steps if dither is None else f32(steps - dither)
    scale = found.scale if found.tensor is None else f32(found.scale * found.tensor)
    y = f32(steps * spread(scale, steps.shape, axis, block_size))
    if found.offset is not None:
        y = f32(y + spread(found.offset, steps.shape, axis, block_size))
    return narrow(y, dtype)


def fake_quantize(x: Tensor, options: Options) -> Tensor:
    """Round to a format and back."""
    plan = _plan(widen(x), options)
    groups = grouping(x.ndim, get_format(options.format), options)
    return _reconstruct(*_steps(plan, options), plan.scales, *groups, x.dtype)


def inside(x: Tensor, options: Options) -> Tensor:
    """Whether each number lies between the first and the last value of its scale; NaN does."""
    grid, t, _ = _plan(widen(x), options)
    low, high = (float(grid.values[0]), float(grid.values[-1])) if grid.coded else (-grid.max, grid.max)
    return ~((t < low) | (t > high))


def quantize(x: Tensor, options: Options) -> Codes | None:
    """Round to codes; None where a number has none."""
    grid, numbers = get_format(options.format), widen(x)
    plan = _plan(numbers, options)
    steps, _ = _steps(plan, options)
    scale, offset, _, tensor = plan.scales
    if torch.isnan(numbers).any() or torch.isnan(scale).any():
        return None
    lowest = float(grid.values[0])
    codes = _encode(grid, steps if offset is None else steps + lowest)
    coded = isinstance(grid, BlockFormat)
    return Codes(
        pack(codes.flatten(), grid.bits),
        scale_codes(grid, scale) if isinstance(grid, BlockFormat) else narrow(scale, torch.float32),
        None if offset is None else narrow(offset, torch.float32),
        narrow(tensor, torch.float32) if coded and tensor is not None else None,
    )


def dequantize(
    codes: Codes,
    format: str,
    shape: tuple[int, ...],
    axis: int | None,
    block_size: int | None,
    key: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Turn codes into numbers."""
    grid = get_format(format)
    table = torch.from_numpy(_decode_table(format)).to(codes.packed.device)
    count = int(np.prod(shape, dtype=np.int64))
    steps = table[unpack(codes.packed, grid.bits, count).to(torch.int64)].reshape(shape)
    scale = decode_scales(grid, codes.scale) if isinstance(grid, BlockFormat) else widen(codes.scale)
    offset = None if codes.offset is None else widen(codes.offset)
    tensor = None if codes.tensor_scale is None else widen(codes.tensor_scale)
    if offset is not None:
        steps = steps - float(grid.values[0])
    u = None if key is None else _dither(key, steps)
    return _reconstruct(steps, u, Scales(scale, offset, None, tensor), axis, block_size, dtype)


@lru_cache(maxsize=64)
def _decode_table(format: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    grid = get_format(format)
    return grid.decode(np.arange(2**grid.bits, dtype=np.uint16)).astype(np.float64)


@lru_cache(maxsize=64)
def _encode_table(format: str) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], int]:
    """Give the codes of a format's values, ascending, and that of -0.0."""
    grid = get_format(format)
    negative_zero = int(grid.encode(np.array([-0.0], np.float32))[0])
    return grid.encode(grid.values).astype(np.int64), negative_zero


def _encode(grid: Grid, values: Tensor) -> Tensor:
    """Give the codes of numbers of the grid, int64."""
    codes, negative_zero = _encode_table(grid.name)
    known = torch.from_numpy(grid.values.astype(np.float64)).to(values.device)
    found = torch.from_numpy(codes).to(values.device)[torch.searchsorted(known, values.contiguous())]
    return torch.where((values == 0) & torch.signbit(values), negative_zero, found)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Put codes of `bits` bits into one bit string, least significant bit first, zeros at its end."""
    each = ((codes[:, None] >> torch.arange(bits, device=codes.device)) & 1).flatten()
    each = torch.nn.functional.pad(each, (0, -each.numel() % 8)).view(-1, 8)
    return (each << torch.arange(8, device=codes.device)).sum(1).to(torch.uint8)


def unpack(packed: Tensor, bits: int, n: int) -> Tensor:
    """Take `n` codes of `bits` bits out again, int64."""
    each = ((packed[:, None].to(torch.int64) >> torch.arange(8, device=packed.device)) & 1).flatten()
    return (each[: n * bits].view(n, bits) << torch.arange(bits, device=packed.device)).sum(1)
