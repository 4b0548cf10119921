"""What operands need of the core, or on other devices of the same in torch operations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import lowbit as lb
from lowbit import _core
from lowbit.torch import _bits, _bridge, _keys, _library
from lowbit.torch._options import Options, on_core

_FLOAT32 = np.dtype(np.float32)
_ONE = np.ones((), np.float32)


def _options(
    format: str,
    scale: str | float | None,
    axis: int | None,
    block_size: int | None,
    rounding: str,
    key: lb.Key | None,
) -> Options:
    rule = scale if isinstance(scale, str) else None
    given = torch.tensor(scale) if isinstance(scale, float) else None
    words = None if key is None else _keys.pack(key.words)
    return Options(format, rule, given, None, None, axis, block_size, rounding, words)


def quantize(
    x: Tensor,
    format: str,
    scale: str | float | None,
    *,
    axis: int | None,
    block_size: int | None,
    rounding: str,
    key: lb.Key | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give packed codes, scales (or their codes), and the offsets or the scale of the tensor (else an empty tensor)."""
    if on_core(x) and not x.requires_grad:
        given: Any = np.array(scale, np.float32) if isinstance(scale, float) else scale
        words = None if key is None else key.words
        coded = _core.quantize(_bridge.array(x), format, given, None, None, axis, block_size, rounding, words, None)
        shifts = torch.empty(0) if coded[2] is None else torch.from_numpy(coded[2])
        shifts = shifts if coded[3] is None else torch.tensor([coded[3]])
        return torch.from_numpy(coded[0]), torch.from_numpy(coded[1]), shifts
    options = _options(format, scale, axis, block_size, rounding, key)
    packed, scales, offset, tensor, _ = _library.coded(x.detach(), options)
    rest = tensor.reshape(1) if tensor is not None else x.new_empty(0, dtype=torch.float32)
    return packed, scales, rest if offset is None else offset


def dequantize(
    packed: Tensor,
    format: str,
    shape: tuple[int, ...],
    scale: Tensor,
    rest: Tensor,
    *,
    axis: int | None,
    block_size: int | None,
) -> Tensor:
    """Compute the float32 numbers that `quantize` kept; NaN where a group's scale is."""
    fmt = _core.get_format(format)
    tensor = rest.reshape(()) if rest.numel() and fmt.scale_format == "e4m3" else None
    offset = rest if rest.numel() and tensor is None else None
    if block_size is None and axis is not None and fmt.scale_format is not None:
        block_size = fmt.default_block
    bad = scale.isnan() if scale.is_floating_point() else None
    if bad is not None and bad.any():
        scale = scale.masked_fill(bad, 1.0)
    else:
        bad = None
    y = _library.decoded(packed, scale, offset, tensor, format, shape, axis, block_size, None, None, torch.float32)
    if bad is None:
        return y
    if block_size is not None:
        axis = -1 if axis is None else axis
        bad = bad.repeat_interleave(block_size, axis).narrow(axis, 0, shape[axis])
    return y.masked_fill_(bad, float("nan"))


def values(packed: Tensor, format: str, shape: tuple[int, ...]) -> Tensor:
    """Look up the format's values, unscaled."""
    if on_core(packed):
        one = _ONE.reshape((1,) * len(shape))
        bytes_ = packed.numpy()
        return torch.from_numpy(
            _core.dequantize(bytes_, format, shape, one, None, None, None, None, None, _FLOAT32, None)
        )
    unit = packed.new_ones((1,) * len(shape), dtype=torch.float32)
    return _library.decoded(packed, unit, None, None, format, shape, None, None, None, None, torch.float32)


def fake_quantize(x: Tensor, format: str, scale: float, *, rounding: str, key: lb.Key | None) -> Tensor:
    """Round float32 numbers to a format's values times a scale."""
    if on_core(x) and x.is_contiguous() and not x.requires_grad:
        words = None if key is None else key.words
        given = np.array(scale, np.float32)
        y = _core.fake_quantize(_bridge.array(x), format, given, None, None, None, None, rounding, words, None)
        return torch.from_numpy(y)
    return _library.rounded(x.detach(), False, _options(format, scale, None, None, rounding, key))[0]


def hadamard(rows: Tensor) -> Tensor:
    """Transform the last axis, orthonormally."""
    if on_core(rows):
        return torch.from_numpy(lb.hadamard_transform(rows.contiguous().numpy()))
    n, half = rows.shape[-1], 1
    shape = rows.shape
    while half < n:
        a, b = rows.unflatten(-1, (-1, 2, half)).unbind(-2)
        rows = torch.stack([a + b, a - b], -2).reshape(shape)
        half *= 2
    return rows * float(np.float32(n) ** np.float32(-0.5))


def group_sums(x: Tensor, axis: int | None, block_size: int | None) -> Tensor:
    """Sum the groups that share a scale, to the shape that their scales have."""
    if block_size is not None:
        axis = -1 if axis is None else axis
        rows = x.movedim(axis, -1)
        rows = torch.nn.functional.pad(rows, (0, -rows.shape[-1] % block_size))
        return rows.unflatten(-1, (-1, block_size)).sum(-1).movedim(-1, axis)
    if axis is None:
        return x.sum().reshape((1,) * x.dim())
    rest = [d for d in range(x.dim()) if d != axis % x.dim()]
    return x.sum(rest, keepdim=True)


def clip_bits(x: Tensor, low: float, high: float, *, always: bool) -> Tensor:
    """Pack a bit for every number of low..high, eight a byte; nothing, unless `always`, where there is no other."""
    if on_core(x):
        bits, outside = _core.clip_bits(_bridge.array(x), low, high)
        return torch.from_numpy(bits) if outside or always else torch.empty(0, dtype=torch.uint8)
    inside = (x >= low) & (x <= high)
    if not always and inside.all():
        return x.new_empty(0, dtype=torch.uint8)
    return _bits.packed_plain(inside)


def keep_inside(y: Tensor, x: Tensor, low: float, high: float, factor: float) -> None:
    """Multiply y, which is contiguous, by a factor, and make numbers zero where those of x are outside low..high."""
    if on_core(y):
        _core.keep_inside(y.numpy().reshape(-1), _bridge.array(x), low, high, factor)
    else:
        y.mul_(factor).masked_fill_(~((x >= low) & (x <= high)), 0.0)


def take_outside(x: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Take the numbers whose bit is not set out of x, leaving zeros; also say where they were, in C order."""
    if on_core(x):
        taken, where = _core.take_outside(x.numpy().reshape(-1), bits.numpy())
        return torch.from_numpy(taken), torch.from_numpy(where)
    places = (_bits.unpack_bits(bits, (x.numel(),)) == 0).nonzero().reshape(-1)
    flat = x.view(-1)
    out = flat[places]
    flat[places] = 0.0
    return out, places
