"""The three products of a quantized layer.

Forward ``y = X W^T``; backward ``dL/dx = G W`` and ``dL/dW = G'^T X``, where every operand is what its `Spec` makes of
the float one. What autograd keeps in between is codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

import lowbit as lb
from lowbit.torch import _codes, _integer
from lowbit.torch._contract import Convolution
from lowbit.torch._operands import (
    Kept,
    Operand,
    as_is,
    decode,
    encode,
    factors,
    float32_products,
    nothing,
    quantized,
    rescaled,
    rotated,
)
from lowbit.torch._spec import Products, Rotation, Spec

#: What a layer's record holds: the numbers it saw last.
SLOTS = (
    "peak",  # the largest |dL/dy| since the last step of the optimizer
    "input_scale",
    "input_clipped",  # shares of the numbers
    "input_zeros",  # that were not zero, and were rounded to it
    "weight_scale",
    "weight_clipped",
    "weight_zeros",
    "grad_scale",
    "grad_clipped",
    "grad_zeros",
    "calls",  # backward products since the last step
)
_PEAK, _INPUT, _WEIGHT, _GRAD, _CALLS = 0, 1, 4, 7, 10
#: How many of them the forward product fills.
FORWARD_SLOTS = _GRAD
_NONE = torch.empty(0)


@dataclass(frozen=True)
class Held:
    """A weight that is rounded already, for one product or for many."""

    kept: Kept
    operand: Operand


@dataclass(frozen=True)
class Call:
    """What a product needs beside its tensors: a plain record, so that an operation can take it as text.

    `keep`: something is to be kept for the gradients; `recording`: shares are wanted; `fixed`: what is kept must have
    the sizes of `kept_sizes`, whatever the numbers are; `held`: the weight, where it need not be rounded.
    """

    products: Products
    geometry: Convolution | None
    keep: bool
    recording: bool
    fixed: bool = False
    held: Held | None = None


#: The codes of the input, its bits (1: not clipped), and the codes of the weight.
Saved = tuple[Kept, Tensor, Kept]


def words(key: Tensor | None) -> lb.Key | None:
    """Make a key of the two words that were drawn for a call."""
    if key is None:
        return None
    k0, k1 = (word % (1 << 64) for word in key.tolist())
    return lb.Key.from_words(k0, k1)


def _fold(key: lb.Key | None, label: str) -> lb.Key | None:
    return None if key is None else key.fold(label)


def _input_scale(spec: Spec, clip: Tensor | None) -> float | None:
    """PACT: the clip is the largest value."""
    if spec.scale != "pact":
        return None
    assert clip is not None
    return _given(np.float32(clip.item()) / np.float32(spec.record.max))


def _given(scale: np.float32) -> float:
    """Keep a scale within what lowbit takes."""
    return float(min(max(scale, np.float32(2.0**-126)), np.float32(2.0**126)))


def _bounds(spec: Spec, scale: Tensor, clip: Tensor | None) -> tuple[float, float]:
    """Find the first and the last number that is not clipped."""
    fmt = spec.record
    if spec.scale == "pact":
        assert clip is not None
        # Eq. 1 of arXiv:1805.06085: x is itself from 0 up to, but not including, the clip.
        top = float(np.nextafter(np.float32(clip.item()), np.float32(-math.inf)))
    else:
        # Binary numbers: |x| <= 1, whatever they are scaled by (BNN, XNOR-Net).
        top = 1.0 if fmt.name == "sign" else float(scale.reshape(()) * fmt.max)
    return (-top if fmt.signed else 0.0), top


def _along(operand: Operand, like: Tensor) -> Operand:
    """Turn the scales of output channels from the weight's first axis to the result's second."""
    if operand.scale is None or operand.scale.numel() == 1:
        return operand
    return replace(operand, scale=operand.scale.reshape(1, -1, *(1,) * (like.dim() - 2)))


def _folded(operand: Operand) -> Operand:
    """Multiply scales that change along the sum into the values."""
    if operand.scale is None or operand.scale.numel() == 1:
        return operand
    return Operand(operand.values * operand.scale, None, None)


def _note(record: Tensor, slot: int, x: Tensor, operand: Operand, spec: Spec | None) -> None:
    """Record an operand's scale (0 where it is not one, or none) and its shares of clipped and of vanished numbers."""
    y = _whole(operand)
    if not x.numel() or y.shape != x.shape or spec is None:
        return
    # The largest value and the scale: of the format, or where its scales are in the values, what was given.
    largest, scale = y.abs().amax(), torch.zeros(())
    if operand.steps is not None:
        largest = torch.tensor(operand.steps.step * operand.steps.most)
        scale = torch.tensor(operand.steps.step / lb.get_format(spec.format).smallest)
    if operand.scale is not None:
        largest, scale = largest if operand.steps is None else largest * operand.scale, operand.scale.mean()
    record[slot] = scale
    record[slot + 1] = (x.abs() > largest).sum() / x.numel()
    record[slot + 2] = ((y == 0) & (x != 0)).sum() / x.numel()


def forward(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    clip: Tensor | None,
    key: Tensor | None,
    call: Call,
) -> tuple[Tensor, Saved, Tensor]:
    """Compute y in float32, what is kept for the gradients, and the record of both operands."""
    p, drawn = call.products, words(key)
    x, w = x.detach(), w.detach()
    with torch.no_grad(), float32_products(x.device.type):
        record = torch.zeros(FORWARD_SLOTS) if call.recording or call.fixed else _NONE
        x_kept, w_kept = nothing(x.device), nothing(x.device)
        mask = torch.empty(0, dtype=torch.uint8, device=x.device)
        if p.input is None:
            xs = as_is(x)
        else:
            x_kept = encode(x, p.input, axis=1, scale=_input_scale(p.input, clip), key=_fold(drawn, "input"))
            xs = decode(x_kept, p.input, axis=1)
        if call.held is not None:
            w_kept, ws = call.held.kept, call.held.operand
        elif p.weight is None:
            ws = as_is(w)
        else:
            w_kept = encode(w, p.weight, axis=1, key=_fold(drawn, "weight"))
            ws = decode(w_kept, p.weight, axis=1, shape=tuple(w.shape))
        if call.geometry is None:
            y = _integer.matmul(p.compute, xs, ws, turn_b=True)
        else:
            # What goes in with channels last comes out so.
            last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
            layout = torch.channels_last if last and not call.fixed else torch.contiguous_format
            y = _integer.forward(p.compute, call.geometry, xs, ws, layout)
        y = rescaled(y, xs, _along(ws, y))
        if bias is not None:
            y += bias.detach().reshape(1, -1, *(1,) * (y.dim() - 2))
        if call.recording:
            _note(record, _INPUT, x, xs, p.input)
            _note(record, _WEIGHT, w, ws, p.weight)
        if call.keep and p.input is not None and p.input.clips:
            mask = _codes.clip_bits(x, *_bounds(p.input, x_kept.scale, clip), always=call.fixed)
        if not call.keep:
            x_kept, w_kept = nothing(x.device), nothing(x.device)
        elif p.input_again is not None:
            turned = _turned(x, p.rotate_weight, 0, drawn)
            x_kept = encode(turned, p.input_again, axis=0, key=_fold(drawn, "input_again"))
        return y, (x_kept, mask, w_kept), record


def _turned(x: Tensor, turn: Rotation | None, axis: int, key: lb.Key | None) -> Tensor:
    if turn is None:
        return x
    return rotated(x, turn, axis=axis, key=lb.Key(0).fold("signs") if key is None or turn.fixed else key.fold("signs"))


def keeps_float(products: Products) -> bool:
    """Say whether the float input itself must be kept for dL/dW."""
    return products.input is None and products.input_again is None


def _whole(operand: Operand) -> Tensor:
    return operand.values if operand.scale is None else operand.values * operand.scale


def _input_again(x: Tensor, kept: Kept, p: Products, key: lb.Key | None) -> Operand:
    """Make the input's operand of dL/dW."""
    if p.input_again is not None:
        return _folded(decode(kept, p.input_again, axis=0))
    if p.rotate_weight is None:
        return as_is(x) if p.input is None else _folded(decode(kept, p.input, axis=1))
    floats = x if p.input is None else _whole(decode(kept, p.input, axis=1))
    return as_is(_turned(floats, p.rotate_weight, 0, key))


def hold(w: Tensor, products: Products) -> Held | None:
    """Round a weight once, if its spec rounds it to the same each time."""
    spec = products.weight
    if spec is None or spec.random:
        return None
    with torch.no_grad():
        kept = encode(w, spec, axis=1)
        return Held(kept, decode(kept, spec, axis=1, shape=tuple(w.shape)))


def _weight_again(w: Tensor, kept: Kept, call: Call, turn: Rotation | None, key: lb.Key | None) -> Operand:
    """Make the weight's operand of dL/dx."""
    p = call.products
    if p.weight_again is not None:
        turned = _turned(w, turn, 0, key)
        return _folded(quantized(turned, p.weight_again, axis=0, key=_fold(key, "weight_again")))
    if call.held is not None:
        ws = call.held.operand
    else:
        ws = as_is(w) if p.weight is None else decode(kept, p.weight, axis=1, shape=tuple(w.shape))
    return _folded(ws) if turn is None else as_is(_turned(_whole(ws), turn, 0, key))


def _gradient(
    g: Tensor,
    spec: Spec | None,
    grad_scale: Tensor | None,
    grad_max: Tensor | None,
    axis: int,
    key: lb.Key | None,
    integer: bool,
) -> Operand:
    """Make an operand of dL/dy."""
    if spec is None:
        return as_is(g)
    scale: float | str | None = None
    if spec.scale == "gradscale":
        assert grad_scale is not None
        scale = 1 / float(grad_scale)
    elif spec.scale == "hindsight":
        assert grad_max is not None
        largest = np.float32(grad_max.item())
        # Before the first step there is only the present maximum.
        scale = _given(largest / np.float32(spec.record.reference)) if largest > 0 else "amax"
    return _folded(quantized(g, spec, axis=axis, scale=scale, key=key, integer=integer))


def _look(g: Tensor, call: Call, record: Tensor) -> bool:
    """Record the largest magnitude where that is asked for, and say whether all is well.

    A given scale would turn infinities into the largest value, and hide them from whoever scales the loss.
    """
    if not (call.products.looked_at or call.recording):
        return True
    low, high = (bound.item() for bound in torch.aminmax(g))
    # NaN is neither more nor less: it must be asked for.
    peak = math.nan if math.isnan(low) or math.isnan(high) else max(-low, high)
    if call.products.watched or call.recording:
        before = record[_PEAK].item()
        record[_PEAK] = peak if math.isnan(peak) or math.isnan(before) else max(before, peak)
        record[_CALLS] += 1
    return math.isfinite(peak)


def backward(
    g: Tensor,
    x: Tensor,
    saved: Saved,
    w: Tensor,
    key: Tensor | None,
    grad_scale: Tensor | None,
    grad_max: Tensor | None,
    record: Tensor,
    call: Call,
    shape: tuple[int, ...],
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute dL/dx, dL/dW, dL/db and dL/dclip: float32, empty where not needed. Record the gradient's magnitude."""
    p, geometry, drawn = call.products, call.geometry, words(key)
    x_kept, mask, w_kept = saved
    with torch.no_grad(), float32_products(g.device.type):
        g = g.to(torch.float32)
        x_kept = replace(x_kept, shape=_kept_shape(shape, p))
        if not g.numel() or not _look(g, call, record):
            return _constant(shape, w, needs, float("nan") if g.numel() else 0.0)
        turn = p.rotate_input if geometry is None or geometry.groups == 1 else None
        dx = dw = db = dclip = torch.empty(0)
        if needs[2]:
            db = g.sum([d for d in range(g.dim()) if d != 1])
        for_input: Operand | None = None
        shapes = shape, w.shape, g.shape
        if needs[0] or needs[3]:
            turned = _turned(g, turn, 1, drawn)
            ws = _weight_again(w, w_kept, call, turn, drawn)
            integer = _integer.expected(p.compute, p.grad_input, ws, "grad_input", geometry, shapes)
            for_input = _gradient(turned, p.grad_input, grad_scale, grad_max, 1, _fold(drawn, "grad_input"), integer)
            if call.recording:
                _note(record, _GRAD, turned, for_input, p.grad_input)
            if geometry is None:
                dx = _integer.matmul(p.compute, for_input, ws)
            else:
                dx = _integer.grad_input(p.compute, geometry, torch.Size(shape), for_input, ws)
            dx = rescaled(dx, for_input, ws)
        xs = None
        if needs[1]:
            xs = _input_again(x, x_kept, p, drawn)
            for_weight = for_input if turn is None and _same(p) else None
            if for_weight is None:
                turned = _turned(g, p.rotate_weight, 0, drawn)
                integer = _integer.expected(p.compute, p.grad_weight, xs, "grad_weight", geometry, shapes)
                key_again = _fold(drawn, "grad_weight")
                for_weight = _gradient(turned, p.grad_weight, grad_scale, grad_max, 0, key_again, integer)
                if call.recording and for_input is None:
                    _note(record, _GRAD, turned, for_weight, p.grad_weight)
            if geometry is None:
                dw = _integer.matmul(p.compute, for_weight, xs, turn_a=True)
            else:
                dw = _integer.grad_weight(p.compute, geometry, w.shape, for_weight, xs)
            if p.weight is not None and p.weight.clips:
                dw = dw.contiguous()
                last = 1.0  # one pass less: what multiplies last does so with the mask
                *first, final = factors(for_weight, xs) or [last]
                if isinstance(final, float):
                    last = final
                else:
                    first.append(final)
                for factor in first:
                    dw.mul_(factor)
                _codes.keep_inside(dw, w, *_bounds(p.weight, w_kept.scale, None), last)
            else:
                dw = rescaled(dw, for_weight, xs)
        if mask.numel() and dx.numel():
            dx = dx.contiguous()
            clipped, where = _codes.take_outside(dx, mask)
            if needs[3] and p.input is not None:
                # Codes above zero were clipped from above; those at zero lay below it, where PACT is flat.
                xs = decode(x_kept, p.input, axis=1) if xs is None else xs
                signs = torch.sign(xs.values.reshape(-1)[where])
                dclip = (clipped * signs).sum(dtype=torch.float64).to(torch.float32)
        elif needs[3]:
            dclip = torch.zeros((), device=w.device)
        return dx if needs[0] else torch.empty(0), dw, db, dclip


def _constant(
    shape: tuple[int, ...], w: Tensor, needs: tuple[bool, bool, bool, bool], value: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give gradients that are all one number: zero of nothing, NaN of what is not finite."""
    sizes: list[list[int]] = [list(shape), list(w.shape), list(w.shape[:1]), []]
    dx, dw, db, dclip = (
        torch.full(size if need else [0], value, device=w.device) for size, need in zip(sizes, needs, strict=True)
    )
    return dx, dw, db, dclip


def _same(p: Products) -> bool:
    """Say whether one quantized dL/dy serves both products."""
    spec = p.grad_weight
    if spec != p.grad_input or p.rotate_weight is not None:
        return False
    return spec is None or not (spec.random or spec.in_blocks)


def _kept_shape(shape: tuple[int, ...], p: Products) -> tuple[int, ...]:
    """Give the shape of the numbers whose codes are kept: a rotation pads the batch."""
    if p.rotate_weight is None or p.input_again is None:
        return tuple(shape)
    return (shape[0] + -shape[0] % p.rotate_weight.block, *shape[1:])


def kept_sizes(x: Tensor, w: Tensor, call: Call) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Give empty tensors of the shapes of what `forward` keeps, for a compiler that plans memory."""
    p = call.products
    mask = x.new_empty(
        (math.prod(tuple(x.shape)) + 7) // 8 if call.keep and p.input is not None and p.input.clips else 0,
        dtype=torch.uint8,
    )
    again = p.input_again is not None
    x_kept = _sizes(
        x, _kept_shape(tuple(x.shape), p), p.input_again if again else p.input, 0 if again else 1, call.keep
    )
    return *x_kept, mask, *_sizes(x, coded_shape(w, call), p.weight, 1, call.keep)


def coded_shape(w: Tensor, call: Call) -> tuple[int, ...]:
    """Give the shape of the weight's codes: a tile is a row."""
    spec = call.products.weight
    if spec is None or spec.per != "tile":
        return tuple(w.shape)
    side = math.isqrt(spec.record.default_block or 1)
    return -(-w.shape[0] // side) * -(-w[0].numel() // side), side * side


def _sizes(
    like: Tensor, shape: tuple[int, ...], spec: Spec | None, axis: int, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if spec is None or not keep:
        kept = nothing(like.device)
        return tuple(like.new_empty(part.shape, dtype=part.dtype) for part in (kept.packed, kept.scale, kept.rest))  # type: ignore[return-value]  # three
    fmt = lb.get_format(spec.format)
    axis = 1 if spec.per == "tile" else axis
    scales = [1] * len(shape)
    if spec.in_blocks:
        scales = list(shape)
        scales[axis] = -(-shape[axis] // (spec.block_size or fmt.default_block or 1))
    elif spec.per in ("token", "channel"):
        scales[0] = shape[0]
    packed = like.new_empty((math.prod(shape) * fmt.bits + 7) // 8, dtype=torch.uint8)
    scale = like.new_empty(scales, dtype=torch.float32 if fmt.scale_format is None else torch.uint8)
    rest = scales if spec.scale == "minmax" else [1] if fmt.scale_format == "e4m3" else [0]
    return packed, scale, like.new_empty(rest, dtype=torch.float32)
