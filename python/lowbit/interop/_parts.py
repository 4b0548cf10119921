"""What the layouts share: checked arguments, blocks of a row, a Quantized made of parts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit import _arguments, _core
from lowbit._quantized import Quantized

if TYPE_CHECKING:
    from typing import SupportsIndex

    from numpy.typing import ArrayLike, NDArray


def quantized(q: Any, tool: str, formats: Iterable[str] | None = None) -> Quantized:
    """Check that `q` is a Quantized of a format that the tool has, and that its codes say all."""
    if not isinstance(q, Quantized):
        raise TypeError(f"q: expected a lowbit.Quantized, got {type(q).__name__}")
    if q.key_id is not None:
        raise _core.Error(f"q: {tool} cannot subtract a dither; quantize with another rounding")
    if formats is not None and q.format.name not in formats:
        raise _core.Error(f"q: {tool} has no {q.format.name}; it has {', '.join(formats)}")
    return q


def from_codes(
    codes: NDArray[Any],
    scale: NDArray[Any],
    offset: NDArray[np.float32] | None,
    format: str,
    axis: int | None,
    block_size: int | None,
) -> Quantized:
    """Pack codes of the array's shape."""
    fmt = _core.get_format(format)
    packed = _core.pack(np.ascontiguousarray(codes).reshape(-1), fmt.bits)
    return Quantized(packed, scale, offset, None, fmt, codes.shape, axis, block_size, None)


def row_blocks(q: Quantized, size: int, tool: str) -> tuple[int, ...]:
    """Check for whole blocks of `size` along the last axis; give the shape of their scales."""
    if q.block_size != size or q.axis != q.ndim - 1:
        along = "" if q.axis is None else f" along axis {q.axis}"
        raise _core.Error(
            f"q: {tool} has blocks of {size} along the last axis, these are of {q.block_size}{along}; "
            f"give quantize block_size={size}"
        )
    if q.shape[-1] % size:
        raise _core.Error(f"q: {tool} wants whole blocks, and rows of {q.shape[-1]} are no multiple of {size}")
    return (*q.shape[:-1], q.shape[-1] // size)


def bytes_of(value: ArrayLike, argument: str) -> NDArray[np.uint8]:
    """Any uint8 array, C-contiguous."""
    array = _arguments.array(value, argument)
    if array.dtype != np.uint8:
        raise TypeError(f"{argument}: expected uint8, got {array.dtype}")
    return np.ascontiguousarray(array)


def dims(shape: SupportsIndex | Iterable[SupportsIndex]) -> tuple[int, ...]:
    """Lengths of dimensions; an int is the only one's."""
    return tuple(_arguments.shape(tuple(shape) if isinstance(shape, Iterable) else shape))


def first(wrong: NDArray[np.bool_]) -> int | None:
    """Where the first of them is, in C order."""
    return int(np.argmax(wrong)) if wrong.any() else None
