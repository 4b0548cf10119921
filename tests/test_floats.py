"""Small floats: decoding, rounding by formulas of their own, Tesla's CFloat, and what cannot be made."""

from __future__ import annotations

import math
import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import lowbit as lb
from lowbit import _core
from support import BFLOAT16, assert_same, bits, float32, normal, runs, wild

FLOATS: list[dict[str, Any]] = [
    {"exponent_bits": 2, "mantissa_bits": 1},
    {"exponent_bits": 2, "mantissa_bits": 3},
    {"exponent_bits": 3, "mantissa_bits": 2, "inf_nan": "ieee"},
    {"exponent_bits": 1, "mantissa_bits": 3},
    {"exponent_bits": 4, "mantissa_bits": 3, "inf_nan": "fn"},
    {"exponent_bits": 4, "mantissa_bits": 3, "inf_nan": "fnuz"},
    {"exponent_bits": 4, "mantissa_bits": 3, "bias": 11, "inf_nan": "fnuz"},
    {"exponent_bits": 5, "mantissa_bits": 2, "inf_nan": "ieee"},
    {"exponent_bits": 4, "mantissa_bits": 2, "bias": -103},
    {"exponent_bits": 4, "mantissa_bits": 3, "bias": 124},
    {"exponent_bits": 7, "mantissa_bits": 1, "bias": 64, "inf_nan": "fn"},
    {"exponent_bits": 6, "mantissa_bits": 9},
    {"exponent_bits": 5, "mantissa_bits": 10, "inf_nan": "ieee"},
    {"exponent_bits": 8, "mantissa_bits": 7, "inf_nan": "ieee"},
    {"exponent_bits": 8, "mantissa_bits": 3, "inf_nan": "ieee"},
]
WITHOUT_CODES: list[dict[str, Any]] = [
    {"exponent_bits": 5, "mantissa_bits": 11},
    {"exponent_bits": 7, "mantissa_bits": 23, "bias": 70, "inf_nan": "fn"},
    {"exponent_bits": 8, "mantissa_bits": 10, "inf_nan": "ieee"},
    {"exponent_bits": 8, "mantissa_bits": 22, "inf_nan": "ieee"},
]


def name_of(fields: dict[str, Any]) -> str:
    return str(lb.float_format(**fields))


def bias_of(fields: dict[str, Any]) -> int:
    other = fields.get("inf_nan") == "fnuz"
    return int(fields.get("bias", 2 ** (fields["exponent_bits"] - 1) - 1 + other))


def largest(fields: dict[str, Any]) -> float:
    """The largest finite number, from the fields of its code."""
    e, m, bias = fields["exponent_bits"], fields["mantissa_bits"], bias_of(fields)
    exponent, mantissa = 2**e - 1, 2**m - 1
    if fields.get("inf_nan") == "ieee":
        exponent -= 1
    if fields.get("inf_nan") == "fn":
        exponent, mantissa = (exponent, mantissa - 1) if m else (exponent - 1, mantissa)
    small = 1 - bias - m
    return math.ldexp(mantissa, small) if exponent == 0 else math.ldexp(2**m + mantissa, exponent - bias - m)


def inputs() -> np.ndarray:
    """Every bfloat16 and float16, and wild float32; no NaN."""
    each = np.arange(2**16, dtype=np.uint16)
    x = np.concatenate([each.view(BFLOAT16).astype(np.float32), each.view(np.float16).astype(np.float32), wild(50_000)])
    return x[~np.isnan(x)]


# --- Values and codes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", FLOATS, ids=name_of)
def test_decoding_by_the_fields(fields: dict[str, Any]) -> None:
    e, m, bias = fields["exponent_bits"], fields["mantissa_bits"], bias_of(fields)
    kind, record = fields.get("inf_nan", "none"), lb.float_format(**fields)
    assert record.bits == 1 + e + m
    for code, value in enumerate(record.decode_table.tolist()):
        sign, exponent, mantissa = code >> (e + m), code >> m & (2**e - 1), code & (2**m - 1)
        size = math.ldexp(mantissa + (2**m if exponent else 0), max(exponent, 1) - bias - m)
        want = -size if sign else size
        if kind == "ieee" and exponent == 2**e - 1:
            want = math.nan if mantissa else math.copysign(math.inf, want)
        if kind == "fn" and (exponent, mantissa) == (2**e - 1, 2**m - 1):
            want = math.nan
        if kind == "fnuz" and code == 1 << (e + m):
            want = math.nan
        assert (math.isnan(value) and math.isnan(want)) or (value, np.signbit(value)) == (want, np.signbit(want)), code
    assert record.max == record.reference == largest(fields)
    assert record.smallest == math.ldexp(1, 1 - bias - m if m else 1 - bias)
    assert (bits(record.decode_table[np.isnan(record.decode_table)]) == 0x7FC00000).all()


def test_float32_itself() -> None:
    x = wild(10_000)
    x = x[np.isfinite(x)]
    everything = lb.float_format(8, 23, inf_nan="ieee")
    assert not everything.coded
    for options in ({}, {"rounding": "stochastic", "key": 1}):
        assert_same(lb.fake_quantize(x, everything, **options), x)


# --- Rounding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", FLOATS + WITHOUT_CODES, ids=name_of)
def test_nearest_by_the_unit_in_the_last_place(fields: dict[str, Any]) -> None:
    """Steps of 2^(max(floor(log2 |x|), 1 - bias) - m), ties to even, in float64, where all that is exact."""
    x = inputs()
    wide = np.abs(x.astype(np.float64))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        exponent = np.maximum(np.frexp(np.where(np.isinf(wide), 0, wide))[1] - 1, 1 - bias_of(fields))
        step = np.exp2(exponent - float(fields["mantissa_bits"]))
        size = np.minimum(np.where(np.isinf(wide), np.inf, np.rint(wide / step) * step), largest(fields))
    want = np.copysign(size, x).astype(np.float32)
    if fields.get("inf_nan") == "fnuz":
        want = want + np.float32(0)
    for run in runs(x.size):
        assert_same(lb.fake_quantize(x, name_of(fields)), want, run)


def test_ties_go_to_the_even_code_also_without_mantissa() -> None:
    """There the code is the exponent's field: which power is even depends on the bias."""
    for bias in (1, 2, 3, 4):
        for e in (2, 3, 4):
            record = lb.float_format(e, 0, bias=bias)
            sizes = record.decode_table[: 2**e].astype(np.float64)
            assert sizes.tolist() == [0, *(2.0 ** (field - bias) for field in range(1, 2**e))]
            ties = (sizes[:-1] + sizes[1:]) / 2
            q = lb.quantize(np.concatenate([ties, -ties]), record)
            even = [code + code % 2 for code in range(2**e - 1)]
            assert q.codes.tolist() == [*even, *(2**e + code for code in even)]


def test_e2m1_decision_points() -> None:
    """0.25v 0.75^ 1.25v 1.75^ 2.5v 3.5^ 5.0v of OCP MX v1.0 (v: down, ^: up)."""
    points = np.float32([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    below, above = np.nextafter(points, np.float32(0)), np.nextafter(points, np.float32(9))
    for sign in (1, -1):
        for x, want in [
            (below, [0, 0.5, 1, 1.5, 2, 3, 4]),
            (points, [0, 1, 1, 2, 2, 4, 4]),
            (above, [0.5, 1, 1.5, 2, 3, 4, 6]),
        ]:
            assert_same(lb.fake_quantize(sign * x, "fp4_e2m1"), sign * np.float32(want))


@pytest.mark.parametrize(("e", "m", "bias"), [(5, 4, 15), (4, 3, 7), (2, 1, 1), (6, 2, 70), (3, 0, 3)])
def test_without_subnormals_half_of_the_first_number_parts(e: int, m: int, bias: int) -> None:
    record = lb.float_format(e, m, bias=bias, subnormals=False)
    first = np.float32(2.0 ** (1 - bias))
    assert record.smallest == first
    half = first / np.float32(2)
    x = np.float32(
        [0, half / 2, np.nextafter(half, np.float32(0)), half, np.nextafter(half, first), first * 0.9, first]
    )
    want = np.float32([0, 0, 0, 0, first, first, first])
    assert_same(lb.fake_quantize(x, record), want)
    assert_same(lb.fake_quantize(-x, record), -want)
    assert (record.decode_table[1 : 2**m] == 0).all()
    with_them = lb.float_format(e, m, bias=bias)
    large = inputs()
    large = large[np.abs(large) >= first]
    assert_same(lb.fake_quantize(large, record), lb.fake_quantize(large, with_them))


def test_uhp_has_no_sign() -> None:
    record, first = lb.cfloat16("uhp"), 2.0**-30
    assert not record.signed
    assert (record.bits, record.smallest, record.max) == (16, first, 8585740288)
    x = np.float32([-1, -np.inf, -0.0, -1e-45, first / 2, np.nextafter(np.float32(first / 2), np.float32(1)), 1e30])
    assert_same(lb.fake_quantize(x, record), np.float32([0, 0, 0, 0, 0, first, 8585740288]))
    assert_same(lb.fake_quantize(x[:4], record, rounding="stochastic", key=1), np.zeros(4, np.float32))


def test_stochastic_bfloat16_is_add_and_cut() -> None:
    """The classic: 16 random bits are added to the 16 that go; for negative numbers their complement.

    So a word that takes positive numbers up takes negative ones up as well.
    """
    x = np.concatenate([wild(100_000), float32(np.arange(0x3F800000, 0x3F820000, dtype=np.uint32))])
    x = x[np.abs(x) < lb.get_format("bfloat16").max]
    words = np.random.default_rng(0).integers(0, 2**32, x.size, np.uint32)
    high = np.where(np.signbit(x), words, ~words) >> np.uint32(16)
    want = float32((bits(x) + high) & np.uint32(0xFFFF0000))
    for run in runs(x.size):
        assert_same(_core.round_with_words(x, "bfloat16", words), want, run)


@pytest.mark.parametrize("fields", FLOATS + WITHOUT_CODES, ids=name_of)
def test_stochastic_by_31_bits_of_the_share(fields: dict[str, Any]) -> None:
    """The magnitude goes up iff the word's 31 high bits (of negative numbers the complement's) are below q 2^31."""
    x = inputs()
    x = x[np.abs(x) <= largest(fields)]
    words = np.random.default_rng(1).integers(0, 2**32, x.size, np.uint32)
    wide, m = np.abs(x.astype(np.float64)), fields["mantissa_bits"]
    step = np.exp2(np.maximum(np.frexp(wide)[1] - 1, 1 - bias_of(fields)) - float(m))
    low = np.floor(wide / step)
    share = np.trunc((wide / step - low) * 2.0**31)
    up = (np.where(np.signbit(x), ~words, words) >> np.uint32(1)) < share
    want = np.copysign((low + up) * step, x).astype(np.float32)
    if fields.get("inf_nan") == "fnuz":
        want = want + np.float32(0)
    for run in runs(x.size):
        assert_same(_core.round_with_words(x, name_of(fields), words), want, run)


# --- Tesla's configurable floats --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("e", "bias", "dtype", "differ"),
    [
        (4, 7, "float8_e4m3fn", [0x7F, 0xFF]),
        (4, 7, "float8_e4m3", [*range(0x78, 0x80), *range(0xF8, 0x100)]),
        (4, 8, "float8_e4m3fnuz", [0x80]),
        (4, 11, "float8_e4m3b11fnuz", [0x80]),
        (5, 15, "float8_e5m2", [*range(0x7C, 0x80), *range(0xFC, 0x100)]),
        (5, 16, "float8_e5m2fnuz", [0x80]),
    ],
)
def test_cfloat8_beside_ml_dtypes(e: int, bias: int, dtype: str, differ: list[int]) -> None:
    ours = lb.cfloat8(e, bias).decode_table
    theirs = np.arange(256, dtype=np.uint8).view(getattr(ml_dtypes, dtype)).astype(np.float32)
    assert np.flatnonzero(bits(ours) != bits(theirs)).tolist() == differ
    assert np.isfinite(ours).all()
    assert not np.isfinite(theirs[differ]).any()
    for other in (0, 1, 31, 62, 63):
        scaled = np.ldexp(ours, bias - other)
        assert_same(lb.cfloat8(e, other).decode_table, scaled, "another bias is a power of two")


def test_cfloat16_beside_float16() -> None:
    ours = lb.cfloat16("shp").decode_table
    theirs = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    differ = np.flatnonzero(bits(ours) != bits(theirs))
    assert differ.size == 2048
    assert ((differ >> 10 & 31) == 31).all()
    assert ours.max() == 131008
    for bias in (0, 31, 63):
        assert_same(lb.cfloat16("shp", bias=bias).decode_table, np.ldexp(ours, 15 - bias))


def test_ranges_of_the_white_paper() -> None:
    for bias, first, last in [(0, 2.0, 61440.0), (31, 2.0**-30, 1.875 * 2.0**-16), (63, 2.0**-62, 1.875 * 2.0**-48)]:
        record = lb.cfloat8(4, bias)
        assert (record.decode_table[8], record.max, record.smallest) == (first, last, first / 8)
    for bias, first, last in [(0, 2.0, 1.75 * 2.0**31), (31, 2.0**-30, 1.75), (63, 2.0**-62, 1.75 * 2.0**-32)]:
        record = lb.cfloat8(5, bias)
        assert (record.decode_table[4], record.max, record.smallest) == (first, last, first / 4)
    reserved = lb.cfloat16("uhp", top="reserved")
    assert (reserved.smallest, reserved.max) == (2.0**-30, 4292870144)
    assert not np.isfinite(reserved.decode_table[63 << 10 :]).any()
    assert np.isfinite(reserved.decode_table[: 63 << 10]).all()


def test_overflow_and_infinity_clamp_to_the_largest() -> None:
    for record in (lb.cfloat8(4, 31), lb.cfloat8(5, 31), lb.cfloat16("shp")):
        x = np.float32([record.max * 1.01, np.inf, 3e38, -np.inf])
        assert_same(lb.fake_quantize(x, record), np.float32([1, 1, 1, -1]) * np.float32(record.max))


@pytest.mark.parametrize(
    "record", [lb.cfloat8(4, 31), lb.cfloat8(5, 0), lb.cfloat8(4, 63), lb.cfloat16("shp")], ids=str
)
def test_the_rule_bias_is_a_float_of_another_bias(record: lb.Format) -> None:
    family, argument, bias = re.fullmatch(r"(\w+)\((\w+),(\d+)\)", record.name).groups()
    for exponent in (-140, -70, -40, -20, -3, 0, 5, 20, 40, 100):
        for factor in (1.0, 1.5, 1.75, 1.875, 1.999):
            x = np.ldexp(np.clip(normal(64), -0.99, 0.99), exponent).astype(np.float32)
            x[0] = np.ldexp(np.float32(factor), exponent)
            scale = lb.quantize(x, record, scale="bias").scale
            assert scale.shape == (1,)
            k = int(np.frexp(scale[0])[1]) - 1
            assert scale[0] == 2.0**k
            other = int(bias) - k
            assert 0 <= other <= 63
            assert np.abs(x).max() <= record.max * 2.0**k or other == 0
            assert np.abs(x).max() > record.max * 2.0 ** (k - 1) or other == 63
            want = lb.fake_quantize(x, f"{family}({argument},{other})", scale=1.0)
            assert_same(lb.fake_quantize(x, record, scale="bias"), want)


# --- Names and what cannot be made ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "called"),
    [
        (lambda: lb.float_format(2, 1), "fp4_e2m1"),
        (lambda: lb.float_format(2, 3), "fp6_e2m3"),
        (lambda: lb.float_format(3, 2, bias=3), "fp6_e3m2"),
        (lambda: lb.float_format(3, 4, inf_nan="ieee"), "fp8_e3m4"),
        (lambda: lb.float_format(4, 3, inf_nan="ieee"), "fp8_e4m3"),
        (lambda: lb.float_format(4, 3, inf_nan="fn"), "fp8_e4m3fn"),
        (lambda: lb.float_format(4, 3, inf_nan="fnuz"), "fp8_e4m3fnuz"),
        (lambda: lb.float_format(4, 3, inf_nan="fnuz", bias=11), "fp8_e4m3b11fnuz"),
        (lambda: lb.float_format(5, 2, inf_nan="ieee"), "fp8_e5m2"),
        (lambda: lb.float_format(5, 2, inf_nan="fnuz"), "fp8_e5m2fnuz"),
        (lambda: lb.float_format(5, 10, inf_nan="ieee"), "float16"),
        (lambda: lb.float_format(8, 7, inf_nan="ieee"), "bfloat16"),
        (lambda: lb.float_format(4, 3), "float(4,3)"),
        (lambda: lb.float_format(4, 3, bias=8), "float(4,3,bias=8)"),
        (lambda: lb.float_format(4, 3, bias=7, inf_nan="fnuz"), "float(4,3,bias=7,fnuz)"),
        (lambda: lb.float_format(5, 2, bias=9, inf_nan="fn", subnormals=False), "float(5,2,bias=9,fn,ftz)"),
        (lambda: lb.float_format(4, 3, bias=-5), "float(4,3,bias=-5)"),
        (lambda: lb.cfloat8(4, 31), "cfloat8(4,31)"),
        (lambda: lb.cfloat8(5, 0), "cfloat8(5,0)"),
        (lambda: lb.cfloat16("shp"), "cfloat16(shp,15)"),
        (lambda: lb.cfloat16("shp", bias=3), "cfloat16(shp,3)"),
        (lambda: lb.cfloat16("uhp", bias=31), "cfloat16(uhp)"),
        (lambda: lb.cfloat16("uhp", top="reserved"), "cfloat16(uhp,reserved)"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_names_of_floats(made: Any, called: str) -> None:
    assert made().name == called
    assert lb.get_format(called) == made()


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: lb.float_format(0, 3), "exponent_bits"),
        (lambda: lb.float_format(9, 3), "exponent_bits"),
        (lambda: lb.float_format(4, -1), "mantissa_bits"),
        (lambda: lb.float_format(4, 24), "mantissa_bits"),
        (lambda: lb.float_format(4, 3, bias=125), "bias"),
        (lambda: lb.float_format(4, 3, bias=-104), "bias"),
        (lambda: lb.float_format(7, 3, bias=-1), "bias"),
        (lambda: lb.float_format(8, 3), "inf_nan"),
        (lambda: lb.float_format(8, 3, inf_nan="fn"), "inf_nan"),
        (lambda: lb.float_format(8, 3, inf_nan="ieee", bias=126), "bias"),
        (lambda: lb.float_format(4, 3, inf_nan="nan"), "inf_nan"),
        (lambda: lb.cfloat8(3, 7), "exponent_bits"),
        (lambda: lb.cfloat8(4, 64), "bias"),
        (lambda: lb.cfloat8(4, -1), "bias"),
        (lambda: lb.cfloat16("xhp"), "kind"),
        (lambda: lb.cfloat16("shp", bias=64), "bias"),
        (lambda: lb.cfloat16("uhp", bias=30), "bias"),
        (lambda: lb.cfloat16("uhp", top="nan"), "top"),
    ],
)
def test_floats_that_cannot_be(call: Any, argument: str) -> None:
    with pytest.raises(lb.Error, match=rf"\b{argument}\b"):
        call()


@pytest.mark.parametrize(
    ("e", "m", "inf_nan", "subnormals"), [(1, 0, "ieee", True), (1, 0, "fn", True), (1, 2, "ieee", False)]
)
def test_floats_without_numbers(e: int, m: int, inf_nan: str, subnormals: bool) -> None:
    with pytest.raises(lb.Error):
        lb.float_format(e, m, inf_nan=inf_nan, subnormals=subnormals)


@pytest.mark.parametrize("bad", [True, 4.0, "4", None])
def test_fields_of_other_types(bad: Any) -> None:
    for call in (lambda: lb.float_format(bad, 3), lambda: lb.float_format(4, bad), lambda: lb.cfloat8(4, bad)):
        with pytest.raises(TypeError):
            call()
