"""`lowbit.torch.qtorch`'s numbers: the core against a twin in NumPy, torch operations against the core, probabilities.

`tests/peers/test_qtorch_package.py` holds the same against QPyTorch itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import lowbit as lb
from lowbit.torch import ops
from lowbit.torch.qtorch import BlockFloatingPoint, FixedPoint, FloatingPoint, Number
from lowbit.torch.qtorch.quant import block_quantize, fixed_point_quantize, float_quantize, quantizer
from support import assert_same, finite, float32, normal, runs, wild

F32 = np.float32
FLOATS = [(1, 1), (2, 0), (2, 3), (4, 3), (5, 2), (5, 10), (8, 7), (8, 23)]
FIXED = [(8, 4), (5, 4), (1, 2), (24, 3), (48, 16), (6, -2)]
BLOCKS = [1, 4, 8, 23]
NUMBERS: list[Number] = [
    *(FloatingPoint(*bits) for bits in FLOATS),
    *(FixedPoint(*bits) for bits in FIXED),
    FixedPoint(8, 4, clamp=False),
    FixedPoint(8, 4, symmetric=True),
    *(BlockFloatingPoint(wl, dim) for wl in BLOCKS for dim in (-1, 0, 1, 2)),
]


def float_steps(x: np.ndarray, exp: int, man: int) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes in steps of the grid there, after the sum's rounding, and the steps; exactly."""
    least = 2 - 2 ** (exp - 1)
    signed = np.copysign(F32(2.0**least), x)
    pre = np.where(np.abs(x) < 2.0**least, (x + signed) - signed, x).astype(np.float64)
    step = np.ldexp(1.0, np.maximum(np.frexp(pre)[1] - 1, least) - man)
    return np.abs(pre) / step, step


def twin_float(x: np.ndarray, exp: int, man: int) -> np.ndarray:
    least, largest = 2.0 ** (2 - 2 ** (exp - 1)), (2 - 2.0**-man) * 2.0**2 ** (exp - 1)
    steps, step = float_steps(x, exp, man)
    y = np.floor(steps + 0.5) * step if man < 23 else np.rint(steps) * step
    y = np.where(y > largest, np.inf if exp == 8 else largest, y)
    # A float32 has no exponent above 127: of 8 bits the highest is infinity's.
    y = np.where((y >= 2.0**128) & (exp == 8), np.inf, y)
    return np.where((np.abs(x) < least) & (y == 0), 0.0, np.copysign(y, x)).astype(F32)


def twin_fixed(x: np.ndarray, wl: int, fl: int, clamp: bool = True, symmetric: bool = False) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        sum_ = (x * F32(2.0**fl) + F32(0.5)).astype(np.float64)
        y = (np.rint(sum_ - 0.5).astype(F32) * F32(2.0**-fl)).astype(F32)
    low, step = -(2.0 ** (wl - fl - 1)), 2.0**-fl
    return np.clip(y, F32(low + step * symmetric), F32(-low - step)) if clamp else y


def twin_block(x: np.ndarray, wl: int, axis: tuple[int, ...] | None) -> np.ndarray:
    amax = np.abs(x).max(axis, keepdims=True)
    base = np.ldexp(F32(1), np.frexp(amax)[1] - 1).astype(F32) * F32(6)
    step = base.astype(np.float64) / 6 * 2.0 ** (2 - wl)
    pre = ((x + base) - base).astype(np.float64)
    end = np.maximum(2.0 ** (wl - 1) - 1, 0.5)
    return np.clip(np.floor(pre / step + 0.5), -end, end).astype(F32) * step.astype(F32)


def same_but_nan(got: torch.Tensor, want: np.ndarray, x: np.ndarray, what: object) -> None:
    nan = np.isnan(x)
    assert bool(got[torch.from_numpy(nan)].isnan().all()), what
    assert_same(got.numpy()[~nan], want[~nan], what)


@pytest.mark.parametrize(("exp", "man"), FLOATS)
def test_floats_are_the_twins(exp: int, man: int) -> None:
    x = np.concatenate(
        [wild(1 << 17, exp), normal(1 << 14), *(F32(2.0**k) * np.arange(1, 64, dtype=F32) for k in range(-9, 9))]
    )
    with np.errstate(invalid="ignore"):
        same_but_nan(float_quantize(torch.from_numpy(x), exp, man, "nearest"), twin_float(x, exp, man), x, (exp, man))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize(("wl", "fl"), FIXED)
def test_fixed_point_is_the_twins(wl: int, fl: int, clamp: bool, symmetric: bool) -> None:
    ties = np.arange(-600, 600, dtype=F32) * F32(2.0 ** (-fl - 1))
    x = np.concatenate([wild(1 << 17, wl), ties, np.nextafter(ties, F32(np.inf)), np.nextafter(ties, F32(-np.inf))])
    got = fixed_point_quantize(torch.from_numpy(x), wl, fl, clamp, symmetric, "nearest")
    same_but_nan(got, twin_fixed(x, wl, fl, clamp, symmetric), x, (wl, fl))


@pytest.mark.parametrize("wl", [2, 4, 8, 22])
def test_blocks_are_the_twins(wl: int) -> None:
    x = normal(60 * 50 * 7).reshape(60, 50, 7)
    x[::2] = np.round(x[::2] * 16) / 16
    x = np.ldexp(x, np.linspace(-100, 100, 60).astype(int)[:, None, None]).astype(F32)
    for dim, axis in ((-1, None), (0, (1, 2)), (1, (0, 2)), (2, (0, 1))):
        got = block_quantize(torch.from_numpy(x), wl, dim, "nearest").numpy()
        # -0 and 0 are told apart by test_torch_operations and against QPyTorch.
        np.testing.assert_array_equal(got, twin_block(x, wl, axis), str((wl, dim)))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("number", NUMBERS, ids=repr)
def test_torch_operations_give_the_same_bits_on_any_level_and_threads(number: Number, rounding: str) -> None:
    for x in (
        torch.from_numpy(wild(33 * 40 * 50)).reshape(33, 40, 50),
        torch.from_numpy(finite(33 * 40 * 50) * F32(2.0**-90)).reshape(33, 40, 50),
        torch.from_numpy(normal(7 * 5 * 3).reshape(7, 5, 3)).transpose(0, 2)[::2],
        torch.from_numpy(normal(2 * 3 * 4)).reshape(2, 3, 4).bfloat16(),
        torch.from_numpy(normal(2 * 3 * 4)).reshape(2, 3, 4).half(),
        torch.from_numpy(normal(2 * 3 * 4)).reshape(2, 3, 4).double() / 3,
        torch.empty(0, 3, 4),
    ):
        key = None if rounding == "nearest" else lb.Key(5)
        ops.use_plain(True)
        try:
            want = number.quantize(x, rounding, key=key)
        finally:
            ops.use_plain(False)
        assert want.dtype is x.dtype
        raw = torch.int32 if x.dtype is torch.float32 else torch.int64 if x.dtype is torch.float64 else torch.int16
        for run in runs(x.numel()):
            got = number.quantize(x, rounding, key=key)
            assert got.is_contiguous()
            assert torch.equal(got.isnan(), want.isnan()), run
            rest = ~want.isnan()
            assert torch.equal(got.view(raw)[rest], want.contiguous().view(raw)[rest]), run


def test_what_is_not_finite() -> None:
    x = torch.from_numpy(float32([0x7F800000, 0xFF800000, 0x7FC00001, 0xFFFFFFFF, 0x80000000]))
    for rounding in ("nearest", "stochastic"):
        y = float_quantize(x, 4, 3, rounding)
        assert y[:2].tolist() == [480, -480]
        assert y[2:4].isnan().all()
        assert_same(y[4:].numpy(), F32([0]))
        assert float_quantize(x, 8, 7, rounding)[:2].tolist() == [torch.inf, -torch.inf]
        y = fixed_point_quantize(x, 8, 4, rounding=rounding)
        assert y[:2].tolist() == [127 / 16, -8]
        assert y[2:4].isnan().all()
        blocks = block_quantize(torch.stack([x[:4], torch.ones(4), torch.full((4,), 1e38)]), 8, 0, rounding)
        assert blocks.isnan().all(1).tolist() == [True, False, True]
        assert blocks[1].tolist() == [1] * 4


DRAWS = 1 << 14


@pytest.mark.parametrize(
    ("number", "dtype"),
    [
        (FloatingPoint(4, 3), torch.float32),
        (FloatingPoint(4, 3), torch.bfloat16),
        (FloatingPoint(5, 10), torch.float32),
        (FixedPoint(8, 4), torch.float32),
        (FixedPoint(8, 4), torch.float16),
        (FixedPoint(8, 4, clamp=False), torch.float32),
        (BlockFloatingPoint(8), torch.float32),
        (BlockFloatingPoint(6), torch.bfloat16),
    ],
    ids=repr,
)
def test_stochastic_rounding_has_these_probabilities(number: Number, dtype: torch.dtype) -> None:
    """Chi-square of how often each of 64 numbers goes up, with the exact probabilities."""
    values = torch.from_numpy(np.concatenate([normal(32), normal(16) / 16, normal(16) * F32(2.0**-8)])).to(dtype)
    x = values.float().numpy()
    if isinstance(number, FloatingPoint):
        steps, step = float_steps(x, number.exp, number.man)
        steps = np.copysign(steps, x)
    elif isinstance(number, FixedPoint):
        steps, step = x.astype(np.float64) * 2.0**number.fl, np.full(x.shape, 2.0**-number.fl)
    else:
        base = np.ldexp(F32(6), np.frexp(np.abs(x).max())[1] - 1).astype(F32)
        step = np.full(x.shape, np.float64(base) / 6 * 2.0 ** (2 - number.wl))
        steps = ((x + base) - base).astype(np.float64) / step
    below, p = np.floor(steps), steps - np.floor(steps)
    drawn = number.quantize(values.expand(DRAWS, 64)).double().numpy() / step
    assert np.all((drawn == below) | (drawn == below + (p > 0)))
    up = (drawn > below).sum(0)
    sure = p * (1 - p) == 0
    assert np.all(up[sure] == 0)
    chi2 = ((up - DRAWS * p)[~sure] ** 2 / (DRAWS * p * (1 - p))[~sure]).sum()
    n = (~sure).sum()
    assert n > 40
    assert abs(chi2 - n) < 4 * np.sqrt(2 * n)


@pytest.mark.parametrize("number", NUMBERS, ids=repr)
def test_numbers_of_the_grid_stay(number: Number) -> None:
    x = torch.from_numpy(normal(1 << 16)).reshape(64, 64, 16) * 3
    y = number.quantize(x, "nearest")
    if isinstance(number, BlockFloatingPoint) and number.wl == 1:
        # Its largest number is no multiple of its step.
        y = torch.zeros_like(y)
    for _ in range(4):
        assert torch.equal(number.quantize(y), y)


def test_seeds_keys_and_strides() -> None:
    x = torch.from_numpy(normal(1 << 12)).reshape(64, 64)
    for call in (
        lambda x, **o: float_quantize(x, 4, 3, **o),
        lambda x, **o: fixed_point_quantize(x, 8, 4, **o),
        lambda x, **o: block_quantize(x, 8, **o),
    ):
        torch.manual_seed(3)
        first, second = call(x), call(x)
        torch.manual_seed(3)
        assert torch.equal(call(x), first)
        assert not torch.equal(first, second)
        assert torch.equal(call(x, key=9), call(x, key=lb.Key(9)))
        assert torch.equal(call(x.t(), key=9), call(x.t().contiguous(), key=9))
        assert not call(x.clone().requires_grad_()).requires_grad


# What QPyTorch's own tests assert, of any library that rounds alike.


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_fixed_point_ends(rounding: str) -> None:
    x = torch.tensor([100.0, -100.0, 0.99, -1.2])
    assert fixed_point_quantize(x, 5, 4, rounding=rounding)[:2].tolist() == [15 / 16, -1.0]
    assert fixed_point_quantize(x, 5, 4, symmetric=True, rounding=rounding)[:2].tolist() == [15 / 16, -15 / 16]
    assert fixed_point_quantize(x, 5, 4, clamp=False, rounding=rounding)[:2].tolist() == [100, -100]


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize(("exp", "man"), [(2, 2), (2, 3), (3, 2)])
def test_floats_are_all_there(exp: int, man: int, rounding: str) -> None:
    bias = 2 ** (exp - 1) - 1
    normal_numbers = {(1 + m / 2**man) * 2.0 ** (e - bias) for e in range(1, 2**exp) for m in range(2**man)}
    positive = {m / 2**man * 2.0 ** (1 - bias) for m in range(2**man)} | normal_numbers
    y = float_quantize(torch.arange(-30, 30, 0.001), exp, man, rounding)
    assert set(y.tolist()) == positive | {-number for number in positive}


@pytest.mark.parametrize("wl", [3, 5, 8, 16])
def test_blocks_below_one_are_fixed_point(wl: int) -> None:
    # Odd multiples of 2**-21, so that no sum rounds and nothing is a tie.
    x = torch.from_numpy((2 * np.random.default_rng(0).integers(-(2**20), 2**20, 10_000) + 1).astype(F32) / F32(2**21))
    want = fixed_point_quantize(x, wl, wl - 1, symmetric=True, rounding="nearest")
    assert torch.equal(block_quantize(x, wl, rounding="nearest"), want)


def test_halves_are_as_near_as_torchs() -> None:
    x = torch.from_numpy(normal(1 << 16)) * 100
    assert torch.equal((float_quantize(x, 5, 10, "nearest") - x).abs(), (x.half().float() - x).abs())


def test_fixed_point_is_rounding() -> None:
    x = torch.from_numpy(normal(1 << 20))
    assert torch.equal(fixed_point_quantize(x, 24, 8, rounding="nearest"), torch.round(x * 256) / 256)


@pytest.mark.parametrize("number", [FixedPoint(5, 4), FloatingPoint(3, 5), BlockFloatingPoint(5)], ids=repr)
def test_the_mean_is_the_number(number: Number) -> None:
    values = torch.linspace(-0.9, 0.9, 100)
    for call in (number.quantize, quantizer(number)):
        mean = call(values.expand(100_000, 100)).double().mean(0)
        assert (mean - values).square().mean() < (1e-4 if isinstance(number, BlockFloatingPoint) else 1e-6)


@pytest.mark.parametrize(
    ("error", "said", "call"),
    [
        (lb.Error, "exp: 0", lambda x: float_quantize(x, 0, 3)),
        (lb.Error, "exp: 9", lambda x: FloatingPoint(9, 3)),
        (lb.Error, "man: 24", lambda x: float_quantize(x, 4, 24)),
        (lb.Error, "wl: 0", lambda x: FixedPoint(0, 3)),
        (lb.Error, "fl: 127", lambda x: fixed_point_quantize(x, 8, 127)),
        (lb.Error, "fl: -100", lambda x: fixed_point_quantize(x, 64, -100)),
        (lb.Error, "wl: 24", lambda x: BlockFloatingPoint(24)),
        (lb.Error, "dim: -2", lambda x: BlockFloatingPoint(8, -2)),
        (lb.Error, "dim: 1", lambda x: block_quantize(x, 8, 1)),
        (TypeError, "dim", lambda x: BlockFloatingPoint(8, 1.0)),
        (TypeError, "wl", lambda x: BlockFloatingPoint("8")),
        (lb.Error, "rounding", lambda x: float_quantize(x, 4, 3, "up")),
        (lb.Error, "key", lambda x: float_quantize(x, 4, 3, "nearest", key=1)),
        (TypeError, "x", lambda x: float_quantize([1.0], 4, 3)),
        (TypeError, "x", lambda x: float_quantize(x.int(), 4, 3)),
        (TypeError, "forward_number", lambda x: quantizer(8)),
        (lb.Error, "backward_rounding", lambda x: quantizer(backward_rounding="no")),
        (lb.Error, "clamping_grad_zero", lambda x: quantizer(FloatingPoint(4, 3), clamping_grad_zero=True)),
        (lb.Error, "clamping_grad_zero", lambda x: quantizer(FixedPoint(4, 3, clamp=False), clamping_grad_zero=True)),
    ],
)
def test_errors_name_the_argument(error: type[Exception], said: str, call: Any) -> None:
    for plain in (False, True):
        ops.use_plain(plain)
        try:
            with pytest.raises(error, match=said):
                call(torch.ones(3))
        finally:
            ops.use_plain(False)
