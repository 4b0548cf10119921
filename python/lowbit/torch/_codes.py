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
        given = np.array(scale, np.float32)
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


def fake_quantize(x: Tensor, format: str, scale: float, *, rounding: str, key: lb.Key | None) -> Tensor:
    """Round to a format's values times a scale; float32."""
    words = None if key is None else key.words
    given = np.array(scale, np.float32)
    return torch.from_numpy(
        _core.fake_quantize(_array(x), format, given, None, None, None, None, rounding, words, None)
    )


def clip_bits(x: Tensor, low: float, high: float, *, always: bool) -> Tensor:
    """Pack a bit for every number of low..high, eight a byte; nothing, unless `always`, where there is no other."""
    bits, outside = _core.clip_bits(_array(x), low, high)
    return torch.from_numpy(bits) if outside or always else torch.empty(0, dtype=torch.uint8)


def take_outside(x: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Take the numbers whose bit is not set out of x, leaving zeros; also say where they were, in C order."""
    some = (bits != 255).nonzero()
    places = torch.arange(8, device=bits.device)
    where = (some * 8 + places)[(bits[some] >> places) & 1 == 0]
    where = where[where < x.numel()]
    flat = x.view(-1)
    taken = flat[where]
    flat[where] = 0.0
    return taken, where
