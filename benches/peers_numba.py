"""The numba recipes: parallel loops, ``fastmath``, outputs given.

Integers are kept 32 bits wide by casts, or numba would compute in 64 and lose half of every vector. Random numbers are
murmur3's finalizer of the index: compiled to vector instructions it beats ``np.random`` in a parallel loop, and a
decoder can draw what its encoder drew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit, prange
from problems import KEY, pack_nibbles

if TYPE_CHECKING:
    from collections.abc import Callable

    from problems import Problem

parallel = njit(parallel=True, fastmath=True, cache=True)
inlined = njit(fastmath=True, cache=True)
f32, i32, u32, u8 = np.float32, np.int32, np.uint32, np.uint8


@inlined
def hash32(i):
    z = u32(u32(i) ^ u32(KEY))
    z = u32((z ^ (z >> u32(16))) * u32(0x85EBCA6B))
    z = u32((z ^ (z >> u32(13))) * u32(0xC2B2AE35))
    return u32(z ^ (z >> u32(16)))


@inlined
def uniform(i):
    """Draw a float32 in [0, 1) of 24 bits."""
    return f32(i32(hash32(i) >> u32(8))) * f32(2**-24)


@inlined
def clamp(t):
    return min(max(t, f32(-8)), f32(7))


@inlined
def nibble(t):
    return u32(u32(i32(clamp(np.rint(t)))) & u32(15))


@inlined
def floor4(bits):
    """Bits of the power of 4 at or below a float of these bits, at most 64; of 0 below 1/64."""
    power = u32(((bits & u32(0x7F800000)) - u32(0x00800000)) | u32(0x00800000))
    power = u32(min(power, u32(0x42800000)))
    return u32(power if bits >= u32(0x3C800000) else u32(0))


@parallel
def _fake_int4(x, scale, out):
    recip = f32(1) / scale
    for i in prange(x.size):
        out[i] = clamp(np.rint(x[i] * recip)) * scale


@parallel
def _fake_int4_stochastic(x, scale, out):
    recip = f32(1) / scale
    for i in prange(x.size):
        out[i] = np.floor(clamp(x[i] * recip) + uniform(i)) * scale


@parallel
def _fake_radix4(x, scale, out):
    recip = f32(1) / scale
    for i in prange(x.size):
        bits = f32(x[i] * recip * f32(1.6)).view(u32)
        sign = u32(bits & u32(0x80000000))
        out[i] = u32(floor4(u32(bits & u32(0x7FFFFFFF))) | sign).view(f32) * scale


@parallel
def _fake_radix4_stochastic(x, scale, out):
    recip = f32(1) / scale
    for i in prange(x.size):
        t = x[i] * recip
        magnitude = min(abs(t), f32(64))
        gap = max(f32(3) * u32(floor4(f32(magnitude).view(u32))).view(f32), f32(1 / 64))
        drawn = floor4(f32(magnitude + gap * uniform(i)).view(u32))
        out[i] = np.copysign(u32(drawn).view(f32), t) * scale


@parallel
def _amax(x):
    largest = u32(0)
    for i in prange(x.size):  # the bits of |x| are ordered as the numbers are, and integer maxima vectorize
        largest = max(largest, u32(f32(x[i]).view(u32) & u32(0x7FFFFFFF)))
    return u32(largest).view(f32)


@parallel
def _quantize(x, scale, out):
    recip = f32(1) / scale
    for i in prange(out.size):
        out[i] = u8(u32(nibble(x[2 * i] * recip) | u32(nibble(x[2 * i + 1] * recip) << u32(4))))


@parallel
def _quantize_rows(rows, scales, out):
    for g in prange(scales.size):
        row, packed = rows[g], out[g]
        largest = f32(0)
        for value in row:
            largest = max(largest, abs(value))
        scales[g] = largest / f32(7)
        recip = f32(1) / scales[g]
        for j in range(packed.size):
            packed[j] = u8(u32(nibble(row[2 * j] * recip) | u32(nibble(row[2 * j + 1] * recip) << u32(4))))


@parallel
def _dequantize(packed, scale, out):
    for i in prange(packed.size):
        byte = i32(packed[i])
        out[2 * i] = f32(i32(i32(byte << 28) >> 28)) * scale
        out[2 * i + 1] = f32(i32(i32(byte << 24) >> 28)) * scale


@parallel
def _dequantize_rows(rows, scales, out):
    for g in prange(scales.size):
        packed, row, scale = rows[g], out[g], scales[g]
        for j in range(packed.size):
            byte = i32(packed[j])
            row[2 * j] = f32(i32(i32(byte << 28) >> 28)) * scale
            row[2 * j + 1] = f32(i32(i32(byte << 24) >> 28)) * scale


@parallel
def _encode(x, out):
    for i in prange(out.size):
        byte = u32(0)
        for j in range(8):
            byte |= u32(u32(x[8 * i + j] + uniform(8 * i + j) >= f32(1)) << u32(j))
        out[i] = u8(byte)


@parallel
def _decode(bits, out):
    for i in prange(bits.size):
        byte = u32(bits[i])
        for j in range(8):
            out[8 * i + j] = f32(i32(u32(byte >> u32(j)) & u32(1))) - uniform(8 * i + j) + f32(0.5)


@parallel
def _random(out):
    for i in prange(out.size):
        out[i] = hash32(i)


def _into(kernel: Any, x: Any, scale: Any, out: Any) -> Callable[[], Any]:
    def call() -> Any:
        kernel(x, scale, out)
        return out

    return call


def fake_quantize_int4(problem: Problem) -> Callable[[], Any]:
    return _into(_fake_int4, problem.x, problem.scale, problem.empty())


def fake_quantize_radix4(problem: Problem) -> Callable[[], Any]:
    return _into(_fake_radix4, problem.x, problem.radix_scale, problem.empty())


def fake_quantize_int4_stochastic(problem: Problem) -> Callable[[], Any]:
    return _into(_fake_int4_stochastic, problem.x, problem.scale, problem.empty())


def fake_quantize_radix4_stochastic(problem: Problem) -> Callable[[], Any]:
    return _into(_fake_radix4_stochastic, problem.x, problem.radix_scale, problem.empty())


def quantize_int4(problem: Problem) -> Callable[[], Any]:
    quantize = _into(_quantize, problem.x, problem.scale, problem.empty(np.uint8, bits=4))
    return lambda: (quantize(), problem.scale, "adjacent")


def quantize_int4_amax(problem: Problem) -> Callable[[], Any]:
    out = problem.empty(np.uint8, bits=4)

    def call() -> Any:
        scale = f32(_amax(problem.x) / f32(7))
        _quantize(problem.x, scale, out)
        return out, scale, "adjacent"

    return call


def _blocks(problem: Problem, block: int) -> Callable[[], Any]:
    scales = np.ones(problem.n // block, np.float32)
    packed = problem.empty(np.uint8, bits=4).reshape(-1, block // 2)
    quantize = _into(_quantize_rows, problem.x.reshape(-1, block), scales, packed)
    return lambda: (quantize(), scales, "adjacent")


def quantize_int4_block32(problem: Problem) -> Callable[[], Any]:
    return _blocks(problem, 32)


def quantize_int4_block128(problem: Problem) -> Callable[[], Any]:
    return _blocks(problem, 128)


def dequantize_int4(problem: Problem) -> Callable[[], Any]:
    return _into(_dequantize, pack_nibbles(problem.codes), problem.scale, problem.empty())


def dequantize_int4_block128(problem: Problem) -> Callable[[], Any]:
    packed = pack_nibbles(problem.codes).reshape(-1, 64)
    return _into(_dequantize_rows, packed, problem.block_scales, problem.empty().reshape(-1, 128))


def onebit_encode(problem: Problem) -> Callable[[], Any]:
    out = problem.empty(np.uint8, bits=1)

    def call() -> Any:
        _encode(problem.unit, out)
        return out

    return call


def onebit_decode(problem: Problem) -> Callable[[], Any]:
    bits, out = onebit_encode(problem)(), problem.empty()

    def call() -> Any:
        _decode(bits, out)
        return out

    return call


def random_bits(problem: Problem) -> Callable[[], Any]:
    out = problem.empty(np.uint32)

    def call() -> Any:
        _random(out)
        return out

    return call
