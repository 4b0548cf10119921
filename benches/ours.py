"""The lowbit calls that are measured, with ``out=`` wherever the call takes one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from formats import stored
from problems import KEY

import lowbit as lb

if TYPE_CHECKING:
    from collections.abc import Callable

    from formats import Grid
    from problems import Problem

key = lb.Key(KEY)


def _fake(problem: Problem, name: str, scale: np.float32, **options: Any) -> Callable[[], Any]:
    out = problem.empty()
    return lambda: lb.fake_quantize(problem.x, name, scale=scale, out=out, **options)


def fake_quantize_int4(problem: Problem) -> Callable[[], Any]:
    return _fake(problem, "int4", problem.scale)


def fake_quantize_radix4(problem: Problem) -> Callable[[], Any]:
    return _fake(problem, "radix4", problem.radix_scale)


def fake_quantize_int4_stochastic(problem: Problem) -> Callable[[], Any]:
    return _fake(problem, "int4", problem.scale, rounding="stochastic", key=key)


def fake_quantize_radix4_stochastic(problem: Problem) -> Callable[[], Any]:
    return _fake(problem, "radix4", problem.radix_scale, rounding="stochastic", key=key)


def _quantize(problem: Problem, **options: Any) -> Callable[[], Any]:
    out = problem.empty(np.uint8, bits=4)

    def call() -> Any:
        q = lb.quantize(problem.x, "int4", out=out, **options)
        return q.packed, q.scale, "adjacent"

    return call


def quantize_int4(problem: Problem) -> Callable[[], Any]:
    return _quantize(problem, scale=problem.scale)


def quantize_int4_amax(problem: Problem) -> Callable[[], Any]:
    return _quantize(problem)


def quantize_int4_block32(problem: Problem) -> Callable[[], Any]:
    return _quantize(problem, block_size=32)


def quantize_int4_block128(problem: Problem) -> Callable[[], Any]:
    return _quantize(problem, block_size=128)


def _dequantize(values: Any, **options: Any) -> Callable[[], Any]:
    q, out = lb.quantize(values, "int4", **options), np.ones_like(values)
    return lambda: lb.dequantize(q, out=out)


def dequantize_int4(problem: Problem) -> Callable[[], Any]:
    return _dequantize(problem.codes * problem.scale, scale=problem.scale)


def dequantize_int4_block128(problem: Problem) -> Callable[[], Any]:
    values = problem.codes * np.repeat(problem.block_scales, 128)
    return _dequantize(values, scale=problem.block_scales, block_size=128)


def onebit_encode(problem: Problem) -> Callable[[], Any]:
    return lambda: lb.onebit.encode(problem.unit, scheme="dither", key=key)


def onebit_decode(problem: Problem) -> Callable[[], Any]:
    bits, shape = onebit_encode(problem)(), problem.unit.shape
    return lambda: lb.onebit.decode(bits, shape, scheme="dither", key=key)


def random_bits(problem: Problem) -> Callable[[], Any]:
    return lambda: lb.random_bits(key, problem.n)


def _hadamard(problem: Problem, row: int) -> Callable[[], Any]:
    x, out = problem.x.reshape(-1, row), problem.empty().reshape(-1, row)
    return lambda: lb.hadamard_transform(x, out=out)


def hadamard(problem: Problem) -> Callable[[], Any]:
    return _hadamard(problem, problem.rows())


def hadamard_1024(problem: Problem) -> Callable[[], Any]:
    return _hadamard(problem, problem.rows(1024))


def randomized_hadamard(problem: Problem) -> Callable[[], Any]:
    out = problem.empty()
    return lambda: lb.randomized_hadamard_transform(problem.x, key, out=out)


def _encode(problem: Problem, codec: lb.Codec) -> Callable[[], Any]:
    return lambda: lb.encode(problem.x, codec, key=KEY)


def drive_encode(problem: Problem) -> Callable[[], Any]:
    return _encode(problem, lb.Drive())


def dither_encode(problem: Problem) -> Callable[[], Any]:
    return _encode(problem, lb.Dither(1, -8, 8))


def drive_decode(problem: Problem) -> Callable[[], Any]:
    message, out = _encode(problem, lb.Drive())(), problem.empty()
    return lambda: lb.decode(message, key=KEY, out=out)


def _sixteen(problem: Problem, codec: lb.Codec, *, mean: bool) -> Callable[[], Any]:
    messages, out = [lb.encode(problem.x, codec, key=KEY, sender=s) for s in range(16)], problem.empty()
    if mean:
        return lambda: lb.decode_mean(messages, key=KEY, out=out)
    return lambda: [lb.decode(message, key=KEY, out=out) for message in messages][-1]


def drive_decode_16(problem: Problem) -> Callable[[], Any]:
    return _sixteen(problem, lb.Drive(), mean=False)


def drive_decode_mean_16(problem: Problem) -> Callable[[], Any]:
    return _sixteen(problem, lb.Drive(), mean=True)


def quicfl_decode_16(problem: Problem) -> Callable[[], Any]:
    return _sixteen(problem, lb.QuicFl(2), mean=False)


def quicfl_decode_mean_16(problem: Problem) -> Callable[[], Any]:
    return _sixteen(problem, lb.QuicFl(2), mean=True)


def fake_quantize(problem: Problem, grid: Grid, rounding: Any) -> Callable[[], Any]:
    out, random = problem.empty(), {"key": key} if rounding == "stochastic" else {}
    scale = np.float32(grid.scale_of(problem.x)) if grid.given else None
    return lambda: lb.fake_quantize(problem.x, grid.name, scale=scale, rounding=rounding, out=out, **random)


def quantize_bfloat16(problem: Problem) -> Callable[[], Any]:
    out = problem.empty(np.uint8, bits=16)
    return lambda: lb.quantize(problem.x, "bfloat16", rounding="stochastic", key=key, out=out).packed


def fake_quantize_blocks(problem: Problem, name: str) -> Callable[[], Any]:
    out = problem.empty()
    return lambda: lb.fake_quantize(problem.x, name, out=out)


def quantize_blocks(problem: Problem, name: str) -> Callable[[], Any]:
    out = problem.empty(np.uint8, bits=4)

    def call() -> Any:
        q = lb.quantize(problem.x, name, out=out)
        return q.packed, q.scale_codes, q.tensor_scale or 1

    return call


def dequantize(problem: Problem, name: str) -> Callable[[], Any]:
    given, out = stored(problem, name), problem.empty()
    values = given.table[given.codes] * np.repeat(given.scales, problem.n // given.scales.size)
    q = lb.quantize(values, name, scale=given.scales)
    return lambda: lb.dequantize(q, out=out)
