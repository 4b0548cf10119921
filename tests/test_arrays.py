"""Any memory layout in and out: strides, alignment, byte order, no elements, and results written in place."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbit as lb
from lowbit import reference
from support import (
    BFLOAT16,
    CODED,
    DTYPES,
    KEY,
    allowed,
    assert_same,
    cast,
    check,
    fit,
    normal,
    on_flushing_thread,
    roundings,
    runs,
    wild,
)


def unaligned(x: np.ndarray) -> np.ndarray:
    buffer = bytearray(x.nbytes + 1)
    y = np.frombuffer(buffer, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    y[...] = x
    return y


def read_only(x: np.ndarray) -> np.ndarray:
    y = x.copy()
    y.flags.writeable = False
    return y


def strided(x: np.ndarray) -> np.ndarray:
    y = np.full((x.shape[0] * 2, x.shape[1] * 3), np.nan, x.dtype)[::2, 1::3]
    y[...] = x
    return y


def field(x: np.ndarray) -> np.ndarray:
    """A field of packed records: strides that are no multiple of the item size."""
    y = np.zeros(x.shape, np.dtype([("pad", np.uint8), ("x", x.dtype)]))
    y["x"] = x
    return y["x"]


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "fortran": np.asfortranarray,
    "strided": strided,
    "negative": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "unaligned": unaligned,
    "read-only": read_only,
    "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "field of a record": field,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts_of_the_input(name: str, layout: str, dtype: np.dtype) -> None:
    if layout == "byte-swapped" and dtype == BFLOAT16:
        pytest.skip("ml_dtypes has no byte-swapped bfloat16")
    plain = cast(wild(37 * 131).reshape(37, 131), dtype)
    x = LAYOUTS[layout](plain)
    for rounding in roundings(name):
        for asked in ({"scale": 0.4}, {"block_size": 16}, {"axis": 0}, {"axis": 1, "block_size": 5}):
            options = fit(name, **asked)
            want = lb.fake_quantize(plain, name, **options, **rounding)
            assert_same(lb.fake_quantize(x, name, **options, **rounding), want, f"{layout} {options}")
    good = np.where(np.isfinite(plain), plain, np.ones((), dtype))
    for asked in ({}, {"scale": 0.4}, {"block_size": 16, "axis": 0}) if name in CODED else ():
        options = fit(name, **asked)
        q, want = lb.quantize(LAYOUTS[layout](good), name, **options), lb.quantize(good, name, **options)
        assert_same(q.packed, want.packed)
        assert_same(q.scale, want.scale)


def test_large_strided_arrays(coded: str) -> None:
    x, name = normal(300 * 401).reshape(300, 401), coded
    for asked in ({"scale": 0.4}, {}, {"axis": 0}, {"block_size": 32}, {"block_size": 32, "axis": 0}):
        options = fit(name, **asked)
        want = lb.quantize(x, name, **options)
        for run in runs(x.size):
            for layout in ("fortran", "strided", "negative", "unaligned"):
                q = lb.quantize(LAYOUTS[layout](x), name, **options)
                assert_same(q.packed, want.packed, f"{layout} {options} {run}")
                assert_same(q.scale, want.scale, f"{layout} {options} {run}")


def test_broadcast_inputs(name: str) -> None:
    lines = (np.broadcast_to(normal(7), (5, 7)), np.broadcast_to(normal(5)[:, None, None], (5, 2, 7)))
    for x in (*lines, np.broadcast_to(np.float32(1.3), (4, 5))):
        for asked in ({}, {"axis": 0}, {"block_size": 3}, {"rounding": "stochastic", "key": KEY}):
            options = fit(name, **asked)
            assert_same(lb.fake_quantize(x, name, **options), lb.fake_quantize(x.copy(), name, **options))
            if name in CODED:
                assert_same(lb.quantize(x, name, **options).codes, lb.quantize(x.copy(), name, **options).codes)


def test_zero_dimensions(coded: str) -> None:
    name = coded
    for rounding in roundings(name):
        x = np.array(0.7, np.float32)
        y = lb.fake_quantize(x, name, **rounding)
        assert isinstance(y, np.ndarray)
        assert y.shape == ()
        q = lb.quantize(x, name, **rounding)
        assert q.shape == q.scale.shape == q.codes.shape == ()
        assert q.size == 1
        assert_same(y.reshape(1), lb.fake_quantize(x.reshape(1), name, **rounding))
    with pytest.raises(TypeError):
        len(lb.quantize(np.array(0.7), name))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4)])
def test_no_elements(coded: str, shape: tuple[int, ...]) -> None:
    name = coded
    for rounding in roundings(name):
        for asked in ({}, {"axis": 0}, {"axis": -1}, {"block_size": 4}, {"scale": 1.0}):
            options = fit(name, **asked)
            x = np.zeros(shape, np.float16)
            y = lb.fake_quantize(x, name, **options, **rounding)
            assert y.shape == shape
            assert y.dtype == np.float16
            q = lb.quantize(x, name, **options, **rounding)
            assert q.packed.shape == (0,)
            assert q.codes.shape == shape


def test_every_small_shape(name: str) -> None:
    """Zero, one or two along each of three axes, with every kind of group."""
    record = lb.get_format(name)
    sizes = (None,) if record.scale_format and record.default_block else (None, 1, 2, 3)
    for shape in itertools.product(range(3), repeat=3):
        for axis, block_size in itertools.product((None, 0, 1, 2), sizes):
            for rule in record.scale_rules:
                check(normal(math.prod(shape)).reshape(shape), name, scale=rule, axis=axis, block_size=block_size)


# Sums of more than one piece of 4096, in columns few and many; blocks that do not end on a byte; few rows.
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((4100, 40), {"axis": 1}),
        ((8192, 33), {"axis": 1}),
        ((4100, 7), {"axis": 1}),
        ((3, 1500), {"axis": 1}),
        ((70, 50, 3), {"axis": 1}),
        ((4500, 3), {"axis": 0, "block_size": 4200}),
        ((3, 70, 300), {"axis": 1, "block_size": 33}),
        ((5001,), {"block_size": 1}),
        ((5001,), {"block_size": 3}),
        ((5001,), {"block_size": 513}),
        ((5001,), {"axis": 0}),
        ((9, 1001), {"block_size": 5}),
    ],
)
def test_groups_of_every_kind(name: str, shape: tuple[int, ...], options: dict[str, int]) -> None:
    for rule in lb.get_format(name).scale_rules:
        check(normal(math.prod(shape)).reshape(shape), name, scale=rule, **options)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 70001), {"axis": 1}),
        ((2, 3, 66000), {"axis": 2}),
        ((4, 70001), {"axis": 0, "block_size": 2}),
        ((3, 1, 70001), {"axis": 1, "block_size": 2}),
    ],
)
def test_more_groups_than_are_treated_at_once(name: str, shape: tuple[int, ...], options: dict[str, int]) -> None:
    x = normal(math.prod(shape)).reshape(shape)
    options = fit(name, **options)
    for rule, rounding in itertools.product(lb.get_format(name).scale_rules, roundings(name)):
        want = reference.fake_quantize(x, name, scale=rule, **options, **rounding)
        for run in runs(x.size):
            assert_same(lb.fake_quantize(x, name, scale=rule, **options, **rounding), want, f"{rule} {rounding} {run}")
        same = x.copy()
        lb.fake_quantize(same, name, scale=rule, out=same, **options, **rounding)
        assert_same(same, want, f"in place, {rule} {rounding}")


def test_lists_and_scalars_are_arrays(name: str) -> None:
    want = lb.fake_quantize(np.array([1.0, 2.5]), name)
    assert_same(lb.fake_quantize([1.0, 2.5], name), want)
    assert_same(lb.fake_quantize(np.float32(2.5), name), lb.fake_quantize(np.array(2.5, np.float32), name))


def test_results_are_fresh_contiguous_and_native(name: str) -> None:
    x = np.asfortranarray(normal(12).reshape(3, 4)).astype(">f4")
    y = lb.fake_quantize(x, name)
    assert y.dtype == np.dtype("=f4")
    assert y.dtype.isnative
    assert y.flags.c_contiguous
    assert y.flags.writeable
    assert not np.shares_memory(x, y)


# --- out= -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{"scale": 0.4}, {}, {"axis": 0}, {"block_size": 32}, {"axis": 0, "block_size": 5}])
def test_out(name: str, dtype: np.dtype, options: dict[str, object]) -> None:
    x = normal(60 * 70).reshape(60, 70).astype(dtype)
    options = fit(name, **options)
    for rounding in roundings(name):
        want = lb.fake_quantize(x, name, **options, **rounding)
        for out in (
            np.empty_like(x),
            np.empty_like(x, order="F"),
            strided(x),
            unaligned(x),
            field(x),
            x[:, ::-1].copy()[:, ::-1],
        ):
            assert lb.fake_quantize(x, name, out=out, **options, **rounding) is out
            assert_same(out, want)
        same = x.copy()
        assert lb.fake_quantize(same, name, out=same, **options, **rounding) is same
        assert_same(same, want)
        turned = np.asfortranarray(x)
        lb.fake_quantize(turned, name, out=turned, **options, **rounding)
        assert_same(turned, want)
        part = strided(x)
        before = part.base.copy()
        lb.fake_quantize(part, name, out=part, **options, **rounding)
        assert_same(part, want)
        before[::2, 1::3] = want
        assert_same(part.base, before, "nothing beside the view may change")


def test_out_in_place_on_large_arrays(name: str) -> None:
    x = normal(100003)
    for run in runs(x.size):
        for asked in ({}, {"scale": 0.3}, {"block_size": 32}, {"rounding": "stochastic", "key": KEY}):
            options = fit(name, **asked)
            want = lb.fake_quantize(x, name, **options)
            same = x.copy()
            lb.fake_quantize(same, name, out=same, **options)
            assert_same(same, want, run)
            far = np.empty_like(x)
            assert_same(lb.fake_quantize(x, name, out=far, **options), want, run)


def test_out_of_quantize_and_dequantize(coded: str) -> None:
    x, name = normal(333).reshape(9, 37), coded
    want = lb.quantize(x, name)
    packed = np.full(want.packed.size, 255, np.uint8)
    q = lb.quantize(x, name, out=packed)
    assert np.shares_memory(q.packed, packed)
    assert_same(packed, want.packed)
    for dtype in DTYPES:
        for out in (np.empty((9, 37), dtype), np.empty((9, 37), dtype, order="F"), strided(x.astype(dtype))):
            assert lb.dequantize(q, dtype=dtype, out=out) is out
            assert_same(out, lb.dequantize(q, dtype=dtype))


def test_dtypes_of_dequantize(coded: str) -> None:
    q = lb.quantize(normal(1000), coded)
    y = lb.dequantize(q)
    assert y.dtype == np.float32
    for dtype in DTYPES:
        assert_same(lb.dequantize(q, dtype=dtype), y.astype(dtype))
    assert_same(lb.dequantize(q, dtype="bfloat16"), y.astype(BFLOAT16))


@given(
    data=st.data(),
    shape=st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6)),
    order=st.permutations(range(3)),
    steps=st.tuples(*[st.sampled_from([-3, -2, -1, 1, 2, 3])] * 3),
)
@settings(max_examples=150)
def test_any_view_of_any_array(
    data: st.DataObject, shape: tuple[int, int, int], order: list[int], steps: tuple[int, int, int]
) -> None:
    name = data.draw(st.sampled_from(CODED))
    base = normal(18**3).reshape(18, 18, 18).astype(data.draw(st.sampled_from(DTYPES)))
    view = base.transpose(order)[tuple(slice(None, None, step) for step in steps)]
    x = view[tuple(slice(0, n) for n in shape)]
    options = data.draw(st.sampled_from([{}, {"axis": 1}, {"block_size": 2}, {"block_size": 2, "axis": 0}]))
    options = fit(name, **options) | data.draw(st.sampled_from(roundings(name)))
    assert_same(lb.fake_quantize(x, name, **options), lb.fake_quantize(x.copy(order="C"), name, **options))
    want = lb.quantize(x.copy(order="C"), name, **options)
    q = lb.quantize(x, name, **options)
    assert_same(q.packed, want.packed)
    assert_same(q.scale, want.scale)


def test_strided_subnormals_on_a_flushing_thread(name: str) -> None:
    x = strided((normal(40 * 50) * np.float32(2.0**-128)).reshape(40, 50))
    scale = allowed(name, 2.0**-126)
    want = lb.fake_quantize(x, name, scale=scale)
    got = on_flushing_thread(lambda: lb.fake_quantize(x, name, scale=scale))
    if got is None:
        pytest.skip("this platform offers no way to flush subnormals")
    assert_same(got, want)
    if name in CODED:
        q = lb.quantize(x, name, scale=scale)
        assert_same(on_flushing_thread(lambda: lb.dequantize(q)), lb.dequantize(q))


# --- what a reviewer broke once ---------------------------------------------------------------------------------------


def test_out_never_spoils_an_input() -> None:
    memory = np.zeros((4, 2048), np.float32) + np.float32(0.5)
    x = normal(4 * 2048).reshape(4, 2048)
    want = lb.fake_quantize(x, "int4", scale=memory[0].copy(), offset=memory[1].copy())
    assert_same(lb.fake_quantize(x, "int4", scale=memory[0], offset=memory[1], out=memory), want)
    buffer = np.empty(8192, np.float32)
    q = lb.quantize(normal(8192), "int4", out=buffer.view(np.uint8)[:4096])
    with pytest.raises(lb.Error, match="out: overlaps packed"):
        lb.dequantize(q, out=buffer)
    shared = np.lib.stride_tricks.as_strided(np.zeros(300, np.float32), (100, 100), (4, 4))
    with pytest.raises(lb.Error, match="out: elements share memory"):
        lb.fake_quantize(normal(10000).reshape(100, 100), "int4", out=shared)


def test_out_may_be_x_in_other_words(tmp_path: Path) -> None:
    x = normal(64)
    want = lb.fake_quantize(x, "int4")
    got = lb.fake_quantize(x[None], "int4", out=x.reshape(1, -1))
    assert_same(got[0], want)
    mapped = np.memmap(tmp_path / "numbers", np.float32, "w+", shape=(64,))
    assert lb.fake_quantize(normal(64), "int4", out=mapped) is mapped
    assert_same(np.array(mapped), want)


def test_a_dtype_that_is_an_array_is_refused() -> None:
    q = lb.quantize(normal(14).reshape(7, 2), "int4")
    for bad in ("(2,)f4", "(0,)f4", [("a", "f4")], "V2"):
        with pytest.raises(TypeError, match="dtype"):
            lb.dequantize(q, dtype=bad)


def test_scales_of_any_layout_and_type() -> None:
    x = normal(60).reshape(4, 15)
    numbers = np.array([0.5, 0.25, 1.0, 2.0])
    want = lb.fake_quantize(x, "int4", scale=numbers.astype(np.float32)[:, None])
    raw = np.zeros(4 * 8 + 1, np.uint8)
    unaligned = raw[1:].view(np.float64)
    unaligned[:] = numbers
    swapped, fortran = numbers.astype(">f4"), np.asfortranarray(np.repeat(numbers[:, None], 15, 1).astype(np.float16))
    for scale in (unaligned[:, None], swapped[:, None], numbers[::-1][::-1][:, None], fortran, numbers.tolist()):
        axis = {"axis": 0} if isinstance(scale, list) else {}
        assert_same(lb.fake_quantize(x, "int4", scale=scale, **axis), want, scale)
        q = lb.quantize(x, "int4", scale=scale, **axis)
        assert_same(lb.dequantize(q), want, scale)


def test_a_list_of_scales_lies_along_the_axis_even_of_a_square() -> None:
    x = np.array([[1, 2], [3, 4]], np.float32)
    want = np.stack([lb.fake_quantize(row, "int4", scale=scale) for row, scale in zip(x, (0.5, 2.0), strict=True)])
    assert_same(lb.fake_quantize(x, "int4", scale=[0.5, 2.0], axis=0), want)
    assert_same(lb.fake_quantize(x.T, "int4", scale=[0.5, 2.0], axis=1), want.T)


def test_threads_may_share_what_they_only_read() -> None:
    q = lb.quantize(normal(1 << 18), "int4")
    target = np.empty_like(q.packed)
    with ThreadPoolExecutor(8) as threads:
        jobs = [threads.submit(lb.dequantize, q) for _ in range(40)]
        jobs += [threads.submit(lb.quantize, normal(1 << 18), "int4", out=target.copy()) for _ in range(20)]
        jobs += [threads.submit(q.to_bytes) for _ in range(20)]
        for job in jobs:
            job.result()
