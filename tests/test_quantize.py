"""Quantization against the reference, bit for bit, on every CPU level and thread count."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import lowbit as lb
from lowbit import reference
from support import (
    BFLOAT16,
    CODED,
    DTYPES,
    FORMATS,
    KEY,
    SIZES,
    assert_same,
    cast,
    check,
    critical,
    datasets,
    fit,
    groups,
    normal,
    on_flushing_thread,
    roundings,
    runs,
    saturates,
    scalings,
    wild,
)

GRANULARITIES: list[dict[str, Any]] = [
    {},
    {"axis": 0},
    {"axis": -1},
    {"block_size": 32},
    {"block_size": 7, "axis": 0},
    {"block_size": 1000},
]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_all_16_bit_inputs(name: str, dtype: str) -> None:
    x = np.arange(2**16, dtype=np.uint16).view(np.float16 if dtype == "float16" else BFLOAT16)
    for rounding in roundings(name):
        for scale in (1.0, 0.013):
            check(x, name, scale=scale, **rounding)
        check(x, name, block_size=16, **rounding)


@pytest.mark.parametrize("n", SIZES)
def test_all_sizes_of_wild_input(name: str, n: int) -> None:
    for rounding in roundings(name):
        check(wild(n), name, scale=0.37, **rounding)
        check(wild(n), name, block_size=32, **rounding)
        check(normal(n), name, **rounding)


@pytest.mark.parametrize("data", list(datasets(1)))
def test_every_option_on_every_kind_of_data(name: str, data: str) -> None:
    x = datasets(1023)[data].reshape(11, 93)
    for rounding, scaling, shape in itertools.product(roundings(name), scalings(name), GRANULARITIES):
        check(x, name, **rounding, **scaling, **shape)


def test_large_arrays_with_every_rule(name: str) -> None:
    x = normal(100003)
    for scaling in scalings(name):
        check(x, name, **scaling)
        check(x[:100000].reshape(100, 1000), name, **scaling, axis=1)
        check(x, name, **scaling, block_size=128)


def test_three_axes(name: str) -> None:
    x = normal(5 * 6 * 7).reshape(5, 6, 7)
    for scaling, axis in itertools.product(scalings(name), (0, 1, 2, -2)):
        check(x, name, **scaling, axis=axis)
        check(x, name, **scaling, axis=axis, block_size=4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(name: str, dtype: np.dtype) -> None:
    x = cast(np.concatenate([critical(name), normal(1000)]), dtype)
    for rounding in roundings(name):
        check(x, name, scale=1.0, **rounding)
        check(x[np.isfinite(x)], name, **rounding)
        check(x, name, block_size=16, **rounding)


def test_float64_is_rounded_to_float32_first(name: str) -> None:
    tie = np.array([1.5 + 2.0**-40, 2.5 + 2.0**-40, 0.625 - 2.0**-40, 1e300, -1e300, 1e-300])
    with np.errstate(over="ignore"):
        narrow = tie.astype(np.float32)
    assert_same(lb.fake_quantize(tie, name, scale=1.0), lb.fake_quantize(narrow, name, scale=1.0).astype(np.float64))


def test_given_scales_of_every_shape(name: str) -> None:
    """Whatever broadcasts to the shape, or to the blocked one."""
    x, rng = normal(4 * 6).reshape(4, 6), np.random.default_rng(0)
    for options in ({}, {"block_size": 2}, {"block_size": 3, "axis": 0}):
        options = fit(name, **options)  # noqa: PLW2901
        blocked = tuple(groups(name, x.shape, **options))
        if not options and lb.get_format(name).default_block is None:
            blocked = x.shape
        if lb.get_format(name).default_scale == "one" and "block_size" in options:
            axis = options.get("axis", 1)
            blocked = tuple(-(-n // options["block_size"]) if i == axis else n for i, n in enumerate(x.shape))
        for keep in itertools.product((False, True), repeat=2):
            shape = tuple(n if kept else 1 for n, kept in zip(blocked, keep, strict=True))
            check(x, name, scale=rng.uniform(0.1, 1, shape), **options)
            check(x, name, scale=rng.uniform(0.1, 1, shape[1:]), **options) if shape[0] == 1 else None
        check(x, name, scale=rng.uniform(0.1, 1), **options)
    record = lb.get_format(name)
    if record.default_block is None:
        check(x, name, scale=[[0.1], [0.2], [0.3], [0.4]], axis=0)
    if record.uniform:
        check(x, name, scale=rng.uniform(0.1, 1, (4, 1)), offset=rng.uniform(-1, 1, 6))
        check(x, name, scale=0.25, offset=rng.uniform(-1, 1, (4, 3)), block_size=2)


@pytest.mark.parametrize("data", ["tiny", "subnormal", "wild", "blocks of all magnitudes"])
def test_subnormals_count_on_a_thread_that_flushes_them(name: str, data: str) -> None:
    scales = [*scalings(name), {"scale": 2.0**-126}, {"scale": 2.0**-100}, {"block_size": 32}]
    for n, rounding, scaling in itertools.product((1024, 20001), roundings(name), scales):
        x, options = datasets(n)[data], fit(name, **rounding, **scaling)
        want = reference.fake_quantize(x, name, **options)
        for run in runs(n):
            got = on_flushing_thread(lambda x=x, options=options: lb.fake_quantize(x, name, **options))
            if got is None:
                pytest.skip("this platform offers no way to flush subnormals")
            assert_same(got, want, f"{name} {options} {run}")


@given(data=st.data())
@settings(max_examples=150)
def test_fake_quantize_is_dequantize_of_quantize(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(CODED))
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9))
    # Every draw is finite in float16, so in every dtype.
    floats = st.floats(-65504, 65504, width=32, allow_subnormal=True)
    x = data.draw(hnp.arrays(np.float32, shape, elements=floats)).astype(dtype)
    options = {**data.draw(st.sampled_from(roundings(name))), **data.draw(st.sampled_from(scalings(name)))}
    if shape:
        options["axis"] = data.draw(st.none() | st.integers(-len(shape), len(shape) - 1))
        options["block_size"] = data.draw(st.none() | st.integers(1, 12))
        options = fit(name, **options)
    key = {"key": KEY} if options.get("rounding") == "dither" else {}
    q = lb.quantize(x, name, **options)
    y = lb.fake_quantize(x, name, **options)
    assert y.dtype == x.dtype
    assert_same(y, lb.dequantize(q, dtype=dtype, **key))
    assert_same(y, reference.fake_quantize(x, name, **options))
    assert_same(q.codes, reference.quantize(x, name, **options).codes)


def test_quantizing_twice_changes_nothing_at_one_scale(coded: str) -> None:
    q = lb.quantize(normal(1000), coded, scale=0.25)
    assert_same(lb.quantize(lb.dequantize(q), coded, scale=0.25).codes, q.codes)


def test_fake_quantizing_twice_changes_nothing_at_one_scale(name: str) -> None:
    y = lb.fake_quantize(normal(1000), name, scale=0.25)
    assert_same(lb.fake_quantize(y, name, scale=0.25), y)


def test_non_finite_elements_by_the_contract(name: str) -> None:
    record = lb.get_format(name)
    x = normal(256).reshape(2, 128)
    x[0, 5], x[1, 71] = np.inf, np.nan
    for rule in record.scale_rules:
        y = lb.fake_quantize(x, name, **fit(name, scale=rule, block_size=64))
        size = 64 if record.scale_format is None else record.default_block or 64
        blocks = np.isnan(y).reshape(2, 128 // size, size)
        if rule == "one":
            assert y[0, 5] == record.max
            assert np.flatnonzero(np.isnan(y)).tolist() == [128 + 71]
        elif record.scale_format == "e4m3":
            assert blocks.all(), "the array's scale is undefined"
        else:
            bad = {(0, 5 // size), (1, 71 // size)}
            assert {(i, j) for i, j in np.argwhere(blocks.all(axis=2))} == bad
            assert blocks.any(axis=2).sum() == 2
        if record.default_block is None:
            assert np.isnan(lb.fake_quantize(x, name, scale=rule)).all() or rule == "one"
    y = lb.fake_quantize(x, name, scale=1.0)
    assert y[0, 5] == record.max
    assert np.flatnonzero(np.isnan(y)).tolist() == [128 + 71]
    if not record.coded:
        return
    with pytest.raises(lb.Error, match=rf"\b{199 if saturates(name) else 5}\b"):
        lb.quantize(x, name)
    with pytest.raises(lb.Error, match=r"\b199\b"):
        lb.quantize(x, name, scale=1.0)
    x[1, 71] = -np.inf
    assert lb.quantize(x, name, scale=1.0).codes.shape == (2, 128)


def test_fields_of_the_result(coded: str) -> None:
    x = normal(60).reshape(5, 12)
    record = lb.get_format(coded)
    for asked in ({}, {"axis": 0}, {"axis": -1}, {"block_size": 5}, {"block_size": 2, "axis": 0}):
        options = fit(coded, **asked)
        q = lb.quantize(x, coded, **options)
        assert q.scale.shape == groups(coded, (5, 12), **options)
        assert q.scale.dtype == np.float32
        assert q.shape == (5, 12)
        assert (q.size, q.ndim, len(q)) == (60, 2, 5)
        assert q.format.name == coded
        default = record.default_block if not options or record.scale_format else None
        assert q.block_size == options.get("block_size", default)
        assert q.axis == (None if not options and default is None else options.get("axis", -1) % 2)
        assert (q.tensor_scale is None) == (record.scale_format != "e4m3")
        assert (q.scale_codes is None) == (record.scale_format is None)
        assert q.packed.shape == (-(-60 * record.bits // 8),)
        assert q.packed.dtype == np.uint8
        assert q.codes.shape == (5, 12)
        extra = q.scale.nbytes + (0 if q.offset is None else q.offset.nbytes)
        if q.scale_codes is not None:
            assert q.scale_codes.shape == q.scale.shape
            assert q.scale_codes.dtype == np.uint8
            extra = q.scale_codes.nbytes + (0 if q.tensor_scale is None else 4)
        assert q.nbytes == q.packed.nbytes + extra
        assert_same(np.asarray(q), lb.dequantize(q))
    if record.scale_format is None:
        assert lb.quantize(x, coded, scale=0.5, axis=-1).axis == 1
        assert lb.quantize(x, coded, scale=0.5, axis=0, block_size=2).block_size == 2
    with pytest.raises((AttributeError, TypeError)):
        q.scale = q.scale
    with pytest.raises((AttributeError, TypeError)):
        q.anything = 1


def test_formats_without_codes_say_so() -> None:
    for name in sorted(set(FORMATS) - set(CODED)):
        for call in (lb.quantize, lambda x, name: lb.quantize(x, lb.get_format(name))):
            with pytest.raises(lb.Error, match=r"codes|coded"):
                call(normal(4), name)


def test_a_format_may_be_given_itself(name: str) -> None:
    x, record = normal(100), lb.get_format(name)
    assert_same(lb.fake_quantize(x, record), lb.fake_quantize(x, name))
    if record.coded:
        options = fit(name, block_size=8)
        assert_same(lb.quantize(x, record, **options).packed, lb.quantize(x, name, **options).packed)
