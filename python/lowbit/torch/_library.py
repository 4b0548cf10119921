"""What operations on tensors do, and the same as custom operators, which graphs can hold.

An operator is opaque to a graph: what it computes is what eager mode computes, whatever compiles the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowbit import _core
from lowbit.torch import _bridge, _clip, _keys, _plain
from lowbit.torch._options import Options, on_core, scale_shape


def rounded(x: Tensor, clip: bool, options: Options) -> tuple[Tensor, Tensor | None]:
    """Round to a format and back; with `clip` also where the gradient passes."""
    if not on_core(x):
        options.check(tuple(x.shape))
        y = torch.empty_like(x).copy_(_plain.fake_quantize(x, options))
    elif x.is_contiguous():
        y = _bridge.tensor(_core.fake_quantize(_bridge.array(x), *options.core(x.ndim), out=None))
    else:
        y = torch.empty_like(x)
        _core.fake_quantize(_bridge.array(x), *options.core(x.ndim), out=_bridge.array(y))
    return y, _inside(x, options) if clip else None


def _inside(x: Tensor, options: Options) -> Tensor:
    """Whether each number lies between its scale's first and last value: sooner by the core, where that can tell."""
    found = _clip.inside(x, options) if on_core(x) else None
    return _plain.inside(x, options) if found is None else found


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor | None]) -> None:
    ctx.clip = inputs[1]
    if output[1] is not None:
        ctx.mark_non_differentiable(output[1])
    if ctx.clip:
        ctx.save_for_backward(output[1])


def _straight_through(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    passed = torch.where(ctx.saved_tensors[0], grad, 0.0) if ctx.clip else grad
    return passed, *(None,) * (1 + len(Options._fields))


class Round(torch.autograd.Function):
    """`rounded` with its straight-through gradient, where no graph watches: a third of an operator's overhead."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, clip: bool, *options: Any) -> Tensor:
        output = rounded(x, clip, Options(*options))
        _keep(ctx, (x, clip), output)
        return output[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return _straight_through(ctx, grad)


@torch.library.custom_op("lowbit::fake_quantize", mutates_args=())
def fake_quantize(
    x: Tensor,
    clip: bool,
    format: str,
    rule: str | None,
    scale: Tensor | None,
    offset: Tensor | None,
    tensor_scale: Tensor | None,
    axis: int | None,
    block_size: int | None,
    rounding: str,
    key: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Round, as an operator: `rounded`; without `clip` the second output is empty."""
    options = Options(format, rule, scale, offset, tensor_scale, axis, block_size, rounding, key)
    y, inside = rounded(x, clip, options)
    return y, torch.empty(0, dtype=torch.bool, device=x.device) if inside is None else inside.contiguous()


@fake_quantize.register_fake
def _(x: Tensor, clip: bool, *options: Any) -> tuple[Tensor, Tensor]:
    Options(*options).check_fake(x.shape)
    return torch.empty_like(x), x.new_empty(x.shape if clip else 0, dtype=torch.bool)


fake_quantize.register_autograd(_straight_through, setup_context=_keep)


def absent(device: torch.device) -> Tensor:
    """Stand for None among an operator's outputs, which must be tensors."""
    return torch.zeros((), dtype=torch.bool, device=device)


def coded(x: Tensor, options: Options) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Round to codes: these packed, scales, offsets, the tensor's scale and the word that tells the key."""
    fmt = _core.get_format(options.format)
    if not on_core(x):
        if fmt.coded:
            options.check(tuple(x.shape))
            if (codes := _plain.quantize(x, options)) is not None:
                return *codes, _identity(options)
        # What the core refuses, it explains.
        x = x.cpu()
    packed, scale, offset, tensor = _core.quantize(_bridge.array(x), *options.core(x.ndim), out=None)
    return (
        torch.from_numpy(packed),
        torch.from_numpy(scale),
        None if offset is None else torch.from_numpy(offset),
        None if tensor is None else torch.tensor(tensor, dtype=torch.float32),
        _identity(options),
    )


def _identity(options: Options) -> Tensor | None:
    return _keys.identity(options.key) if options.rounding == "dither" and options.key is not None else None


@torch.library.custom_op("lowbit::quantize", mutates_args=())
def quantize(
    x: Tensor,
    format: str,
    rule: str | None,
    scale: Tensor | None,
    offset: Tensor | None,
    tensor_scale: Tensor | None,
    axis: int | None,
    block_size: int | None,
    rounding: str,
    key: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Round to codes, as an operator: `coded`; `absent` for None."""
    options = Options(format, rule, scale, offset, tensor_scale, axis, block_size, rounding, key)
    packed, scales, *rest = coded(x, options)
    offsets, tensor, identity = (absent(x.device) if part is None else part for part in rest)
    return packed, scales, offsets, tensor, identity


@quantize.register_fake
def _(x: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    options = Options(*given)
    options.check_fake(x.shape)
    fmt = _core.get_format(options.format)
    if not fmt.coded:
        _core.quantize(np.zeros(0, np.float32), *Options(fmt.name).core(1), out=None)
    shape, affine = scale_shape(tuple(x.shape), options)
    coded = fmt.scale_format is not None
    none = x.new_empty((), dtype=torch.bool)
    return (
        x.new_empty((x.numel() * fmt.bits + 7) // 8, dtype=torch.uint8),
        x.new_empty(shape, dtype=torch.uint8 if coded else torch.float32),
        x.new_empty(shape, dtype=torch.float32) if affine else none,
        x.new_empty((), dtype=torch.float32) if fmt.scale_format == "e4m3" else none.clone(),
        x.new_empty((), dtype=torch.int64) if options.rounding == "dither" else none.clone(),
    )


def decoded(
    packed: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    tensor_scale: Tensor | None,
    format: str,
    shape: Sequence[int],
    axis: int | None,
    block_size: int | None,
    key: Tensor | None,
    key_id: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Compute the numbers that codes stand for."""
    if key is not None and key_id is not None and int(_keys.identity(key)) != int(key_id):
        raise _core.Error("key: not the key that these codes were dithered with")
    if on_core(packed):
        y = torch.empty(shape, dtype=dtype)
        scales, offsets = _bridge.array(scale), None if offset is None else _bridge.array(offset)
        tensor = None if tensor_scale is None else float(tensor_scale)
        words = None if key is None else _keys.words(key)
        parts = scales, offsets, tensor, axis, block_size, words, _bridge.FLOATS[dtype], _bridge.array(y)
        _core.dequantize(_bridge.array(packed), format, shape, *parts)
        return y
    codes = _plain.Codes(packed, scale, offset, tensor_scale)
    return _plain.dequantize(codes, format, tuple(shape), axis, block_size, key, dtype)


@torch.library.custom_op("lowbit::dequantize", mutates_args=())
def dequantize(
    packed: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    tensor_scale: Tensor | None,
    format: str,
    shape: Sequence[int],
    axis: int | None,
    block_size: int | None,
    key: Tensor | None,
    key_id: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Decode, as an operator: `decoded`."""
    return decoded(packed, scale, offset, tensor_scale, format, shape, axis, block_size, key, key_id, dtype)


@dequantize.register_fake
def _(packed: Tensor, *given: Any) -> Tensor:
    return packed.new_empty(given[4], dtype=given[-1])
