"""float32 arithmetic that no setting bends: float64 tensors that hold float32 numbers.

Sums, products and quotients of two float32 numbers, rounded to float64 and then to float32, are what float32 arithmetic
gives (53 bits are at least 2 * 24 + 2: Figueroa, When is double rounding innocuous?, 1995); products do not round in
float64 at all, so that nothing changes where one is fused with a sum. No number here is subnormal in float64, and
conversions work on the bits where they meet subnormals of float32: `torch.set_flush_denormal` changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST_NORMAL, _UNIT = 2.0**-126, 2.0**-149


def f32(z: Tensor) -> Tensor:
    """Round to the nearest float32, ties to even."""
    subnormal = torch.round(z * 2.0**149) * _UNIT
    return torch.where(z.abs() < _LEAST_NORMAL, subnormal, z.to(torch.float32).to(torch.float64))


def widen(x: Tensor) -> Tensor:
    """Give the numbers of a tensor, rounded to float32."""
    x = x.detach().resolve_neg()
    if x.dtype is torch.float64:
        return f32(x)
    if x.dtype is torch.float16:
        return x.to(torch.float64)
    bits = x.view(torch.int16).to(torch.int32) << 16 if x.dtype is torch.bfloat16 else x.view(torch.int32)
    return value(bits)


def value(bits: Tensor) -> Tensor:
    """Read int32 bit patterns as float32 numbers."""
    magnitude = bits & 0x7FFFFFFF
    sign = torch.where(bits < 0, -1.0, 1.0).to(torch.float64)
    subnormal = sign * (magnitude.to(torch.float64) * _UNIT)
    return torch.where(magnitude < 0x800000, subnormal, bits.view(torch.float32).to(torch.float64))


def pattern(z: Tensor) -> Tensor:
    """Give the bits of float32 numbers as int32; of every NaN the canonical quiet ones."""
    magnitude = torch.where(z.abs() < _LEAST_NORMAL, z.abs() * 2.0**149, 0.0).to(torch.int32)
    tiny = torch.where(torch.signbit(z), magnitude | -(1 << 31), magnitude)
    bits = torch.where(z.abs() < _LEAST_NORMAL, tiny, z.to(torch.float32).view(torch.int32))
    return torch.where(torch.isnan(z), 0x7FC00000, bits).to(torch.int32)


def narrow(z: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 numbers to another dtype, ties to even; of every NaN the canonical quiet one."""
    if dtype is torch.float64:
        return torch.where(torch.isnan(z), torch.nan, z)
    bits = pattern(z)
    if dtype is torch.float32:
        return bits.view(torch.float32)
    if dtype is torch.bfloat16:
        # NaN's bits end in zeros and stay as they are.
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(torch.int16).view(torch.bfloat16)
    return torch.where(torch.isnan(z), torch.nan, z.to(torch.float32)).to(dtype)


def exp2(exponent: Tensor) -> Tensor:
    """Powers of two, -1022 to 1023, from the exponent field."""
    return ((exponent.to(torch.int64) + 1023) << 52).view(torch.float64)


def exponent(z: Tensor) -> Tensor:
    """Give floor(log2(abs(z))), int64, of finite numbers that are not zero."""
    return ((z.view(torch.int64) >> 52) & 0x7FF) - 1023


def positive_zero(z: Tensor) -> Tensor:
    """Make +0.0 of -0.0."""
    return z + 0.0


def ordered_sum(rows: Tensor) -> Tensor:
    """Sum the last axis (of two) in the one order of the contract.

    Pieces of 4096; in a piece element j is added to lane j % 8; the lanes are joined pairwise, the pieces in order.
    """
    count, n = rows.shape
    pieces = max(-(-n // 4096), 1)
    steps = 512 if pieces > 1 else -(-n // 8)
    # Zeros after the end change no sum: no lane is -0.0, since it begins with 0.0.
    padded = torch.nn.functional.pad(rows, (0, pieces * steps * 8 - n)).view(count, pieces, steps, 8)
    lanes = padded.new_zeros(count, pieces, 8)
    for step in padded.unbind(2):
        lanes = lanes + step
    a, b, c, d, e, f, g, h = lanes.unbind(-1)
    total = rows.new_zeros(count)
    for piece in (((a + b) + (c + d)) + ((e + f) + (g + h))).unbind(1):
        total = total + piece
    return total
