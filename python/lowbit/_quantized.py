"""``Quantized``: codes of a few bits with all that is needed to read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from lowbit import _arguments, _core

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from lowbit._formats import FormatLike


class Quantized:
    """Codes of a few bits, their scales, and what is needed to read them.

    `quantize` makes them; the constructor takes the same parts from elsewhere and checks them (for `scale`, of a format
    with a `scale_format`, either its numbers or, as uint8, its codes). A Quantized cannot be
    changed: its arrays are read-only views (so do not write to memory that you gave it). It is no array:
    ``np.asarray(q)`` is the dequantized float32 array, to be computed with.

    Attributes
    ----------
    packed : numpy.ndarray
        uint8, shape (ceil(size * bits / 8),): the codes in C order as one flat bit string, least significant bit first.
    scale : numpy.ndarray
        float32, of as many dimensions as `shape`; broadcasts to `shape`, or with `block_size` to the blocked shape.
        Where the format's scales have a format of their own, they are made of `scale_codes` at every access.
    scale_codes : numpy.ndarray or None
        uint8, of scale's shape: the scales as codes, where the format has a `scale_format` (``"e8m0"`` or ``"e4m3"``).
    offset : numpy.ndarray or None
        float32, of scale's shape: the number that the lowest code stands for.
    tensor_scale : numpy.float32 or None
        The scale of the whole array that multiplies all others, where the format (``nvfp4``) has one.
    format : Format
        The number format.
    shape : tuple of int
        The shape of the array.
    axis, block_size : int or None
        How scales are shared.
    key_id : bytes or None
        Eight bytes that tell the key of ``rounding="dither"`` from others without giving it away.

    Raises
    ------
    TypeError
        A field has the wrong type or dtype.
    lowbit.Error
        A field does not fit the others, or is out of range; the message names it.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> q = lb.quantize(np.float32([[1, -2, 3.5], [7, 0, -7]]), "int4")
    >>> q
    <Quantized int4 (2, 3), 7 bytes>
    >>> q.codes
    array([[ 1, 14,  4],
           [ 7,  0,  9]], dtype=uint8)
    >>> np.asarray(lb.Quantized(q.packed, 0.5, None, None, "int4", (6,), None, None, None))
    array([ 0.5, -1. ,  2. ,  3.5,  0. , -3.5], dtype=float32)
    >>> lb.Quantized.from_bytes(q.to_bytes()) == q
    True
    """

    __slots__ = ("_scale", "axis", "block_size", "format", "key_id", "offset", "packed", "shape", "tensor_scale")

    packed: NDArray[np.uint8]
    _scale: NDArray[Any]
    offset: NDArray[np.float32] | None
    tensor_scale: np.float32 | None
    format: _core.Format
    shape: tuple[int, ...]
    axis: int | None
    block_size: int | None
    key_id: bytes | None

    def __init__(
        self,
        packed: ArrayLike,
        scale: ArrayLike,
        offset: ArrayLike | None,
        tensor_scale: float | np.float32 | None,
        format: FormatLike,
        shape: Iterable[SupportsIndex],
        axis: SupportsIndex | None,
        block_size: SupportsIndex | None,
        key_id: bytes | None,
    ) -> None:
        fmt = _core.get_format(format)
        try:
            lengths = tuple(shape)
        except TypeError:
            raise TypeError(f"shape: expected a sequence of ints, got {type(shape).__name__}") from None
        dims = tuple(_arguments.within(length, "shape", 0, (1 << 63) - 1) for length in lengths)
        codes = _arguments.array(packed, "packed")
        if codes.dtype != np.uint8 or codes.ndim != 1:
            raise TypeError(
                f"packed: expected a one-dimensional uint8 array, got {codes.ndim} dimensions of {codes.dtype}"
            )
        if scale is None or isinstance(scale, str):
            raise TypeError(f"scale: expected numbers, got {scale!r}")
        coded = fmt.scale_format is not None
        if coded and isinstance(scale, np.ndarray) and scale.dtype == np.uint8:
            scales = _plain(scale, len(dims))
        else:
            scales = _plain(_arguments.float32(scale, "scale"), len(dims))
            scales = _core.scale_codes(fmt, scales) if coded else scales
        tensor = _arguments.tensor_scale(tensor_scale)
        if key_id is not None and not isinstance(key_id, bytes):
            raise TypeError(f"key_id: expected bytes or None, got {type(key_id).__name__}")
        if key_id is not None and len(key_id) != 8:
            raise _core.Error(f"key_id: expected 8 bytes, got {len(key_id)}")
        offsets = None if offset is None else _plain(_arguments.float32(offset, "offset"), len(dims))
        if offsets is not None and offsets.shape != scales.shape:
            try:
                offsets = np.ascontiguousarray(np.broadcast_to(offsets, scales.shape))
            except ValueError:
                reason = f"shape {offsets.shape} does not broadcast to scale's {scales.shape}"
                raise _core.Error(f"offset: {reason}") from None
        codes = _plain(codes, 1)
        # As large as the container can say, so that whatever is read can be made.
        size = None if block_size is None else _arguments.within(block_size, "block_size", 1, (1 << 64) - 1)
        where = _core.quantized_check(codes, scales, offsets, tensor, fmt, dims, _arguments.axis(axis), size, key_id)
        self._fill(codes, scales, offsets, tensor, fmt, dims, where, size, key_id)

    @classmethod
    def _trusted(cls, *fields: Any) -> Quantized:
        """Make one of parts that the core has made or checked; the order is the constructor's."""
        self = cls.__new__(cls)
        self._fill(*fields)
        return self

    def _fill(
        self,
        packed: NDArray[np.uint8],
        scale: NDArray[Any],
        offset: NDArray[np.float32] | None,
        tensor_scale: float | None,
        format: _core.Format,
        shape: Iterable[int],
        axis: int | None,
        block_size: int | None,
        key_id: bytes | None,
    ) -> None:
        packed, scale, offset = _core.read_only(packed, scale, offset)
        put = object.__setattr__
        put(self, "packed", packed)
        put(self, "_scale", scale)
        put(self, "offset", offset)
        put(self, "tensor_scale", None if tensor_scale is None else np.float32(tensor_scale))
        put(self, "format", format)
        put(self, "shape", tuple(shape))
        put(self, "axis", axis)
        put(self, "block_size", block_size)
        put(self, "key_id", key_id)

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Quantized:
        """Read what `to_bytes` wrote.

        Raises
        ------
        TypeError
            `data` is not bytes.
        lowbit.DecodeError
            The bytes are truncated, damaged or of an unknown version.
        """
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data: expected bytes, got {type(data).__name__}")
        return cls._trusted(*_core.quantized_from_bytes(bytes(data)))

    def to_bytes(self) -> bytes:
        """Write everything but the key as one container (``docs/wire.md``)."""
        parts = self.packed, self._scale, self.offset, self._tensor_scale
        return _core.quantized_to_bytes(*parts, self.format, self.shape, self.axis, self.block_size, self.key_id)

    @property
    def scale(self) -> NDArray[np.float32]:
        """The scales, float32, read-only."""
        if self.scale_codes is None:
            return self._scale
        scales = _core.scale_values(self.format, self.scale_codes)
        scales.flags.writeable = False
        return scales

    @property
    def scale_codes(self) -> NDArray[np.uint8] | None:
        """The codes of the scales, uint8, read-only, where the format's scales have a format of their own."""
        return None if self.format.scale_format is None else self._scale

    @property
    def _tensor_scale(self) -> float | None:
        return None if self.tensor_scale is None else float(self.tensor_scale)

    @property
    def codes(self) -> NDArray[Any]:
        """Bit patterns in the array's shape: uint8, or uint16 for formats of more than 8 bits."""
        return _core.unpack(self.packed, self.format.bits, self.size).reshape(self.shape)

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
        rest = [part.nbytes for part in (self.offset, self.tensor_scale) if part is not None]
        return int(self.packed.nbytes + self._scale.nbytes + sum(rest))

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a Quantized has no float array to share; np.asarray(q) computes one")
        if self.key_id is not None:
            raise _core.Error('key: these codes were made with rounding="dither"; use lowbit.dequantize(q, key=...)')
        result = self._dequantize(None, np.dtype(np.float32), None)
        return result if dtype is None else result.astype(dtype, copy=False)

    def _dequantize(
        self, words: _arguments.Words | None, descr: np.dtype[Any], out: NDArray[Any] | None
    ) -> NDArray[Any]:
        parts = self._scale, self.offset, self._tensor_scale
        shared = self.axis, self.block_size
        return _core.dequantize(self.packed, self.format, self.shape, *parts, *shared, words, descr, out)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> bool:
        # Else NumPy would compare and compute with the numbers, unasked, or end in an error about broadcasting.
        if ufunc in (np.equal, np.not_equal):
            return ufunc is np.not_equal
        raise TypeError(f"numpy.{ufunc.__name__}: a Quantized is no array of numbers; compute with np.asarray(q)")

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
        return f"<Quantized {_arguments.shown(self.format.name)} {self.shape}{shared}, {self.nbytes} bytes>"


def _plain(array: NDArray[Any], ndim: int) -> NDArray[Any]:
    """Give a C-contiguous, aligned array of at least `ndim` dimensions."""
    try:
        return np.require(array, requirements=["C", "A"]).reshape((1,) * (ndim - array.ndim) + array.shape)
    except ValueError:
        raise _core.Error(f"shape: {ndim} dimensions are more than NumPy has") from None
