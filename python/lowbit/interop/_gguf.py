"""GGUF: ggml's blocks of 32 numbers, Q4_0, Q4_1 and MXFP4."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from lowbit import _arguments, _core
from lowbit._quantized import Quantized
from lowbit.interop import _parts

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

GgufType: TypeAlias = Literal["Q4_0", "Q4_1", "MXFP4"]

_BLOCK = 32
#: Bytes of a block that come before the 16 bytes of codes.
_HEADS = {"Q4_0": 2, "Q4_1": 4, "MXFP4": 1}
_INTEGERS = ("uint4", "int4", "int4_symmetric")
#: Where the magnitudes 0, 0.5, 1, 1.5, 2, 3, 4, 6 of E2M1 meet.
_MXFP4_MIDPOINTS = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])


def to_gguf(x: Quantized | ArrayLike, type: GgufType) -> NDArray[np.uint8]:
    """Write ggml's blocks: of a Quantized as it is, of floats by ggml's own rules.

    Parameters
    ----------
    x : Quantized or array_like
        Floats of any shape, quantized here; or what is quantized, in blocks of 32 along the last axis: for
        ``"MXFP4"`` of the format ``"mxfp4"``, else ``"uint4"`` or ``"int4"`` whose scales (and offsets, for
        ``"Q4_1"``) are float16 numbers. The last axis must be a multiple of 32.
    type : {"Q4_0", "Q4_1", "MXFP4"}
        The GGML type.

    Returns
    -------
    numpy.ndarray
        uint8, x's shape but for the last axis, which has 18, 20 or 17 bytes for each 32 numbers: the tensor's data.

    Raises
    ------
    TypeError
        `x` has the wrong type or dtype.
    lowbit.Error
        Rows are not whole blocks, a number is not finite, a block's scale is beyond float16, or the type cannot say
        what `x` says.

    Notes
    -----
    The rules are those of ggml's reference code, in float32, each operation rounded (a C compiler that fuses them may
    differ in the last place):

    * Q4_0: d = m / -8, m being the first number of the largest magnitude, with its sign; the code is
      ``min(15, trunc(x * (1 / d) + 8.5))``, the number ``(code - 8) * d``.
    * Q4_1: d = (max - min) / 15; the code is ``min(15, trunc((x - min) * (1 / d) + 0.5))``, the number
      ``code * d + min``.
    * MXFP4: the scale is 2**(floor(log2(amax)) - 2), the element the nearest of E2M1, ties to the smaller magnitude,
      never -0 (lowbit's own ``"mxfp4"`` rounds ties to even and keeps -0). ggml takes the logarithm in float32, which
      makes the scale twice as large where amax is within a few parts in 10**7 below a power of two; here it is exact.

    d and min are used in float32 and stored in float16. A block of zeros has d = -0 and codes 8 in Q4_0.

    References
    ----------
    ggml, ``ggml-quants.c``: quantize_row_q4_0_ref, quantize_row_q4_1_ref, quantize_row_mxfp4_ref.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> blocks = lb.interop.to_gguf(np.linspace(-8, 7.5, 32, dtype=np.float32), "Q4_0")
    >>> blocks[:4]
    array([  0,  60, 128, 145], dtype=uint8)
    >>> q = lb.interop.from_gguf(blocks, "Q4_0")
    >>> bool((lb.interop.to_gguf(q, "Q4_0") == blocks).all())
    True
    """
    _arguments.choice(type, "type", _HEADS)
    if isinstance(x, Quantized):
        tool = f"GGUF {type}"
        q = _parts.quantized(x, tool, ("mxfp4",) if type == "MXFP4" else _INTEGERS)
        shape = _parts.row_blocks(q, _BLOCK, tool)
        head, codes = _mxfp4_parts(q) if type == "MXFP4" else _integer_parts(q, type, shape)
    else:
        values = _arguments.float32(_arguments.floats(x, "x"), "x")
        if not values.ndim or values.shape[-1] % _BLOCK:
            raise _core.Error(f"x: GGUF {type} wants rows of a multiple of {_BLOCK} numbers, got shape {values.shape}")
        wrong = _parts.first(~np.isfinite(values))
        if wrong is not None:
            raise _core.Error(f"x: element {wrong} is {values.flat[wrong]}; GGUF {type} has only finite numbers")
        shape = (*values.shape[:-1], values.shape[-1] // _BLOCK)
        head, codes = _QUANTIZE[type](values.reshape(-1, _BLOCK))
    low, high = codes[:, : _BLOCK // 2], codes[:, _BLOCK // 2 :]
    blocks = np.concatenate([head, low | high << 4], axis=1)
    return blocks.reshape(*shape[:-1], shape[-1] * blocks.shape[1])


def from_gguf(blocks: ArrayLike, type: GgufType) -> Quantized:
    """Read ggml's blocks.

    Parameters
    ----------
    blocks : array_like
        uint8, the last axis a multiple of 18 (Q4_0), 20 (Q4_1) or 17 bytes (MXFP4): the tensor's data.
    type : {"Q4_0", "Q4_1", "MXFP4"}
        The GGML type.

    Returns
    -------
    Quantized
        Of 32 numbers a block along the last axis; it dequantizes to ggml's numbers. MXFP4 gives ``"mxfp4"``. Q4_0 and
        Q4_1 give ``"uint4"`` with offsets: Q4_0 has the scale abs(d), and the offset -8 d or, where d is negative,
        7 d with codes ``15 - code``. Where d is 0 the scale is 1 and codes are 0.

    Raises
    ------
    TypeError
        `blocks` is not uint8.
    lowbit.Error
        The bytes are not whole blocks, or a block's scale cannot be: not finite, a negative d in Q4_1.

    Notes
    -----
    `to_gguf` gives the bytes back. Only codes of blocks whose d is 0, which say nothing, become those that ggml writes.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> q = lb.interop.from_gguf(np.uint8([0, 0xBC] + [0x80] * 16), "Q4_0")
    >>> q.scale, q.offset, np.asarray(q)[[0, 16]]
    (array([1.], dtype=float32), array([-7.], dtype=float32), array([8., 0.], dtype=float32))
    """
    head = _HEADS[_arguments.choice(type, "type", _HEADS)]
    width = head + _BLOCK // 2
    data = _parts.bytes_of(blocks, "blocks")
    if not data.ndim or data.shape[-1] % width:
        raise _core.Error(f"blocks: GGUF {type} has {width} bytes a block, and shape {data.shape} no multiple of them")
    shape = (*data.shape[:-1], data.shape[-1] // width)
    data = data.reshape(-1, width)
    codes = np.concatenate([data[:, head:] & 15, data[:, head:] >> 4], axis=1)
    if type == "MXFP4":
        return _from_mxfp4(data[:, 0], codes, shape)
    d = np.ascontiguousarray(data[:, :2]).view("<f2").astype(np.float32)
    m = np.ascontiguousarray(data[:, 2:4]).view("<f2").astype(np.float32) if type == "Q4_1" else np.float32(-8) * d
    wrong = _parts.first(~(np.isfinite(d) & np.isfinite(m)))
    if wrong is not None:
        raise _core.Error(f"blocks: the scale or minimum of block {wrong} is not finite")
    if type == "Q4_1":
        wrong = _parts.first(d[:, 0] < 0)
        if wrong is not None:
            raise _core.Error(f"blocks: block {wrong} has the negative scale {d[wrong, 0]:g}, which Q4_1 never has")
    codes = np.where(d < 0, 15 - codes, np.where(d == 0, 0, codes)).astype(np.uint8)
    offset = np.where(d < 0, 7 * d, m) if type == "Q4_0" else m
    scale = np.where(d == 0, np.float32(1), np.abs(d))
    length = (*shape[:-1], shape[-1] * _BLOCK)
    return _parts.from_codes(
        codes.reshape(length), scale.reshape(shape), offset.reshape(shape), "uint4", len(shape) - 1, _BLOCK
    )


def _half(values: NDArray[np.float32], argument: str, what: str) -> NDArray[np.uint8]:
    """float16 bytes, little-endian, of a number for each block."""
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    wrong = _parts.first(~np.isfinite(halves))
    if wrong is not None:
        raise _core.Error(f"{argument}: the {what} of block {wrong}, {values.flat[wrong]:g}, is beyond float16")
    return halves.reshape(-1, 1).view(np.uint8)


def _inverse(d: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / d; 0 where d is 0, or so small that its inverse is beyond float32."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / d
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _quantize_q4_0(x: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    # ggml starts from +0 and looks for larger magnitudes, so that of zeros it never takes a negative one.
    d = (extreme + np.float32(0)) / np.float32(-8)
    codes = np.trunc(x * _inverse(d) + np.float32(8.5))
    return _half(d, "x", "scale"), np.minimum(codes, 15).astype(np.uint8)


def _quantize_q4_1(x: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    low = x.min(axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        d = (x.max(axis=1, keepdims=True) - low) / np.float32(15)
    head = [_half(d, "x", "scale"), _half(low, "x", "minimum")]
    codes = np.trunc((x - low) * _inverse(d) + np.float32(0.5))
    return np.concatenate(head, axis=1), np.minimum(codes, 15).astype(np.uint8)


def _quantize_mxfp4(x: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    exact = x.astype(np.float64)
    exponent = np.frexp(np.abs(exact).max(axis=1, keepdims=True))[1] - 1
    amax_is_zero = ~x.any(axis=1, keepdims=True)
    scale = np.where(amax_is_zero, 0, np.clip(exponent - 2 + 127, 0, 254))
    magnitude = np.searchsorted(_MXFP4_MIDPOINTS, np.ldexp(np.abs(exact), 127 - scale), side="left")
    return scale.astype(np.uint8), (magnitude | np.where((x < 0) & (magnitude > 0), 8, 0)).astype(np.uint8)


_QUANTIZE: dict[str, Any] = {"Q4_0": _quantize_q4_0, "Q4_1": _quantize_q4_1, "MXFP4": _quantize_mxfp4}


def _integer_parts(q: Quantized, type: str, shape: tuple[int, ...]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Every number of a 4-bit integer format is ``steps * scale + offset`` with steps from 0 to 15."""
    signed = q.format.name != "uint4"
    steps = q.codes.reshape(-1, _BLOCK) ^ np.uint8(8 if signed else 0)
    scale = np.broadcast_to(q.scale, shape).reshape(-1, 1)
    if q.offset is None:
        offset = scale * np.float32(-8 if signed else 0)
    else:
        offset = np.broadcast_to(q.offset, shape).reshape(-1, 1)
        steps = steps - np.uint8(q.format.name == "int4_symmetric")
    # How a block whose numbers are all alike was read, or would be.
    flat = ~steps.any(axis=1, keepdims=True) & (scale == 1)
    if type == "Q4_1":
        halves = np.where(flat, np.float32(0), scale)
        parts = [_exact_half(halves, "scale"), _exact_half(offset, "offset")]
        return np.concatenate(parts, axis=1), steps
    flat &= offset == 0
    negative = ~flat & (offset == -7 * scale)
    wrong = _parts.first(~(flat | negative | (offset == -8 * scale)))
    if wrong is not None:
        raise _core.Error(
            f"q: Q4_0 has the offsets -8 and -7 times the scale, not {offset[wrong, 0]:g} with {scale[wrong, 0]:g} "
            f"(block {wrong}); Q4_1 has any"
        )
    d = np.where(flat, offset / np.float32(-8), np.where(negative, -scale, scale))
    codes = np.where(flat, 8, np.where(negative, 15 - steps, steps)).astype(np.uint8)
    return _exact_half(d, "scale"), codes


def _exact_half(values: NDArray[np.float32], what: str) -> NDArray[np.uint8]:
    halves = _half(values, "q", what)
    wrong = _parts.first(halves.view("<f2").astype(np.float32) != values)
    if wrong is not None:
        raise _core.Error(
            f"q: the {what} of block {wrong}, {values.flat[wrong]:.9g}, is no float16 number, as GGUF's are"
        )
    return halves


def _mxfp4_parts(q: Quantized) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    assert q.scale_codes is not None
    return q.scale_codes.reshape(-1, 1), q.codes.reshape(-1, _BLOCK)


def _from_mxfp4(scale: NDArray[np.uint8], codes: NDArray[np.uint8], shape: tuple[int, ...]) -> Quantized:
    wrong = _parts.first(scale == 255)
    if wrong is not None:
        raise _core.Error(f"blocks: the scale of block {wrong} is 255, which is no number (E8M0)")
    length = (*shape[:-1], shape[-1] * _BLOCK)
    return _parts.from_codes(codes.reshape(length), scale.reshape(shape), None, "mxfp4", len(shape) - 1, _BLOCK)
