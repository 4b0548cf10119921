"""The numba recipes for number formats: one parallel loop each, ``fastmath``, outputs given; see ``peers_numba``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from formats import BLOCK, scale_table, stored
from numba import prange
from peers_numba import f32, hash32, i32, inlined, parallel, u8, u32, uniform

if TYPE_CHECKING:
    from collections.abc import Callable

    from formats import Grid
    from problems import Problem

u16 = np.uint16
LEAST_E4M3, LEAST_E2M1 = u32(121 << 23), u32(127 << 23)  # bits of the least normal numbers


@inlined
def spacing(a, mantissa, least):
    """Bits of the distance of neighbours in a small float."""
    exponent = u32(f32(a).view(u32) & u32(0x7F800000))
    return u32(max(exponent, least) - u32(mantissa << u32(23)))


@inlined
def nearest(a, mantissa, least):
    """Round a magnitude to a small float."""
    step = spacing(a, mantissa, least)
    return np.rint(a * u32(u32(254 << 23) - step).view(f32)) * u32(step).view(f32)


@inlined
def floor2(a):
    """Find the power of 2 at or below a magnitude, and 0 below 1."""
    bits = u32(f32(a).view(u32) & u32(0x7F800000))
    return u32(bits if bits >= u32(127 << 23) else u32(0)).view(f32)


@parallel
def _small_float(x, mantissa, least, largest, out):
    for i in prange(x.size):
        out[i] = np.copysign(nearest(min(abs(x[i]), largest), mantissa, least), x[i])


@parallel
def _small_float_stochastic(x, mantissa, least, largest, out):
    for i in prange(x.size):
        a = min(abs(x[i]), largest)
        step = spacing(a, mantissa, least)
        units = np.floor(a * u32(u32(254 << 23) - step).view(f32) + uniform(i))
        out[i] = np.copysign(units * u32(step).view(f32), x[i])


@parallel
def _equal_steps(x, step, low, high, out):
    recip = f32(1) / step
    for i in prange(x.size):
        out[i] = min(max(np.rint(x[i] * recip), low), high) * step


@parallel
def _equal_steps_stochastic(x, step, low, high, out):
    recip = f32(1) / step
    for i in prange(x.size):
        out[i] = min(max(np.floor(x[i] * recip + uniform(i)), low), high) * step


@parallel
def _luq(x, scale, out):
    recip = f32(1) / scale
    for i in prange(x.size):
        a = abs(x[i]) * recip
        power = floor2(min(a * f32(4 / 3), f32(64)))
        out[i] = np.copysign((f32(1) if (a >= f32(0.5)) & (a < f32(1)) else power) * scale, x[i])


@parallel
def _luq_stochastic(x, scale, out):
    recip = f32(1) / scale
    for i in prange(x.size):
        a = min(abs(x[i]) * recip, f32(64))
        out[i] = np.copysign(floor2(a + max(floor2(a), f32(1)) * uniform(i)) * scale, x[i])


@inlined
def climb(t, y, middles, gaps):
    """Add the gaps between values that `t` is above; of up to 8, which the compiler then unrolls."""
    for j in range(len(middles)):
        y += gaps[j] if t > middles[j] else f32(0)
    return y


@parallel
def _table(x, scale, first, middles, gaps, more_middles, more_gaps, out):
    recip = f32(1) / scale
    for i in prange(x.size):
        t = x[i] * recip
        out[i] = climb(t, climb(t, first, middles, gaps), more_middles, more_gaps) * scale


@inlined
def neighbours(t, low, gap, values, gaps):
    """Find the value at or below `t` and the gap above it, among up to 8."""
    for j in range(len(values)):
        low = values[j] if t >= values[j] else low
        gap = gaps[j] if t >= values[j] else gap
    return low, gap


@parallel
def _table_stochastic(x, scale, values, gaps, more_values, more_gaps, out):
    recip = f32(1) / scale
    for i in prange(x.size):
        t = min(max(x[i] * recip, values[0]), more_values[-1])
        low, gap = neighbours(t, values[0], gaps[0], values, gaps)
        low, gap = neighbours(t, low, gap, more_values, more_gaps)
        out[i] = (low + (gap if uniform(i) * gap < t - low else f32(0))) * scale


@parallel
def _bfloat16(bits, out):
    for i in prange(bits.size):
        out[i] = u16(u32(bits[i] + u32(hash32(i) & u32(0xFFFF))) >> u32(16))


@inlined
def largest(row):
    bits = u32(0)
    for value in row:
        bits = max(bits, u32(f32(value).view(u32) & u32(0x7FFFFFFF)))
    return bits


@parallel
def _amax(x):
    bits = u32(0)
    for i in prange(x.size):
        bits = max(bits, u32(f32(x[i]).view(u32) & u32(0x7FFFFFFF)))
    return u32(bits).view(f32)


@inlined
def block_scale(row, tensor):
    """Find the scale of a block: E4M3 times that of the tensor, or without one 2 below the largest exponent."""
    bits = largest(row)
    if tensor > f32(0):
        ratio = f32(u32(bits).view(f32) / f32(6)) / tensor
        return max(nearest(min(ratio, f32(448)), u32(3), LEAST_E4M3), f32(2**-9))
    return u32(max(u32(bits & u32(0x7F800000)), u32(3 << 23)) - u32(2 << 23)).view(f32)


@parallel
def _fake_rows(rows, tensor, out):
    for g in prange(rows.shape[0]):
        row, target = rows[g], out[g]
        scale = block_scale(row, tensor) * (tensor if tensor > f32(0) else f32(1))
        recip = f32(1) / scale
        for j in range(row.size):
            a = min(abs(row[j]) * recip, f32(6))
            target[j] = np.copysign(nearest(a, u32(1), LEAST_E2M1) * scale, row[j])


@inlined
def code(x, recip):
    y = nearest(min(abs(x) * recip, f32(6)), u32(1), LEAST_E2M1)
    magnitude = i32(y + y) if y < f32(1) else i32(f32(y).view(u32) >> u32(22)) - i32(252)
    return u32(u32(magnitude) | u32(u32(f32(x).view(u32) >> u32(31)) << u32(3)))


@inlined
def scale_code(scale, tensor):
    """Give the byte of E4M3, or without a tensor's scale of E8M0."""
    bits = f32(scale).view(u32)
    e4m3 = i32(scale * f32(512)) if scale < f32(2**-6) else i32(bits >> u32(20)) - i32(120 << 3)
    return u8(e4m3) if tensor > f32(0) else u8(bits >> u32(23))


@parallel
def _rows(rows, tensor, scale_codes, out):
    for g in prange(rows.shape[0]):
        row, target = rows[g], out[g]
        scale = block_scale(row, tensor)
        scale_codes[g] = scale_code(scale, tensor)
        recip = f32(1) / (scale * (tensor if tensor > f32(0) else f32(1)))
        for j in range(target.size):
            target[j] = u8(u32(code(row[2 * j], recip) | u32(code(row[2 * j + 1], recip) << u32(4))))


@parallel
def _decode(codes, table, out):
    for i in prange(codes.size):
        out[i] = table[codes[i]]


@parallel
def _decode_rows(packed, scales, table, out):
    for g in prange(packed.shape[0]):
        row, target, scale = packed[g], out[g], scales[g]
        for j in range(row.size):
            target[2 * j] = table[row[j] & u8(15)] * scale
            target[2 * j + 1] = table[row[j] >> u8(4)] * scale


@parallel
def _decode_coded_rows(packed, scale_codes, scale_table, table, out):
    for g in prange(packed.shape[0]):
        row, target, scale = packed[g], out[g], scale_table[scale_codes[g]]
        for j in range(row.size):
            target[2 * j] = table[row[j] & u8(15)] * scale
            target[2 * j + 1] = table[row[j] >> u8(4)] * scale


def _call(kernel: Any, *arguments: Any) -> Callable[[], Any]:
    def call() -> Any:
        kernel(*arguments)
        return arguments[-1]

    return call


def _floats(values: Any) -> tuple[np.float32, ...]:
    """Give a tuple, whose length the compiler knows."""
    return tuple(f32(value) for value in values)


def fake_quantize(problem: Problem, grid: Grid, rounding: str) -> Callable[[], Any]:
    x, out, stochastic = problem.x, problem.empty(), rounding == "stochastic"
    scale = f32(grid.scale_of(x))
    if grid.small_float:
        mantissa, exponent = grid.small_float
        kernel = _small_float_stochastic if stochastic else _small_float
        return _call(kernel, x, u32(mantissa), u32((exponent + 127) << 23), grid.values[-1], out)
    if grid.step:
        step, kernel = f32(grid.step), _equal_steps_stochastic if stochastic else _equal_steps
        ends = (grid.values[0] / step, grid.values[-1] / step)
        if grid.given:
            return _call(kernel, x, scale * step, *ends, out)

        def call() -> Any:
            kernel(x, f32(2.0 ** (np.frexp(_amax(x))[1] - 7)), *ends, out)  # 6 bits below the largest exponent
            return out

        return call
    if grid.label == "luq4":
        return _call(_luq_stochastic if stochastic else _luq, x, scale, out)
    values, middles, gaps = _floats(grid.values), _floats(grid.middles), _floats(np.diff(grid.values))
    if stochastic:
        return _call(_table_stochastic, x, scale, values[:8], gaps[:8], values[8:], (*gaps[8:], f32(1)), out)
    return _call(_table, x, scale, values[0], middles[:8], gaps[:8], middles[8:], gaps[8:], out)


def quantize_bfloat16(problem: Problem) -> Callable[[], Any]:
    return _call(_bfloat16, problem.x.view(np.uint32), problem.empty(np.uint16))


def _tensor_scale(problem: Problem, name: str) -> np.float32:
    return f32(_amax(problem.x) / f32(6 * 448)) if name == "nvfp4" else f32(0)


def fake_quantize_blocks(problem: Problem, name: str) -> Callable[[], Any]:
    rows, out = problem.x.reshape(-1, BLOCK[name]), problem.empty().reshape(-1, BLOCK[name])

    def call() -> Any:
        _fake_rows(rows, _tensor_scale(problem, name), out)
        return out

    return call


def quantize_blocks(problem: Problem, name: str) -> Callable[[], Any]:
    rows = problem.x.reshape(-1, BLOCK[name])
    out, scale_codes = problem.empty(u8, bits=4).reshape(len(rows), -1), np.ones(len(rows), u8)

    def call() -> Any:
        tensor = _tensor_scale(problem, name)
        _rows(rows, tensor, scale_codes, out)
        return out, scale_codes, tensor or 1

    return call


def dequantize(problem: Problem, name: str) -> Callable[[], Any]:
    given, out = stored(problem, name), problem.empty()
    if name == "fp8_e4m3fn":
        return _call(_decode, given.codes, given.table, out)
    rows, packed = out.reshape(-1, BLOCK[name]), given.packed.reshape(-1, BLOCK[name] // 2)
    if given.scale_codes is None:
        return _call(_decode_rows, packed, given.scales, given.table, rows)
    return _call(_decode_coded_rows, packed, given.scale_codes, scale_table(name), given.table, rows)
