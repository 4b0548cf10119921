"""Quantize, dequantize, fake-quantize: arrays of floats to codes of a few bits and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from lowbit import _arguments, _core
from lowbit._quantized import Quantized

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from lowbit._formats import FormatLike, KeyLike, RoundingName


def fake_quantize(
    x: ArrayLike,
    format: FormatLike,
    *,
    scale: str | ArrayLike | None = None,
    offset: ArrayLike | None = None,
    tensor_scale: float | np.float32 | None = None,
    axis: SupportsIndex | None = None,
    block_size: SupportsIndex | None = None,
    rounding: RoundingName = "nearest",
    key: KeyLike | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Round to the numbers that a format can hold, without making codes.

    Equals ``dequantize(quantize(x, ...), dtype=x.dtype)`` bit for bit, in one pass.

    Parameters
    ----------
    x : array_like
        Any shape and layout, float16, bfloat16, float32 or float64 (which is first rounded to float32).
    format : str or Format
        A name of ``lowbit.formats()``, or what a factory (`float_format`, `fixed_point`, ...) gave.
    scale : str or array_like, optional
        A rule's name (a format's ``scale_rules`` tell which it can use), or numbers from 2**-126 to 2**126 that
        broadcast to `x` (with blocks: to its blocked shape); for a format whose scales have a format of their own,
        numbers of that. Default: the format's own rule.
    offset : array_like, optional
        With numbers for `scale`, the number that the lowest code stands for.
    tensor_scale : float, optional
        For ``nvfp4`` and its like, the scale of the whole array, from 2**-117 to 2**117: with a rule for `scale` in
        place of what the array itself would give; with numbers, what multiplies them (default 1).
    axis : int, optional
        Alone: one scale per index along this axis (a list given as `scale` is read along it). With `block_size`: the
        axis that is cut (default the last).
    block_size : int, optional
        One scale per run of so many numbers; the last run of a row may be shorter. Formats such as ``mxfp4`` have
        their own block, and take no other.
    rounding : {"nearest", "stochastic", "dither"}
        ``"stochastic"`` goes up with the probability that makes the mean right; ``"dither"`` (formats of equal steps)
        adds a uniform number that reconstruction subtracts. Both need `key`.
    key : Key or int, optional
        The randomness; element i in C order uses word i of its stream. ``"stochastic"`` also takes a
        ``numpy.random.Generator``, from which two raw words are drawn; ``"nearest"`` takes none.
    out : numpy.ndarray, optional
        Where to write: x's shape and dtype. It may be exactly `x`.

    Returns
    -------
    numpy.ndarray
        x's shape and dtype (or `out`). A group with a number that is not finite is NaN where its scale comes from the
        data; with a given scale infinities saturate and NaN stays.

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype.
    lowbit.Error
        An argument has a value that cannot be used; the message names it.

    Notes
    -----
    With ``t = fl32((x - offset) * fl32(1 / scale))`` the result is ``round(t) * scale + offset``, in float32.
    Numbers beyond the grid become its nearest end: also infinities where the scale is given, or 1, and also in formats
    that have codes for infinity. The rules:

    * "one": the scale 1, unseen: small floats, fixed point, log grids and tables of the caller's own.
    * "amax" brings the largest magnitude to the format's ``reference``.
    * "minmax" (equal steps) brings the smallest number to the lowest code and the largest to the highest (PyTorch's
      affine convention, with the minimum as a float offset). It needs a range that float32 holds (max - min finite): a
      group beyond that is treated as not finite. For signed data on unsigned integers use this, since "amax" makes all
      negative numbers 0.
    * "sawb" minimises the squared error of bell-shaped weights (Choi et al., arXiv:1807.06964, with the constants of
      IBM's published code): do not use it where magnitudes are all alike, since it then clips nearly all.
    * "mean" (ternary, sign): the mean magnitude, as BitNet b1.58 and XNOR-Net have it. "twn" (ternary): numbers above
      0.7 times the mean magnitude become the mean of those (Li et al., arXiv:1605.04711).
    * "bias" (CFloat): the least power of two that holds the largest magnitude, among those that six bits of bias say.
    * "floor" (OCP's), "ceil", "rceil" and "even" (scales that are powers of two): from the exponent of the largest
      magnitude, rounded down (the largest may then be clipped), up, up after dividing by the largest element, or as a
      number of the element's precision is.
    * "amax" and "four_over_six" of ``nvfp4``: E4M3 block scales under one float32 scale; the second chooses for every
      block whether its largest magnitude becomes 6 or 4, by the squared error (arXiv:2512.02010).

    float16 results may be infinite where rounding goes up past 65504.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> lb.fake_quantize(np.array([0.0, 0.3, 1.0]), "int4", scale="minmax").round(4)
    array([0.    , 0.2667, 1.    ])
    >>> lb.fake_quantize(np.float32([0.7, 5.0, -100.0]), "radix4", scale=1.0)
    array([  1.,   4., -64.], dtype=float32)
    """
    x = _arguments.array(x, "x")
    where, size = _arguments.axis(axis), _arguments.block_size(block_size)
    given, offsets = _arguments.scaling(scale, offset, x.ndim, where, size)
    how, words = _arguments.noise(rounding, key)
    tensor = _arguments.tensor_scale(tensor_scale)
    result = _core.fake_quantize(x, format, given, offsets, tensor, where, size, how, words, _arguments.out(out))
    return result if out is None else out


def quantize(
    x: ArrayLike,
    format: FormatLike,
    *,
    scale: str | ArrayLike | None = None,
    offset: ArrayLike | None = None,
    tensor_scale: float | np.float32 | None = None,
    axis: SupportsIndex | None = None,
    block_size: SupportsIndex | None = None,
    rounding: RoundingName = "nearest",
    key: KeyLike | None = None,
    out: NDArray[np.uint8] | None = None,
) -> Quantized:
    """Round to the numbers that a format can hold and keep their codes, packed.

    Parameters
    ----------
    x, format, scale, offset, tensor_scale, axis, block_size, rounding, key
        As in `fake_quantize`.
    out : numpy.ndarray, optional
        Where to write the packed codes: uint8, one dimension, ``ceil(x.size * bits / 8)`` bytes.

    Returns
    -------
    Quantized

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype.
    lowbit.Error
        An argument has a value that cannot be used, or a number has no code (NaN; anything not finite where the scale
        comes from the data): the message names its index in C order.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> q = lb.quantize(np.linspace(-1, 1, 8), "int4", block_size=4)
    >>> q.codes
    array([ 9, 11, 13, 15,  1,  3,  5,  7], dtype=uint8)
    >>> q.packed, q.scale.round(4)
    (array([185, 253,  49, 117], dtype=uint8), array([0.1429, 0.1429], dtype=float32))
    >>> np.asarray(q).round(2)
    array([-1.  , -0.71, -0.43, -0.14,  0.14,  0.43,  0.71,  1.  ],
          dtype=float32)
    """
    x = _arguments.array(x, "x")
    fmt = _core.get_format(format)
    where, size = _arguments.axis(axis), _arguments.block_size(block_size)
    given, offsets = _arguments.scaling(scale, offset, x.ndim, where, size)
    how, words = _arguments.noise(rounding, key)
    tensor = _arguments.tensor_scale(tensor_scale)
    packed, scales, shifts, tensor = _core.quantize(
        x, fmt, given, offsets, tensor, where, size, how, words, _arguments.out(out)
    )
    if size is None and (where is None or fmt.scale_format is not None) and x.ndim:
        size = fmt.default_block
    if size is not None and where is None:
        where = -1
    where = None if where is None else where % x.ndim
    key_id = _arguments.key_id(words) if how == "dither" and words is not None else None
    return Quantized._trusted(packed, scales, shifts, tensor, fmt, x.shape, where, size, key_id)


def dequantize(
    q: Quantized,
    *,
    dtype: DTypeLike = np.float32,
    key: KeyLike | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """Compute the numbers that codes stand for.

    Parameters
    ----------
    q : Quantized
        What `quantize` gave.
    dtype : dtype, optional
        float32, float16, bfloat16 or float64. The float32 result is rounded to it.
    key : Key or int, optional
        The key that `q` was dithered with; for nothing else.
    out : numpy.ndarray, optional
        Where to write: q's shape, and exactly `dtype`.

    Returns
    -------
    numpy.ndarray
        q's shape.

    Raises
    ------
    TypeError
        `q` is not a Quantized, or a dtype is not a float that is written.
    lowbit.Error
        The key is missing, wrong or not needed, or `out` does not fit.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> lb.dequantize(lb.quantize(np.float32([1, -2, 3.5]), "int4"), dtype=np.float16)
    array([ 1. , -2. ,  3.5], dtype=float16)
    """
    if not isinstance(q, Quantized):
        raise TypeError(f"q: expected a lowbit.Quantized, got {type(q).__name__}")
    words = _arguments.words(key, private=False)
    if q.key_id is None and words is not None:
        raise _core.Error('key: only codes made with rounding="dither" need one; leave it out')
    if q.key_id is not None and words is None:
        raise _core.Error('key: these codes were made with rounding="dither"; give dequantize(q, key=...) the same key')
    if words is not None and _arguments.key_id(words) != q.key_id:
        raise _core.Error("key: not the key that these codes were dithered with")
    descr = _arguments.dtype(dtype)
    target = _arguments.out(out)
    result = q._dequantize(words, descr, target)
    return result if out is None else out


def pack(codes: ArrayLike, bits: SupportsIndex | float) -> NDArray[np.uint8]:
    """Pack codes into one flat bit string, least significant bit first.

    Parameters
    ----------
    codes : array_like
        uint8 or uint16, any shape (read in C order), each below ``2**bits``.
    bits : int or 1.6
        1 to 16; or 1.6 for codes of three values (``ternary``), five a byte.

    Returns
    -------
    numpy.ndarray
        uint8, shape (ceil(size * bits / 8),). Code i takes bits ``i * bits`` and up; the padding at the end is zero.
        With 1.6 a byte is ``c[0] + 3 c[1] + 9 c[2] + 27 c[3] + 81 c[4]``.

    Raises
    ------
    TypeError
        `codes` is neither uint8 nor uint16.
    lowbit.Error
        A code does not fit, or `bits` is out of range.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> lb.pack(np.uint8([1, 2, 3]), 4)
    array([33,  3], dtype=uint8)
    """
    array = _arguments.array(codes, "codes")
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise TypeError(f"codes: dtype {array.dtype} is not uint8 or uint16")
    native = array.dtype.newbyteorder("=")
    flat = np.require(array, native, ["C", "A"]).reshape(-1)
    return _core.pack_three(flat) if _five_a_byte(bits) else _core.pack(flat, _bits(bits))


def unpack(packed: ArrayLike, bits: SupportsIndex | float, n: SupportsIndex) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Unpack what `pack` packed.

    Parameters
    ----------
    packed : array_like
        uint8, shape (ceil(n * bits / 8),).
    bits : int or 1.6
        As in `pack`.
    n : int
        How many codes.

    Returns
    -------
    numpy.ndarray
        Shape (n,): uint8 up to 8 bits, uint16 above.

    Raises
    ------
    TypeError
        `packed` is not uint8.
    lowbit.Error
        The length does not fit, the padding is not zero, or `bits` is out of range.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> lb.unpack(np.uint8([33, 3]), 4, 3)
    array([1, 2, 3], dtype=uint8)
    """
    array = _arguments.array(packed, "packed")
    if array.dtype != np.uint8 or array.ndim != 1:
        raise TypeError(f"packed: expected a one-dimensional uint8 array, got {array.ndim} dimensions of {array.dtype}")
    count = _arguments.within(n, "n", 0, (1 << 63) - 1)
    flat = np.require(array, None, ["C", "A"])
    return _core.unpack_three(flat, count) if _five_a_byte(bits) else _core.unpack(flat, _bits(bits), count)


def _five_a_byte(bits: SupportsIndex | float) -> bool:
    return isinstance(bits, (float, np.floating)) and float(bits) == 1.6


def _bits(bits: SupportsIndex | float) -> int:
    if isinstance(bits, (float, np.floating)):
        raise TypeError(f"bits: expected an int (or 1.6: codes of three values, five a byte), got {bits}")
    return _arguments.within(bits, "bits", 1, 16)
