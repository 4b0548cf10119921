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
    DTYPES,
    KEY,
    SIZES,
    assert_same,
    cast,
    check,
    critical,
    datasets,
    normal,
    on_flushing_thread,
    roundings,
    runs,
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
        check(x, name, scale="amax", block_size=16, **rounding)


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
    x = normal(4 * 6).reshape(4, 6)
    rng = np.random.default_rng(0)
    for shape in [(), (1,), (6,), (1, 6), (4, 1), (4, 6), (1, 1)]:
        check(x, name, scale=rng.uniform(0.1, 1, shape).astype(np.float32))
    for shape in [(), (3,), (4, 3), (1, 3), (4, 1)]:
        check(x, name, scale=rng.uniform(0.1, 1, shape).astype(np.float32), block_size=2)
    for shape in [(), (6,), (2, 6), (2, 1)]:
        check(x, name, scale=rng.uniform(0.1, 1, shape).astype(np.float32), block_size=3, axis=0)
    check(x, name, scale=[[0.1], [0.2], [0.3], [0.4]], axis=0)
    if lb.get_format(name).uniform:
        check(x, name, scale=rng.uniform(0.1, 1, (4, 1)), offset=rng.uniform(-1, 1, 6))
        check(x, name, scale=0.25, offset=rng.uniform(-1, 1, (4, 3)), block_size=2)


@pytest.mark.parametrize("data", ["tiny", "subnormal", "wild", "blocks of all magnitudes"])
def test_subnormals_count_on_a_thread_that_flushes_them(name: str, data: str) -> None:
    scales = [*scalings(name), {"scale": 2.0**-126}, {"scale": 2.0**-100}, {"block_size": 32}]
    for n, rounding, scaling in itertools.product((1024, 20001), roundings(name), scales):
        x, options = datasets(n)[data], {**rounding, **scaling}
        want = reference.fake_quantize(x, name, **options)
        for run in runs(n):
            got = on_flushing_thread(lambda x=x, options=options: lb.fake_quantize(x, name, **options))
            if got is None:
                pytest.skip("this platform offers no way to flush subnormals")
            assert_same(got, want, f"{name} {options} {run}")


@given(data=st.data())
@settings(max_examples=150)
def test_fake_quantize_is_dequantize_of_quantize(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(lb.formats()))
    dtype = data.draw(st.sampled_from(DTYPES))
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9))
    # Every draw is finite in float16, so in every dtype.
    floats = st.floats(-65504, 65504, width=32, allow_subnormal=True)
    x = data.draw(hnp.arrays(np.float32, shape, elements=floats)).astype(dtype)
    options = {**data.draw(st.sampled_from(roundings(name))), **data.draw(st.sampled_from(scalings(name)))}
    if shape:
        options["axis"] = data.draw(st.none() | st.integers(-len(shape), len(shape) - 1))
        options["block_size"] = data.draw(st.none() | st.integers(1, 12))
    key = {"key": KEY} if options.get("rounding") == "dither" else {}
    q = lb.quantize(x, name, **options)
    y = lb.fake_quantize(x, name, **options)
    assert y.dtype == x.dtype
    assert_same(y, lb.dequantize(q, dtype=dtype, **key))
    assert_same(y, reference.fake_quantize(x, name, **options))
    assert_same(q.codes, reference.quantize(x, name, **options).codes)


def test_quantizing_twice_changes_nothing_at_one_scale(name: str) -> None:
    q = lb.quantize(normal(1000), name, scale=0.25)
    assert_same(lb.quantize(lb.dequantize(q), name, scale=0.25).codes, q.codes)


def test_non_finite_elements_by_the_contract(name: str) -> None:
    x = normal(64).reshape(2, 32)
    x[0, 5], x[1, 7] = np.inf, np.nan
    y = lb.fake_quantize(x, name)
    assert np.isnan(y).all()
    y = lb.fake_quantize(x, name, block_size=16)
    assert np.isnan(y).reshape(2, 2, 16).all(axis=2).tolist() == [[True, False], [True, False]]
    assert np.isfinite(y[:, 16:]).all()
    y = lb.fake_quantize(x, name, scale=1.0)
    assert y[0, 5] == lb.get_format(name).max
    assert np.flatnonzero(np.isnan(y)).tolist() == [39]
    with pytest.raises(lb.Error, match=r"\b5\b"):
        lb.quantize(x, name)
    with pytest.raises(lb.Error, match=r"\b39\b"):
        lb.quantize(x, name, scale=1.0)
    x[1, 7] = -np.inf
    assert lb.quantize(x, name, scale=1.0).codes.shape == (2, 32)


def test_fields_of_the_result(name: str) -> None:
    x = normal(60).reshape(5, 12)
    record = lb.get_format(name)
    for options, scale_shape in [
        ({}, (1, 1)),
        ({"axis": 0}, (5, 1)),
        ({"axis": -1}, (1, 12)),
        ({"block_size": 5}, (5, 3)),
        ({"block_size": 2, "axis": 0}, (3, 12)),
    ]:
        q = lb.quantize(x, name, **options)
        assert q.scale.shape == scale_shape
        assert q.scale.dtype == np.float32
        assert q.shape == (5, 12)
        assert (q.size, q.ndim, len(q)) == (60, 2, 5)
        assert q.format.name == name
        assert q.axis == (None if not options else options.get("axis", -1) % 2)
        assert q.block_size == options.get("block_size")
        assert q.tensor_scale is None
        assert q.packed.shape == (-(-60 * record.bits // 8),)
        assert q.packed.dtype == np.uint8
        assert q.codes.shape == (5, 12)
        assert q.nbytes == q.packed.nbytes + q.scale.nbytes + (0 if q.offset is None else q.offset.nbytes)
        assert_same(np.asarray(q), lb.dequantize(q))
    assert lb.quantize(x, name, scale=0.5, axis=-1).axis == 1
    assert lb.quantize(x, name, scale=0.5, axis=0, block_size=2).block_size == 2
    with pytest.raises((AttributeError, TypeError)):
        q.scale = q.scale
    with pytest.raises((AttributeError, TypeError)):
        q.anything = 1


def test_a_format_may_be_given_itself(name: str) -> None:
    x, record = normal(100), lb.get_format(name)
    assert_same(lb.fake_quantize(x, record), lb.fake_quantize(x, name))
    assert_same(lb.quantize(x, record, block_size=8).packed, lb.quantize(x, name, block_size=8).packed)
