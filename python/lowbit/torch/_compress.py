"""Norms and ReLU that keep little for their backward pass: ``prepare(..., compress_activations=True)``.

The forward pass is torch's own, so its numbers, running statistics and errors are torch's. What differs is what waits
for the backward pass:

* ReLU keeps one bit an element: where the result is positive. Its gradients are torch's, bit for bit.
* Norms keep the normalized input in 8 bits, stochastically rounded, with a scale for every 256 elements: 8.125 bits an
  element. With y = w n + b, sigma the standard deviation and m the number of elements that are normalized together,

      dL/db = sum g,   dL/dw = sum g n,   dL/dx = w / sigma (g - mean g - n mean(g n)).

  The first two are linear in n, so an unbiased n leaves them unbiased. In dL/dx n meets itself in one of the m terms of
  its mean, which adds -w / sigma g var(n) / m. Since |n| <= sqrt(m), a step of n's grid is at most sqrt(m) / 127 and
  var(n) at most a quarter of its square: that bias is below 1.6e-5 of w / sigma g always, and below 2.5e-4 / m of it
  where |n| <= 4.

Gradients of gradients are refused: they would need what was not kept. ``torch.nn.functional.relu`` and ``torch.relu``
are functions of torch and not modules of the model, so nothing can take their place: they keep what torch keeps.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import lowbit as lb
from lowbit.torch import _bits, _keys, _operands
from lowbit.torch._spec import Spec

_BLOCK = 256
_SPEC = Spec("int8_symmetric", scale="amax", per="block", block_size=_BLOCK, rounding="stochastic")

aten: Any = torch.ops.aten


@torch.library.custom_op("lowbit::compress", mutates_args=())
def _compress(n: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales of blocks; the scale of a block that is not finite is NaN, so that it comes back as NaN."""
    k0, k1 = (word % 2**64 for word in key.tolist())
    kept = _operands.encode(n, _SPEC, axis=0, key=lb.Key.from_words(k0, k1))
    return kept.packed, kept.scale


@_compress.register_fake
def _(n: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    blocks = (n.numel() + _BLOCK - 1) // _BLOCK
    return n.new_empty(n.shape, dtype=torch.uint8), n.new_empty((blocks,))


@torch.library.custom_op("lowbit::decompress", mutates_args=())
def _decompress(packed: Tensor, scale: Tensor) -> Tensor:
    """Undo `_compress`."""
    return _operands.decode(_operands.Kept(packed, scale, scale[:0], tuple(packed.shape)), _SPEC, axis=0).values


@_decompress.register_fake
def _(packed: Tensor, scale: Tensor) -> Tensor:
    return scale.new_empty(packed.shape)


def _memory_order(x: Tensor) -> list[int]:
    """Axes in the order in which a contiguous or channels-last tensor lies in memory."""
    order = list(range(x.ndim))
    for ndim, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if x.ndim == ndim and not x.is_contiguous() and x.is_contiguous(memory_format=layout):
            return [0, *order[2:], 1]
    return order


def _restored(flat: Tensor, shape: torch.Size, order: list[int]) -> Tensor:
    """Lay out as it was what was flattened in memory order."""
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return flat.view([shape[axis] for axis in order]).permute(inverse)


def _kept(n: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales of numbers, in memory order."""
    return cast(tuple[Tensor, Tensor], _compress(n.permute(_memory_order(n)).reshape(-1), _keys.draw()))


class _ReLU(torch.autograd.Function):
    """Torch's ReLU; the backward pass has one bit an element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        if inplace:
            x.relu_()
            ctx.mark_dirty(x)
        y = x if inplace else x.relu()
        ctx.shape, ctx.order = y.shape, _memory_order(y)
        ctx.save_for_backward(_bits.pack_positive(y.permute(ctx.order)))  # NaN passes gradients, as in torch
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (packed,) = ctx.saved_tensors
        passes = _bits.unpack_bits(packed, [ctx.shape.numel()])
        return _bits.keep(grad, _restored(passes, ctx.shape, ctx.order)), None


class _BatchNorm(torch.autograd.Function):
    """Torch's batch norm; the backward pass has the normalized input in 8 bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Any, run: Any) -> Tensor:  # noqa: ARG004
        y: Tensor = run(x)
        ctx.batch = norm.training or norm.running_mean is None
        mean, var = (None, None) if ctx.batch else (norm.running_mean, norm.running_var)
        n, _, rstd = torch.native_batch_norm(x.float(), None, None, mean, var, ctx.batch, 0.0, norm.eps)
        if not ctx.batch:
            rstd = (norm.running_var + norm.eps).rsqrt()
        ctx.shape, ctx.order, ctx.dtype = x.shape, _memory_order(n), x.dtype
        ctx.save_for_backward(*_kept(n), rstd, weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        packed, scale, rstd, weight = ctx.saved_tensors
        n = _restored(_decompress(packed, scale), ctx.shape, ctx.order)
        # Of the normalized input: its mean is 0, its deviation 1, and what x was divided by goes with the weight.
        zeros, ones = torch.zeros_like(rstd), torch.ones_like(rstd)
        factor = rstd if weight is None else rstd * weight.float()
        wanted = list(ctx.needs_input_grad[:3])
        grads = aten.native_batch_norm_backward(
            grad.float(), n, factor, zeros, ones, zeros, ones, ctx.batch, 0.0, wanted
        )
        return _as_inputs(ctx, grads, weight)


class _LayerNorm(torch.autograd.Function):
    """Torch's layer norm; the backward pass has the normalized input in 8 bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Any, run: Any) -> Tensor:
        y: Tensor = run(x)
        n, _, rstd = torch.native_layer_norm(x.float(), norm.normalized_shape, None, None, norm.eps)
        ctx.shape, ctx.order, ctx.dtype = x.shape, _memory_order(n), x.dtype
        ctx.normalized_shape = norm.normalized_shape
        ctx.save_for_backward(*_kept(n), rstd, weight, bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        packed, scale, rstd, weight, bias = ctx.saved_tensors
        n = _restored(_decompress(packed, scale), ctx.shape, ctx.order)
        weight32, bias32 = (None if p is None else p.float() for p in (weight, bias))
        zeros, ones = torch.zeros_like(rstd), torch.ones_like(rstd)
        wanted = list(ctx.needs_input_grad[:3])
        dx, dw, db = aten.native_layer_norm_backward(
            grad.float(), n, ctx.normalized_shape, zeros, ones, weight32, bias32, wanted
        )
        return _as_inputs(ctx, (dx * rstd if wanted[0] else None, dw, db), weight)


def _as_inputs(ctx: Any, grads: tuple[Tensor | None, ...], weight: Tensor | None) -> tuple[Tensor | None, ...]:
    """Give gradients the dtypes of what they are gradients of."""
    dtypes = [ctx.dtype, *2 * [None if weight is None else weight.dtype]]
    cast_to = (g if g is None else g.to(dtype) for g, dtype in zip(grads, dtypes, strict=True))
    wanted = zip(cast_to, ctx.needs_input_grad, strict=False)
    return (*(g if needed else None for g, needed in wanted), None, None)


def _tracked(x: Tensor, module: nn.Module) -> bool:
    """Whether there will be a backward pass to keep something for; torch's batch norm knows what of no samples is."""
    wanted = x.requires_grad or any(p.requires_grad for p in module.parameters())
    return torch.is_grad_enabled() and wanted and x.numel() > 0


class ReLU(nn.ReLU):
    """`torch.nn.ReLU` that keeps one bit an element for the backward pass; in place too."""

    def forward(self, input: Tensor) -> Tensor:
        """Compute as torch does."""
        if not _tracked(input, self):
            return super().forward(input)
        return cast(Tensor, _ReLU.apply(input, self.inplace))


class _Norm(nn.Module):
    """A norm that keeps 8.125 bits an element for the backward pass: before torch's in the order of classes."""

    function: type[torch.autograd.Function] = _BatchNorm

    def forward(self, input: Tensor) -> Tensor:
        """Compute as torch does."""
        run: Any = super().forward
        if not _tracked(input, self):
            if self.training and not torch.is_grad_enabled():
                # The first run of a checkpoint, perhaps: the generator moves on as it will in the second.
                _keys.draw()
            return cast(Tensor, run(input))
        return cast(Tensor, self.function.apply(input, self.weight, self.bias, self, run))


class BatchNorm1d(_Norm, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` that keeps 8.125 bits an element for the backward pass."""


class BatchNorm2d(_Norm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` that keeps 8.125 bits an element for the backward pass."""


class BatchNorm3d(_Norm, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` that keeps 8.125 bits an element for the backward pass."""


class LayerNorm(_Norm, nn.LayerNorm):
    """`torch.nn.LayerNorm` that keeps 8.125 bits an element for the backward pass."""

    function = _LayerNorm


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.ReLU: ReLU,
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
    nn.LayerNorm: LayerNorm,
}


def compress(model: nn.Module) -> None:
    """Let the norms and ReLUs of a model keep less for their backward pass, in place.

    Parameters
    ----------
    model : torch.nn.Module
        Modules of exactly the classes `ReLU`, `BatchNorm1d`, `BatchNorm2d`, `BatchNorm3d` and `LayerNorm` of torch.nn
        become their subclasses here (what is derived from one may compute something else); they stay the objects they
        are, with their parameters, buffers and hooks.

    Examples
    --------
    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.ReLU())
    >>> compress(net)
    >>> [type(layer).__module__.split(".")[0] for layer in net]
    ['lowbit', 'lowbit']
    """
    for module in model.modules():
        module.__class__ = _CLASSES.get(type(module), type(module))
