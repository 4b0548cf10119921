"""The format records: values, codes, and rounding to nearest at every place where it can go wrong."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

import lowbit as lb
from lowbit import reference
from support import around, assert_same, bits, critical, float32, runs

POWERS = [4.0**n for n in range(-3, 4)]
VALUES = {
    "int4": list(range(-8, 8)),
    "int4_symmetric": list(range(-7, 8)),
    "uint4": list(range(16)),
    "radix4": [-v for v in reversed(POWERS)] + [0] + POWERS,
    "radix4_odd": [-v / 2 for v in reversed(POWERS)] + [0] + [v / 2 for v in POWERS],
}


def test_the_registry_starts_with_the_five_in_order() -> None:
    assert list(lb.formats())[:5] == ["int4", "int4_symmetric", "uint4", "radix4", "radix4_odd"]


@pytest.mark.parametrize("listed", VALUES)
def test_values_are_those_of_the_specification(listed: str) -> None:
    assert_same(lb.get_format(listed).values, np.array(VALUES[listed], np.float32))


def test_record(name: str) -> None:
    record = lb.get_format(name)
    assert record.name == name
    assert lb.get_format(record) is record or lb.get_format(record) == record
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
    assert record.default_scale in record.scale_rules
    assert record.default_block is None or record.default_block > 0
    assert record.source
    assert name in repr(record)
    if record.uniform:
        assert len(np.unique(np.diff(values))) == 1


def test_record_agrees_with_the_reference(name: str) -> None:
    record, spec = lb.get_format(name), reference.FORMATS[name]
    assert_same(record.values, spec.values)
    assert_same(record.decode_table, spec.decode(np.arange(2**record.bits, dtype=np.uint8)))
    assert record.reference == spec.reference
    assert record.uniform == spec.uniform
    assert tuple(record.scale_rules) == spec.scale_rules


def test_nobody_can_change_a_record(name: str) -> None:
    record = lb.get_format(name)
    before = record.values.copy(), record.decode_table.copy()
    for array in (record.values, record.decode_table):
        with contextlib.suppress(ValueError):  # a read-only array refuses, a copy does not matter
            array[:] = 99
    with pytest.raises(AttributeError):
        record.reference = 1.0
    assert_same(lb.get_format(name).values, before[0])
    assert_same(lb.get_format(name).decode_table, before[1])
    assert_same(lb.dequantize(lb.quantize(before[0], name, scale=1.0)), before[0])


def test_reference_of_the_amax_rule() -> None:
    expected = {"int4": 7, "int4_symmetric": 7, "uint4": 15, "radix4": 64, "radix4_odd": 64}
    assert {name: lb.get_format(name).reference for name in expected} == expected


def test_every_value_has_its_code_and_comes_back(name: str) -> None:
    record = lb.get_format(name)
    q = lb.quantize(record.values, name, scale=1.0)
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


def test_int4_symmetric_never_writes_code_8_but_reads_it() -> None:
    x = np.concatenate([around(np.linspace(-20, 20, 4001)), [-np.inf]]).astype(np.float32)
    q = lb.quantize(x, "int4_symmetric", scale=1.0)
    assert 8 not in q.codes
    assert lb.get_format("int4_symmetric").decode_table[8] == -8


def exact_nearest(name: str, t: float) -> float:
    """Round by the definition, in exact arithmetic: ties to even, or (radix-4) thresholds 0.625 * 4^n, ties up."""
    values = sorted(lb.get_format(name).values.tolist())
    if name.startswith("radix4"):
        half = Fraction(1, 2) if name == "radix4_odd" else Fraction(1)
        levels = [n for n in range(-3, 4) if abs(Fraction(t)) >= half * Fraction(5, 8) * Fraction(4) ** n]
        size = float(half * Fraction(4) ** levels[-1]) if levels else 0.0
        return float(np.copysign(size, t))
    if t <= values[0] or t >= values[-1]:
        return values[0] if t <= values[0] else values[-1]
    low, high = next((a, b) for a, b in pairwise(values) if a <= t <= b)
    down, up = Fraction(t) - Fraction(low), Fraction(high) - Fraction(t)
    return low if down < up or (down == up and low % 2 == 0) else high


@pytest.mark.parametrize("listed", VALUES)
def test_nearest_is_exact_at_every_value_and_midpoint(listed: str) -> None:
    t = critical(listed)
    t = t[np.isfinite(t)]
    want = np.array([exact_nearest(listed, float(v)) for v in t], np.float32)
    for run in runs(t.size):
        assert_same(lb.fake_quantize(t, listed, scale=1.0), want, f"{listed}, {run}")


def test_nearest_agrees_with_the_reference_at_every_value_and_midpoint(name: str) -> None:
    t = critical(name)
    for scale in (1.0, 0.37, 2.0**-126, 2.0**126, 2.0**-20, 3.0e5):
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            x = around(t * np.float32(scale), 2)
        x = x[~np.isnan(x)]
        want = reference.fake_quantize(x, name, scale=scale)
        codes = reference.quantize(x, name, scale=scale).codes
        for run in runs(x.size):
            assert_same(lb.fake_quantize(x, name, scale=scale), want, f"{name}, scale {scale}, {run}")
            assert_same(lb.quantize(x, name, scale=scale).codes, codes, f"{name}, scale {scale}, {run}")


def test_infinities_saturate_and_nan_stays_with_a_given_scale(name: str) -> None:
    values = lb.get_format(name).values
    y = lb.fake_quantize(float32([0x7F800000, 0xFF800000, 0x7F812345, 0xFFC00001]), name, scale=1.0)
    assert y[0] == values[-1]
    assert y[1] == values[0]
    assert bits(y)[2:].tolist() == [0x7FC00000] * 2, "a NaN is the canonical one"


def test_the_sign_of_what_becomes_zero(name: str) -> None:
    y = lb.fake_quantize(float32([0x80000000, 0x80000001, 0x00000001, 0]), name, scale=1.0)
    assert (y == 0).all()
    signed_zero = name.startswith("radix4")
    assert np.signbit(y).tolist() == [signed_zero, signed_zero, False, False]


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
