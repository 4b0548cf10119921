"""Quantize, dequantize, fake-quantize: arrays of floats to codes of a few bits and back."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from lowbit import _core
from lowbit._keys import Key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from lowbit._formats import FormatLike, KeyLike, RoundingName

_FLOATS = "float16, bfloat16, float32 or float64"


def fake_quantize(
    x: ArrayLike,
    format: FormatLike,  # noqa: A002 - the field's word
    *,
    scale: str | ArrayLike | None = None,
    offset: ArrayLike | None = None,
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
        A name of ``lowbit.formats()``.
    scale : str or array_like, optional
        A rule's name (``"amax"``, ``"minmax"``, ``"sawb"``; which a format can use its ``scale_rules`` tell), or numbers
        from 2**-126 to 2**126 that broadcast to `x` (with `block_size`: to its blocked shape). Default: the format's
        own rule.
    offset : array_like, optional
        With numbers for `scale`, the number that the lowest code stands for.
    axis : int, optional
        Alone: one scale per index along this axis. With `block_size`: the axis that is cut (default the last).
    block_size : int, optional
        One scale per run of so many numbers; the last run of a row may be shorter.
    rounding : {"nearest", "stochastic", "dither"}
        ``"stochastic"`` goes up with the probability that makes the mean right; ``"dither"`` (formats of equal steps)
        adds a uniform number that reconstruction subtracts. Both need `key`.
    key : Key or int, optional
        The randomness; element i in C order uses word i of its stream. ``"stochastic"`` also takes a
        ``numpy.random.Generator``, from which two raw words are drawn.
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
    Sources: each format's ``source``; "minmax" is PyTorch's affine convention; SAWB is Choi et al., SysML 2019, equation 7.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> lb.fake_quantize(np.array([0.0, 0.3, 1.0]), "int4", scale="minmax").round(4)
    array([0.    , 0.2667, 1.    ])
    >>> lb.fake_quantize(np.float32([0.7, 5.0, -100.0]), "radix4", scale=1.0)
    array([  1.,   4., -64.], dtype=float32)
    """
    return _core.fake_quantize(
        _floats(x, "x"),
        format,
        *_scaling(scale, offset),
        _index(axis, "axis"),
        _size(block_size),
        rounding,
        _words(key, rounding),
        _out(out),
    )


def quantize(
    x: ArrayLike,
    format: FormatLike,  # noqa: A002 - the field's word
    *,
    scale: str | ArrayLike | None = None,
    offset: ArrayLike | None = None,
    axis: SupportsIndex | None = None,
    block_size: SupportsIndex | None = None,
    rounding: RoundingName = "nearest",
    key: KeyLike | None = None,
    out: NDArray[np.uint8] | None = None,
) -> Quantized:
    """Round to the numbers that a format can hold and keep their codes, packed.

    Parameters
    ----------
    x, format, scale, offset, axis, block_size, rounding, key
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
    x = _floats(x, "x")
    rule_or_scale, offsets = _scaling(scale, offset)
    where, size, words = _index(axis, "axis"), _size(block_size), _words(key, rounding)
    fmt = _core.get_format(format)
    packed, new_scale, new_offset = _core.quantize(
        x, fmt, rule_or_scale, offsets, where, size, rounding, words, _out(out)
    )
    if new_scale is None:
        new_scale, new_offset = rule_or_scale, offsets
        missing = (1,) * (x.ndim - new_scale.ndim)
        new_scale = new_scale.reshape(missing + new_scale.shape)
        new_offset = None if new_offset is None else new_offset.reshape(missing + new_offset.shape)
    if size is None and where is None and x.ndim:
        size = fmt.default_block
    if size is not None and where is None:
        where = -1
    where = None if where is None else where % x.ndim
    key_id = _key_id(words) if rounding == "dither" and words is not None else None
    return Quantized(packed, new_scale, new_offset, None, fmt, x.shape, where, size, key_id)


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
        float32, float16, bfloat16 or float64; ignored if `out` is given. The float32 result is rounded to it.
    key : Key or int, optional
        The key that `q` was dithered with; for nothing else.
    out : numpy.ndarray, optional
        Where to write: q's shape.

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
    words = None
    if q.key_id is not None:
        if key is None:
            raise _core.Error('key: these codes were made with rounding="dither"; give dequantize(q, key=...) the same key')
        words = _words(key, "dither")
        if words is None or _key_id(words) != q.key_id:
            raise _core.Error("key: not the key that these codes were dithered with")
    elif key is not None:
        raise _core.Error('key: only codes made with rounding="dither" need one; leave it out')
    descr = out.dtype if isinstance(out, np.ndarray) else np.dtype(dtype)
    return _core.dequantize(
        q.packed, q.format, q.shape, q.scale, q.offset, q.axis, q.block_size, words, descr, _out(out)
    )


def pack(codes: ArrayLike, bits: SupportsIndex) -> NDArray[np.uint8]:
    """Pack codes into one flat bit string, least significant bit first.

    Parameters
    ----------
    codes : array_like
        uint8 or uint16, any shape (read in C order), each below ``2**bits``.
    bits : int
        1 to 16.

    Returns
    -------
    numpy.ndarray
        uint8, shape (ceil(size * bits / 8),). Code i takes bits ``i * bits`` and up; the padding at the end is zero.

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
    array = _unmasked(codes, "codes")
    if array.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"codes: dtype {array.dtype} is not uint8 or uint16")
    native = array.dtype.newbyteorder("=")
    return _core.pack(np.ascontiguousarray(array, native).reshape(-1), _bits(bits))


def unpack(packed: ArrayLike, bits: SupportsIndex, n: SupportsIndex) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Unpack what `pack` packed.

    Parameters
    ----------
    packed : array_like
        uint8, shape (ceil(n * bits / 8),).
    bits : int
        1 to 16.
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
    array = _unmasked(packed, "packed")
    if array.dtype != np.uint8 or array.ndim != 1:
        raise TypeError(f"packed: expected a one-dimensional uint8 array, got {array.ndim} dimensions of {array.dtype}")
    count = _int(n, "n")
    if not 0 <= count < 1 << 63:
        raise _core.Error(f"n: {count} is out of range; give 0 or more")
    return _core.unpack(np.ascontiguousarray(array), _bits(bits), count)


class Quantized:
    """Codes of a few bits, their scales, and what is needed to read them.

    `quantize` makes them; a Quantized cannot be changed. ``np.asarray(q)`` is the dequantized float32 array.

    Attributes
    ----------
    packed : numpy.ndarray
        uint8, shape (ceil(size * bits / 8),): the codes in C order as one flat bit string, least significant bit first.
    scale : numpy.ndarray
        float32; broadcasts to `shape`, or with `block_size` to the blocked shape.
    offset : numpy.ndarray or None
        float32, of scale's shape: the number that the lowest code stands for.
    tensor_scale : numpy.float32 or None
        A second scale for the whole array, where the format has one.
    format : Format
        The number format.
    shape : tuple of int
        The shape of the array.
    axis, block_size : int or None
        How scales are shared.
    key_id : bytes or None
        Eight bytes that tell the key of ``rounding="dither"`` from others without giving it away.
    """

    __slots__ = ("axis", "block_size", "format", "key_id", "offset", "packed", "scale", "shape", "tensor_scale")

    packed: NDArray[np.uint8]
    scale: NDArray[np.float32]
    offset: NDArray[np.float32] | None
    tensor_scale: np.float32 | None
    format: _core.Format
    shape: tuple[int, ...]
    axis: int | None
    block_size: int | None
    key_id: bytes | None

    def __init__(
        self,
        packed: NDArray[np.uint8],
        scale: NDArray[np.float32],
        offset: NDArray[np.float32] | None,
        tensor_scale: np.float32 | None,
        format: _core.Format,  # noqa: A002 - the field's word
        shape: Sequence[int],
        axis: int | None,
        block_size: int | None,
        key_id: bytes | None,
    ) -> None:
        values = (axis, block_size, format, key_id, offset, packed, scale, tuple(shape), tensor_scale)
        for name, value in zip(self.__slots__, values, strict=True):
            object.__setattr__(self, name, value)

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Quantized:
        """Read what `to_bytes` wrote.

        Raises
        ------
        lowbit.DecodeError
            The bytes are truncated, damaged or of an unknown version.
        """
        return cls(*_core.quantized_from_bytes(bytes(data)))

    def to_bytes(self) -> bytes:
        """Write everything but the key as one container (``docs/wire.md``)."""
        return _core.quantized_to_bytes(
            self.packed, self.scale, self.offset, self.format, self.shape, self.axis, self.block_size, self.key_id
        )

    @property
    def codes(self) -> NDArray[Any]:
        """Bit patterns in the array's shape: uint8, or uint16 for formats of more than 8 bits."""
        return _core.unpack(np.ascontiguousarray(self.packed), self.format.bits, self.size).reshape(self.shape)

    @property
    def size(self) -> int:
        """How many numbers."""
        size = 1
        for length in self.shape:
            size *= length
        return size

    @property
    def ndim(self) -> int:
        """How many dimensions."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that codes, scales and offsets take."""
        return int(self.packed.nbytes + self.scale.nbytes + (0 if self.offset is None else self.offset.nbytes))

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a Quantized has no float array to share; np.asarray(q) computes one")
        result = dequantize(self)
        return result if dtype is None else result.astype(dtype, copy=False)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a Quantized of no dimensions")
        return self.shape[0]

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a Quantized cannot be changed; quantize makes another")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("a Quantized cannot be changed; quantize makes another")

    def __eq__(self, other: object) -> bool:
        return self.to_bytes() == other.to_bytes() if isinstance(other, Quantized) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    def __reduce__(self) -> tuple[Any, ...]:
        return Quantized.from_bytes, (self.to_bytes(),)

    def __repr__(self) -> str:
        shared = "" if self.axis is None else f", axis={self.axis}"
        shared += "" if self.block_size is None else f", block_size={self.block_size}"
        return f"<Quantized {self.format.name} {self.shape}{shared}, {self.nbytes} bytes>"


def _unmasked(x: ArrayLike, argument: str) -> NDArray[Any]:
    if type(x) is np.ndarray:
        return x
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{argument}: a masked array has no codes for its holes; give {argument}.filled(...)")
    return np.asarray(x)


def _floats(x: ArrayLike, argument: str) -> NDArray[Any]:
    """Any array; the core refuses what is not a float."""
    return x if type(x) is np.ndarray else _unmasked(x, argument)


def _numbers(x: ArrayLike, argument: str) -> NDArray[np.float32]:
    array = _unmasked(x, argument)
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise TypeError(f"{argument}: expected real numbers or a rule's name, got dtype {array.dtype}")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, np.float32).reshape(array.shape)


def _scaling(
    scale: str | ArrayLike | None, offset: ArrayLike | None
) -> tuple[str | NDArray[np.float32] | None, NDArray[np.float32] | None]:
    if scale is None or isinstance(scale, str):
        return scale, None if offset is None else _numbers(offset, "offset")
    scales = _numbers(scale, "scale")
    if offset is None:
        return scales, None
    offsets = _numbers(offset, "offset")
    try:
        both = np.broadcast_arrays(scales, offsets)
    except ValueError:
        raise _core.Error(f"offset: shape {offsets.shape} does not broadcast with scale's {scales.shape}") from None
    return np.ascontiguousarray(both[0]).reshape(both[0].shape), np.ascontiguousarray(both[1]).reshape(both[1].shape)


def _words(key: KeyLike | None, rounding: str) -> tuple[int, int] | None:
    if key is None or isinstance(key, Key):
        return None if key is None else key.words
    if isinstance(key, np.random.Generator):
        if rounding != "stochastic":
            raise TypeError(f"key: a Generator serves rounding='stochastic', not {rounding!r}; give a lowbit.Key or an int")
        k0, k1 = key.integers(0, 1 << 64, size=2, dtype=np.uint64).tolist()
        return k0, k1
    try:
        return Key(operator.index(key) if not isinstance(key, (bool, np.bool_)) else key).words
    except TypeError:
        raise TypeError(f"key: expected a lowbit.Key or an int, got {type(key).__name__}") from None


def _key_id(words: tuple[int, int]) -> bytes:
    return Key.from_words(*words).fold("key id").words[0].to_bytes(8, "little")


def _int(value: SupportsIndex, argument: str) -> int:
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{argument}: expected an int, got a bool")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{argument}: expected an int, got {type(value).__name__}") from None


def _index(value: SupportsIndex | None, argument: str) -> int | None:
    if value is None:
        return None
    index = _int(value, argument)
    if not -64 <= index < 64:
        raise _core.Error(f"{argument}: {index} is out of range")
    return index


def _size(value: SupportsIndex | None) -> int | None:
    if value is None:
        return None
    size = _int(value, "block_size")
    if not 0 < size < 1 << 62:
        raise _core.Error(f"block_size: {size} is out of range; give 1 or more")
    return size


def _bits(value: SupportsIndex) -> int:
    bits = _int(value, "bits")
    if not 1 <= bits <= 16:
        raise _core.Error(f"bits: {bits} is out of range; give 1 to 16")
    return bits


def _out(out: NDArray[Any] | None) -> NDArray[Any] | None:
    if out is not None and type(out) is not np.ndarray:
        raise TypeError(f"out: expected a numpy.ndarray, got {type(out).__name__}")
    return out
