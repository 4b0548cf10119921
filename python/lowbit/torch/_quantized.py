"""``QuantizedTensor``: codes of a few bits with all that is needed to read them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

import lowbit as lb
from lowbit.torch import _bridge

if TYPE_CHECKING:
    from torch import Tensor

    from lowbit.torch._keys import KeyLike


@dataclass(frozen=True, eq=False, repr=False)
class QuantizedTensor:
    """Codes of a few bits, their scales, and what is needed to read them: plain tensors and plain data.

    `lowbit.torch.ops.quantize` makes them; the fields are those of `lowbit.Quantized`, with these differences.

    Attributes
    ----------
    packed : torch.Tensor
        uint8, shape (ceil(size * bits / 8),): the codes in C order as one flat bit string, least significant bit first.
    scale : torch.Tensor
        float32; where the format's scales have a format of their own, their codes as uint8.
    offset : torch.Tensor or None
        float32, of scale's shape: the number that the lowest code stands for.
    tensor_scale : torch.Tensor or None
        float32, no dimensions: what multiplies all scales, where the format has that.
    format : str
        The format's name.
    shape : tuple of int
        The shape of the tensor.
    axis, block_size : int or None
        How scales are shared.
    key_id : torch.Tensor or None
        int64, no dimensions: tells the key of ``rounding="dither"`` from others without giving it away.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch import ops
    >>> q = ops.quantize(torch.tensor([[1.0, -2.0, 3.5], [7.0, 0.0, -7.0]]), "int4")
    >>> q
    <QuantizedTensor int4 (2, 3), 7 bytes>
    >>> q.dequantize()
    tensor([[ 1., -2.,  4.],
            [ 7.,  0., -7.]])
    >>> q.to_numpy().codes
    array([[ 1, 14,  4],
           [ 7,  0,  9]], dtype=uint8)
    """

    packed: Tensor
    scale: Tensor
    offset: Tensor | None
    tensor_scale: Tensor | None
    format: str
    shape: tuple[int, ...]
    axis: int | None
    block_size: int | None
    key_id: Tensor | None

    def dequantize(self, dtype: torch.dtype = torch.float32, *, key: KeyLike | None = None) -> Tensor:
        """Compute the numbers: `lowbit.torch.ops.dequantize` of this."""
        from lowbit.torch import ops  # noqa: PLC0415 - it imports this module

        return ops.dequantize(self, dtype=dtype, key=key)

    @property
    def nbytes(self) -> int:
        """Bytes that codes, scales and offsets take."""
        parts = (self.packed, self.scale, self.offset, self.tensor_scale)
        return sum(part.nbytes for part in parts if part is not None)

    def to_numpy(self) -> lb.Quantized:
        """Give the same as a `lowbit.Quantized`, whose arrays share the memory of tensors that are on a CPU."""
        packed, scale = (_bridge.array(part.cpu()) for part in (self.packed, self.scale))
        offset = None if self.offset is None else _bridge.array(self.offset.cpu())
        tensor = None if self.tensor_scale is None else float(self.tensor_scale)
        key_id = None if self.key_id is None else np.int64(self.key_id.item()).tobytes()
        shared = self.shape, self.axis, self.block_size
        return lb.Quantized(packed, scale, offset, tensor, self.format, *shared, key_id)

    @classmethod
    def from_numpy(cls, q: lb.Quantized) -> QuantizedTensor:
        """Give the same as tensors, which are copies (a `lowbit.Quantized` cannot be written to).

        Raises
        ------
        TypeError
            `q` is not a `lowbit.Quantized`.
        """
        if not isinstance(q, lb.Quantized):
            raise TypeError(f"q: expected a lowbit.Quantized, got {type(q).__name__}")
        scale = q.scale if q.scale_codes is None else q.scale_codes
        return cls(
            torch.from_numpy(q.packed.copy()),
            torch.from_numpy(scale.copy()),
            None if q.offset is None else torch.from_numpy(q.offset.copy()),
            None if q.tensor_scale is None else torch.tensor(float(q.tensor_scale), dtype=torch.float32),
            q.format.name,
            q.shape,
            q.axis,
            q.block_size,
            None if q.key_id is None else torch.tensor(int.from_bytes(q.key_id, "little", signed=True)),
        )

    def to(self, device: torch.device | str) -> QuantizedTensor:
        """Give the same on another device."""
        return replace(
            self,
            packed=self.packed.to(device),
            scale=self.scale.to(device),
            offset=None if self.offset is None else self.offset.to(device),
            tensor_scale=None if self.tensor_scale is None else self.tensor_scale.to(device),
        )

    def __repr__(self) -> str:
        shared = "" if self.axis is None else f", axis={self.axis}"
        shared += "" if self.block_size is None else f", block_size={self.block_size}"
        return f"<QuantizedTensor {self.format} {self.shape}{shared}, {self.nbytes} bytes>"
