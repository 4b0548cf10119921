"""Integers, ternary, signs, powers, fixed point, tables and log grids, each by formulas of its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import lowbit as lb
from lowbit import _core
from support import KEY, around, assert_same, float32, normal, runs, wild

# --- Integers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", range(2, 9))
def test_integers_of_every_width(width: int) -> None:
    x = np.concatenate([normal(5000) * np.float32(2.0 ** (width - 1)), np.arange(-300, 300, 0.5, np.float32)])
    for options, low, high in [
        ({}, -(2 ** (width - 1)), 2 ** (width - 1) - 1),
        ({"symmetric": True}, 1 - 2 ** (width - 1), 2 ** (width - 1) - 1),
        ({"signed": False}, 0, 2**width - 1),
    ]:
        record = lb.int_format(width, **options)
        assert record.values.tolist() == list(range(low, high + 1))
        assert (record.bits, record.reference, record.uniform) == (width, high, True)
        want = np.clip(np.rint(x), low, high) + np.float32(0)
        for run in runs(x.size):
            q = lb.quantize(x, record, scale=1.0)
            assert_same(lb.dequantize(q), want, run)
            assert_same(q.codes, (want.astype(np.int64) % 2**width).astype(np.uint8), run)
        assert record == lb.get_format(record.name)
    names = [lb.int_format(width, **o).name for o in ({}, {"symmetric": True}, {"signed": False})]
    assert names == [f"int{width}", f"int{width}_symmetric", f"uint{width}"]


def test_integers_of_eight_bits_are_numpys() -> None:
    q = lb.quantize(normal(1000), "int8")
    assert_same(np.asarray(q), q.codes.view(np.int8).astype(np.float32) * q.scale)
    assert_same(q.packed, q.codes)
    assert np.abs(q.codes.view(np.int8)).max() == 127


def test_bitnets_activations() -> None:
    """Multiply each token by s = 127 / max|x|, round, clamp to [-128, 127]; but for an ulp of s the same codes."""
    x = normal(64 * 100).reshape(64, 100)
    q = lb.quantize(x, "int8", axis=0)
    s = 127 / np.abs(x).max(axis=1, keepdims=True).astype(np.float64)
    t = x * s
    clear = np.abs(t - np.floor(t) - 0.5) > 1e-4
    assert (q.codes.view(np.int8) == np.clip(np.rint(t), -128, 127))[clear].all()


# --- Ternary and signs ------------------------------------------------------------------------------------------------


def test_ternary_is_bitnets() -> None:
    """W_t = clip(round(W / g), -1, 1) with g = mean|W|, ties to even: BitNet b1.58's published code."""
    x = np.round(normal(4001) * np.float32(64)) / np.float32(64)
    q = lb.quantize(x, "ternary")
    g = np.abs(x.astype(np.float64)).sum() / x.size  # the sum of multiples of 1/64 is exact in any order
    assert q.scale[0] == np.float32(g)
    want = np.clip(np.rint(x * (np.float32(1) / q.scale[0])), -1, 1)
    assert_same(q.codes.astype(np.int64) - 1, want.astype(np.int64))
    assert_same(
        lb.fake_quantize(np.float32([0.5, -0.5, 0.51, 1.5, -9]), "ternary", scale=1.0), np.float32([0, 0, 1, 1, -1])
    )


def test_ternary_weight_networks() -> None:
    """Threshold 0.7 E|W|, scale the mean magnitude above it (Li et al., arXiv:1605.04711)."""
    for n in (1, 2, 7, 100, 4096, 50_001):
        x = normal(n)
        wide = np.abs(x.astype(np.float64))
        threshold = 0.7 * wide.mean()
        assert (np.abs(wide - threshold) > 1e-6 * threshold).all(), "no number is where float32 decides"
        q = lb.quantize(x, "ternary", scale="twn")
        assert_same(q.codes.astype(np.int64) - 1, (np.sign(x) * (wide > threshold)).astype(np.int64))
        assert q.scale[0] == pytest.approx(wide[wide > threshold].mean(), rel=1e-6)
        error = np.mean((np.asarray(q) - x) ** 2.0)
        if n > 1000:  # the least that one threshold and one scale reach on such data, but for 1.5 %
            assert error < 1.015 * min(ternary_error(wide, t) for t in np.linspace(0.3, 1.0, 29))
    assert lb.quantize(np.zeros(9), "ternary", scale="twn").scale[0] == 1
    x = normal(60).reshape(6, 10)
    rows = lb.quantize(x, "ternary", scale="twn", axis=0)
    for row, scale in zip(x, rows.scale.ravel(), strict=True):
        assert lb.quantize(row, "ternary", scale="twn").scale[0] == scale


def ternary_error(size: np.ndarray, threshold: float) -> float:
    above = size > threshold
    return float(np.mean(size**2) - above.mean() * size[above].mean() ** 2)


def test_signs_are_xnor_nets() -> None:
    """A sign(W) with a = mean|W| of each filter: the a that makes |W - a sign(W)| least."""
    x = (np.round(normal(8 * 100) * np.float32(64)) / np.float32(64)).reshape(8, 100)
    q = lb.quantize(x, "sign", axis=0)
    mean = (np.abs(x.astype(np.float64)).sum(axis=1, keepdims=True) / 100).astype(np.float32)
    assert_same(q.scale, mean)
    assert_same(lb.dequantize(q), np.where(x >= 0, mean, -mean))
    assert_same(np.unpackbits(q.packed, bitorder="little"), (x >= 0).ravel().astype(np.uint8))
    assert lb.fake_quantize(np.float32([0, -0.0, 1e-45, -1e-45]), "sign", scale=1.0).tolist() == [1, 1, 1, -1]


def test_stochastic_signs_are_binaryconnects() -> None:
    """P(+1) = clip((w + 1) / 2, 0, 1)."""
    words = np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint32)
    for w in (-2.0, -1.0, -0.9, -0.25, 0.0, 0.5, 0.999, 1.0, 7.0):
        y = _core.round_with_words(np.full(words.size, w, np.float32), "sign", words)
        p = min(max((w + 1) / 2, 0), 1)
        assert_same(y > 0, words < p * 2**32 if p < 1 else np.ones(words.size, bool))


# --- Powers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("radix", "e"), [(2, 3), (2, 7), (4, 1), (4, 2), (4, 4), (4, 6), (8, 3), (8, 5), (2, 1)])
def test_radix_tables_and_thresholds_by_exact_fractions(radix: int, e: int) -> None:
    """Powers R^(E - 2^(e - 1)); from the middle of two, (1 + R) / (2 R) of the larger one, on the larger one."""
    record = lb.radix_format(radix, e)
    powers = [Fraction(radix) ** (field - 2 ** (e - 1)) for field in range(1, 2**e)]
    want = [*(-float(power) for power in reversed(powers)), 0.0, *map(float, powers)]
    assert record.values.tolist() == want
    assert record.decode_table.tolist() == [0.0, *map(float, powers), 0.0, *(-float(power) for power in powers)]
    ties = [power * Fraction(1 + radix, 2 * radix) for power in powers]
    t = around([float(tie) for tie in ties], 2)
    t = t[t > 0]
    got = lb.fake_quantize(t, record, scale=1.0)
    reached = [sum(tie <= Fraction(float(each)) for tie in ties) for each in t]
    assert got.tolist() == [float(powers[count - 1]) if count else 0.0 for count in reached]
    assert_same(lb.fake_quantize(-t, record, scale=1.0), -got)


@pytest.mark.parametrize(("radix", "e"), [(2, 3), (4, 3), (8, 2), (4, 1)])
def test_without_zero_there_is_one_power_more(radix: int, e: int) -> None:
    record = lb.radix_format(radix, e, zero=False)
    least = float(radix) ** -(2 ** (e - 1))
    assert len(record.values) == 2 ** (e + 1)
    assert (record.smallest, record.decode_table[0], record.decode_table[2**e]) == (least, least, -least)
    x = np.float32([0, -0.0, least / 8, -1e-30, 1e-45])
    assert_same(lb.fake_quantize(x, record, scale=1.0), np.float32([least, -least, least, -least, least]))
    n = 40_000
    for share in (-0.75, 0.0, 0.5):
        y = lb.fake_quantize(np.full(n, share * least), record, scale=1.0, rounding="stochastic", key=KEY)
        assert set(y.tolist()) == {-least, least}
        assert abs(y.mean() / least - share) < 5 / math.sqrt(n)


def test_radix_4_by_its_own_name() -> None:
    assert lb.radix_format(4, 3) == lb.get_format("radix4")
    assert lb.radix_format(2, 3).name == "radix(2,3)"
    assert lb.radix_format(4, 3, zero=False).name == "radix(4,3,nozero)"
    x = wild(10_000)
    for e in (2, 4, 5):  # the same ladder, shorter or longer
        y, want = lb.fake_quantize(x, lb.radix_format(4, e), scale=1.0), lb.fake_quantize(x, "radix4", scale=1.0)
        inside = (np.abs(x) < 2.5) & (np.abs(x) >= 0.16)
        assert_same(y[inside], want[inside])


def test_radix_2_log_uniform_oracle() -> None:
    """E[q/x] = (2/3) / ln 2 over whole periods, and E[(q/x - 1)^2] = 0.03820 (facts of radix-2 nearest)."""
    n = 1 << 20
    x = (2.0 ** (np.arange(n) / n * 4 - 2)).astype(np.float32)
    ratio = lb.fake_quantize(x, lb.radix_format(2, 4), scale=1.0).astype(np.float64) / x
    assert ratio.mean() == pytest.approx(2 / 3 / math.log(2), abs=1e-5)
    assert np.mean((ratio - 1) ** 2) == pytest.approx(0.03820, abs=1e-5)


# --- LUQ --------------------------------------------------------------------------------------------------------------


def test_luq_takes_the_largest_to_64_and_underflows_at_half() -> None:
    x = normal(1000)
    q = lb.quantize(x, "luq4")
    assert q.scale[0] == np.abs(x).max() / np.float32(64)
    assert np.abs(lb.dequantize(q)).max() == np.float32(64) * q.scale[0]
    t = np.float32([0.49999997, 0.5, 0.74, 0.75, 1.4999999, 1.5, 2.9999998, 3, 47.999996, 48, 1e9])
    want = np.float32([0, 1, 1, 1, 1, 2, 2, 4, 32, 64, 64])
    for sign in (1, -1):
        assert_same(lb.fake_quantize(sign * t, "luq4", scale=1.0), sign * want)


def test_luq_is_unbiased_with_variance_of_the_neighbours() -> None:
    """E[q] = x and Var[q] = (x - l)(u - x), below the smallest as between powers, each within five deviations."""
    n = 50_000
    for x in (0.01, 0.3, 0.9, 1.25, 1.999, 2.5, 3.0, 5.0, 13.0, 40.0, 63.0, -0.2, -6.5):
        y = lb.fake_quantize(np.full(n, x), "luq4", scale=1.0, rounding="stochastic", key=lb.Key(int(abs(x) * 1000)))
        low = 0.0 if abs(x) < 1 else 2.0 ** math.floor(math.log2(abs(x)))
        high = 1.0 if abs(x) < 1 else 2 * low
        assert set(np.abs(y).tolist()) <= {low, high}
        variance = (abs(x) - low) * (high - abs(x))
        assert abs(y.mean() - x) < 5 * math.sqrt(variance / n)
        square = (y - x) ** 2
        assert abs(square.mean() - variance) < 5 * square.std() / math.sqrt(n) + 1e-9


def test_luq_as_a_whole_is_unbiased() -> None:
    """No bias from the largest either: the mean of many draws of one tensor comes to the tensor."""
    x, draws = normal(300), 600
    y = np.stack([lb.fake_quantize(x, "luq4", rounding="stochastic", key=k) for k in range(draws)]).astype(np.float64)
    deviation = y.std(axis=0) / math.sqrt(draws)
    z = (y.mean(axis=0) - x)[deviation > 0] / deviation[deviation > 0]
    assert np.abs(z).max() < 5
    assert abs(np.mean(z**2) - 1) < 5 * math.sqrt(2 / z.size)


# --- Variance of stochastic rounding ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family", ["int8", "fp8_e4m3fn", "bfloat16", "fixed(8,4)", "log(8,0.125,0.001)", "nf4", "radix(8,3)"]
)
def test_stochastic_variance_is_p_times_rest_times_the_step(family: str) -> None:
    """Var = p (1 - p) u^2: the mean of the squared error over many numbers, in units of what it should be."""
    values = lb.get_format(family).values.astype(np.float64)
    rng = np.random.default_rng(8)
    x = rng.uniform(max(values[0], -3), min(values[-1], 3), 200_000).astype(np.float32)
    above = np.clip(np.searchsorted(values, x), 1, len(values) - 1)
    step = values[above] - values[above - 1]
    p = (x - values[above - 1]) / step
    y = lb.fake_quantize(x, family, scale=1.0, rounding="stochastic", key=KEY)
    error, variance = (y.astype(np.float64) - x) / step, p * (1 - p)
    assert abs(error.mean()) < 5 * math.sqrt(variance.mean() / x.size)
    fourth = variance * (1 - 3 * variance)  # of a coin's deviation: E d^4 = p q (1 - 3 p q)
    assert abs((error**2 - variance).mean()) < 5 * math.sqrt((fourth - variance**2).mean() / x.size)


# --- Fixed point ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "fraction", "options"),
    [
        (8, 4, {}),
        (12, 6, {"symmetric": True}),
        (2, 0, {}),
        (16, 20, {}),
        (16, -3, {"symmetric": True}),
        (24, 10, {}),
        (8, 4, {"clamp": False}),
        (5, 126, {}),
        (4, -120, {}),
    ],
)
def test_fixed_point_by_numpy(width: int, fraction: int, options: dict[str, bool]) -> None:
    record = lb.fixed_point(width, fraction, **options)
    step = 2.0**-fraction
    x = np.concatenate([wild(20_000), (normal(20_000) * np.float32(2.0 ** (width - 2) * step)).astype(np.float32)])
    x = x[~np.isnan(x)]
    k = np.rint(x.astype(np.float64) / step)  # exact: a power of two
    if options.get("clamp", True):
        half = 2 ** (width - 1)
        k = np.clip(k, 1 - half if options.get("symmetric") else -half, half - 1)
        assert record.max == (half - 1) * step
    else:
        assert record.max == np.inf
    assert record.smallest == step
    assert record.coded == (width <= 16 and options.get("clamp", True))
    want = (k * step).astype(np.float32) + np.float32(0)
    for run in runs(x.size):
        assert_same(lb.fake_quantize(x, record), want, run)
        if record.coded:
            q = lb.quantize(x, record)
            assert_same(q.codes, (k.astype(np.int64) % 2**width).astype(q.codes.dtype), run)


def test_the_fixed_points_end_where_qpytorchs_do() -> None:
    """[-2^(wl - fl - 1), 2^(wl - fl - 1) - 2^-fl]; "symmetric" drops the lowest."""
    x = np.float32([-100, 100])
    assert lb.fake_quantize(x, lb.fixed_point(5, 4)).tolist() == [-1, 1 - 1 / 16]
    assert lb.fake_quantize(x, lb.fixed_point(5, 4, symmetric=True)).tolist() == [1 / 16 - 1, 1 - 1 / 16]
    assert lb.fake_quantize(x + np.float32(0.03), lb.fixed_point(5, 4, clamp=False)).tolist() == [-100, 100]


# --- Tables and log grids ---------------------------------------------------------------------------------------------


def test_nf4_is_bitsandbytes() -> None:
    """Blocks of 64 by their largest magnitude, then buckets by midpoints: x > midpoint is the upper one."""
    x = normal(64 * 500 + 20)
    x[:64] = np.resize(lb.get_format("nf4").values, 64)
    values = lb.get_format("nf4").values.astype(np.float64)
    middle = (values[:-1] + values[1:]) / 2
    q = lb.quantize(x, "nf4")
    assert q.block_size == 64
    assert q.scale.shape == (501,)
    t = x * np.repeat(np.float32(1) / q.scale, 64)[: x.size]
    assert_same(q.codes, (t[:, None].astype(np.float64) > middle).sum(axis=1).astype(np.uint8))


def test_tables_go_down_at_ties_and_are_exact_beside_them() -> None:
    values = [-3.0e38, -1.0, -1e-30, 0.0, 2.0**-100, 0.1, 0.3, 1.0, 16777216.0, 3.0e38]
    with pytest.raises(lb.Error, match="values"):
        lb.table_format(values)  # a difference whose reciprocal would be subnormal
    values = [-1.0, -1e-30, 0.0, 2.0**-100, 0.1, 0.3, 1.0, 16777216.0, 3.0e30]
    record = lb.table_format(values)
    assert_same(record.values, np.float32(values))
    exact = [Fraction(float(v)) for v in np.float32(values)]
    middle = [(a + b) / 2 for a, b in itertools.pairwise(exact)]
    t = around([float(m) for m in middle], 2)
    want = [sum(m < Fraction(float(each)) for m in middle) for each in t]
    for run in runs(t.size):
        assert lb.quantize(t, record).codes.tolist() == want, run


@pytest.mark.parametrize(
    ("values", "called", "width"),
    [
        ([0, 1], "table(0,1)", 1),
        ([-1, -0.25, 0, 0.25, 1], "table(-1,-0.25,0,0.25,1)", 3),
        (np.float32([0.1, 0.2, 0.3]), "table(0.1,0.2,0.3)", 2),
        ([-0.0, 2], "table(0,2)", 1),
        (list(range(256)), None, 8),
    ],
)
def test_names_of_tables(values: Any, called: str | None, width: int) -> None:
    record = lb.table_format(values)
    assert called in {None, record.name}
    assert record.bits == width
    assert lb.get_format(record.name) == record
    assert_same(lb.get_format(record.name).values, np.float32(values) + np.float32(0))
    x = normal(100)
    assert_same(np.asarray(lb.Quantized.from_bytes(lb.quantize(x, record).to_bytes())), lb.fake_quantize(x, record))


def test_any_table_comes_back_from_its_name() -> None:
    rng = np.random.default_rng(1)
    for exponent in (-100, -30, -5, 0, 10, 30, 100):
        values = np.unique(np.ldexp(rng.standard_normal(9), exponent).astype(np.float32))
        record = lb.table_format(values)
        assert_same(lb.get_format(record.name).values, values)


@pytest.mark.parametrize(
    ("zeta", "delta", "width"), [(0.125, 2.0**-10, 7), (0.5, 0.05, 4), (0.01, 1e-5, 10), (1.0, 1.0, 5)]
)
def test_log_grids_in_closed_form(zeta: float, delta: float, width: int) -> None:
    """Li and De Sa's q_i = (delta / zeta)((1 + zeta)^i - 1): steps of delta + zeta q_i."""
    record = lb.log_grid(zeta=zeta, delta=delta, bits=width)
    i = np.arange(2 ** (width - 1))
    closed = delta / zeta * ((1 + zeta) ** i - 1)
    assert len(record.values) == 2**width - 1
    np.testing.assert_allclose(record.values[len(i) - 1 :], closed, rtol=1e-6)
    assert_same(record.values, -record.values[::-1] + np.float32(0))
    steps = np.diff(record.values[len(i) - 1 :].astype(np.float64))
    np.testing.assert_allclose(steps, delta + zeta * closed[:-1], rtol=1e-3)
    if (zeta, delta) == (0.125, 2.0**-10):
        assert int(np.searchsorted(closed, 1.0)) == 42, "levels to reach 1"
        assert record.values[len(i) - 1 + 41] < 1 <= record.values[len(i) - 1 + 42]


def test_a_log_grid_without_growth_is_fixed_point() -> None:
    record = lb.log_grid(zeta=0.0, delta=1 / 16, bits=8)
    assert_same(record.values, lb.fixed_point(8, 4, symmetric=True).values)


# --- What cannot be made ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: lb.int_format(1), "bits"),
        (lambda: lb.int_format(9), "bits"),
        (lambda: lb.int_format(4, symmetric=True, signed=False), "symmetric"),
        (lambda: lb.radix_format(3, 3), "radix"),
        (lambda: lb.radix_format(16, 3), "radix"),
        (lambda: lb.radix_format(4, 0), "exponent_bits"),
        (lambda: lb.radix_format(4, 8), "exponent_bits"),
        (lambda: lb.radix_format(8, 7), "exponent_bits"),
        (lambda: lb.radix_format(4, 7, zero=False), "exponent_bits"),
        (lambda: lb.fixed_point(1, 0), "bits"),
        (lambda: lb.fixed_point(25, 0), "bits"),
        (lambda: lb.fixed_point(8, 127), "fraction_bits"),
        (lambda: lb.fixed_point(8, -120), "fraction_bits"),
        (lambda: lb.table_format([]), "values"),
        (lambda: lb.table_format([1.0]), "values"),
        (lambda: lb.table_format([0.0, 0.0]), "values"),
        (lambda: lb.table_format([-0.0, 0.0]), "values"),
        (lambda: lb.table_format([1.0, 0.0]), "values"),
        (lambda: lb.table_format([0.0, np.nan]), "values"),
        (lambda: lb.table_format([0.0, np.inf]), "values"),
        (lambda: lb.table_format([0.0, 1e300]), "values"),
        (lambda: lb.table_format([1.0, 1.0 + 2.0**-30]), "values"),
        (lambda: lb.table_format([0.0, 2.0**-127]), "values"),
        (lambda: lb.table_format(list(range(257))), "values"),
        (lambda: lb.log_grid(zeta=-0.1, delta=0.1, bits=4), "zeta"),
        (lambda: lb.log_grid(zeta=np.nan, delta=0.1, bits=4), "zeta"),
        (lambda: lb.log_grid(zeta=0.1, delta=0.0, bits=4), "delta"),
        (lambda: lb.log_grid(zeta=0.1, delta=np.inf, bits=4), "delta"),
        (lambda: lb.log_grid(zeta=0.1, delta=0.1, bits=1), "bits"),
        (lambda: lb.log_grid(zeta=0.1, delta=0.1, bits=17), "bits"),
    ],
)
def test_families_that_cannot_be(call: Callable[[], object], argument: str) -> None:
    with pytest.raises(lb.Error, match=rf"\b{argument}\b"):
        call()


def test_log_grids_beyond_float32_cannot_be() -> None:
    for zeta, delta, width in ((1.0, 1.0, 9), (0.0, 1e-60, 4), (1e-9, 3e38, 4)):
        with pytest.raises(lb.Error):
            lb.log_grid(zeta=zeta, delta=delta, bits=width)


@pytest.mark.parametrize(
    "bad",
    [
        "int1", "int9", "int4_odd", "uint4_symmetric", "radix()", "radix(4)", "radix(4,3,zero)", "radix(3,3)",
        "float(4)", "float(4,3", "float(4,3))", "float(4,3,)", "float( 4,3)", "float(4,3,bias=)", "float(4,3,bias=x)",
        "cfloat8(4)",
        "float(99999999999999999999,3)", "cfloat16(shp)", "cfloat16(uhp,31)", "fixed(8)", "fixed(8,4,clamped)", "bfp()",
        "bfp(1)", "block(int4,e8m0,0)", "block(mxfp4,e8m0,32)", "block(int4)", "log(8,0.1)", "log(8,0.1,nan)",
        "table()", "table(1)", "table(1,0)", "table(0,nan)", "table(0,inf)", "", "(", ")", "int4 ", "INT4",
        "fp4_e2m1()",
        "block(block(int4,e8m0,32),e8m0,32)", "table(" + ",".join(map(str, range(257))) + ")",
    ],
)  # fmt: skip
def test_names_that_are_none(bad: str) -> None:
    with pytest.raises(lb.Error):
        lb.get_format(bad)
    with pytest.raises(lb.Error):
        lb.fake_quantize(float32([0x3F800000]), bad)


@pytest.mark.parametrize("bad", [True, 4.0, "4", None])
def test_arguments_of_other_types(bad: Any) -> None:
    for call in (
        lambda: lb.int_format(bad),
        lambda: lb.radix_format(4, bad),
        lambda: lb.fixed_point(8, bad),
        lambda: lb.block_float(bad),
        lambda: lb.log_grid(zeta=0.1, delta=0.1, bits=bad),
    ):
        with pytest.raises(TypeError):
            call()
    for call in (lambda: lb.table_format(["a", "b"]), lambda: lb.table_format(1.0), lambda: lb.table_format(None)):
        with pytest.raises((TypeError, lb.Error), match="values"):
            call()
