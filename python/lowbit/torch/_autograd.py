"""A quantized product for autograd: a Function where PyTorch runs eagerly, custom operations where it compiles.

Both call `_product`. The Function costs a tenth of the operations' time a call; the operations are opaque to the
compiler, which would else look into NumPy.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowbit.torch import _keys, _product
from lowbit.torch._contract import Convolution
from lowbit.torch._operands import Kept
from lowbit.torch._product import Call, Held, Saved
from lowbit.torch._spec import Products

_Gradients = tuple[Tensor | None, ...]

#: The records of the sites that are alive, by their numbers: what a compiled graph writes to. Were it handed the
#: record, which its backward pass changes, two calls before one pass would find what they had kept changed.
RECORDS: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()


def _record(number: Tensor) -> Tensor:
    """Find a site's record, or somewhere to write that nobody reads."""
    record = RECORDS.get(int(number))
    return torch.zeros(len(_product.SLOTS)) if record is None else record


@dataclass(frozen=True)
class Plan:
    """A layer's products, and what a call asks of them: plain attributes, which a compiler can read."""

    products: Products
    text: str
    random: bool
    forward_random: bool
    kept_random: bool
    pact: bool

    @classmethod
    def of(cls, products: Products) -> Plan:
        """Look at products once."""
        pact = products.input is not None and products.input.scale == "pact"
        forward = (products.weight, products.input)
        drawn = any(s is not None and s.random for s in forward)
        return cls(products, products.text, products.random, drawn, products.keeps_random, pact)

    def draws(self, training: bool) -> bool:
        """Say whether a call draws a key.

        In training as dropout does, gradients or not: a checkpoint that runs forward without them and again with them
        must leave the generator where it would have been, or all its layers would find it in one state. Out of
        training a key that only gradients would need waits for them.
        """
        return self.forward_random or (self.random and training) or (self.kept_random and torch.is_grad_enabled())


def product(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    clip: Tensor | None,
    key: Tensor | None,
    grad_scale: Tensor | None,
    grad_max: Tensor | None,
    record: Tensor,
    number: Tensor,
    plan: Plan,
    geometry: Convolution | None,
    recording: bool,
    held: Held | None,
) -> Tensor:
    """Multiply quantized operands, with quantized gradients; float32."""
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (x, w, bias, clip) if t is not None)
    if _keys.watched() or x.device.type == "meta":
        y, *_, seen = _forward_op(
            x, w, bias, clip, key, grad_scale, grad_max, number, plan.text, _listed(geometry), wanted, recording
        )
        if recording:
            record[1 : _product.FORWARD_SLOTS] = seen.detach()[1:]
        return y
    call = Call(plan.products, geometry, wanted, recording, held=held)
    if wanted:
        result: Tensor = _Product.apply(x, w, bias, clip, key, grad_scale, grad_max, record, call)
        return result
    y, _, seen = _product.forward(x, w, bias, clip, key, call)
    if recording:
        record[1 : _product.FORWARD_SLOTS] = seen[1:]
    return y


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        clip: Tensor | None,
        key: Tensor | None,
        grad_scale: Tensor | None,
        grad_max: Tensor | None,
        record: Tensor,
        call: Call,
    ) -> Tensor:
        y, saved, seen = _product.forward(x, w, bias, clip, key, call)
        if call.recording:
            record[1 : _product.FORWARD_SLOTS] = seen[1:]
        _keep(ctx, x, w, key, grad_scale, grad_max, record, call, _flat(saved))
        ctx.tile = saved[2].shape
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> _Gradients:
        x, w, key, *flat = ctx.saved_tensors
        grad_scale, grad_max, record, call, shape, dtype = ctx.rest
        if key is None and call.products.random:
            key = _keys.draw()
        needs = ctx.needs_input_grad[:4]
        grads = _product.backward(
            g, x, _saved(flat, ctx.tile), w, key, grad_scale, grad_max, record, call, shape, needs
        )
        return (*_cast(grads, needs, dtype, w), *(None,) * 5)


def _keep(
    ctx: Any,
    x: Tensor,
    w: Tensor,
    key: Tensor | None,
    grad_scale: Tensor | None,
    grad_max: Tensor | None,
    record: Tensor,
    call: Call,
    flat: tuple[Tensor, ...],
) -> None:
    """Save codes in place of floats; the layer's state is read when the gradient comes, and may have moved by then."""
    float_input = x if call.keep and _product.keeps_float(call.products) else x.new_empty(0)
    ctx.save_for_backward(float_input, w, key, *flat)
    ctx.rest = grad_scale, grad_max, record, call, tuple(x.shape), x.dtype


def _cast(
    grads: tuple[Tensor, Tensor, Tensor, Tensor], needs: tuple[bool, ...], dtype: torch.dtype, w: Tensor
) -> _Gradients:
    dtypes = dtype, w.dtype, w.dtype, torch.float32
    return tuple(g.to(to) if need else None for g, need, to in zip(grads, needs, dtypes, strict=True))


_Seven = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _flat(saved: Saved) -> _Seven:
    x, mask, w = saved
    return x.packed, x.scale, x.rest, mask, w.packed, w.scale, w.rest


def _saved(flat: Any, shape: tuple[int, ...]) -> Saved:
    """Undo `_flat`; `shape` is that of the weight's codes."""
    x_packed, x_scale, x_rest, mask, w_packed, w_scale, w_rest = flat
    return Kept(x_packed, x_scale, x_rest, ()), mask, Kept(w_packed, w_scale, w_rest, shape)


def result_shape(x: Tensor, w: Sequence[int], geometry: Convolution | None) -> tuple[int, ...]:
    """Give the shape of the product of x and a weight of shape w."""
    return (*x.shape[:-1], w[0]) if geometry is None else geometry.result_shape(x.shape, w)


def _listed(geometry: Convolution | None) -> list[int]:
    """Write a geometry as operations take it."""
    if geometry is None:
        return []
    return [*geometry.stride, *geometry.padding, *geometry.dilation, geometry.groups]


def _geometry(numbers: list[int]) -> Convolution | None:
    if not numbers:
        return None
    n = len(numbers) // 3
    stride, padding, dilation = (tuple(numbers[i * n : (i + 1) * n]) for i in range(3))
    return Convolution(stride, padding, dilation, numbers[-1])


@torch.library.custom_op("lowbit::product", mutates_args=())
def _forward_op(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    clip: Tensor | None,
    key: Tensor | None,
    grad_scale: Tensor | None,
    grad_max: Tensor | None,
    number: Tensor,
    products: str,
    geometry: list[int],
    keep: bool,
    recording: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    call = Call(Products.parse(products), _geometry(geometry), keep, recording, fixed=True)
    y, saved, seen = _product.forward(x, w, bias, clip, key, call)
    return y, *_flat(saved), seen


@_forward_op.register_fake
def _(x: Tensor, w: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    products, geometry, keep, recording = rest[-4:]
    call = Call(Products.parse(products), _geometry(geometry), keep, recording, fixed=True)
    y = x.new_empty(result_shape(x, w.shape, call.geometry), dtype=torch.float32)
    seen = x.new_empty(_product.FORWARD_SLOTS, dtype=torch.float32)
    return y, *_product.kept_sizes(x, w, call), seen


@torch.library.custom_op("lowbit::product_backward", mutates_args=())
def _backward_op(
    g: Tensor,
    x: Tensor,
    w: Tensor,
    key: Tensor | None,
    kept: list[Tensor],
    grad_scale: Tensor | None,
    grad_max: Tensor | None,
    number: Tensor,
    products: str,
    geometry: list[int],
    recording: bool,
    shape: list[int],
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = Call(Products.parse(products), _geometry(geometry), True, recording, fixed=True)
    four = needs[0], needs[1], needs[2], needs[3]
    return _product.backward(
        g,
        x,
        _saved(kept, _product.coded_shape(w, call)),
        w,
        key,
        grad_scale,
        grad_max,
        _record(number),
        call,
        tuple(shape),
        four,
    )


@_backward_op.register_fake
def _(g: Tensor, x: Tensor, w: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    shape, needs = rest[-2:]
    sizes: list[Any] = [shape, list(w.shape), list(w.shape[:1]), []]
    return tuple(
        g.new_empty(size if need else [0], dtype=torch.float32) for size, need in zip(sizes, needs, strict=True)
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, w, *_, key, grad_scale, grad_max, number, products, geometry, keep, recording = inputs
    _, *flat, seen = output
    ctx.mark_non_differentiable(*flat, seen)
    call = Call(Products.parse(products), _geometry(geometry), keep, recording, fixed=True)
    _keep(ctx, x, w, key, grad_scale, grad_max, number, call, tuple(flat))


def _backward(ctx: Any, g: Tensor, *_: Any) -> _Gradients:
    x, w, key, *flat = ctx.saved_tensors
    grad_scale, grad_max, number, call, shape, dtype = ctx.rest
    needs = list(ctx.needs_input_grad[:4])
    grads = _backward_op(
        g,
        x,
        w,
        key,
        flat,
        grad_scale,
        grad_max,
        number,
        call.products.text,
        _listed(call.geometry),
        call.recording,
        list(shape),
        needs,
    )
    return (*_cast(grads, tuple(needs), dtype, w), *(None,) * 8)


_forward_op.register_autograd(_backward, setup_context=_setup)
