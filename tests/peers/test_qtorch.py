"""Against QPyTorch (qtorch 0.3.0, its CPU kernels): the same grids; where it rounds otherwise is asserted exactly.

* Floats: ties go away from zero (ours to even). Below the smallest normal number a power of two is added first, which
  rounds to 23 bits below it before the grid's rounding, and turns -0 into +0. Infinities and NaN become the largest
  number.
* Fixed point: ties to even as ours, but 1/2 is added in float32 first, which turns 0.5 + 2**-24 steps into 0.
* Block floating point: ties go up; before that six times the block's power of two is added in float32.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

if not (shutil.which("c++") or shutil.which("g++")):
    pytest.skip("qtorch compiles its kernels when it is imported: it needs a C++ compiler", allow_module_level=True)

from qtorch.quant import block_quantize, fixed_point_quantize, float_quantize

import lowbit as lb
from support import around, assert_same, float32, normal, wild

FLOATS = [(4, 3), (5, 2), (3, 4), (2, 1), (5, 10), (6, 9), (8, 7)]
FIXED = [(8, 4), (5, 4), (12, 6), (16, 12), (4, 2)]


def numbers(low: int, high: int, seed: int, length: int) -> np.ndarray:
    """Any finite number, numbers of these exponents, and those with only `length` bits, half of which are ties.

    And every bfloat16 and every float16.
    """
    rng = np.random.default_rng(seed)
    sixteen = np.arange(1 << 16, dtype=np.uint16)
    half = sixteen.view(np.float16).astype(np.float32)
    x = np.concatenate([wild(1 << 22, seed), half, (sixteen.astype(np.uint32) << 16).view(np.float32)])
    exponent = rng.integers(max(low, -126), min(high, 127) + 1, 1 << 16)
    long = np.ldexp(1 + rng.integers(0, 1 << 23, 1 << 16) / (1 << 23), exponent)
    short = np.ldexp(1 + rng.integers(0, 1 << length, 1 << 16) / (1 << length), exponent)
    x = np.concatenate([x, long.astype(np.float32), -long.astype(np.float32), short.astype(np.float32)])
    return x[np.isfinite(x)]


def of_floats(x: np.ndarray, e: int, m: int, rounding: str = "nearest") -> np.ndarray:
    return np.asarray(float_quantize(torch.from_numpy(x), e, m, rounding=rounding).numpy())


def name_of(e: int, m: int) -> str:
    return f"float({e},{m})" if e < 8 else f"float({e},{m},ieee)"


def steps(x: np.ndarray, e: int, m: int) -> np.ndarray:
    """Magnitudes in steps of the grid there, exactly."""
    least = 2 - 2 ** (e - 1)
    exponent = np.maximum(np.frexp(x.astype(np.float64))[1] - 1, least)
    return np.abs(np.ldexp(x.astype(np.float64), m - exponent))


@pytest.mark.parametrize(("e", "m"), FLOATS)
def test_floats(e: int, m: int) -> None:
    fmt = lb.get_format(name_of(e, m))
    x = numbers(-(2 ** (e - 1)) - m - 3, 2 ** (e - 1) + 1, 1, m + 1)
    got, ours = of_floats(x, e, m), lb.fake_quantize(x, fmt, scale=1.0)
    least = np.float32(2.0 ** (2 - 2 ** (e - 1)))
    normal_range = np.abs(x) >= least
    tie = steps(x, e, m) % 1 == 0.5
    beyond = np.abs(x) > fmt.max
    if e == 8:
        # Here overflow is an infinity.
        over = np.isinf(got)
        assert np.all(np.abs(x[over]) > fmt.max)
        assert np.all(np.abs(ours[over]) == fmt.max)
        normal_range &= ~over
    assert_same(got[normal_range & ~tie], ours[normal_range & ~tie], "normal")
    away = normal_range & tie & ~beyond
    step = np.ldexp(1.0, np.frexp(np.abs(x[away]).astype(np.float64))[1] - 1 - m)
    want = np.minimum(np.abs(x[away].astype(np.float64)) + step / 2, fmt.max)
    np.testing.assert_array_equal(np.abs(got[away]), want)
    # Sub-normal numbers: what is left after the sum's rounding, ties away, +0.
    x, got = x[~normal_range & (np.abs(x) < least)], got[~normal_range & (np.abs(x) < least)]
    signed = np.copysign(least, x)
    pre = (x + signed) - signed
    tie = steps(pre, e, m) % 1 == 0.5
    assert_same(got[~tie], lb.fake_quantize(pre[~tie], fmt, scale=1.0) + np.float32(0), "sub-normal")
    want = (np.floor(steps(pre[tie], e, m)) + 1) * float(fmt.smallest)
    np.testing.assert_array_equal(np.abs(got[tie]), want)
    if e < 8:
        assert tie.sum() > 100


def test_floats_that_are_not_finite() -> None:
    x = float32([0x7F800000, 0xFF800000, 0x7FC00000])
    assert list(of_floats(x, 4, 3)) == [480, -480, 480]
    np.testing.assert_array_equal(lb.fake_quantize(x, "float(4,3)", scale=1.0), [480, -480, np.nan])


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("wl", "fl"), FIXED)
def test_fixed_point(wl: int, fl: int, symmetric: bool) -> None:
    x = numbers(-fl - 3, wl - fl, 2, wl // 2)
    x = x[np.abs(x) < 1e30]
    x = np.concatenate([x, around(np.arange(-(2**5), 2**5) * np.float32(2.0 ** (-fl - 1)), 2)])
    got = fixed_point_quantize(torch.from_numpy(x), wl, fl, symmetric=symmetric, rounding="nearest").numpy()
    ours = lb.fake_quantize(x, f"fixed({wl},{fl}{',symmetric' if symmetric else ''})", scale=1.0)
    half = x * np.float32(2.0**fl) == np.float32(0.5 + 2.0**-24)
    assert half.any()
    assert np.all(got[half] == 0)
    assert np.all(ours[half] == 2.0**-fl)
    np.testing.assert_array_equal(got[~half], ours[~half])


def test_fixed_point_without_ends() -> None:
    """From 2**23 steps on theirs moves odd numbers of the grid, ours none."""
    x = np.float32([0.3, -7.77, 1000.03, 2.0**20 + 0.25])
    got = fixed_point_quantize(torch.from_numpy(x), 8, 4, clamp=False, rounding="nearest").numpy()
    np.testing.assert_array_equal(got, lb.fake_quantize(x, "fixed(8,4,unbounded)", scale=1.0))
    odd = np.float32([(2**23 + 1) / 16])
    got = fixed_point_quantize(torch.from_numpy(odd), 8, 4, clamp=False, rounding="nearest").numpy()
    assert got == (2**23 + 2) / 16
    assert lb.fake_quantize(odd, "fixed(8,4,unbounded)", scale=1.0) == odd


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("wl", [4, 6, 8])
def test_block_floating_point(wl: int, axis: int | None) -> None:
    rng = np.random.default_rng(wl)
    x = np.clip(normal(64 * 500, wl).reshape(64, 500), -3.9, 3.9)
    # Half steps of blocks whose largest magnitude lies between 2 and 4.
    x[::2] = np.round(x[::2] * 2 ** (wl - 2)) / np.float32(2 ** (wl - 2))
    x[:, 0] = 3
    if axis == 0:
        x *= np.exp2(rng.integers(-30, 30, (64, 1))).astype(np.float32)
    got = block_quantize(torch.from_numpy(x), wl, dim=-1 if axis is None else 0, rounding="nearest").numpy()
    ours = lb.fake_quantize(x, f"bfp({wl})", axis=axis)
    amax = np.abs(x).max(axis=None if axis is None else 1, keepdims=True)
    base = np.ldexp(np.float32(1), np.frexp(amax)[1] - 1).astype(np.float32) * np.ones_like(x)
    step = base.astype(np.float64) * 2.0 ** (2 - wl)
    pre = ((x + np.float32(6) * base) - np.float32(6) * base).astype(np.float64)
    end = 2 ** (wl - 1) - 1
    want = np.clip(np.floor(pre / step + 0.5), -end, end) * step
    np.testing.assert_array_equal(got, want)
    differ = got != ours
    assert differ.sum() > 100
    assert np.all((pre / step % 1 == 0.5)[differ])
    np.testing.assert_array_equal(ours, np.clip(np.rint(x.astype(np.float64) / step), -end, end) * step)


DRAWS = 20_000


@pytest.mark.parametrize(
    ("small", "theirs"),
    [
        ("float(4,3)", lambda x: float_quantize(x, 4, 3)),
        ("fixed(8,4)", lambda x: fixed_point_quantize(x, 8, 4)),
        ("bfp(8)", lambda x: block_quantize(x, 8)),
    ],
)
def test_stochastic_means(small: str, theirs: object) -> None:
    """Both have the number itself as mean, within 5 standard errors (qtorch's CPU kernels cannot be seeded)."""
    values = np.float32([0.37, 1.03, -2.71, 3.9, 0.0301, -0.57, 5.11, -7.3])
    x = np.tile(values, (DRAWS, 1))
    for draw in (
        theirs(torch.from_numpy(x)).numpy(),  # type: ignore[operator]
        lb.fake_quantize(x, small, rounding="stochastic", key=3, **({} if small == "bfp(8)" else {"scale": 1.0})),
    ):
        low, high = draw.min(axis=0).astype(np.float64), draw.max(axis=0).astype(np.float64)
        assert np.all((low <= values) & (values <= high))
        p = (values - low) / np.where(high > low, high - low, 1)
        error = np.abs(draw.mean(axis=0, dtype=np.float64) - values)
        assert np.all(error <= 5 * (high - low) * np.sqrt(p * (1 - p) / DRAWS) + 1e-9)
        assert len(np.unique(draw)) <= 2 * len(values)
