"""QPyTorch's quantization functions, and the module that inserts them into networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

import lowbit as lb
from lowbit import _arguments
from lowbit.torch.qtorch import _kernels
from lowbit.torch.qtorch.number import FixedPoint, Number

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.torch._keys import KeyLike

__all__ = ["Quantizer", "block_quantize", "fixed_point_quantize", "float_quantize", "quantizer"]


def fixed_point_quantize(
    x: Tensor,
    wl: int,
    fl: int,
    clamp: bool = True,
    symmetric: bool = False,
    rounding: str = "stochastic",
    *,
    key: KeyLike | None = None,
) -> Tensor:
    """Round to fixed point: multiples of ``2**-fl``.

    Parameters
    ----------
    x : Tensor
        float32, float16, bfloat16 or float64 (first rounded to float32), of any shape and strides.
    wl, fl : int
        How many bits, and how many of them after the point, as `FixedPoint` has them.
    clamp : bool
        Whether numbers beyond the ends become the ends.
    symmetric : bool
        Whether the lowest number is left out.
    rounding : {"stochastic", "nearest"}
        "nearest" breaks ties to even.
    key : Key, int, Tensor or torch.Generator, optional
        Where stochastic rounding gets its random words; None draws a key from torch's generator.

    Returns
    -------
    Tensor
        Contiguous, of x's shape and dtype; no gradient passes (`quantizer` lets one pass). NaN stays NaN.

    Raises
    ------
    TypeError
        `x` is no tensor of a float dtype.
    lowbit.Error
        Another argument cannot be used.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch.qtorch.quant import fixed_point_quantize
    >>> fixed_point_quantize(torch.tensor([0.3, -9.0]), wl=8, fl=4, rounding="nearest")
    tensor([ 0.3125, -8.0000])
    """
    return _kernels.fixed_point(x, wl, fl, clamp, symmetric, rounding, key)


def block_quantize(
    x: Tensor, wl: int, dim: int = -1, rounding: str = "stochastic", *, key: KeyLike | None = None
) -> Tensor:
    """Round to block floating point: integers of `wl` bits times a power of two for each block.

    Parameters
    ----------
    x : Tensor
        As for `fixed_point_quantize`.
    wl : int
        How many bits, 1 to 23.
    dim : int
        One block for each index along this dimension; -1: one for the tensor.
    rounding : {"stochastic", "nearest"}
        "nearest" sends ties up (toward positive infinity).
    key : Key, int, Tensor or torch.Generator, optional
        As for `fixed_point_quantize`.

    Returns
    -------
    Tensor
        Contiguous, of x's shape and dtype. A block with a number that is not finite, or with one from ``2**126`` on, is
        NaN.

    Raises
    ------
    TypeError
        `x` is no tensor of a float dtype.
    lowbit.Error
        Another argument cannot be used.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch.qtorch.quant import block_quantize
    >>> block_quantize(torch.tensor([[0.3, 1.0], [0.003, 0.01]]), wl=4, dim=0, rounding="nearest")
    tensor([[0.2500, 1.0000],
            [0.0039, 0.0098]])
    """
    return _kernels.block_float(x, wl, dim, rounding, key)


def float_quantize(
    x: Tensor, exp: int, man: int, rounding: str = "stochastic", *, key: KeyLike | None = None
) -> Tensor:
    """Round to a float of `exp` exponent and `man` mantissa bits.

    Parameters
    ----------
    x : Tensor
        As for `fixed_point_quantize`.
    exp, man : int
        How many bits, as `FloatingPoint` has them.
    rounding : {"stochastic", "nearest"}
        "nearest" breaks ties away from zero.
    key : Key, int, Tensor or torch.Generator, optional
        As for `fixed_point_quantize`.

    Returns
    -------
    Tensor
        Contiguous, of x's shape and dtype. Infinities become the largest number (with 8 exponent bits they stay);
        NaN stays NaN.

    Raises
    ------
    TypeError
        `x` is no tensor of a float dtype.
    lowbit.Error
        Another argument cannot be used.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch.qtorch.quant import float_quantize
    >>> float_quantize(torch.tensor([1.0625, float("inf")]), exp=4, man=3, rounding="nearest")
    tensor([  1.1250, 480.0000])
    >>> _ = torch.manual_seed(0)
    >>> first = float_quantize(torch.full((3,), 1.03), 4, 3)
    >>> _ = torch.manual_seed(0)
    >>> torch.equal(float_quantize(torch.full((3,), 1.03), 4, 3), first)
    True
    """
    return _kernels.float_point(x, exp, man, rounding, key)


@dataclass(frozen=True, eq=False)
class _Rounding:
    """What a quantizer does; a callable that pickles."""

    forward_number: Number | None
    backward_number: Number | None
    forward_rounding: str
    backward_rounding: str
    clamping_grad_zero: bool
    backward_hooks: tuple[Callable[[Tensor], Tensor], ...]

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = _Function.apply(x, self)
        return result


class _Function(torch.autograd.Function):
    """Straight-through: the gradient is that of the identity, rounded itself where asked."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, how: _Rounding) -> Tensor:
        ctx.how, number = how, how.forward_number
        if number is None:
            return x
        if not (how.clamping_grad_zero and isinstance(number, FixedPoint)):
            return number.quantize(x, how.forward_rounding)
        # What is clamped is the rounded number: one beyond an end may be rounded back to it.
        y = _kernels.fixed_point(x.float(), number.wl, number.fl, False, number.symmetric, how.forward_rounding)
        low, high = _kernels.ends(number.wl, number.fl, number.symmetric)
        ctx.save_for_backward((y < low) | (y > high))
        return y.clamp_(low, high).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        how, (grad,) = ctx.how, gradients
        if not ctx.needs_input_grad[0]:
            return None, None
        for hook in how.backward_hooks:
            grad = hook(grad)
        if how.backward_number is not None:
            # A quantizer again, so that gradients of gradients pass straight through too.
            grad = quantizer(how.backward_number, forward_rounding=how.backward_rounding)(grad)
        for clamped in ctx.saved_tensors:
            grad = grad.masked_fill(clamped, 0.0)
        return grad, None


def quantizer(
    forward_number: Number | None = None,
    backward_number: Number | None = None,
    forward_rounding: str = "stochastic",
    backward_rounding: str = "stochastic",
    clamping_grad_zero: bool = False,
    backward_hooks: Iterable[Callable[[Tensor], Tensor]] = (),
) -> Callable[[Tensor], Tensor]:
    """Make a function that rounds numbers on the way forward and gradients on the way back.

    Parameters
    ----------
    forward_number, backward_number : Number, optional
        The formats; None rounds nothing.
    forward_rounding, backward_rounding : {"stochastic", "nearest"}
        How. Random words come by keys drawn from torch's generator.
    clamping_grad_zero : bool
        Whether numbers that are clamped get the gradient 0, as WAGE has it; `forward_number` is then a `FixedPoint`
        that clamps, or None.
    backward_hooks : iterable of callables
        Applied to the gradient in order, before it is rounded.

    Returns
    -------
    callable
        From tensor to tensor, differentiable straight through.

    Raises
    ------
    TypeError
        A number is no `Number`.
    lowbit.Error
        A rounding is not known, or `clamping_grad_zero` is asked of what does not clamp.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch.qtorch import FixedPoint
    >>> from lowbit.torch.qtorch.quant import quantizer
    >>> round_ = quantizer(FixedPoint(4, 2), FixedPoint(4, 2), "nearest", "nearest", clamping_grad_zero=True)
    >>> x = torch.tensor([0.3, 9.0], requires_grad=True)
    >>> y = round_(x)
    >>> y.backward(torch.tensor([0.7, 0.7]))
    >>> y.detach(), x.grad
    (tensor([0.2500, 1.7500]), tensor([0.7500, 0.0000]))
    """
    for name, number in (("forward_number", forward_number), ("backward_number", backward_number)):
        if number is not None and not isinstance(number, Number):
            raise TypeError(f"{name}: expected a Number such as FixedPoint(8, 4), got {type(number).__name__}")
    for name, rounding in (("forward_rounding", forward_rounding), ("backward_rounding", backward_rounding)):
        _arguments.choice(rounding, name, _kernels.ROUNDINGS)
    clamps = isinstance(forward_number, FixedPoint) and forward_number.clamp
    if clamping_grad_zero and forward_number is not None and not clamps:
        raise lb.Error("clamping_grad_zero: only what clamps can; give forward_number=FixedPoint(wl, fl, clamp=True)")
    return _Rounding(
        forward_number,
        backward_number,
        forward_rounding,
        backward_rounding,
        bool(clamping_grad_zero),
        tuple(backward_hooks),
    )


class Quantizer(torch.nn.Module):
    """A module that does what `quantizer` makes a function for.

    Parameters
    ----------
    forward_number, backward_number : Number, optional
        The formats; None rounds nothing.
    forward_rounding, backward_rounding : {"stochastic", "nearest"}
        How.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch.qtorch import BlockFloatingPoint
    >>> from lowbit.torch.qtorch.quant import Quantizer
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), Quantizer(BlockFloatingPoint(8, dim=0)))
    """

    def __init__(
        self,
        forward_number: Number | None = None,
        backward_number: Number | None = None,
        forward_rounding: str = "stochastic",
        backward_rounding: str = "stochastic",
    ) -> None:
        super().__init__()
        self.quantize = quantizer(forward_number, backward_number, forward_rounding, backward_rounding)

    def forward(self, x: Tensor) -> Tensor:
        """Round; the gradient passes straight through, rounded where asked."""
        return self.quantize(x)
