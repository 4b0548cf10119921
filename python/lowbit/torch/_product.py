"""The three products of a quantized layer, and how autograd and ``torch.compile`` call them.

Forward ``y = X W^T``; backward ``dL/dx = G W`` and ``dL/dW = G'^T X``, where every operand is what its `Spec` makes of the
float one. The same functions run in two ways: as an ``autograd.Function`` when PyTorch runs eagerly (a tenth of the cost of
a call), and as custom operations, opaque to the compiler, under ``torch.compile``.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

import lowbit as lb
from lowbit.torch import _codes
from lowbit.torch._contract import Convolution, matmul
from lowbit.torch._operands import (
    Kept,
    Operand,
    as_is,
    decode,
    encode,
    float32_products,
    quantized,
    rescaled,
    rotated,
)
from lowbit.torch._spec import Products, Rotation, Spec

#: What a layer's record holds: its numbers since the last look.
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
    "calls",  # products since the last step
)
_INPUT, _WEIGHT, _GRAD = 1, 4, 7
#: How many of them the forward product fills.
FORWARD_SLOTS = _GRAD


def _words(key: Tensor | None) -> lb.Key | None:
    if key is None:
        return None
    k0, k1 = (word % (1 << 64) for word in key.tolist())
    return lb.Key.from_words(k0, k1)


def _fold(key: lb.Key | None, label: str) -> lb.Key | None:
    return None if key is None else key.fold(label)


def _largest(format: str) -> float:
    return float(lb.get_format(format).max)


def _input_scale(spec: Spec | None, clip: Tensor | None) -> Tensor | None:
    """PACT: the clip is the largest value."""
    if spec is None or spec.scale != "pact":
        return None
    assert clip is not None
    return (clip.detach().to(torch.float32) / _largest(spec.format)).clamp(2.0**-126, 2.0**126)


def _bounds(spec: Spec, scale: Tensor, clip: Tensor | None) -> tuple[Tensor | float, Tensor | float]:
    """Find where the straight-through gradient ends."""
    fmt = lb.get_format(spec.format)
    if spec.scale == "pact":
        assert clip is not None
        high = clip.detach().to(torch.float32)
        return (-high if fmt.signed else 0.0), high
    # Binary numbers: |x| <= 1, whatever they are scaled by (BNN, XNOR-Net).
    top = torch.ones(()) if fmt.name == "sign" else scale * _largest(spec.format)
    return (-top if fmt.signed else 0.0), top


def _inside(x: Tensor, spec: Spec, scale: Tensor, clip: Tensor | None) -> Tensor:
    """Tell which numbers were not clipped."""
    low, high = _bounds(spec, scale, clip)
    if spec.scale != "pact":
        return (x >= low) & (x <= high)
    # Eq. 1 of arXiv:1805.06085: x is itself from 0 up to, but not including, the clip.
    return (x >= low if isinstance(low, float) else x > low) & (x < high)


def _along(scale: Tensor | None, like: Tensor) -> Tensor | None:
    """Turn the scales of output channels from the weight's first axis to the result's second."""
    if scale is None or scale.numel() == 1:
        return scale
    return scale.reshape(1, -1, *(1,) * (like.dim() - 2))


def _folded(operand: Operand) -> Operand:
    """Multiply scales that change along the sum into the values."""
    if operand.scale is None or operand.scale.numel() == 1:
        return operand
    return Operand(operand.values * operand.scale, None, None)


def _note(record: Tensor, slot: int, x: Tensor, operand: Operand) -> None:
    """Record an operand's scale and its shares of clipped and of vanished numbers."""
    y = operand.values if operand.scale is None else operand.values * operand.scale
    limit = y.abs().amax() if y.numel() else torch.zeros(())
    some = x.numel() or 1
    record[slot] = 1.0 if operand.scale is None else operand.scale.mean()
    record[slot + 1] = (x.abs() > limit).sum() / some
    record[slot + 2] = ((y == 0) & (x != 0)).sum() / some


def forward(
    x: Tensor,
    w: Tensor,
    clip: Tensor | None,
    key: Tensor | None,
    products: str,
    geometry: Convolution | None,
    keep: bool,
    recording: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute y in float32, what is kept of x (packed, scale, rest, mask) and the record of both operands."""
    p, words = Products.parse(products), _words(key)
    with torch.no_grad(), float32_products(x.device.type):
        flat = x.reshape(-1, x.shape[-1]) if geometry is None else x
        record = torch.zeros(FORWARD_SLOTS)
        kept = (
            None
            if p.input is None
            else encode(flat, p.input, axis=1, scale=_input_scale(p.input, clip), key=_fold(words, "input"))
        )
        xs = as_is(flat) if kept is None or p.input is None else decode(kept, p.input, axis=1)
        ws = quantized(w, p.weight, axis=1, key=_fold(words, "weight"))
        if geometry is None:
            y = matmul(xs.values, ws.values.t(), xs.steps, ws.steps)
        else:
            y = geometry.forward(xs.values, ws.values, xs.steps, ws.steps)
        y = rescaled(y, xs, replace(ws, scale=_along(ws.scale, y)))
        if recording:
            _note(record, _INPUT, flat, xs)
            _note(record, _WEIGHT, w, ws)
        none, mask = torch.empty(0), torch.empty(0, dtype=torch.uint8)
        if (
            keep
            and p.input is not None
            and kept is not None
            and (p.input.scale == "pact" or p.input.gradient == "clip")
        ):
            mask = _codes.pack_bits(_inside(flat, p.input, kept.scale, clip))
        if keep and (p.input_again is not None or p.rotate_weight is not None):
            kept = _again(flat, p, words)
        if not keep or kept is None:
            kept = Kept(torch.empty(0, dtype=torch.uint8), none, none, ())
        out = y if geometry is not None else y.reshape(*x.shape[:-1], w.shape[0])
        return out, kept.packed, kept.scale, kept.rest, mask, record


def _turned(x: Tensor, turn: Rotation | None, axis: int, key: lb.Key | None, which: str) -> Tensor:
    return x if turn is None else rotated(x, turn, axis=axis, key=_fold(_fold(key, "signs"), which))


def _again(flat: Tensor, p: Products, key: lb.Key | None) -> Kept | None:
    """Quantize the input once more, along the batch, for dL/dW."""
    turned = _turned(flat, p.rotate_weight, 0, key, "grad_weight")
    if p.input_again is None:
        return None
    return encode(turned, p.input_again, axis=0, key=_fold(_fold(key, "input"), "again"))


def _kept_input(x: Tensor, kept: Kept, p: Products, key: lb.Key | None) -> Operand:
    """Make the input's operand of dL/dW."""
    if p.input_again is not None:
        return _folded(decode(kept, p.input_again, axis=0))
    if p.input is not None and p.rotate_weight is None:
        return _folded(decode(kept, p.input, axis=1))
    return as_is(_turned(x, p.rotate_weight, 0, key, "grad_weight"))


def keeps_input(products: Products) -> bool:
    """Say whether the float input itself must be kept for dL/dW."""
    return products.input_again is None and (products.input is None or products.rotate_weight is not None)


def _gradient(
    g: Tensor, spec: Spec | None, grad_scale: Tensor | None, grad_max: Tensor | None, axis: int, key: lb.Key | None
) -> Operand:
    """Make an operand of dL/dy."""
    if spec is None:
        return as_is(g)
    scale: Tensor | None = None
    if spec.scale == "gradscale":
        assert grad_scale is not None
        scale = 1 / grad_scale.to(torch.float32)
    elif spec.scale == "hindsight":
        assert grad_max is not None
        if grad_max > 0:
            scale = (grad_max.to(torch.float32) / lb.get_format(spec.format).reference).clamp(2.0**-126, 2.0**126)
        spec = replace(spec, scale="amax", momentum=None)
    if spec.scale == "gradscale":
        spec = replace(spec, scale=None)
    return quantized(g, spec, axis=axis, scale=scale, key=key)


def backward(
    g: Tensor,
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    rest: Tensor,
    mask: Tensor,
    w: Tensor,
    key: Tensor | None,
    grad_scale: Tensor | None,
    grad_max: Tensor | None,
    record: Tensor,
    products: str,
    geometry: Convolution | None,
    shape: tuple[int, ...],
    needs: tuple[bool, bool, bool],
    recording: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute dL/dx, dL/dW and dL/dclip (float32; empty where not needed), and record the gradient's magnitude."""
    p, words = Products.parse(products), _words(key)
    with torch.no_grad(), float32_products(g.device.type):
        g = g.to(torch.float32)
        if geometry is None:
            g = g.reshape(-1, w.shape[0])
        flat = (g.shape[0], shape[-1]) if geometry is None else shape
        dx, dw, dclip = torch.empty(0), torch.empty(0), torch.empty(0)
        if g.numel() == 0:
            dx = torch.zeros(shape) if needs[0] else dx
            return dx, torch.zeros(w.shape) if needs[1] else dw, torch.zeros(()) if needs[2] else dclip
        stateful = any(spec.scale in ("gradscale", "hindsight") for _, spec in p.specs())
        if stateful or recording:
            low, high = torch.aminmax(g)
            record[0] = torch.maximum(record[0], torch.maximum(-low, high))
            record[10] += 1
        for_input = for_weight = None
        turn = p.rotate_input if geometry is None or geometry.groups == 1 else None
        if needs[0] or needs[2]:
            turned = _turned(g, turn, 1, words, "grad_input")
            for_input = _folded(_gradient(turned, p.grad_input, grad_scale, grad_max, 1, _fold(words, "grad_input")))
            if p.weight_again is None and turn is None:
                ws = quantized(w, p.weight, axis=1, key=_fold(words, "weight"))
            else:
                v = _turned(w, turn, 0, words, "grad_input")
                ws = quantized(v, p.weight_again, axis=0, key=_fold(_fold(words, "weight"), "again"))
            ws = _folded(ws)
            if geometry is None:
                dx = matmul(for_input.values, ws.values, for_input.steps, ws.steps)
            else:
                dx = geometry.grad_input(torch.Size(flat), for_input.values, ws.values, for_input.steps, ws.steps)
            dx = rescaled(dx, for_input, ws)
        if needs[1]:
            same = p.grad_weight == p.grad_input and for_input is not None and turn is None and p.rotate_weight is None
            if same and for_input is not None and (p.grad_weight is None or _reusable(p.grad_weight)):
                for_weight = for_input
            else:
                turned = _turned(g, p.rotate_weight, 0, words, "grad_weight")
                for_weight = _gradient(turned, p.grad_weight, grad_scale, grad_max, 0, _fold(words, "grad_weight"))
        xs = None
        kept_shape = _kept_shape(flat, p)
        if needs[1] or needs[2]:
            xs = _kept_input(x if x.numel() == 0 else x.reshape(flat), Kept(packed, scale, rest, kept_shape), p, words)
        if needs[1] and for_weight is not None and xs is not None:
            if geometry is None:
                dw = matmul(for_weight.values.t(), xs.values, for_weight.steps, xs.steps)
            else:
                dw = geometry.grad_weight(w.shape, for_weight.values, xs.values, for_weight.steps, xs.steps)
            dw = rescaled(dw, for_weight, xs)
            if p.weight is not None and p.weight.gradient == "clip":
                ws = quantized(w, p.weight, axis=1, key=_fold(words, "weight"))
                assert ws.scale is not None
                dw.masked_fill_(~_inside(w, p.weight, ws.scale, None), 0.0)
        if mask.numel():
            inside = _codes.unpack_bits(mask, flat)
            if needs[2] and xs is not None:
                beyond = dx * torch.sign(xs.values)
                dclip = beyond.masked_fill_(inside, 0.0).sum(dtype=torch.float64).to(torch.float32)
            if needs[0]:
                dx.masked_fill_(~inside, 0.0)
        if recording and (for_input or for_weight) is not None:
            _note(record, _GRAD, g, for_input or for_weight)  # type: ignore[arg-type]  # one of them is there
        return dx.reshape(shape) if needs[0] else torch.empty(0), dw, dclip


def _reusable(spec: Spec) -> bool:
    """Say whether another quantization would give the same."""
    return not spec.random and not spec.in_blocks


def kept_sizes(x: Tensor, products: str, matrix: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give empty tensors of the shapes of what `forward` keeps of x: packed, scale, rest, mask."""
    p = Products.parse(products)
    packed, scale, rest, mask = (
        x.new_empty(0, dtype=dtype) for dtype in (torch.uint8, *2 * (torch.float32,), torch.uint8)
    )
    if not keep:
        return packed, scale, rest, mask
    flat = (x.numel() // x.shape[-1], x.shape[-1]) if matrix else tuple(x.shape)
    if p.input is not None and (p.input.scale == "pact" or p.input.gradient == "clip"):
        mask = mask.new_empty((math.prod(flat) + 7) // 8)
    spec, axis = (p.input, 1) if p.input_again is None and p.rotate_weight is None else (p.input_again, 0)
    if spec is None:
        return packed, scale, rest, mask
    fmt = lb.get_format(spec.format)
    shape = _kept_shape(flat, p) if axis == 0 else flat
    packed = packed.new_empty((math.prod(shape) * fmt.bits + 7) // 8)
    size = (spec.block_size or fmt.default_block or 32) if spec.in_blocks else None
    scales = [1] * len(shape) if size is None else list(shape)
    if size is not None:
        scales[axis] = -(-shape[axis] // size)
    elif spec.per == "token":
        scales[0] = shape[0]
    scale = scale.new_empty(scales, dtype=torch.float32 if fmt.scale_format is None else torch.uint8)
    if spec.scale == "minmax":
        rest = rest.new_empty(scales)
    elif fmt.scale_format == "e4m3":
        rest = rest.new_empty(1)
    return packed, scale, rest, mask


def _kept_shape(flat: tuple[int, ...], p: Products) -> tuple[int, ...]:
    """The shape of the numbers whose codes are kept: a rotation pads the batch."""
    if p.rotate_weight is None:
        return flat
    return (flat[0] + -flat[0] % p.rotate_weight.block, *flat[1:])
