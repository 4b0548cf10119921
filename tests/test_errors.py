"""Bad input: a typed error that names the argument and says what would work."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import lowbit as lb
from support import CODED, DTYPES, FORMATS, KEY, RULES, fit, normal, saturates

CALLS = [lb.quantize, lb.fake_quantize]


def refused(error: type[Exception], word: str, call: Any, *args: Any, **options: Any) -> str:
    """Demand this error, with `word` in its message, and give the message."""
    with pytest.raises(error) as caught:
        call(*args, **options)
    message = str(caught.value)
    assert re.search(rf"\b{re.escape(word)}\b", message), f"{message!r} does not name {word}"
    return message


def test_the_errors_are_value_errors() -> None:
    assert issubclass(lb.Error, ValueError)
    assert issubclass(lb.DecodeError, lb.Error)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "x",
    [
        np.arange(4),
        np.arange(4, dtype=np.uint8),
        np.array([True]),
        np.array([1j]),
        np.array([1.0, None]),
        np.array(["a"]),
        np.array(["2026-01-01"], "M8[D]"),
        np.ma.masked_array([1.0, 2.0], [True, False]),
        np.zeros(2, [("a", "f4")]),
        None,
        "text",
        [1, 2],
    ],
    ids=lambda x: type(x).__name__ + str(getattr(x, "dtype", "")),
)
def test_x_that_is_no_real_float_array(call: Any, x: Any) -> None:
    message = refused(TypeError, "x", call, x, "int4")
    if isinstance(x, np.ndarray) and x.dtype.kind in "iu":
        assert "astype" in message


@pytest.mark.parametrize("call", CALLS)
def test_long_double(call: Any) -> None:
    if np.dtype(np.longdouble) == np.float64:
        pytest.skip("here long double is float64")
    refused(TypeError, "x", call, np.ones(3, np.longdouble), "int4")


@pytest.mark.parametrize("call", CALLS)
def test_unknown_names_list_the_known(call: Any) -> None:
    x = normal(4)
    message = refused(lb.Error, "format", call, x, "int_4")
    assert all(name in message for name in lb.formats())
    message = refused(lb.Error, "scale", call, x, "int4", scale="absmax")
    assert all(rule in message for rule in ("amax", "minmax", "sawb"))
    message = refused(lb.Error, "scale", call, x, "radix4", scale="sawb")
    assert "amax" in message
    message = refused(lb.Error, "rounding", call, x, "int4", rounding="up")
    assert all(rounding in message for rounding in ("nearest", "stochastic", "dither"))
    refused(TypeError, "format", call, x, 4)
    refused(TypeError, "rounding", call, x, "int4", rounding=1)


def test_get_format() -> None:
    message = refused(lb.Error, "int_4", lb.get_format, "int_4")
    assert all(name in message for name in lb.formats())
    refused(TypeError, "name", lb.get_format, 4)


@pytest.mark.parametrize("call", CALLS)
def test_rules_that_a_format_cannot_use(call: Any, name: str) -> None:
    record = lb.get_format(name)
    if call is lb.quantize and name not in CODED:
        return
    for rule in set(RULES) - set(record.scale_rules):
        message = refused(lb.Error, "scale", call, normal(4), name, scale=rule)
        assert all(known in message for known in record.scale_rules)
    if not record.uniform:
        refused(lb.Error, "rounding", call, normal(4), name, rounding="dither", key=KEY)
        refused(lb.Error, "offset", call, normal(4), name, scale=1.0, offset=0.0)


@pytest.mark.parametrize("call", CALLS)
def test_keys(call: Any, name: str) -> None:
    if call is lb.quantize and name not in CODED:
        return
    x = normal(4)
    message = refused(lb.Error, "key", call, x, name, rounding="stochastic")
    assert "Key(" in message
    for key in ("seed", 1.5, True, (1, 2)):
        refused(TypeError, "key", call, x, name, rounding="stochastic", key=key)
    for key in (-1, 2**64):
        with pytest.raises(lb.Error):
            call(x, name, rounding="stochastic", key=key)
    if lb.get_format(name).uniform:
        refused(lb.Error, "key", call, x, name, rounding="dither")
        with pytest.raises((TypeError, lb.Error), match="key"):
            call(x, name, rounding="dither", key=np.random.default_rng(0))


@pytest.mark.parametrize("call", CALLS)
def test_given_scales(call: Any) -> None:
    x = normal(12).reshape(3, 4)
    too_small, too_large = (
        np.nextafter(np.float32(2.0**-126), np.float32(0)),
        np.nextafter(2.0**126, np.inf, dtype=np.float32),
    )
    for bad in (0, 0.0, -1.0, np.nan, np.inf, -np.inf, too_small, too_large, 1e300, [1.0, 1.0, 0.0, 1.0]):
        refused(lb.Error, "scale", call, x, "int4", scale=bad)
    for shape in [(3,), (5,), (2, 4), (3, 4, 1), (1, 3, 4), (0,)]:
        refused(lb.Error, "scale", call, x, "int4", scale=np.ones(shape, np.float32))
    for shape in [(4,), (3, 4), (2, 2)]:
        refused(lb.Error, "scale", call, x, "int4", scale=np.ones(shape, np.float32), block_size=2)
    for bad in (1j, np.array([None]), [[1.0], [1.0, 2.0]], b"amax"):
        with pytest.raises((TypeError, lb.Error), match="scale"):
            call(x, "int4", scale=bad)
    for good in (2.0**-126, 2.0**126, 1, np.float16(0.5), np.ones((3, 1)), np.int64(2)):
        call(x, "int4", scale=good)


@pytest.mark.parametrize("call", CALLS)
def test_given_offsets(call: Any) -> None:
    x = normal(12).reshape(3, 4)
    for bad in (np.nan, np.inf, -np.inf, 1e300):
        refused(lb.Error, "offset", call, x, "int4", scale=1.0, offset=bad)
    for shape in [(3,), (2, 4), (1, 3, 4)]:
        refused(lb.Error, "offset", call, x, "int4", scale=1.0, offset=np.ones(shape, np.float32))
    refused(lb.Error, "offset", call, x, "int4", offset=0.0)
    refused(lb.Error, "offset", call, x, "int4", scale="minmax", offset=0.0)


@pytest.mark.parametrize("call", CALLS)
def test_axes_and_blocks(call: Any) -> None:
    x = normal(12).reshape(3, 4)
    for bad in (0, -1, -(2**70)):
        refused(lb.Error, "block_size", call, x, "int4", block_size=bad)
    for bad in (True, False, 2.0, "8", np.float32(2)):
        refused(TypeError, "block_size", call, x, "int4", block_size=bad)
    for bad in (2, -3, 100):
        refused(lb.Error, "axis", call, x, "int4", axis=bad)
        refused(lb.Error, "axis", call, x, "int4", axis=bad, block_size=2)
    for bad in (True, 1.0, "0", (0, 1)):
        refused(TypeError, "axis", call, x, "int4", axis=bad)
    with pytest.raises(lb.Error, match="axis"):
        call(np.array(1.0), "int4", axis=0)
    with pytest.raises(lb.Error, match="block_size"):
        call(np.array(1.0), "int4", block_size=2)
    call(x, "int4", block_size=np.int64(2), axis=np.int8(1))
    call(x, "int4", block_size=10**9)


def test_out_of_fake_quantize() -> None:
    buffer = normal(100)
    x = buffer[10:50]
    for out in (buffer[11:51], buffer[9:49], buffer[10:90:2], buffer[10:50][::-1], buffer[20:60]):
        before = buffer.copy()
        refused(lb.Error, "out", lb.fake_quantize, x, "int4", out=out)
        assert np.array_equal(buffer, before), "a refused call writes nothing"
    frozen = np.zeros(40, np.float32)
    frozen.flags.writeable = False
    refused(lb.Error, "out", lb.fake_quantize, x, "int4", out=frozen)
    for shape in [(41,), (39,), (40, 1), (1, 40), ()]:
        refused(lb.Error, "out", lb.fake_quantize, x, "int4", out=np.zeros(shape, np.float32))
    for bad in (np.zeros(40), np.zeros(40, np.float16), np.zeros(40, ">f4"), np.zeros(40, np.int32), [0.0] * 40, "out"):
        refused(TypeError, "out", lb.fake_quantize, x, "int4", out=bad)
    row = np.zeros((1, 4), np.float32)
    refused(lb.Error, "out", lb.fake_quantize, normal(12).reshape(3, 4), "int4", out=np.broadcast_to(row, (3, 4)))


def test_out_of_quantize() -> None:
    x = normal(41)
    for bad in (
        np.zeros(20, np.uint8),
        np.zeros(22, np.uint8),
        np.zeros((21, 1), np.uint8),
        np.zeros(42, np.uint8)[::2],
    ):
        refused(lb.Error, "out", lb.quantize, x, "int4", out=bad)
    for bad in (np.zeros(21), np.zeros(21, np.int8), bytearray(21)):
        refused(TypeError, "out", lb.quantize, x, "int4", out=bad)
    frozen = np.zeros(21, np.uint8)
    frozen.flags.writeable = False
    refused(lb.Error, "out", lb.quantize, x, "int4", out=frozen)
    refused(lb.Error, "out", lb.quantize, x, "int4", out=x.view(np.uint8)[:21])


def test_dequantize() -> None:
    q = lb.quantize(normal(12).reshape(3, 4), "int4")
    refused(TypeError, "q", lb.dequantize, np.zeros(3))
    for bad in (np.int8, np.complex64, "f3", object, ">f4"):
        with pytest.raises(TypeError, match="dtype"):
            lb.dequantize(q, dtype=bad)
    refused(TypeError, "out", lb.dequantize, q, out=np.zeros((3, 4)))
    refused(TypeError, "out", lb.dequantize, q, dtype=np.float16, out=np.zeros((3, 4), np.float32))
    refused(lb.Error, "out", lb.dequantize, q, out=np.zeros((4, 3), np.float32))
    frozen = np.zeros((3, 4), np.float32)
    frozen.flags.writeable = False
    refused(lb.Error, "out", lb.dequantize, q, out=frozen)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("block", [name for name in FORMATS if lb.get_format(name).scale_format])
def test_what_block_formats_fix(call: Any, block: str) -> None:
    x, name, record = normal(64), block, lb.get_format(block)
    if record.default_block is None:
        call(x, name, block_size=7)
    else:
        message = refused(lb.Error, "block_size", call, x, name, block_size=record.default_block + 1)
        assert str(record.default_block) in message
        call(x, name, block_size=record.default_block)
    bad = [3.0, 0.3] if record.scale_format == "e8m0" else [2.0**-10, 449.0, 0.3, 512.0]
    for scale in bad:
        refused(lb.Error, "scale", call, x, name, scale=scale)
    for scale in (0.0, -1.0, np.nan, np.inf):
        refused(lb.Error, "scale", call, x, name, scale=scale)
    ends = [2.0**-127, 2.0**127] if record.scale_format == "e8m0" else [2.0**-9, 448.0]
    for scale in ends:
        call(x, name, scale=scale)
    refused(lb.Error, "offset", call, x, name, scale=1.0, offset=1.0)
    refused(lb.Error, "rounding", call, x, name, rounding="dither", key=KEY)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_first_number_without_a_code_is_named(coded: str, dtype: np.dtype) -> None:
    name, clips = coded, saturates(coded)
    for n, at in [(10, 3), (5000, 4999), (100003, 70001), (100003, 0)]:
        x = normal(n).astype(dtype)
        x[at] = np.nan
        x[at + (at < n - 1) :: 7919][1:] = np.nan
        refused(lb.Error, str(at), lb.quantize, x, name)
        refused(lb.Error, str(at), lb.quantize, x, name, scale=1.0)
        refused(lb.Error, str(at), lb.quantize, x, name, **fit(name, block_size=32))
        x[at] = np.nan if clips else -np.inf
        refused(lb.Error, str(at), lb.quantize, x, name, axis=0)
    x = normal(60).reshape(6, 10).astype(dtype)
    x[4, 3] = np.nan if clips else np.inf
    refused(lb.Error, "43", lb.quantize, np.asfortranarray(x), name)
    refused(lb.Error, "43", lb.quantize, x, name, axis=1)
    refused(lb.Error, "43", lb.quantize, x, name, **fit(name, block_size=4, axis=0))


def test_threads_and_levels() -> None:
    for bad in (0, 10**6):
        refused(lb.Error, "n", lb.set_num_threads, bad)
    for bad in (-1, 1.5, "2"):
        with pytest.raises((TypeError, OverflowError, lb.Error)):
            lb.set_num_threads(bad)


def test_options_are_keywords() -> None:
    with pytest.raises(TypeError):
        lb.quantize(normal(3), "int4", 1.0)
    with pytest.raises(TypeError):
        lb.fake_quantize(normal(3), "int4", blocksize=3)


def test_a_key_that_nothing_draws_from_is_a_mistake() -> None:
    refused(lb.Error, "key", lb.fake_quantize, normal(3), "int4", key=1)
    refused(lb.Error, "key", lb.quantize, normal(3), "int4", key=lb.Key(1))


def test_numbers_too_large_and_names_that_are_no_text() -> None:
    refused(lb.Error, "scale", lb.fake_quantize, normal(3), "int4", scale=2**200)
    refused(lb.Error, "scale", lb.fake_quantize, normal(3), "int4", scale=10**400)
    refused(lb.Error, "scale", lb.fake_quantize, normal(3), "int4", scale="\ud800")
    refused(lb.Error, "format", lb.fake_quantize, normal(3), "\ud800")
    refused(lb.Error, "rounding", lb.fake_quantize, normal(3), "int4", rounding="\ud800")
