"""The PyTorch recipes for number formats: plain expressions, run as they are here, and compiled in another module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from formats import BLOCK, scale_table, stored
from peers_torch import tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from formats import Grid
    from problems import Problem
    from torch import Tensor


def exactly(function: Any) -> Any:
    """Run eagerly."""
    return function


def to_units(t: Tensor, stochastic: bool) -> Tensor:
    return (t + torch.rand_like(t)).floor() if stochastic else t.round()


def small_float(t: Tensor, mantissa: int, least: int, largest: float, stochastic: bool) -> Tensor:
    """Round to a small float, in units of the distance of neighbours, which the bits of the exponent tell."""
    a = t.abs().clamp(max=largest)
    bits = (a.view(torch.int32) & 0x7F800000).clamp(min=(least + 127) << 23) - (mantissa << 23)
    step = bits.view(torch.float32)
    return (to_units(a / step, stochastic) * step).copysign(t)


def _native(x: Tensor, out: Tensor) -> None:
    out.copy_(x.to(torch.float8_e4m3fn))


def _small_float(x: Tensor, mantissa: int, least: int, largest: float, stochastic: bool, out: Tensor) -> None:
    out.copy_(small_float(x, mantissa, least, largest, stochastic))


def _equal_steps(x: Tensor, step: Tensor, low: float, high: float, stochastic: bool, out: Tensor) -> None:
    out.copy_(to_units(x * step.reciprocal(), stochastic).clamp(low, high) * step)


def _equal_steps_found(x: Tensor, low: float, high: float, stochastic: bool, out: Tensor) -> None:
    bits = (x.abs().amax().view(torch.int32) & 0x7F800000) - (6 << 23)  # 6 bits below the largest exponent
    _equal_steps(x, bits.view(torch.float32), low, high, stochastic, out)


def _table(x: Tensor, scale: Tensor, values: Tensor, middles: Tensor, out: Tensor) -> None:
    out.copy_((values * scale)[torch.bucketize(x * scale.reciprocal(), middles)])


def _table_stochastic(x: Tensor, scale: Tensor, values: Tensor, gaps: Tensor, out: Tensor) -> None:
    t = (x * scale.reciprocal()).clamp(values[0], values[-1])
    place = torch.bucketize(t, values, right=True) - 1
    up = torch.rand_like(t) * gaps[place] < t - values[place]
    out.copy_((values * scale)[place + up])


def _bfloat16(bits: Tensor, out: Tensor) -> None:
    out.copy_((bits + torch.randint_like(bits, 0, 1 << 16)) >> 16)


def _fake_blocks(rows: Tensor, out: Tensor) -> None:
    largest = rows.abs().amax(dim=1, keepdim=True)
    scale = ((largest.view(torch.int32) & 0x7F800000) - (2 << 23)).view(torch.float32)
    out.copy_(small_float(rows / scale, 1, 0, 6.0, False) * scale)


def _decode(codes: Tensor, out: Tensor) -> None:
    out.copy_(codes.view(torch.float8_e4m3fn))


def _decode_rows(packed: Tensor, scales: Tensor, table: Tensor, out: Tensor) -> None:
    codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)
    out.copy_(table[codes.int()] * scales[:, None])


def _decode_coded_rows(packed: Tensor, codes: Tensor, scales: Tensor, table: Tensor, out: Tensor) -> None:
    _decode_rows(packed, scales[codes.int()], table, out)


def _call(kernel: Any, *arguments: Any) -> Callable[[], Any]:
    def call() -> Any:
        kernel(*arguments)
        return arguments[-1]

    return call


def fake_quantize(problem: Problem, grid: Grid, rounding: str, run: Any = exactly) -> Callable[[], Any]:
    x, out, stochastic = tensor(problem.x), tensor(problem.empty()), rounding == "stochastic"
    scale = torch.tensor(grid.scale_of(problem.x), dtype=torch.float32)
    if grid.name == "fp8_e4m3fn" and not stochastic:
        return _call(run(_native), x, out)
    if grid.small_float:
        return _call(run(_small_float), x, *grid.small_float, float(grid.values[-1]), stochastic, out)
    if grid.step:
        low, high = (float(end) / grid.step for end in (grid.values[0], grid.values[-1]))
        if grid.given:
            return _call(run(_equal_steps), x, scale * grid.step, low, high, stochastic, out)
        return _call(run(_equal_steps_found), x, low, high, stochastic, out)
    values, middles = torch.tensor(grid.values), torch.tensor(grid.middles)
    if stochastic:
        return _call(run(_table_stochastic), x, scale, values, values.diff(append=values[-1:] + 1), out)
    return _call(run(_table), x, scale, values, middles, out)


def quantize_bfloat16(problem: Problem, run: Any = exactly) -> Callable[[], Any]:
    call = _call(run(_bfloat16), tensor(problem.x).view(torch.int32), torch.empty(problem.n, dtype=torch.int16))
    return lambda: call().numpy()


def fake_quantize_blocks(problem: Problem, name: str, run: Any = exactly) -> Callable[[], Any] | None:
    if name != "mxfp4":
        return None
    rows, out = (tensor(array).view(-1, BLOCK[name]) for array in (problem.x, problem.empty()))
    return _call(run(_fake_blocks), rows, out)


def dequantize(problem: Problem, name: str, run: Any = exactly) -> Callable[[], Any]:
    given, out = stored(problem, name), tensor(problem.empty())
    if name == "fp8_e4m3fn":
        return _call(run(_decode), tensor(given.codes), out)
    packed, rows = tensor(given.packed).view(-1, BLOCK[name] // 2), out.view(-1, BLOCK[name])
    table = torch.tensor(given.table)
    if given.scale_codes is None:
        return _call(run(_decode_rows), packed, tensor(given.scales), table, rows)
    return _call(run(_decode_coded_rows), packed, tensor(given.scale_codes), tensor(scale_table(name)), table, rows)
