"""QPyTorch's three roundings: the core's loops, or the same bits in torch operations on other devices and in graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import lowbit as lb
from lowbit import _arguments, _core
from lowbit.torch import _bridge, _keys
from lowbit.torch._options import check_floats, on_core

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.torch._keys import KeyLike

ROUNDINGS = ("stochastic", "nearest")

_MANTISSA, _EXPONENT, _MAGNITUDE, _SIGN = 0x007FFFFF, 0x7F800000, 0x7FFFFFFF, -(1 << 31)
#: The word that makes adding and cutting off round to nearest.
_HALF = 1 << 31
#: Magnitudes from here on are integers.
_INTEGERS = 2.0**23


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _check(kind: str, ndim: int, arguments: tuple[int, ...]) -> None:
    """Have the core look at arguments, of an array with nothing in it (one number has no dimensions to be empty)."""
    getattr(_core, f"qtorch_{kind}")(np.zeros((0,) * ndim, np.float32), *arguments, None)


def _round(kind: str, x: Tensor, arguments: tuple[int, ...], rounding: str, key: KeyLike | None) -> Tensor:
    if not torch.compiler.is_compiling():
        # Backward passes that are compiled may not look at a layout.
        check_floats(x)
    _arguments.choice(rounding, "rounding", ROUNDINGS)
    if rounding == "nearest" and key is not None:
        raise lb.Error('key: rounding="nearest" draws nothing; leave it out, or give rounding="stochastic"')
    words = None
    if rounding == "stochastic":
        words = _keys.draw() if key is None else _keys.of(key, private=True)
    x = x.detach()
    if on_core(x) and not _keys.watched():
        core: Callable[..., Any] = getattr(_core, f"qtorch_{kind}")
        return _bridge.tensor(core(_bridge.array(x), *arguments, None if words is None else _keys.words(words)))
    _check(kind, x.dim(), arguments)
    if words is not None:
        words = _keys.random_bits(_keys.fold(words, "rounding").to(x.device), x.numel()).reshape(x.shape)
    return _PLAIN[kind](x.float(), *arguments, words).to(x.dtype)


def float_point(x: Tensor, exp: int, man: int, rounding: str, key: KeyLike | None = None) -> Tensor:
    """Round to a float of `exp` exponent and `man` mantissa bits."""
    return _round("float", x, (exp, man), rounding, key)


def fixed_point(
    x: Tensor, wl: int, fl: int, clamp: bool, symmetric: bool, rounding: str, key: KeyLike | None = None
) -> Tensor:
    """Round to multiples of ``2**-fl``, those of `wl` bits if there are ends."""
    return _round("fixed", x, (wl, fl, bool(clamp), bool(symmetric)), rounding, key)


def block_float(x: Tensor, wl: int, dim: int, rounding: str, key: KeyLike | None = None) -> Tensor:
    """Round to `wl` bits with an exponent for each index along `dim`, or one for all."""
    return _round("block", x, (wl, dim), rounding, key)


def ends(wl: int, fl: int, symmetric: bool) -> tuple[float, float]:
    """Give the lowest and the highest number of a fixed point format."""
    low, step = -(2.0 ** (wl - fl - 1)), 2.0**-fl
    return low + step if symmetric else low, -low - step


def _add_and_cut(t: Tensor, words: Tensor | None, kept: int) -> Tensor:
    """Add as many of the words' bits as are cut off, and cut them off: `kept` of 23 bits stay."""
    added: Any = _HALF >> 9 >> kept if words is None else (words >> 9 >> kept).to(torch.int32)
    return ((t.view(torch.int32) + added) & ~(_MANTISSA >> kept)).view(torch.float32)


def _plain_float(x: Tensor, exp: int, man: int, words: Tensor | None) -> Tensor:
    half = 1 << (exp - 1)
    least = torch.full_like(x, 2.0 ** (2 - half))
    shift = torch.where(x.abs() < least, torch.copysign(least, x), 0.0)
    y = _add_and_cut(x + shift, words, man) - shift
    if exp < 8:
        largest = (2 - 2.0**-man) * 2.0**half
        y = y.clamp(-largest, largest)
    return y.masked_fill(x.isnan(), float("nan"))


def _plain_fixed(x: Tensor, wl: int, fl: int, clamp: bool, symmetric: bool, words: Tensor | None) -> Tensor:
    t = x * 2.0**fl
    if words is None:
        whole = ((t + 0.5) - 0.5).round()
    else:
        # The nearest whole number, moved by -1, 0 or 1; of larger numbers, all whole, there is nothing to move.
        whole = t.round()
        rest = torch.where(t.abs() < _INTEGERS, t - whole, 0.0)
        whole = whole + (((rest * 2.0**30).long() + (words >> 2)) >> 30)
    y = whole * 2.0**-fl
    if clamp:
        y = y.clamp(*ends(wl, fl, symmetric))
    return y.masked_fill(x.isnan(), float("nan"))


def _plain_block(x: Tensor, wl: int, dim: int, words: Tensor | None) -> Tensor:
    if not x.numel():
        return x.clone()
    others = [d for d in range(x.dim()) if d != dim]
    # The largest magnitude of no dimensions is that of each number.
    amax = x.abs().amax(others, keepdim=True) if others else x.abs()
    top = amax.view(torch.int32) & _EXPONENT
    base = top.view(torch.float32) * 6.0
    y = _add_and_cut(x + base, words, wl) - base
    bits = y.view(torch.int32)
    end = (bits & _SIGN) | top | _MANTISSA >> (25 - wl) << (25 - wl)
    y = torch.where((bits & _MAGNITUDE) > (top | _MANTISSA), end, bits).view(torch.float32)
    return y.masked_fill(base.isinf(), float("nan"))


_PLAIN: dict[str, Callable[..., Tensor]] = {"float": _plain_float, "fixed": _plain_fixed, "block": _plain_block}
