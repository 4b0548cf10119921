"""The scale rules against their formulas, in exact or closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

import lowbit as lb
from lowbit import reference
from support import FORMATS, assert_same, check, fit, float32, groups, normal, runs

SAWB = [name for name in FORMATS if "sawb" in lb.get_format(name).scale_rules]
AFFINE = [name for name in FORMATS if "minmax" in lb.get_format(name).scale_rules]
#: SAWB's factors and levels: IBM's published code ("103", "403", "703", "803").
FACTORS = {
    "ternary": (2.6, 1.71, 1.0),
    "int4": (12.035, 12.03, 7.0),
    "int4_symmetric": (12.035, 12.03, 7.0),
    "int8": (31.76, 35.04, 127.0),
    "int8_symmetric": (31.76, 35.04, 127.0),
}
ORDER = ["one", "amax", "minmax", "sawb", "mean", "twn", "bias", "floor", "ceil", "rceil", "even", "four_over_six"]


def test_who_has_which_rules() -> None:
    for name in FORMATS:
        rules = list(lb.get_format(name).scale_rules)
        assert rules == [rule for rule in ORDER if rule in rules], name
    assert set(FACTORS) == set(SAWB)
    assert set(AFFINE) == {name for name in FORMATS if lb.get_format(name).uniform}
    for name, rules, default in [
        ("int8", "amax minmax sawb", "amax"),
        ("int3", "amax minmax", "amax"),
        ("ternary", "amax minmax sawb mean twn", "mean"),
        ("sign", "amax mean", "mean"),
        ("luq4", "amax", "amax"),
        ("radix(8,3)", "amax", "amax"),
        ("nf4", "amax", "amax"),
        ("fp4_e2m1", "one amax", "one"),
        ("float16", "one amax", "one"),
        ("cfloat8(4,31)", "one amax bias", "one"),
        ("cfloat16(shp,15)", "one amax bias", "one"),
        ("cfloat16(uhp)", "one amax", "one"),
        ("fixed(8,4)", "one amax", "one"),
        ("log(8,0.125,0.001)", "one amax", "one"),
        ("table(-1,-0.25,0,0.25,1)", "one amax", "one"),
        ("mxfp4", "floor ceil rceil even", "floor"),
        ("mxint8", "floor ceil rceil even", "floor"),
        ("bfp(8)", "floor ceil rceil even", "floor"),
        ("nvfp4", "amax four_over_six", "amax"),
    ]:
        record = lb.get_format(name)
        assert (" ".join(record.scale_rules), record.default_scale) == (rules, default), name
    for name in ("int7", "int7_symmetric"):
        assert "sawb" in lb.get_format(name).scale_rules
    blocks = {"nf4": 64, "nvfp4": 16, "block(int4_symmetric,e8m0,32)": 32}
    for name in FORMATS:
        assert lb.get_format(name).default_block == blocks.get(name, 32 if name.startswith("mx") else None), name


SIZES = [1, 7, 8, 9, 4095, 4096, 4097, 8192, 20001, 100003]


def test_amax_by_its_formula(name: str) -> None:
    record = lb.get_format(name)
    if "amax" not in record.scale_rules or record.scale_format or not record.coded:
        pytest.skip(f"{name} has no rule amax with a float32 scale to see")
    for n in SIZES:
        x = normal(n)[None]
        want = np.maximum(np.abs(x).max() / np.float32(record.reference), np.float32(2.0**-126))
        for run in runs(n):
            assert_same(lb.quantize(x, name, scale="amax", block_size=n).scale, want.reshape(1, 1), run)


def test_amax_maps_the_largest_to_the_reference() -> None:
    x = np.array([-3.5, 1.0, 0.2], np.float32)
    assert lb.quantize(x, "int4").codes.tolist() == [16 - 7, 2, 0]
    assert lb.quantize(x, "radix4").codes.tolist() == [15, 6, 5]
    assert lb.quantize(-x, "uint4").codes.tolist() == [15, 0, 0]


def test_the_default_rule_is_the_records(name: str) -> None:
    x, rule = normal(100), lb.get_format(name).default_scale
    assert_same(lb.fake_quantize(x, name), lb.fake_quantize(x, name, scale=rule))
    if lb.get_format(name).coded:
        assert_same(lb.quantize(x, name).scale, lb.quantize(x, name, scale=rule).scale)


def test_the_scale_of_a_group_of_zeros(coded: str) -> None:
    x, record = np.zeros((2, 8), np.float32), lb.get_format(coded)
    # Where there is no zero, the least scale: zeros come back as next to nothing.
    least = 1.0 if 0 in record.values else 2.0**-126
    zero = 0 if least == 1 else np.float32(least * record.smallest)
    x[1] = 3
    for rule in record.scale_rules:
        q = lb.quantize(x, coded, scale=rule, block_size=record.default_block or 8)
        assert q.scale[0, 0] == least
        assert (lb.dequantize(q)[0] == zero).all() or record.scale_format == "e4m3"
        q = lb.quantize(np.zeros(5), coded, scale=rule)
        assert (q.scale == least).all()
        assert q.tensor_scale in {None, 1}
        assert (lb.dequantize(q) == zero).all()


def test_scales_are_clamped_to_the_range_with_a_safe_reciprocal(coded: str) -> None:
    name, record = coded, lb.get_format(coded)
    for rule in record.scale_rules:
        for amax in (2.0**-130, 2.0**-125, 2.0**-122, 2.0**-120, 2.0**-119, 1e38, 2.0**127, 3.4028235e38):
            x = np.array([[amax, -amax, 0, amax / 2]], np.float32)
            check(x, name, scale=rule)
            if rule == "minmax" and 2 * amax >= 2.0**128:
                continue  # too far apart; see below
            q = lb.quantize(x, name, scale=rule)
            if record.scale_format == "e4m3":
                assert 2.0**-117 <= q.tensor_scale <= 2.0**117
                assert 2.0**-9 <= q.scale[0, 0] <= 448
            else:
                limit = 2.0**127 if record.scale_format else 2.0**126
                assert 1 / limit <= q.scale[0, 0] <= limit
        for exponent in range(-149, 128, 3):
            check(np.ldexp(normal(8), exponent - 3).astype(np.float32), name, scale=rule)


def test_scales_of_empty_groups(coded: str) -> None:
    for rule in lb.get_format(coded).scale_rules:
        for shape, asked in [
            ((0,), {}),
            ((0, 3), {}),
            ((3, 0), {"axis": 0}),
            ((0, 3), {"axis": 0}),
            ((3, 0), {"block_size": 2}),
            ((0, 3), {"block_size": 2}),
        ]:
            options = fit(coded, **asked)
            q = lb.quantize(np.zeros(shape, np.float32), coded, scale=rule, **options)
            assert q.scale.shape == groups(coded, shape, **options, scale=rule)
            assert (q.scale == 1).all()
            assert lb.dequantize(q).shape == shape
            if q.offset is not None:
                assert q.offset.shape == q.scale.shape
                assert not q.offset.any()


# --- one --------------------------------------------------------------------------------------------------------------


def test_one_is_the_scale_one_whatever_the_groups(name: str) -> None:
    record = lb.get_format(name)
    if "one" not in record.scale_rules:
        pytest.skip(f"{name} has no rule one")
    x = normal(60).reshape(5, 12) * np.float32(1e3)
    x[0, :3] = np.inf, -np.inf, -0.0
    for options in ({}, {"axis": 0}, {"block_size": 5}, {"axis": 0, "block_size": 2}):
        assert_same(lb.fake_quantize(x, name, scale="one", **options), lb.fake_quantize(x, name, scale=1.0, axis=0))
        if record.coded:
            q = lb.quantize(x, name, scale="one", **options)
            assert_same(q.scale, np.ones((1, 1), np.float32))
    assert lb.fake_quantize(x, name, scale="one")[0, 0] == record.max


# --- minmax -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", AFFINE)
def test_minmax_of_the_article(affine: str) -> None:
    record = lb.get_format(affine)
    q = lb.quantize(np.array([0, 1, 0.3], np.float32), affine, scale="minmax")
    values = record.decode_table[q.codes]
    assert values[:2].tolist() == [record.values[0], record.values[-1]]
    if affine == "int4":
        assert values.tolist() == [-8, 7, -4]
        assert q.codes.tolist() == [8, 7, 12]
    steps = len(record.values) - 1
    assert_same(q.scale, np.array([1 / steps], np.float32))
    assert_same(q.offset, np.zeros(1, np.float32))


@pytest.mark.parametrize("affine", AFFINE)
@pytest.mark.parametrize("value", [0.3, -7.25, 1e-40, 3e38, -1e-45, 0.0, -0.0, 123456.78])
def test_a_constant_group_comes_back_exactly(affine: str, value: float) -> None:
    x = np.full(100, value, np.float32)
    y = lb.fake_quantize(x, affine, scale="minmax")
    assert (y == x).all()
    assert not np.signbit(y).any() or value < 0, "an offset of -0.0 is +0.0"


@pytest.mark.parametrize("affine", AFFINE)
def test_minmax_by_its_formula(affine: str) -> None:
    steps = len(lb.get_format(affine).values) - 1
    for n in SIZES[1:]:
        x = normal(n) * np.float32(3) - np.float32(5)
        scale = (float(x.max()) - float(x.min())) / steps
        for run in runs(n):
            q = lb.quantize(x, affine, scale="minmax")
            assert_same(q.scale, np.array([scale], np.float32), run)
            assert_same(q.offset, np.array([x.min()], np.float32), run)


@pytest.mark.parametrize("affine", AFFINE)
def test_minmax_refuses_numbers_too_far_apart_rather_than_return_infinities(affine: str) -> None:
    far = np.array([-2e38, 2e38, 0], np.float32)
    check(far, affine, scale="minmax")
    assert np.isnan(lb.fake_quantize(far, affine, scale="minmax")).all()
    with pytest.raises(lb.Error, match="spans"):
        lb.quantize(far, affine, scale="minmax")
    near = np.array([-1.7e38, 1.7e38, 0], np.float32)
    check(near, affine, scale="minmax")
    assert np.isfinite(lb.fake_quantize(near, affine, scale="minmax")).all()


@pytest.mark.parametrize("affine", AFFINE)
def test_an_offset_is_what_the_lowest_code_stands_for(affine: str) -> None:
    record = lb.get_format(affine)
    steps = np.arange(len(record.values), dtype=np.float32)
    q = lb.quantize(steps * np.float32(0.5) + np.float32(10), affine, scale=0.5, offset=10)
    assert_same(record.decode_table[q.codes], record.values)
    assert_same(lb.dequantize(q), steps * np.float32(0.5) + np.float32(10))


# --- sawb -------------------------------------------------------------------------------------------------------------


def ordered_sum(x: list[float]) -> float:
    """Sum in the order of the contract, in plain Python."""
    total = 0.0
    for start in range(0, len(x), 4096):
        lanes = [0.0] * 8
        for j, value in enumerate(x[start : start + 4096]):
            lanes[j % 8] += value
        l0, l1, l2, l3, l4, l5, l6, l7 = lanes
        total += ((l0 + l1) + (l2 + l3)) + ((l4 + l5) + (l6 + l7))
    return total


def test_the_reference_sums_in_the_order_of_the_contract() -> None:
    for n in SIZES:
        x = normal(n).astype(np.float64) ** 2
        assert reference.ordered_sum(x[None])[0] == ordered_sum(x.tolist())


@pytest.mark.parametrize("sawb", SAWB)
def test_sawb_by_its_formula_to_the_bit(sawb: str) -> None:
    c1, c2, levels = FACTORS[sawb]
    for n in SIZES[1:]:
        x = normal(n)
        wide = x.astype(np.float64).tolist()
        square, size = ordered_sum([v * v for v in wide]), ordered_sum([abs(v) for v in wide])
        alpha = c1 * math.sqrt(square / n) - c2 * (size / n)
        want = np.array([(alpha if alpha > 0 else max(map(abs, wide))) / levels], np.float32)
        for run in runs(n):
            assert_same(lb.quantize(x, sawb, scale="sawb").scale, want, f"{n} {run}")


@pytest.mark.parametrize("sawb", SAWB)
@pytest.mark.parametrize(
    ("draw", "mean", "rms"),
    [
        (lambda rng, n: rng.standard_normal(n), math.sqrt(2 / math.pi), 1.0),
        (lambda rng, n: rng.uniform(-1, 1, n), 0.5, math.sqrt(1 / 3)),
        (lambda rng, n: rng.laplace(size=n), 1.0, math.sqrt(2)),
    ],
    ids=["normal", "uniform", "laplace"],
)
def test_sawb_closed_forms(sawb: str, draw: object, mean: float, rms: float) -> None:
    n, (c1, c2, levels) = 1 << 20, FACTORS[sawb]
    x = draw(np.random.default_rng(11), n).astype(np.float32)
    alpha = levels * float(lb.quantize(x, sawb, scale="sawb").scale[0])
    # The delta method: alpha moves with the sample means of x^2 and |x|.
    wide = x.astype(np.float64)
    deviation = np.std(c1 * wide**2 / (2 * rms) - c2 * np.abs(wide)) / math.sqrt(n)
    assert abs(alpha - (c1 * rms - c2 * mean)) < 5 * deviation


@pytest.mark.parametrize("sawb", SAWB)
def test_sawb_of_constant_magnitudes(sawb: str) -> None:
    """The fit's edge, RMS = mean: the clip is (c1 - c2) of the magnitude, or amax where that is not positive."""
    c1, c2, levels = FACTORS[sawb]
    q = lb.quantize(np.full(100, 2.0), sawb, scale="sawb")
    assert q.scale[0] == np.float32((c1 * 2 - c2 * 2 if c1 > c2 else 2) / levels)
    check(np.array([2, -2, 2, 2.001], np.float32), sawb, scale="sawb")
    check(float32([1, 1, 1, 1]), sawb, scale="sawb")
    assert lb.quantize(np.zeros(100), sawb, scale="sawb").scale[0] == 1


@pytest.mark.parametrize("sawb", SAWB)
def test_sawb_sums_a_group_in_its_c_order(sawb: str) -> None:
    x = normal(30 * 40 * 50).reshape(30, 40, 50)
    for axis in range(3):
        q = lb.quantize(x, sawb, scale="sawb", axis=axis)
        group = np.moveaxis(x, axis, 0)[3].ravel()
        assert q.scale.ravel()[3] == lb.quantize(group, sawb, scale="sawb").scale[0]
    check(x.reshape(300, 200), sawb, scale="sawb", block_size=130, axis=0)
    check(normal(3 * 9000).reshape(3, 9000), sawb, scale="sawb", block_size=5000)
