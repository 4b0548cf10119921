"""The format records: values, codes, and rounding to nearest at every place where it can go wrong."""

from __future__ import annotations

import bisect
import contextlib
import copy
import pickle
from fractions import Fraction

import numpy as np
import pytest

import lowbit as lb
from lowbit import reference
from support import FORMATS, KEY, allowed, around, assert_same, bits, critical, float32, runs

POWERS = [4.0**n for n in range(-3, 4)]
VALUES = {
    "int4": list(range(-8, 8)),
    "int4_symmetric": list(range(-7, 8)),
    "uint4": list(range(16)),
    "radix4": [-v for v in reversed(POWERS)] + [0] + POWERS,
    "radix4_odd": [-v / 2 for v in reversed(POWERS)] + [0] + [v / 2 for v in POWERS],
}


REGISTERED = """
    int4 int4_symmetric uint4 radix4 radix4_odd int8 int8_symmetric uint8 ternary sign luq4 nf4
    fp4_e2m1 fp6_e2m3 fp6_e3m2 fp8_e3m4 fp8_e4m3 fp8_e4m3fn fp8_e4m3fnuz fp8_e4m3b11fnuz fp8_e5m2 fp8_e5m2fnuz
    float16 bfloat16 mxfp4 mxfp6 mxfp6_e3m2 mxfp8 mxfp8_e5m2 mxint8 nvfp4
"""


def test_the_registry() -> None:
    assert lb.formats() == list(reference.FORMATS)
    assert lb.formats()[:5] == ["int4", "int4_symmetric", "uint4", "radix4", "radix4_odd"]
    assert sorted(lb.formats()) == sorted(REGISTERED.split())


@pytest.mark.parametrize("listed", VALUES)
def test_values_are_those_of_the_specification(listed: str) -> None:
    assert_same(lb.get_format(listed).values, np.array(VALUES[listed], np.float32))


def test_record(name: str) -> None:
    record = lb.get_format(name)
    assert record.name == str(record) == name
    assert eval(repr(record), {"lowbit": lb}) == record
    assert lb.get_format(record) == record
    assert record == lb.get_format(name)
    assert hash(record) == hash(lb.get_format(name))
    assert record.default_scale in record.scale_rules
    assert record.default_block is None or record.default_block > 0
    assert record.scale_format in {None, "e8m0", "e4m3"}
    assert record.source
    assert record.smallest > 0
    assert record.max >= record.smallest
    if not record.coded:
        for field in ("values", "decode_table"):
            with pytest.raises(lb.Error, match=r"coded|codes"):
                getattr(record, field)
        return
    values = record.values
    assert values.dtype == np.float32
    assert (np.diff(values) > 0).all(), "ascending and distinct"
    table = record.decode_table
    assert table.dtype == np.float32
    assert table.shape == (2**record.bits,)
    assert set(values.tolist()) <= set(table.tolist())
    assert record.max == values.max()
    assert record.smallest == values[values > 0].min()
    assert record.signed == bool((values < 0).any())
    if record.uniform:
        assert len(np.unique(np.diff(values))) == 1


def test_record_agrees_with_the_reference(name: str) -> None:
    record, spec = lb.get_format(name), reference.get_format(name)
    fields = "bits coded uniform reference max smallest default_scale default_block scale_format"
    for field in fields.split():
        assert getattr(record, field) == getattr(spec, field), field
    assert tuple(record.scale_rules) == spec.scale_rules
    if record.coded:
        assert_same(record.values, spec.values)
        assert_same(record.decode_table, spec.decode(np.arange(2**record.bits, dtype=np.uint16)))


def test_records_are_told_apart_and_travel() -> None:
    records = [lb.get_format(name) for name in FORMATS]
    assert len(set(records)) == len(FORMATS)
    for record in records:
        assert pickle.loads(pickle.dumps(record)) == copy.deepcopy(record) == record


def test_nobody_can_change_a_record(coded: str) -> None:
    record = lb.get_format(coded)
    before = record.values.copy(), record.decode_table.copy()
    for array in (record.values, record.decode_table):
        with contextlib.suppress(ValueError):  # a read-only array refuses, a copy does not matter
            array[:] = 99
    with pytest.raises(AttributeError):
        record.reference = 1.0
    assert_same(lb.get_format(coded).values, before[0])
    assert_same(lb.get_format(coded).decode_table, before[1])
    assert_same(lb.dequantize(lb.quantize(before[0], coded, scale=1.0)), before[0])


def test_reference_of_the_amax_rule() -> None:
    expected = {"int4": 7, "int4_symmetric": 7, "uint4": 15, "radix4": 64, "radix4_odd": 64}
    expected |= {"int8": 127, "uint8": 255, "ternary": 1, "sign": 1, "luq4": 64, "nf4": 1, "fp4_e2m1": 6}
    expected |= {"fp6_e2m3": 7.5, "fp6_e3m2": 28, "fp8_e4m3fn": 448, "fp8_e4m3": 240, "fp8_e5m2": 57344}
    expected |= {"float16": 65504, "cfloat8(4,31)": 1.875 * 2.0**-16, "cfloat16(uhp)": 8585740288}
    expected |= {"fixed(8,4)": 127 / 16, "fixed(8,4,unbounded)": 127 / 16, "radix(8,3)": 512, "mxint8": 127 / 64}
    assert {name: lb.get_format(name).reference for name in expected} == expected


def test_every_value_has_its_code_and_comes_back(coded: str) -> None:
    record = lb.get_format(coded)
    q = lb.quantize(record.values, coded, scale=1.0)
    assert q.codes.dtype == (np.uint8 if record.bits <= 8 else np.uint16)
    assert_same(record.decode_table[q.codes], record.values)
    assert_same(lb.dequantize(q), record.values)


def test_codes_by_the_specification() -> None:
    for name in ("int4", "int4_symmetric"):
        values = np.array(VALUES[name], np.float32)
        assert lb.quantize(values, name, scale=1.0).codes.tolist() == [v % 16 for v in VALUES[name]]
    assert lb.quantize(np.arange(16.0), "uint4", scale=1.0).codes.tolist() == list(range(16))
    for name, factor in (("radix4", 1.0), ("radix4_odd", 0.5)):
        x = np.array([0.0, -0.0, *(s * factor * 4.0**n for s in (1, -1) for n in range(-3, 4))], np.float32)
        assert lb.quantize(x, name, scale=1.0).codes.tolist() == [0, 8, *range(1, 8), *range(9, 16)]


def test_codes_of_the_other_families_by_the_specification() -> None:
    for name, x, codes in [
        ("int8", [-128, -1, 0, 127], [128, 255, 0, 127]),
        ("ternary", [-1, 0, 1], [0, 1, 2]),
        ("sign", [-2, -0.0, 0, 3], [0, 1, 1, 1]),
        ("luq4", [0, 1, 2, 64, -1, -64, -0.0], [0, 1, 2, 7, 9, 15, 8]),
        ("radix(8,3)", [0, 8.0**-3, 1, 512, -512], [0, 1, 4, 7, 15]),
        ("radix(4,3,nozero)", [4.0**-4, 4.0**-3, 64, -(4.0**-4)], [0, 1, 7, 8]),
        ("fp4_e2m1", [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -6], [*range(8), 8, 15]),
        ("fp8_e4m3fn", [2.0**-9, 1, 448, -448], [1, 0x38, 0x7E, 0xFE]),
        ("fp8_e5m2fnuz", [2.0**-17, 1, 57344, -57344, -0.0], [1, 0x40, 0x7F, 0xFF, 0]),
        ("float16", [1, -2, 65504, 2.0**-24], [0x3C00, 0xC000, 0x7BFF, 1]),
        ("bfloat16", [1, -2, 2.0**-133], [0x3F80, 0xC000, 1]),
        ("cfloat16(uhp)", [1, 8585740288, -1, 2.0**-30], [31 << 10, 0xFFFF, 0, 1 << 10]),
        ("fixed(8,4)", [-8, -1 / 16, 1, 7.9375], [0x80, 0xFF, 16, 127]),
        ("fixed(12,6,symmetric)", [-31.984375, 1], [0x801, 64]),
        ("table(-1,-0.25,0,0.25,1)", [-1, -0.25, 0, 0.25, 1], [0, 1, 2, 3, 4]),
        ("log(4,0.5,0.05)", [-9, 0, 9], [0, 7, 14]),
        ("mxint8", [1, -1.984375], [64, 0x81]),
    ]:
        assert lb.quantize(np.array(x, np.float32), name, scale=1.0).codes.tolist() == codes, name
    assert lb.get_format("ternary").decode_table.tolist() == [-1, 0, 1, 2]
    assert lb.get_format("table(-1,-0.25,0,0.25,1)").decode_table.tolist() == [-1, -0.25, 0, 0.25, 1, 1, 1, 1]


def test_int4_symmetric_never_writes_code_8_but_reads_it() -> None:
    x = np.concatenate([around(np.linspace(-20, 20, 4001)), [-np.inf]]).astype(np.float32)
    q = lb.quantize(x, "int4_symmetric", scale=1.0)
    assert 8 not in q.codes
    assert lb.get_format("int4_symmetric").decode_table[8] == -8


TABLES = ("nf4", "table", "log")
WHOLE = ("int", "uint", "ternary", "fixed", "bfp", "mxint", "block(int")


def nearest_power(name: str, values: list[float], t: float) -> float:
    """Powers of R: from (1 + R) / (2 R) of a power on to that power (luq4's smallest: from 1/2)."""
    radix = 2 if name == "luq4" else int(name.removeprefix("radix").removeprefix("(")[0])
    sizes = [v for v in values if v > 0]
    ties = [Fraction(size) * Fraction(1 + radix, 2 * radix) for size in sizes]
    if name == "luq4":
        ties[0] = Fraction(1, 2)
    reached = bisect.bisect_right(ties, abs(Fraction(t)))
    below = sizes[0] if "nozero" in name else 0.0
    return float(np.copysign(sizes[reached - 1] if reached else below, t))


def exact_nearest(name: str, values: list[float], codes: dict[float, int], t: float) -> float:
    """Round by the definition, in exact arithmetic.

    To the nearer neighbour; ties to the even integer, float code or multiple of a step, in tables to the lower value,
    signs up.
    """
    if name.startswith(("radix", "luq4")):
        return nearest_power(name, values, t)
    t = min(max(t, values[0]), values[-1])
    exact = Fraction(t)
    above = max(bisect.bisect_left(values, t), 1)
    low, high = values[above - 1], values[above]
    down, up = exact - Fraction(low), Fraction(high) - exact
    if down != up:
        return low if down < up else high
    is_low = codes[low] % 2 == 0
    if name.startswith(WHOLE):
        is_low = Fraction(low) / (Fraction(high) - Fraction(low)) % 2 == 0
    if name.startswith((*TABLES, "sign")):
        is_low = name != "sign"
    return low if is_low else high


def test_nearest_is_exact_at_every_value_and_midpoint(coded: str) -> None:
    record = lb.get_format(coded)
    if "ftz" in coded or "uhp" in coded:
        pytest.skip("between zero and the smallest number another rule holds: see test_floats.py")
    t = critical(coded)
    t = t[np.isfinite(t)]
    values, codes = record.values.tolist(), {value: code for code, value in enumerate(record.decode_table.tolist())}
    want = np.array([exact_nearest(coded, values, codes, float(v)) for v in t], np.float32)
    for run in runs(t.size):
        assert np.array_equal(lb.fake_quantize(t, coded, scale=1.0), want), f"{coded}, {run}"


def test_nearest_agrees_with_the_reference_at_every_value_and_midpoint(name: str) -> None:
    t, is_coded = critical(name), lb.get_format(name).coded
    for wanted in (1.0, 0.37, 2.0**-126, 2.0**126, 2.0**-20, 3.0e5):
        scale = allowed(name, wanted)
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            x = around(t * scale, 2 if t.size < 5000 else 0)
        x = x[~np.isnan(x)]
        want = reference.fake_quantize(x, name, scale=scale)
        codes = reference.quantize(x, name, scale=scale).codes if is_coded else None
        for run in runs(x.size):
            assert_same(lb.fake_quantize(x, name, scale=scale), want, f"{name}, scale {scale}, {run}")
            if is_coded:
                assert_same(lb.quantize(x, name, scale=scale).codes, codes, f"{name}, scale {scale}, {run}")


def test_infinities_saturate_and_nan_stays_with_a_given_scale(name: str) -> None:
    record = lb.get_format(name)
    y = lb.fake_quantize(float32([0x7F800000, 0xFF800000, 0x7F812345, 0xFFC00001]), name, scale=1.0)
    assert y[0] == record.max
    assert y[1] == (record.values[0] if record.coded else -record.max)
    assert bits(y)[2:].tolist() == [0x7FC00000] * 2, "a NaN is the canonical one"
    ends = np.tile(float32([0x7F800000, 0xFF800000, 0x7F7FFFFF, 0xFF7FFFFF]), 40)
    for run in runs(ends.size):
        got = lb.fake_quantize(ends, name, scale=1.0, rounding="stochastic", key=KEY)
        assert_same(got[:2], y[:2], run)
        assert_same(got, np.tile(got[:4], 40), run)


def test_the_sign_of_what_becomes_zero(name: str) -> None:
    y = lb.fake_quantize(float32([0x80000000, 0x80000001, 0x00000001, 0]), name, scale=1.0)
    if name == "sign":
        assert y.tolist() == [1, -1, 1, 1]
        return
    record = lb.get_format(name)
    no_zero = "nozero" in name
    assert (np.abs(y) == (record.smallest if no_zero else 0)).all()
    has_two = name.startswith(("radix", "luq4", "fp", "float", "bfloat", "cfloat", "mxfp", "nvfp"))
    has_two = has_two and not name.endswith("fnuz") and "uhp" not in name
    if record.coded and not no_zero:
        table = record.decode_table
        assert has_two == bool(np.signbit(table[table == 0]).any())
    assert np.signbit(y).tolist() == [has_two, has_two, False, False]


# --- Radix-4 by the paper (Sun et al. 2020) and what follows from it --------------------------------------------------

VECTORS = [
    (0.0049, 0, 0.0078125),
    (0.0097, 0, 0.0078125),
    (0.0098, 1 / 64, 0.0078125),
    (0.04, 0.0625, 0.03125),
    (0.6, 0.25, 0.5),
    (0.7, 1, 0.5),
    (1.25, 1, 2),
    (2.4, 1, 2),
    (2.5, 4, 2),
    (5, 4, 8),
    (10, 16, 8),
    (30, 16, 32),
    (39.9, 16, 32),
    (40.1, 64, 32),
    (64, 64, 32),
    (100, 64, 32),
]


def test_radix4_vectors(level: str) -> None:
    x, even, odd = np.array(VECTORS, np.float32).T
    assert_same(lb.fake_quantize(x, "radix4", scale=1.0), even)
    assert_same(lb.fake_quantize(x, "radix4_odd", scale=1.0), odd)
    assert_same(lb.fake_quantize(-x, "radix4", scale=1.0), -even)
    assert_same(lb.fake_quantize(-x, "radix4_odd", scale=1.0), -odd)


def test_radix4_thresholds_go_up(level: str) -> None:
    thresholds = np.array([0.009765625, 0.0390625, 0.15625, 0.625, 2.5, 10, 40], np.float32)
    below = np.nextafter(thresholds, np.float32(0))
    assert_same(lb.fake_quantize(thresholds, "radix4", scale=1.0), np.array(POWERS, np.float32))
    assert_same(lb.fake_quantize(below, "radix4", scale=1.0), np.array([0, *POWERS[:-1]], np.float32))
    assert_same(lb.fake_quantize(thresholds / 2, "radix4_odd", scale=1.0), np.array(POWERS, np.float32) / 2)


def test_radix4_log_uniform_oracles() -> None:
    """Over whole periods: E[q/x] = 1.2 / ln 4 for either phase, and the mean squares of facts/fourbit.md 1.3."""
    n = 1 << 20
    x = (4.0 ** (np.arange(n) / n * 4 - 2)).astype(np.float32)
    even, odd = (lb.fake_quantize(x, name, scale=1.0).astype(np.float64) / x for name in ("radix4", "radix4_odd"))
    assert np.mean(even) == pytest.approx(1.2 / np.log(4), abs=1e-5)
    assert np.mean(odd) == pytest.approx(0.86562, abs=1e-5)
    assert np.mean((even - 1) ** 2) == pytest.approx(0.13438, abs=1e-5)
    assert np.mean((odd - 1) ** 2) == pytest.approx(0.13438, abs=1e-5)
    assert np.mean(((even + odd) / 2 - 1) ** 2) == pytest.approx(0.04782, abs=1e-5)


def test_the_odd_phase_is_half_the_even_phase_of_the_double() -> None:
    x = (np.arange(2**16, dtype=np.uint32) << 16).view(np.float32)  # every bfloat16
    x = x[~np.isnan(x)]
    with np.errstate(over="ignore"):
        double = x * np.float32(2)
    for run in runs(x.size):
        for options in ({}, {"rounding": "stochastic", "key": 3}):
            odd = lb.fake_quantize(x, "radix4_odd", scale=1.0, **options)
            even = lb.fake_quantize(double, "radix4", scale=1.0, **options)
            assert_same(odd, even * np.float32(0.5), run)


def test_the_phases_share_a_scale_and_differ_under_amax() -> None:
    x = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    even, odd = (lb.quantize(x, name, scale="amax") for name in ("radix4", "radix4_odd"))
    assert_same(even.scale, odd.scale)
    assert_same(even.scale, (np.abs(x).max() / np.float32(64)).reshape(1))
    assert np.mean(lb.dequantize(even) != lb.dequantize(odd)) > 0.9
    assert np.abs(lb.dequantize(odd)).max() == np.float32(32) * odd.scale[0], "the odd phase clips the largest to 32"
