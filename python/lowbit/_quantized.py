"""``Quantized``: codes of a few bits with all that is needed to read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit import _core

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike, NDArray


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
        format: _core.Format,
        shape: Sequence[int],
        axis: int | None,
        block_size: int | None,
        key_id: bytes | None,
    ) -> None:
        put = object.__setattr__
        put(self, "packed", packed)
        put(self, "scale", scale)
        put(self, "offset", offset)
        put(self, "tensor_scale", tensor_scale)
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
        if self.key_id is not None:
            raise _core.Error('key: these codes were made with rounding="dither"; use lowbit.dequantize(q, key=...)')
        packed, descr = self.packed, np.dtype(np.float32)
        result = _core.dequantize(
            packed, self.format, self.shape, self.scale, self.offset, self.axis, self.block_size, None, descr, None
        )
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
