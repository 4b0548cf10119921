"""Quantize, dequantize, fake-quantize tensors, and write them as messages: `lowbit`'s functions for PyTorch.

Tensors on a CPU are read and written where they lie by lowbit's kernels. On other devices (they need float64) the same
arithmetic runs in torch operations, with the same result and slower than a kernel for that device would be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from lowbit import _arguments, _core
from lowbit.torch import _bridge, _keys, _library
from lowbit.torch._messages import decode, encode
from lowbit.torch._options import Options, check_floats, sharing, use_plain
from lowbit.torch._quantized import QuantizedTensor

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from lowbit._formats import FormatLike, RoundingName
    from lowbit.torch._keys import KeyLike

__all__ = ["QuantizedTensor", "decode", "dequantize", "encode", "fake_quantize", "quantize", "use_plain"]


def fake_quantize(
    x: Tensor,
    format: FormatLike,
    *,
    scale: str | float | Tensor | ArrayLike | None = None,
    offset: float | Tensor | ArrayLike | None = None,
    tensor_scale: float | Tensor | None = None,
    axis: SupportsIndex | None = None,
    block_size: SupportsIndex | None = None,
    rounding: RoundingName = "nearest",
    key: KeyLike | None = None,
    gradient: Literal["pass", "clip"] = "pass",
) -> Tensor:
    """Round to the numbers that a format can hold, without making codes.

    The values are those of `lowbit.fake_quantize`, whose options these are, bit for bit.

    Parameters
    ----------
    x : torch.Tensor
        Any shape and layout, float32, bfloat16, float16 or float64 (which is first rounded to float32).
    format : str or Format
        A name of ``lowbit.formats()``, or what a factory of `lowbit` gave.
    scale : str, float, torch.Tensor or array_like, optional
        A rule's name, or numbers that broadcast to `x` (with blocks: to its blocked shape). Default: the format's own
        rule. A tensor gets no gradient.
    offset : float, torch.Tensor or array_like, optional
        With numbers for `scale`, the number that the lowest code stands for.
    tensor_scale : float or torch.Tensor, optional
        For ``nvfp4`` and its like, the scale of the whole tensor.
    axis, block_size : int, optional
        How scales are shared.
    rounding : {"nearest", "stochastic", "dither"}
        As in `lowbit.fake_quantize`.
    key : Key, int, torch.Tensor or torch.Generator, optional
        The randomness. A tensor is a key's two words, int64. Of a generator, and by default of torch's own, two words
        are drawn, so that ``torch.manual_seed``, checkpointing and compilation work as with dropout.
    gradient : {"pass", "clip"}
        What `x` gets of the gradient: all of it (straight-through), or none where ``t = (x - offset) / scale`` lies
        beyond the format's first or last value.

    Returns
    -------
    torch.Tensor
        x's shape, dtype, device and layout. NaN as in `lowbit.fake_quantize`.

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype.
    lowbit.Error
        An argument has a value that cannot be used; the message names it.

    Notes
    -----
    Numbers are counted in C order of x's shape, whatever its layout. Under ``torch.compile`` and in graphs the operator
    is ``torch.ops.lowbit.fake_quantize``; `format` is a name there.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch import ops
    >>> x = torch.tensor([0.7, 5.0, -100.0], requires_grad=True)
    >>> y = ops.fake_quantize(x, "radix4", scale=1.0, gradient="clip")
    >>> y.tolist()
    [1.0, 4.0, -64.0]
    >>> y.sum().backward()
    >>> x.grad
    tensor([1., 1., 0.])
    >>> _ = torch.manual_seed(0)
    >>> ops.fake_quantize(torch.full((6,), 0.3), "int4", scale=1.0, rounding="stochastic")
    tensor([0., 0., 1., 0., 1., 0.])
    """
    if gradient not in ("pass", "clip"):
        _arguments.choice(gradient, "gradient", ("pass", "clip"))
    drawn = _key(rounding, key, draws=True)
    options = _options(x, format, scale, offset, tensor_scale, axis, block_size, rounding, drawn)
    if not _direct(x):
        return _library.fake_quantize(x, gradient == "clip", *options)[0]  # type: ignore[no-any-return]
    if x.requires_grad and torch.is_grad_enabled():
        return _library.Round.apply(x, gradient == "clip", *options)  # type: ignore[no-any-return]
    return _library.rounded(x, False, options)[0]


def quantize(
    x: Tensor,
    format: FormatLike,
    *,
    scale: str | float | Tensor | ArrayLike | None = None,
    offset: float | Tensor | ArrayLike | None = None,
    tensor_scale: float | Tensor | None = None,
    axis: SupportsIndex | None = None,
    block_size: SupportsIndex | None = None,
    rounding: RoundingName = "nearest",
    key: KeyLike | None = None,
) -> QuantizedTensor:
    """Round to the numbers that a format can hold and keep their codes, packed.

    Parameters
    ----------
    x, format, scale, offset, tensor_scale, axis, block_size, rounding, key
        As in `fake_quantize`; ``rounding="dither"`` needs a `key` here, since it is needed again to dequantize.

    Returns
    -------
    QuantizedTensor
        Without gradient.

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype.
    lowbit.Error
        An argument has a value that cannot be used, or a number has no code (NaN; anything not finite where the scale
        comes from the data): the message names its index in C order.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch import ops
    >>> q = ops.quantize(torch.linspace(-1, 1, 8), "int4", block_size=4)
    >>> q.packed, q.scale
    (tensor([185, 253,  49, 117], dtype=torch.uint8), tensor([0.1429, 0.1429]))
    """
    given = _key(rounding, key, draws=rounding == "stochastic")
    options = _options(x, format, scale, offset, tensor_scale, axis, block_size, rounding, given)
    if _direct(x):
        packed, scales, *rest = _library.coded(x.detach(), options)
    else:
        packed, scales, *marked = _library.quantize(x.detach(), *options)
        rest = [None if part.dtype is torch.bool else part for part in marked]
    offsets, tensor, key_id = rest
    along, size = sharing(options.format, x.ndim, options.axis, options.block_size)
    return QuantizedTensor(packed, scales, offsets, tensor, options.format, tuple(x.shape), along, size, key_id)


def dequantize(q: QuantizedTensor, *, dtype: torch.dtype = torch.float32, key: KeyLike | None = None) -> Tensor:
    """Compute the numbers that codes stand for.

    Parameters
    ----------
    q : QuantizedTensor
        What `quantize` gave.
    dtype : torch.dtype, optional
        float32, float16, bfloat16 or float64. The float32 result is rounded to it.
    key : Key, int or torch.Tensor, optional
        The key that `q` was dithered with; for nothing else.

    Returns
    -------
    torch.Tensor
        q's shape.

    Raises
    ------
    TypeError
        `q` is not a QuantizedTensor, or `dtype` is not a float that is written.
    lowbit.Error
        The key is missing, wrong or not needed, or the parts of `q` do not fit each other.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch import ops
    >>> ops.dequantize(ops.quantize(torch.tensor([1.0, -2.0, 3.5]), "int4"), dtype=torch.float16)
    tensor([ 1.0000, -2.0000,  3.5000], dtype=torch.float16)
    """
    if not isinstance(q, QuantizedTensor):
        raise TypeError(f"q: expected a lowbit.torch.QuantizedTensor, got {type(q).__name__}")
    if dtype not in _bridge.FLOATS:
        raise TypeError(f"dtype: {dtype} is not torch.float16, bfloat16, float32 or float64")
    known = _keys.of(key, private=False)
    if q.key_id is None and known is not None:
        raise _core.Error('key: only codes made with rounding="dither" need one; leave it out')
    if q.key_id is not None and known is None:
        raise _core.Error('key: these codes were made with rounding="dither"; give dequantize(q, key=...) the same key')
    parts = q.packed, q.scale, q.offset, q.tensor_scale, q.format, q.shape, q.axis, q.block_size, known, q.key_id, dtype
    return _library.decoded(*parts) if _direct(q.packed) else _library.dequantize(*parts)


def _direct(x: Tensor) -> bool:
    """Whether nobody watches what runs: graphs, modes and transforms see the operator, which costs 30 us more."""
    return type(x) in (Tensor, torch.nn.Parameter) and x.device.type != "meta" and not _keys.watched()


def _key(rounding: str, key: KeyLike | None, *, draws: bool) -> Tensor | None:
    """Give the key's tensor, drawn from torch's generator where there is none."""
    _arguments.choice(rounding, "rounding", ("nearest", "stochastic", "dither"))
    if rounding == "nearest":
        if key is not None:
            _arguments.noise(rounding, 0)
        return None
    return _keys.draw() if key is None and draws else _keys.of(key, private=rounding == "stochastic")


def _options(
    x: Tensor,
    format: FormatLike,
    scale: Any,
    offset: Any,
    tensor_scale: Any,
    axis: SupportsIndex | None,
    block_size: SupportsIndex | None,
    rounding: str,
    key: Tensor | None,
) -> Options:
    """Check types, and give what is left as operators take it."""
    check_floats(x)
    return Options(
        format if isinstance(format, str) else _core.get_format(format).name,
        scale if isinstance(scale, str) else None,
        None if isinstance(scale, str) else _numbers(scale, "scale"),
        _numbers(offset, "offset"),
        _numbers(tensor_scale, "tensor_scale"),
        _arguments.axis(axis),
        _arguments.block_size(block_size),
        rounding,
        key,
    )


def _numbers(value: Any, argument: str) -> Tensor | None:
    """Give numbers as a tensor."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        return value.detach()
    if torch.compiler.is_compiling():
        return torch.as_tensor(value, dtype=torch.float64, device="cpu")
    return _bridge.tensor(np.array(_arguments.numbers(value, argument), np.float64))
