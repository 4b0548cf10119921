"""ONNX: QuantizeLinear's integers of 2, 4 and 8 bits, with one scale, one per index of an axis, or one per block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex

import numpy as np

from lowbit import _arguments, _core
from lowbit._quantized import Quantized
from lowbit.interop import _parts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike, NDArray

#: Element types by their ONNX names in lower case, which are the formats' names; the lowest integer and the highest.
_TYPES = {
    "int4": (-8, 7),
    "uint4": (0, 15),
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int2": (-2, 1),
    "uint2": (0, 3),
}
_FORMATS = (*_TYPES, "int4_symmetric", "int8_symmetric", "int2_symmetric")


class OnnxTensor(NamedTuple):
    """The parts of a quantized ONNX tensor, in the order of `from_onnx`, which tells what they are."""

    packed: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero_point: NDArray[Any] | None
    dtype: str
    shape: tuple[int, ...]
    axis: int | None
    block_size: int | None


def to_onnx(q: Quantized) -> OnnxTensor:
    """Give the parts that DequantizeLinear reads: packed integers, scale, zero point.

    Parameters
    ----------
    q : Quantized
        Of an integer format of 2, 4 or 8 bits. An offset must be a whole number of steps: it becomes the zero point.

    Returns
    -------
    OnnxTensor
        A named tuple of `from_onnx`'s arguments.

    Raises
    ------
    TypeError
        `q` is not a Quantized.
    lowbit.Error
        ONNX has no such tensor; the message says why.

    Notes
    -----
    ONNX computes ``(code - zero_point) * scale``. Without a zero point these are lowbit's numbers to the bit. With one,
    lowbit rounds ``k * scale`` and then adds the offset: the numbers are the same where the scale of b-bit integers has
    at most 24 - b significant bits (float16 and bfloat16 numbers do), else they may differ by the rounding of
    ``k * scale`` and of the offset. A symmetric format comes back as the full one, whose lowest code it does not use.

    References
    ----------
    ONNX operators QuantizeLinear and DequantizeLinear; integers of 4 bits since opset 21, of 2 bits since opset 25.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> q = lb.quantize(np.float32([[1, -2, 3.5], [7, 0, -7]]), "int4", axis=0)
    >>> parts = lb.interop.to_onnx(q)
    >>> parts.packed, parts.scale, parts.axis
    (array([194, 119, 144], dtype=uint8), array([0.5, 1. ], dtype=float32), 0)
    >>> lb.interop.from_onnx(*parts) == q
    True
    """
    q = _parts.quantized(q, "ONNX", _FORMATS)
    dtype = q.format.name.removesuffix("_symmetric")
    axis = q.axis
    if q.block_size is not None and axis is not None:
        blocks = -(-q.shape[axis] // q.block_size)
        laid: tuple[int, ...] = (*q.shape[:axis], blocks, *q.shape[axis + 1 :])
    else:
        varying = [d for d, length in enumerate(q.scale.shape) if length > 1]
        if len(varying) > 1:
            raise _core.Error(
                f"q: scales of shape {q.scale.shape} vary along several axes; ONNX has one scale, one for each index "
                "of an axis, or one for each block"
            )
        axis = varying[0] if varying else axis
        laid = () if axis is None else (q.shape[axis],)

    def placed(values: NDArray[Any]) -> NDArray[Any]:
        if q.block_size is None:
            values = values.reshape(-1 if laid else ())
        return np.ascontiguousarray(np.broadcast_to(values, laid)).reshape(laid)

    zero_point = None if q.offset is None else placed(_zero_point(q, dtype))
    return OnnxTensor(q.packed, placed(q.scale), zero_point, dtype, q.shape, axis, q.block_size)


def _zero_point(q: Quantized, dtype: str) -> NDArray[Any]:
    """How many steps the number 0 lies above the integer 0."""
    assert q.offset is not None
    low, high = _TYPES[dtype]
    lowest = int(q.format.values[0])
    steps = np.rint(q.offset.astype(np.float64) / q.scale)
    wrong = _parts.first((steps * q.scale).astype(np.float32) != q.offset)
    if wrong is not None:
        raise _core.Error(
            f"q: the offset {q.offset.flat[wrong]:g} is no whole number of steps of {q.scale.flat[wrong]:g} "
            f"(group {wrong}), so no zero point says it; quantize with such offsets, or without"
        )
    zero_point = lowest - steps
    wrong = _parts.first((zero_point < low) | (zero_point > high))
    if wrong is not None:
        raise _core.Error(
            f"q: the offset of group {wrong} asks for the zero point {zero_point.flat[wrong]:g}; {dtype} has those "
            f"from {low} to {high}"
        )
    return zero_point.astype(np.int8 if low else np.uint8)


def from_onnx(
    packed: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike | None,
    dtype: str,
    shape: Iterable[SupportsIndex],
    axis: SupportsIndex | None = None,
    block_size: SupportsIndex | None = None,
) -> Quantized:
    """Read a tensor that QuantizeLinear wrote, or that DequantizeLinear reads.

    Parameters
    ----------
    packed : array_like
        uint8: the tensor's raw data. The first number is in the lowest bits of a byte; what is left of the last byte is
        zero.
    scale : array_like
        float16, bfloat16 or float32, from 2**-126 to 2**126: one number; or one dimension, a number for each index
        along `axis`; or, with `block_size`, of as many dimensions as the tensor.
    zero_point : array_like or None
        Integers of scale's shape, one a number (unpacked). None is zero.
    dtype : {"int4", "uint4", "int8", "uint8", "int2", "uint2"}
        The element type.
    shape : tuple of int
        The tensor's shape.
    axis : int, optional
        The node's axis, where the scale has dimensions. (ONNX's default is 1; here it must be said.)
    block_size : int, optional
        The node's block size; None and 0 are none.

    Returns
    -------
    Quantized
        Of the format that `dtype` names, with an offset of ``(lowest integer - zero_point) * scale`` where a zero point
        is not zero.

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype.
    lowbit.Error
        An argument does not fit the others, or a scale is out of range; the message names it.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> q = lb.interop.from_onnx(np.uint8([0x10, 0xF2]), 0.5, 8, "uint4", (4,))
    >>> np.asarray(q)
    array([-4. , -3.5, -3. ,  3.5], dtype=float32)
    """
    low, high = _TYPES[_arguments.choice(dtype, "dtype", _TYPES)]
    lengths = _parts.dims(shape)
    data = _parts.bytes_of(packed, "packed").reshape(-1)
    size = _arguments.within(block_size or 0, "block_size", 0, (1 << 62) - 1) or None
    scales = _arguments.float32(scale, "scale")
    where = _arguments.axis(axis)
    if scales.ndim == 0 and size is None:
        # A node has an axis even where there is nothing along it.
        where = None
    elif where is not None:
        if not -len(lengths) <= where < len(lengths):
            raise _core.Error(f"axis: {where} is out of range for {len(lengths)} dimensions")
        where %= len(lengths)
    elif scales.size != 1 or size is not None:
        raise _core.Error("axis: there are several scales; say along which axis (ONNX's default is 1)")
    zeros = None if zero_point is None else _arguments.array(zero_point, "zero_point")
    if zeros is not None:
        if zeros.dtype.kind not in "iu" and zeros.dtype.name not in _TYPES:
            raise TypeError(f"zero_point: expected integers, got {zeros.dtype}")
        zeros = zeros.astype(np.int64)
        if zeros.size and not low <= zeros.min() <= zeros.max() <= high:
            raise _core.Error(f"zero_point: {dtype} has those from {low} to {high}")
        if zeros.shape != scales.shape and (zeros.size, scales.size) != (1, 1):
            raise _core.Error(f"zero_point: shape {zeros.shape} is not scale's {scales.shape}")
        zeros = zeros.reshape(scales.shape)
    if size is None:
        along = tuple(-1 if d == where else 1 for d in range(len(lengths)))
        scales = scales.reshape(along)
        zeros = None if zeros is None else zeros.reshape(along)
    offset = None
    if zeros is not None and zeros.any():
        offset = ((low - zeros) * scales.astype(np.float64)).astype(np.float32)
    return Quantized(data, scales, offset, None, dtype, lengths, where, size, None)
