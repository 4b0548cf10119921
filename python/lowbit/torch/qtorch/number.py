"""QPyTorch's number formats."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np

from lowbit import _core
from lowbit.torch.qtorch import _kernels

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.torch._keys import KeyLike

__all__ = ["BlockFloatingPoint", "FixedPoint", "FloatingPoint", "Number"]

_NOTHING = np.empty(0, np.float32)


class Number(ABC):
    """A number format: one of the three below."""

    @abstractmethod
    def quantize(self, x: Tensor, rounding: str = "stochastic", *, key: KeyLike | None = None) -> Tensor:
        """Round a tensor to the format: what the function of `lowbit.torch.qtorch.quant` for it does."""


class FixedPoint(Number):
    """Multiples of ``2**-fl``, as many as `wl` bits of two's complement tell apart.

    Parameters
    ----------
    wl : int
        How many bits, 1 to 64.
    fl : int
        How many of them lie after the point: -126 to 126 (QPyTorch: from 1), and from ``wl - 128``.
    clamp : bool
        Whether numbers beyond the ends become the ends ``-2**(wl - fl - 1)`` and ``2**(wl - fl - 1) - 2**-fl``.
    symmetric : bool
        Whether the lowest number is left out.

    Raises
    ------
    lowbit.Error
        A number is out of range.

    Notes
    -----
    Gupta et al., "Deep Learning with Limited Numerical Precision", arXiv:1502.02551; QPyTorch, arXiv:1910.04540.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch.qtorch import FixedPoint
    >>> FixedPoint(8, 4)
    FixedPoint (wl=8, fl=4)
    >>> FixedPoint(8, 4).quantize(torch.tensor([0.3, 100.0]), "nearest")
    tensor([0.3125, 7.9375])
    """

    def __init__(self, wl: int, fl: int, clamp: bool = True, symmetric: bool = False) -> None:
        self.wl, self.fl, self.clamp, self.symmetric = wl, fl, clamp, symmetric
        _core.qtorch_fixed(_NOTHING, wl, fl, clamp, symmetric, None)

    def quantize(self, x: Tensor, rounding: str = "stochastic", *, key: KeyLike | None = None) -> Tensor:
        """Round a tensor to the format: `fixed_point_quantize`."""
        return _kernels.fixed_point(x, self.wl, self.fl, self.clamp, self.symmetric, rounding, key)

    def __repr__(self) -> str:
        return f"FixedPoint (wl={self.wl}, fl={self.fl})"


class FloatingPoint(Number):
    """Floats of a sign, `exp` exponent and `man` mantissa bits, with subnormal numbers, without infinities or NaN.

    The bias is ``2**(exp - 1) - 1``, and the highest exponent is one like the others: the largest number of (4, 3) is
    480, of (5, 2) 114688. Of eight exponent bits the highest is float32's own, so that overflow is infinite.

    Parameters
    ----------
    exp : int
        1 to 8.
    man : int
        0 to 23 (QPyTorch: from 1), not counting the leading bit that is not stored.

    Raises
    ------
    lowbit.Error
        A number is out of range.

    Notes
    -----
    QPyTorch, arXiv:1910.04540.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch.qtorch import FloatingPoint
    >>> FloatingPoint(exp=4, man=3).quantize(torch.tensor([1.0625, 1e6]), "nearest")
    tensor([  1.1250, 480.0000])
    """

    def __init__(self, exp: int, man: int) -> None:
        self.exp, self.man = exp, man
        _core.qtorch_float(_NOTHING, exp, man, None)

    def quantize(self, x: Tensor, rounding: str = "stochastic", *, key: KeyLike | None = None) -> Tensor:
        """Round a tensor to the format: `float_quantize`."""
        return _kernels.float_point(x, self.exp, self.man, rounding, key)

    def __repr__(self) -> str:
        return f"FloatingPoint (exponent={self.exp}, mantissa={self.man})"


class BlockFloatingPoint(Number):
    """Integers of `wl` bits times a power of two that a block shares, chosen by its largest magnitude.

    Parameters
    ----------
    wl : int
        How many bits, 1 to 23.
    dim : int
        One block for each index along this dimension; -1: one for the tensor.

    Raises
    ------
    lowbit.Error
        A number is out of range.

    Notes
    -----
    QPyTorch, arXiv:1910.04540; what SWALP trains with, arXiv:1904.11943.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch.qtorch import BlockFloatingPoint
    >>> BlockFloatingPoint(wl=4).quantize(torch.tensor([0.1, -0.3, 1.0]), "nearest")
    tensor([ 0.0000, -0.2500,  1.0000])
    """

    def __init__(self, wl: int, dim: int = -1) -> None:
        self.wl, self.dim = wl, dim
        _core.qtorch_block(_NOTHING, wl, -1, None)
        if isinstance(dim, bool) or not isinstance(dim, int):
            raise TypeError(f"dim: expected an int, got {type(dim).__name__}")
        if dim < -1:
            raise _core.Error(f"dim: {dim} is out of range; give a dimension from 0, or -1 for one block")

    def quantize(self, x: Tensor, rounding: str = "stochastic", *, key: KeyLike | None = None) -> Tensor:
        """Round a tensor to the format: `block_quantize`."""
        return _kernels.block_float(x, self.wl, self.dim, rounding, key)

    def __repr__(self) -> str:
        return f"BlockFloatingPoint (wl={self.wl}, dim={self.dim})"
