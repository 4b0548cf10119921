"""Masks of one bit an element, which is what backward passes keep of where something was cut off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a mask into bytes, eight elements each, in logical C order and the least significant bit first.

    Parameters
    ----------
    mask : Tensor
        Of bools, any shape and layout.

    Returns
    -------
    Tensor
        Shape (ceil(mask.numel() / 8),), uint8, on the mask's device; bits past the end are zero.

    Examples
    --------
    >>> import torch
    >>> pack_bits(torch.tensor([True, False, True]))
    tensor([5], dtype=torch.uint8)
    """
    return cast(Tensor, _pack_bits(mask))


def pack_positive(y: Tensor) -> Tensor:
    """Pack where a tensor is positive or NaN: ``pack_bits(~(y <= 0))``.

    Parameters
    ----------
    y : Tensor
        Of floats, any shape and layout.

    Returns
    -------
    Tensor
        As of `pack_bits`, but what bits past the end are is not said.
    """
    return cast(Tensor, _pack_positive(y))


def unpack_bits(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo `pack_bits`: the mask as 0 and 1.

    Parameters
    ----------
    packed : Tensor
        What `pack_bits` gave.
    shape : sequence of int
        The mask's.

    Returns
    -------
    Tensor
        Shape `shape`, int8.

    Examples
    --------
    >>> import torch
    >>> unpack_bits(torch.tensor([5], dtype=torch.uint8), (3,))
    tensor([1, 0, 1], dtype=torch.int8)
    """
    return cast(Tensor, _unpack_bits(packed, list(shape)))


def keep(grad: Tensor, ones: Tensor) -> Tensor:
    """Take `grad` where `ones` is 1 and +0 where it is 0, whatever stands there (NaN too).

    Bits times 0 or 1: a third of the time that ``torch.where`` takes on a CPU.
    """
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[grad.element_size()]
    return (grad.view(integers) * ones).view(grad.dtype)


@torch.library.custom_op("lowbit::pack_bits", mutates_args=())
def _pack_bits(mask: Tensor) -> Tensor:
    if mask.device.type == "cpu":
        return torch.from_numpy(np.packbits(mask.numpy(), bitorder="little"))
    return packed_plain(mask)


@_pack_bits.register_fake
def _(mask: Tensor) -> Tensor:
    return mask.new_empty(((mask.numel() + 7) // 8,), dtype=torch.uint8)


@torch.library.custom_op("lowbit::pack_positive", mutates_args=())
def _pack_positive(y: Tensor) -> Tensor:
    if y.device.type == "cpu" and y.dtype == torch.float32:
        # A fifth of the time of torch's comparison, which is not vectorized where the result is bool.
        return torch.from_numpy(~np.packbits(np.less_equal(y.detach().numpy(), np.float32(0)), bitorder="little"))
    return cast(Tensor, ~_pack_bits(y <= 0))


@_pack_positive.register_fake
def _(y: Tensor) -> Tensor:
    return y.new_empty(((y.numel() + 7) // 8,), dtype=torch.uint8)


@torch.library.custom_op("lowbit::unpack_bits", mutates_args=())
def _unpack_bits(packed: Tensor, shape: list[int]) -> Tensor:
    if packed.device.type == "cpu":
        bits = np.unpackbits(packed.numpy(), count=math.prod(shape), bitorder="little")
        return torch.from_numpy(bits).view(torch.int8).reshape(shape)
    return _unpacked_plain(packed, shape)


@_unpack_bits.register_fake
def _(packed: Tensor, shape: list[int]) -> Tensor:
    return packed.new_empty(shape, dtype=torch.int8)


def packed_plain(mask: Tensor) -> Tensor:
    """`pack_bits` in torch's operations, for other devices."""
    eights = torch.nn.functional.pad(mask.reshape(-1).to(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    return (eights << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def _unpacked_plain(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """`unpack_bits` in torch's operations, for other devices."""
    bits = packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device) & 1
    return bits.view(torch.int8).reshape(-1)[: math.prod(shape)].reshape(tuple(shape))
