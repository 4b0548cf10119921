"""Operands of products: tensors rounded to a format's values, and the codes that are kept of them.

An operand is `values`, what a product multiplies, and `scale`, what its result is multiplied by: one number, or one
along an axis that the product does not sum over. Where scales change along the sum (blocks), or an offset is added,
they are in the values.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lowbit as lb
from lowbit.torch import _codes
from lowbit.torch._contract import Steps, steps
from lowbit.torch._spec import Rotation, Spec

#: Below it float32 loses digits, above it it has no numbers.
_LEAST, _MOST = 2.0**-126, float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Kept:
    """An operand as it is stored: packed codes, scales, and offsets or the scale of the tensor (see `_codes`)."""

    packed: Tensor
    scale: Tensor
    rest: Tensor
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Codes:
    """Whole numbers of steps as packed codes of a format: what a product of integers multiplies."""

    packed: Tensor
    format: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Operand:
    """What a product multiplies: numbers, or codes that become numbers when somebody asks for `values`."""

    numbers: Tensor | None
    scale: Tensor | None
    steps: Steps | None
    codes: Codes | None = None

    @cached_property
    def values(self) -> Tensor:
        """The numbers, unscaled."""
        if self.numbers is not None:
            return self.numbers
        assert self.codes is not None
        return _codes.values(self.codes.packed, self.codes.format, self.codes.shape)


def nothing(device: torch.device) -> Kept:
    """Keep nothing."""
    packed = torch.empty(0, dtype=torch.uint8, device=device)
    return Kept(packed, torch.empty(0, device=device), torch.empty(0, device=device), ())


def as_is(x: Tensor) -> Operand:
    """Take float32 numbers, unquantized."""
    return Operand(x.to(torch.float32), None, None)


def groups(spec: Spec, axis: int) -> dict[str, int | None]:
    """Say which numbers share a scale."""
    if spec.in_blocks:
        own = None if spec.record.scale_format is not None else spec.record.default_block
        return {"axis": axis, "block_size": spec.block_size or own}
    return {"axis": 0 if spec.per in ("channel", "token") else None, "block_size": None}


def encode(x: Tensor, spec: Spec, *, axis: int, scale: float | str | None = None, key: lb.Key | None = None) -> Kept:
    """Round numbers by a spec and keep their codes.

    Parameters
    ----------
    x : Tensor
        float32, bfloat16 or float16.
    spec : Spec
    axis : int
        Which axis the product sums over.
    scale : float or str, optional
        The scale or the rule, where it is not the spec's own.
    key : Key, optional
        For stochastic rounding.
    """
    if spec.per == "tile":
        x = _tiles(x, math.isqrt(lb.get_format(spec.format).default_block or 1))
        axis = 1
    given: Any = spec.scale if scale is None else scale
    options: dict[str, Any] = {**groups(spec, axis), "rounding": spec.rounding, "key": key if spec.random else None}
    shape = tuple(x.shape)
    try:
        return Kept(*_codes.quantize(x, spec.format, given, **options), shape)
    except lb.Error:
        finite = torch.isfinite(x)
        if finite.all():
            raise
    return _not_finite(x, finite, spec, given, options, shape)


def _not_finite(
    x: Tensor, finite: Tensor, spec: Spec, given: Any, options: dict[str, Any], shape: tuple[int, ...]
) -> Kept:
    """Make the scale of every group with a number that is not finite NaN, and so all its numbers.

    Under a scale of the tensor (``nvfp4``), which every number has a part in, that is every group.
    """
    fmt = spec.record
    packed, scale, rest = _codes.quantize(x.masked_fill(~finite, 0.0), spec.format, given, **options)
    if fmt.scale_format == "e4m3":
        scale = torch.full_like(scale, 127)
        return Kept(packed, scale, rest, shape)
    # NaN where the sum of a group is: found by the same cut into groups.
    marks = torch.where(finite, 0.0, float("nan"))
    groups = _codes.group_sums(marks, options["axis"], options["block_size"] or fmt.default_block).reshape(scale.shape)
    scale = torch.where(groups.isnan(), 255, scale) if scale.dtype == torch.uint8 else scale + groups
    return Kept(packed, scale.contiguous(), rest, shape)


def decode(kept: Kept, spec: Spec, *, axis: int, shape: tuple[int, ...] | None = None) -> Operand:
    """Make the operand of what `encode` kept; `shape` is that of the numbers, where tiles have another."""
    if spec.per == "tile":
        tiles = _codes.dequantize(kept.packed, spec.format, kept.shape, kept.scale, kept.rest, **groups(spec, 1))
        assert shape is not None
        return Operand(_untiled(tiles, shape, math.isqrt(lb.get_format(spec.format).default_block or 1)), None, None)
    if spec.in_blocks or kept.rest.numel():
        values = _codes.dequantize(kept.packed, spec.format, kept.shape, kept.scale, kept.rest, **groups(spec, axis))
        return Operand(values, None, None)
    return Operand(None, kept.scale, steps(spec.format), Codes(kept.packed, spec.format, kept.shape))


def quantized(
    x: Tensor,
    spec: Spec | None,
    *,
    axis: int,
    scale: float | str | None = None,
    key: lb.Key | None = None,
    integer: bool = False,
) -> Operand:
    """Round numbers by a spec (or not at all) and make an operand of them; `integer`: of codes, if it can be."""
    if spec is None:
        return as_is(x)
    given = None if integer else _power_of_two(spec, scale)
    if given is not None and spec.samples == 1:
        # Times a power of two values stay whole numbers of steps: one pass rounds and scales.
        values = _codes.fake_quantize(x, spec.format, given, rounding=spec.rounding, key=key if spec.random else None)
        whole = steps(spec.format)
        return Operand(values, None, None if whole is None else Steps(whole.step * given, whole.most))
    if spec.samples == 1:
        kept = encode(x, spec, axis=axis, scale=scale, key=key)
        return decode(kept, spec, axis=axis, shape=tuple(x.shape))
    assert key is not None
    draws = [quantized(x, spec.single, axis=axis, scale=scale, key=key.fold(i)) for i in range(spec.samples)]
    total = draws[0].values
    for draw in draws[1:]:
        total = total + draw.values
    if draws[0].scale is None:
        return Operand(total / spec.samples, None, None)
    sums = None if draws[0].steps is None else draws[0].steps.times(spec.samples)
    return Operand(total, draws[0].scale / spec.samples, sums)


def _power_of_two(spec: Spec, scale: float | str | None) -> float | None:
    """Give the scale, where it is a given number, and a power of two far from the ends of float32."""
    number = spec.scale if scale is None else scale
    if spec.in_blocks or spec.per != "tensor" or not isinstance(number, float):
        return None
    return number if math.frexp(number)[0] == 0.5 and 2.0**-64 <= number <= 2.0**64 else None


def rescaled(product: Tensor, *operands: Operand) -> Tensor:
    """Multiply a product by its operands' scales."""
    for factor in factors(*operands):
        product.mul_(factor)
    return product


def factors(*operands: Operand) -> list[float | Tensor]:
    """List what a product is to be multiplied by, in order: the operands' scales, as one where both are one number."""
    scales = [operand.scale for operand in operands if operand.scale is not None]
    if len(scales) == 2 and scales[0].numel() == scales[1].numel() == 1:
        # Two float32 numbers multiply exactly in float64, which is rounded to float32 once.
        both = float(scales[0]) * float(scales[1])
        if not (0 < both < _LEAST or both > _MOST):
            return [both]
    return [float(scale) if scale.numel() == 1 else scale for scale in scales]


def rotated(x: Tensor, turn: Rotation, *, axis: int, key: lb.Key) -> Tensor:
    """Turn runs of numbers along an axis: random signs, then an orthonormal Hadamard transform (in float32)."""
    rows = x.to(torch.float32).movedim(axis, -1)
    padding = -rows.shape[-1] % turn.block
    rows = torch.nn.functional.pad(rows, (0, padding)).reshape(*rows.shape[:-1], -1, turn.block)
    # Bit p % 32 of word p // 32 says whether number p of every block changes its sign.
    bits = np.unpackbits(lb.random_bits(key, -(-turn.block // 32)).view(np.uint8), count=turn.block, bitorder="little")
    signs = torch.from_numpy(np.where(bits, np.float32(-1), np.float32(1))).to(x.device)
    return _codes.hadamard(rows * signs).flatten(-2).movedim(-1, axis)


def _tiles(w: Tensor, side: int) -> Tensor:
    """Cut a weight, seen as a matrix, into squares: one row for each, zeros where it ends."""
    matrix = w.detach().flatten(1)
    matrix = torch.nn.functional.pad(matrix, (0, -matrix.shape[1] % side, 0, -matrix.shape[0] % side))
    squares = matrix.unflatten(1, (-1, side)).unflatten(0, (-1, side))
    return squares.permute(0, 2, 1, 3).reshape(-1, side * side)


def _untiled(tiles: Tensor, shape: tuple[int, ...], side: int) -> Tensor:
    rows, columns = -(-shape[0] // side), -(-math.prod(shape[1:]) // side)
    squares = tiles.reshape(rows, columns, side, side).permute(0, 2, 1, 3)
    matrix = squares.reshape(rows * side, columns * side)
    return matrix[: shape[0], : math.prod(shape[1:])].reshape(shape).contiguous()


def float32_products(device: str) -> contextlib.AbstractContextManager[Any]:
    """Leave autocast alone: products are float32 whatever the caller's layers are cast to."""
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()
