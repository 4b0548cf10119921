"""bitsandbytes: NF4, as ``quantize_4bit`` stores it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, SupportsIndex

import numpy as np

from lowbit import _arguments, _core
from lowbit._quantized import Quantized
from lowbit.interop import _parts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike, NDArray

#: The code of the number 0, with which an odd number of codes is padded.
_ZERO = 7


class BitsAndBytesTensor(NamedTuple):
    """The parts of a 4-bit tensor of bitsandbytes, in the order of `from_bitsandbytes`, which tells what they are."""

    packed: NDArray[np.uint8]
    absmax: NDArray[np.float32]
    shape: tuple[int, ...]
    blocksize: int


def to_bitsandbytes(q: Quantized) -> BitsAndBytesTensor:
    """Give the parts that ``bitsandbytes.functional.dequantize_4bit`` reads, of ``quant_type="nf4"``.

    Parameters
    ----------
    q : Quantized
        Of the format ``"nf4"``, in blocks along the last axis. Rows must be whole blocks, or there is one row:
        bitsandbytes cuts the flattened array.

    Returns
    -------
    BitsAndBytesTensor
        A named tuple of `from_bitsandbytes`'s arguments: the tensor's data, and what its ``QuantState`` holds.

    Raises
    ------
    TypeError
        `q` is not a Quantized.
    lowbit.Error
        It is of another format, or blocks would straddle rows.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> q = lb.quantize(np.linspace(-2, 2, 64, dtype=np.float32), "nf4")
    >>> parts = lb.interop.to_bitsandbytes(q)
    >>> parts.packed.shape, parts.absmax
    ((32, 1), array([2.], dtype=float32))
    >>> lb.interop.from_bitsandbytes(*parts) == q
    True
    """
    q = _parts.quantized(q, "bitsandbytes", ("nf4",))
    size = q.block_size
    if size is None or q.axis != q.ndim - 1:
        raise _core.Error('q: bitsandbytes has blocks along the last axis; quantize to "nf4" without axis=')
    _check_rows(q.shape, size, "q")
    codes = q.codes.reshape(-1)
    blocks = (*q.shape[:-1], math.ceil(q.shape[-1] / size))
    absmax = np.array(np.broadcast_to(q.scale, blocks), np.float32).reshape(-1)
    absmax[_only_zeros(codes, size) & (absmax == 1)] = 0
    codes = np.append(codes, np.full(codes.size % 2, _ZERO, np.uint8))
    return BitsAndBytesTensor((codes[::2] << 4 | codes[1::2])[:, None], absmax, q.shape, size)


def from_bitsandbytes(
    packed: ArrayLike, absmax: ArrayLike, shape: Iterable[SupportsIndex], blocksize: SupportsIndex = 64
) -> Quantized:
    """Read what ``bitsandbytes.functional.quantize_4bit`` gave with ``quant_type="nf4"``.

    Parameters
    ----------
    packed : array_like
        uint8 of ceil(n / 2) bytes, of any shape (bitsandbytes has (ceil(n / 2), 1)): the first number is in the high
        half of a byte.
    absmax : array_like
        float32, a number for each block of the flattened array: ``state.absmax``. (Where it is quantized itself,
        dequantize it first: ``compress_statistics``.)
    shape : tuple of int
        ``state.shape``.
    blocksize : int
        ``state.blocksize``.

    Returns
    -------
    Quantized
        Of the format ``"nf4"``; a block of zeros, whose absmax is 0, has the scale 1.

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype.
    lowbit.Error
        Lengths do not fit the shape, a block would straddle rows, or the absmax of a block with other numbers than 0 is
        not from 2**-126 to 2**126.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> np.asarray(lb.interop.from_bitsandbytes(np.uint8([[0xF7], [0x07]]), np.float32([3]), (3,)))
    array([ 3.,  0., -3.], dtype=float32)
    """
    lengths = _parts.dims(shape)
    if not lengths:
        raise _core.Error("shape: expected at least one dimension")
    n = math.prod(lengths)
    size = _arguments.within(blocksize, "blocksize", 1, (1 << 62) - 1)
    _check_rows(lengths, size, "shape")
    data = _parts.bytes_of(packed, "packed").reshape(-1)
    if data.size != -(-n // 2):
        raise _core.Error(f"packed: {n} numbers take {-(-n // 2)} bytes, got {data.size}")
    codes = np.stack([data >> 4, data & 15], axis=1).reshape(-1)[:n]
    scale = _arguments.float32(absmax, "absmax").reshape(-1)
    if scale.size != -(-n // size):
        raise _core.Error(f"absmax: {n} numbers in blocks of {size} have {-(-n // size)}, got {scale.size}")
    zeros = (scale == 0) | (_only_zeros(codes, size) & (np.abs(scale) < 2.0**-126))
    wrong = _parts.first(~zeros & ~((scale >= 2.0**-126) & (scale <= 2.0**126)))
    if wrong is not None:
        raise _core.Error(f"absmax: element {wrong} is {scale[wrong]:g}; give 0, or from 2**-126 to 2**126")
    # Whatever a block's codes, its numbers are zero where absmax is.
    codes = np.where(np.repeat(zeros, min(size, n))[:n], np.uint8(_ZERO), codes)
    blocks = (*lengths[:-1], -(-lengths[-1] // size))
    scale = np.where(zeros, np.float32(1), scale).reshape(blocks)
    return _parts.from_codes(codes.reshape(lengths), scale, None, "nf4", len(lengths) - 1, size)


def _check_rows(shape: tuple[int, ...], size: int, argument: str) -> None:
    if shape[-1] % size and math.prod(shape[:-1]) > 1:
        raise _core.Error(
            f"{argument}: bitsandbytes cuts the flattened array, and rows of {shape[-1]} numbers are no multiple of "
            f"its blocks of {size}; flatten the array, and reshape the numbers"
        )


def _only_zeros(codes: NDArray[np.uint8], size: int) -> NDArray[np.bool_]:
    """Which blocks have only the code of 0."""
    padded = np.append(codes, np.full(-codes.size % size, _ZERO, np.uint8))
    zeros: NDArray[np.bool_] = (padded.reshape(-1, size) == _ZERO).all(axis=1)
    return zeros
