"""The NumPy recipes: whole-array operations into preallocated arrays, as a careful user writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from problems import KEY, pack_nibbles

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from problems import Problem


def generator(seed: int = KEY) -> np.random.Generator:
    """NumPy's fastest bit generator."""
    return np.random.Generator(np.random.SFC64(seed))


def fake_quantize_int4(problem: Problem) -> Callable[[], Any]:
    out, recip = problem.empty(), 1 / problem.scale

    def call() -> Any:
        np.multiply(problem.x, recip, out=out)
        np.rint(out, out=out)
        np.clip(out, np.float32(-8), np.float32(7), out=out)
        return np.multiply(out, problem.scale, out=out)

    return call


def fake_quantize_int4_stochastic(problem: Problem) -> Callable[[], Any]:
    out, draws, recip, rng = problem.empty(), problem.empty(), 1 / problem.scale, generator()

    def call() -> Any:
        np.multiply(problem.x, recip, out=out)
        np.clip(out, np.float32(-8), np.float32(7), out=out)
        np.add(out, rng.random(dtype=np.float32, out=draws), out=out)
        np.floor(out, out=out)
        return np.multiply(out, problem.scale, out=out)

    return call


def _floor4(a: NDArray[np.float32], out: NDArray[np.float32], low: NDArray[np.bool_]) -> None:
    """Write the power of 4 at or below `a`, at most 64, and 0 below 1/64, by the bits of the exponent."""
    bits = out.view(np.int32)
    np.less(a, np.float32(1 / 64), out=low)
    np.bitwise_and(a.view(np.int32), np.int32(0x7F800000), out=bits)
    np.subtract(bits, np.int32(0x00800000), out=bits)
    np.bitwise_or(bits, np.int32(0x00800000), out=bits)
    np.minimum(bits, np.int32(0x42800000), out=bits)
    np.copyto(bits, np.int32(0), where=low)


def fake_quantize_radix4(problem: Problem) -> Callable[[], Any]:
    t, out, low = problem.empty(), problem.empty(), problem.empty(np.bool_)
    by = np.float32(1.6) / problem.radix_scale

    def call() -> Any:
        np.multiply(problem.x, by, out=t)
        np.abs(t, out=t)
        _floor4(t, out, low)
        np.multiply(out, problem.radix_scale, out=out)
        return np.copysign(out, problem.x, out=out)

    return call


def fake_quantize_radix4_stochastic(problem: Problem) -> Callable[[], Any]:
    t, gap, out, low = problem.empty(), problem.empty(), problem.empty(), problem.empty(np.bool_)
    recip, rng = 1 / problem.radix_scale, generator()

    def call() -> Any:
        np.multiply(problem.x, recip, out=t)
        np.abs(t, out=t)
        np.minimum(t, np.float32(64), out=t)
        _floor4(t, gap, low)
        np.multiply(gap, np.float32(3), out=gap)
        np.maximum(gap, np.float32(1 / 64), out=gap)
        np.multiply(gap, rng.random(dtype=np.float32, out=out), out=gap)
        np.add(t, gap, out=t)
        _floor4(t, out, low)
        np.multiply(out, problem.radix_scale, out=out)
        return np.copysign(out, problem.x, out=out)

    return call


def _quantize(problem: Problem, block: int | None, scale: np.float32 | None = None) -> Callable[[], Any]:
    rows = problem.x.reshape(-1, block or problem.n)
    t, codes, packed = np.ones_like(rows), problem.empty(np.int8), problem.empty(np.uint8, bits=4)
    pairs = codes.view(np.uint16)
    shifted = np.ones_like(pairs)

    def call() -> Any:
        if scale is None:
            # Two reductions make no array of |x|, which is faster than one of np.abs.
            scales = np.maximum(rows.max(axis=1, keepdims=True), -rows.min(axis=1, keepdims=True)) / np.float32(7)
        else:
            scales = np.full((1, 1), scale)
        np.multiply(rows, 1 / scales, out=t)
        np.rint(t, out=t)
        np.clip(t, np.float32(-8), np.float32(7), out=t)
        np.copyto(codes, t.reshape(-1), casting="unsafe")
        np.bitwise_and(codes, 15, out=codes)
        np.right_shift(pairs, 4, out=shifted)
        np.bitwise_or(pairs, shifted, out=shifted)
        np.copyto(packed, shifted, casting="unsafe")  # the low byte of a pair: one value in each half
        return packed, scales, "adjacent"

    return call


def quantize_int4(problem: Problem) -> Callable[[], Any]:
    return _quantize(problem, None, problem.scale)


def quantize_int4_amax(problem: Problem) -> Callable[[], Any]:
    return _quantize(problem, None)


def quantize_int4_block32(problem: Problem) -> Callable[[], Any]:
    return _quantize(problem, 32)


def quantize_int4_block128(problem: Problem) -> Callable[[], Any]:
    return _quantize(problem, 128)


def _dequantize(problem: Problem, block: int, scales: Any) -> Callable[[], Any]:
    packed, codes, out = pack_nibbles(problem.codes), problem.empty(np.int8), problem.empty().reshape(-1, block)

    def call() -> Any:
        nibbles = codes.view(np.uint8)
        np.left_shift(packed, 4, out=nibbles[0::2])
        np.copyto(nibbles[1::2], packed)
        np.right_shift(codes, 4, out=codes)
        return np.multiply(codes.reshape(-1, block), scales, out=out)

    return call


def dequantize_int4(problem: Problem) -> Callable[[], Any]:
    return _dequantize(problem, problem.n, problem.scale)


def dequantize_int4_block128(problem: Problem) -> Callable[[], Any]:
    return _dequantize(problem, 128, problem.block_scales[:, None])


def onebit_encode(problem: Problem) -> Callable[[], Any]:
    draws, ones = problem.empty(), problem.empty(np.bool_)

    def call() -> Any:
        generator().random(dtype=np.float32, out=draws)
        np.add(draws, problem.unit, out=draws)
        np.greater_equal(draws, np.float32(1), out=ones)
        return np.packbits(ones, bitorder="little")

    return call


def onebit_decode(problem: Problem) -> Callable[[], Any]:
    bits, draws = onebit_encode(problem)(), problem.empty()

    def call() -> Any:
        generator().random(dtype=np.float32, out=draws)
        np.subtract(np.float32(0.5), draws, out=draws)
        return np.add(np.unpackbits(bits, bitorder="little"), draws, out=draws)

    return call


def random_bits(problem: Problem) -> Callable[[], Any]:
    rng = generator()
    return lambda: rng.integers(0, 2**64, problem.n // 2, dtype=np.uint64)


def _hadamard(problem: Problem, row: int) -> Callable[[], Any]:
    """Multiply 32 numbers at a time by a small Hadamard matrix: fewer passes than by additions, and BLAS does them."""
    x, buffers = problem.x, (problem.empty(), problem.empty())
    factors, inner = [], 1
    while inner < row:
        size = min(32, row // inner)
        signs = np.bitwise_count(np.arange(size)[:, None] & np.arange(size)) % 2 * np.float32(-2) + np.float32(1)
        factors.append((size, inner, (signs / np.sqrt(size)).astype(np.float32)))
        inner *= size

    def call() -> Any:
        source = x
        for i, (size, stride, matrix) in enumerate(factors):
            out = buffers[i % 2]
            if stride == 1:
                np.matmul(source.reshape(-1, size), matrix, out=out.reshape(-1, size))
            else:
                np.matmul(matrix, source.reshape(-1, size, stride), out=out.reshape(-1, size, stride))
            source = out
        return source

    return call


def hadamard(problem: Problem) -> Callable[[], Any]:
    return _hadamard(problem, problem.rows())


def hadamard_1024(problem: Problem) -> Callable[[], Any]:
    return _hadamard(problem, problem.rows(1024))
