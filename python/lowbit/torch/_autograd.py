"""A quantized product for autograd: a Function where PyTorch runs eagerly, custom operations where it compiles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowbit.torch import _product
from lowbit.torch._contract import Convolution
from lowbit.torch._spec import Products

_Kept = tuple[Tensor, Tensor, Tensor, Tensor]


def product(
    x: Tensor,
    w: Tensor,
    clip: Tensor | None,
    key: Tensor | None,
    grad_scale: Tensor | None,
    grad_max: Tensor | None,
    record: Tensor,
    products: str,
    geometry: Convolution | None,
    recording: bool,
) -> Tensor:
    """Multiply quantized operands, with quantized gradients; float32."""
    wanted = any(t.requires_grad for t in (x, w, clip) if t is not None) and torch.is_grad_enabled()
    if torch.compiler.is_compiling():
        keep = torch.is_grad_enabled() and _keeps(w, clip)
        y, *_, seen = _forward_op(
            x, w, clip, key, grad_scale, grad_max, record, products, _listed(geometry), keep, recording
        )
        if recording:
            with torch.no_grad():
                _keep_record(record, seen)
        return y
    if not wanted:
        y, *_, seen = _product.forward(x, w, clip, key, products, geometry, False, recording)
        if recording:
            _keep_record(record, seen)
        return y
    result: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
        x, w, clip, key, grad_scale, grad_max, record, products, geometry, recording
    )
    return result


def _keeps(w: Tensor, clip: Tensor | None) -> bool:
    """Say whether the backward product will want the input."""
    return w.requires_grad or (clip is not None and clip.requires_grad)


def _keep_record(record: Tensor, seen: Tensor) -> None:
    record[1 : seen.numel()] = seen[1:]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        w: Tensor,
        clip: Tensor | None,
        key: Tensor | None,
        grad_scale: Tensor | None,
        grad_max: Tensor | None,
        record: Tensor,
        products: str,
        geometry: Convolution | None,
        recording: bool,
    ) -> Tensor:
        # A clip in the input's way is also wanted for its own gradient.
        keep = _keeps(w, clip)
        y, *kept, seen = _product.forward(x, w, clip, key, products, geometry, keep, recording)
        if recording:
            _keep_record(record, seen)
        float_input = x if keep and _product.keeps_input(Products.parse(products)) else x.new_empty(0)
        ctx.save_for_backward(float_input, *kept, w, key)
        ctx.rest = grad_scale, grad_max, record, products, geometry, tuple(x.shape), x.dtype, recording
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, *kept, w, key = ctx.saved_tensors
        grad_scale, grad_max, record, products, geometry, shape, dtype, recording = ctx.rest
        needs = ctx.needs_input_grad[:3]
        dx, dw, dclip = _product.backward(
            g, x, *kept, w, key, grad_scale, grad_max, record, products, geometry, shape, needs, recording
        )
        grads = (
            dx.to(dtype) if needs[0] else None,
            dw.to(w.dtype) if needs[1] else None,
            dclip if needs[2] else None,
        )
        return (*grads, *(None,) * 7)


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
    clip: Tensor | None,
    key: Tensor | None,
    grad_scale: Tensor | None,
    grad_max: Tensor | None,
    record: Tensor,
    products: str,
    geometry: list[int],
    keep: bool,
    recording: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _product.forward(x, w, clip, key, products, _geometry(geometry), keep, recording)


@_forward_op.register_fake
def _(
    x: Tensor,
    w: Tensor,
    clip: Tensor | None,
    key: Tensor | None,
    grad_scale: Tensor | None,
    grad_max: Tensor | None,
    record: Tensor,
    products: str,
    geometry: list[int],
    keep: bool,
    recording: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    where = _geometry(geometry)
    shape = (*x.shape[:-1], w.shape[0])
    if where is not None:
        sizes = zip(x.shape[2:], where.padding, where.dilation, w.shape[2:], where.stride, strict=True)
        shape = (x.shape[0], w.shape[0], *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in sizes))
    kept = _product.kept_sizes(x, products, where is None, keep)
    return (x.new_empty(shape, dtype=torch.float32), *kept, x.new_empty(_product.FORWARD_SLOTS, dtype=torch.float32))


@torch.library.custom_op("lowbit::product_backward", mutates_args=("record",))
def _backward_op(
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
    geometry: list[int],
    shape: list[int],
    needs: list[bool],
    recording: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _product.backward(
        g,
        x,
        packed,
        scale,
        rest,
        mask,
        w,
        key,
        grad_scale,
        grad_max,
        record,
        products,
        _geometry(geometry),
        tuple(shape),
        (needs[0], needs[1], needs[2]),
        recording,
    )


@_backward_op.register_fake
def _(
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
    geometry: list[int],
    shape: list[int],
    needs: list[bool],
    recording: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    def made(sizes: Any) -> Tensor:
        return g.new_empty(sizes, dtype=torch.float32)

    return made(shape if needs[0] else 0), made(w.shape if needs[1] else 0), made(() if needs[2] else 0)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, w, _, key, grad_scale, grad_max, record, products, geometry, keep, recording = inputs
    _, *kept, seen = output
    ctx.mark_non_differentiable(*kept, seen)
    float_input = x if keep and _product.keeps_input(Products.parse(products)) else x.new_empty(0)
    ctx.save_for_backward(float_input, *kept, w, key)
    ctx.rest = grad_scale, grad_max, record, products, geometry, list(x.shape), x.dtype, recording


def _backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, *kept, w, key = ctx.saved_tensors
    grad_scale, grad_max, record, products, geometry, shape, dtype, recording = ctx.rest
    needs = list(ctx.needs_input_grad[:3])
    dx, dw, dclip = _backward_op(
        g, x, *kept, w, key, grad_scale, grad_max, record, products, geometry, shape, needs, recording
    )
    grads = dx.to(dtype) if needs[0] else None, dw.to(w.dtype) if needs[1] else None, dclip if needs[2] else None
    return (*grads, *(None,) * 8)


_forward_op.register_autograd(_backward, setup_context=_setup)
