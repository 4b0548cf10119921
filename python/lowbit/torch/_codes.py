"""What operands need of the core, on tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from lowbit import _core, hadamard_transform

if TYPE_CHECKING:
    from numpy.typing import NDArray

    import lowbit as lb

_FLOAT32 = np.dtype(np.float32)
_ONE = np.ones((), np.float32)


def _array(x: Tensor) -> NDArray[Any]:
    """See a CPU tensor's memory as a NumPy array."""
    x = x.detach()
    return x.view(torch.uint16).numpy().view(ml_dtypes.bfloat16) if x.dtype == torch.bfloat16 else x.numpy()


def quantize(
    x: Tensor,
    format: str,
    scale: str | float | Tensor | None,
    *,
    axis: int | None,
    block_size: int | None,
    rounding: str,
    key: lb.Key | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give packed codes, scales (or their codes), and the offsets or the scale of the tensor (else an empty tensor)."""
    given: Any = scale
    if isinstance(scale, Tensor):
        given = scale.detach().numpy()
    elif isinstance(scale, float):
        given = np.float32(scale).reshape(())
    words = None if key is None else key.words
    packed, scales, offset, tensor = _core.quantize(
        _array(x), format, given, None, None, axis, block_size, rounding, words, None
    )
    rest = np.empty(0, np.float32) if offset is None else offset
    if tensor is not None:
        rest = np.array([tensor], np.float32)
    return torch.from_numpy(packed), torch.from_numpy(scales), torch.from_numpy(rest)


def dequantize(
    packed: Tensor,
    format: str,
    shape: tuple[int, ...],
    scale: Tensor,
    rest: Tensor,
    *,
    axis: int | None,
    block_size: int | None,
) -> Tensor:
    """Compute the float32 numbers that `quantize` kept."""
    fmt = _core.get_format(format)
    tensor = float(rest) if rest.numel() and fmt.scale_format == "e4m3" else None
    offset = rest.numpy() if rest.numel() and tensor is None else None
    if block_size is None and axis is not None and fmt.scale_format is not None:
        block_size = fmt.default_block
    bad = None if scale.dtype == torch.uint8 else scale.isnan()
    if bad is not None and bad.any():
        scale = scale.masked_fill(bad, 1.0)
    else:
        bad = None
    y = torch.from_numpy(
        _core.dequantize(
            packed.numpy(), fmt, shape, scale.numpy(), offset, tensor, axis, block_size, None, _FLOAT32, None
        )
    )
    if bad is None:
        return y
    if block_size is not None:
        axis = -1 if axis is None else axis
        bad = bad.repeat_interleave(block_size, axis).narrow(axis, 0, shape[axis])
    return y.masked_fill_(bad, float("nan"))


def values(packed: Tensor, format: str, shape: tuple[int, ...]) -> Tensor:
    """Look up the format's values, unscaled."""
    one = _ONE.reshape((1,) * len(shape))
    return torch.from_numpy(
        _core.dequantize(packed.numpy(), format, shape, one, None, None, None, None, None, _FLOAT32, None)
    )


def hadamard(rows: Tensor) -> Tensor:
    """Transform the last axis, orthonormally."""
    return torch.from_numpy(hadamard_transform(rows.contiguous().numpy()))


def group_sums(x: Tensor, axis: int | None, block_size: int | None) -> Tensor:
    """Sum the groups that share a scale, to the shape that their scales have."""
    if block_size is not None:
        axis = -1 if axis is None else axis
        rows = x.movedim(axis, -1)
        rows = torch.nn.functional.pad(rows, (0, -rows.shape[-1] % block_size))
        return rows.unflatten(-1, (-1, block_size)).sum(-1).movedim(-1, axis)
    if axis is None:
        return x.sum().reshape((1,) * x.dim())
    rest = [d for d in range(x.dim()) if d != axis % x.dim()]
    return x.sum(rest, keepdim=True)


def pack_bits(mask: Tensor) -> Tensor:
    """Pack booleans, eight a byte."""
    return torch.from_numpy(np.packbits(mask.numpy(), axis=None, bitorder="little"))


def unpack_bits(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Unpack booleans of this shape."""
    n = int(np.prod(shape))
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=n, bitorder="little")).view(torch.bool).reshape(shape)
