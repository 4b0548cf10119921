"""Several arrays under one header."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lowbit as lb
from lowbit import reference
from message_support import KEY, SMALL, fits, header_length, twin
from support import BFLOAT16, assert_same, normal, runs

INTEGERS = [np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)]
small = pytest.mark.parametrize("codec", SMALL, ids=str)


def model(codec: Any) -> dict[str, np.ndarray]:
    """Arrays as a model has them: large ones, small ones, counters."""
    return {
        "weight": fits(codec, normal(3000).reshape(50, 60)),
        "bias": normal(50),
        "step": np.array(123456789012345),
        "": fits(codec, normal(1024).reshape(2, 512)).astype(np.float64),
        "größe/2": normal(1023).astype(np.float16),
        "empty": np.zeros((0, 3), np.float32),
        "last": fits(codec, normal(1500, 1)).astype(BFLOAT16),
        "mask": normal(9).reshape(3, 3) > 0,
    }


@small
def test_a_mapping_is_the_references(codec: Any) -> None:
    arrays = model(codec)
    want = reference.encode_message(arrays, twin(codec), key=KEY, sender=4)
    decoded = reference.decode_message(want, KEY)
    for run in runs(5000):
        message = lb.encode(arrays, codec, key=KEY, sender=4)
        assert message == want, f"{codec}, {run}"
        back = lb.decode(message, key=KEY)
        assert list(back) == list(arrays), "names in their order"
        for name, array in back.items():
            if decoded[name].dtype == array.dtype:
                assert_same(array, decoded[name], f"{codec}, {name}, {run}")


@small
def test_what_travels_exactly(codec: Any) -> None:
    arrays = model(codec)
    back = lb.decode(lb.encode(arrays, codec, key=KEY), key=KEY)
    for name in ("bias", "step", "größe/2", "mask"):
        assert_same(back[name], arrays[name], name)
    for name in ("weight", "", "last", "empty"):
        assert back[name].dtype == np.float32
        assert back[name].shape == arrays[name].shape
    listed = {array.name: array for array in lb.describe(lb.encode(arrays, codec, key=KEY)).arrays}
    assert [name for name, array in listed.items() if not array.exact] == ["weight", "", "last"]
    assert {name: array.dtype for name, array in listed.items()} == {n: a.dtype.name for n, a in arrays.items()}


def test_every_dtype_of_integers() -> None:
    arrays = {
        dtype.name: np.array([[0, 1, np.iinfo(dtype).max, np.iinfo(dtype).min]] * 400, dtype) for dtype in INTEGERS
    }
    arrays |= {"swapped": np.arange(5, dtype=">i4"), "strided": np.arange(20)[::3], "bool": np.array([True, False])}
    back = lb.decode(lb.encode(arrays, lb.Drive(), key=KEY), key=KEY)
    for name, array in arrays.items():
        assert_same(back[name], array.astype(array.dtype.newbyteorder("=")), name)


def test_exact_floats_keep_every_bit() -> None:
    odd = np.array([0x7F800001, 0xFFC12345, 0x80000000, 1, 0x7F800000], np.uint32).view(np.float32)
    arrays = {"odd": odd, "double": np.array([np.pi, -0.0, 5e-324])}
    message = lb.encode(arrays, lb.Drive(), key=KEY)
    back = lb.decode(message, key=KEY)
    for name, array in arrays.items():
        assert_same(back[name], array)
    assert not lb.describe(message).finite
    assert lb.describe(lb.encode({"double": arrays["double"]}, lb.Drive(), key=KEY)).finite


def test_min_elements_chooses_what_is_coded() -> None:
    arrays = {"a": normal(10), "b": normal(200), "c": np.arange(3000)}
    for least, coded in ((0, ["a", "b"]), (11, ["b"]), (201, []), (10, ["a", "b"])):
        message = lb.encode(arrays, lb.Drive(), key=KEY, min_elements=least)
        assert message == reference.encode_message(arrays, twin(lb.Drive()), key=KEY, min_elements=least)
        assert [array.name for array in lb.describe(message).arrays if not array.exact] == coded


def test_empty_mappings() -> None:
    for codec in SMALL:
        message = lb.encode({}, codec, key=KEY)
        assert message == reference.encode_message({}, twin(codec), key=KEY)
        assert lb.decode(message, key=KEY) == {}
        assert lb.decode_mean([message], key=KEY) == {}
        assert lb.describe(message).arrays == ()


def test_every_array_draws_its_own_words() -> None:
    x = normal(2000)
    for codec in (lb.Drive(), lb.QuicFl(2), lb.Summable(2), lb.Dither(2)):
        back = lb.decode(lb.encode({"a": x, "b": x}, codec, key=KEY), key=KEY)
        assert not np.array_equal(back["a"], back["b"]), codec
        # Array number k uses key.fold("array", k), counted over all arrays.
        second = lb.encode({"counter": np.arange(3), "b": x}, codec, key=KEY)
        alone = lb.decode(lb.encode(x, codec, key=KEY.fold("array", 1)), key=KEY.fold("array", 1))
        assert_same(lb.decode(second, key=KEY)["b"], alone)


def test_one_header_for_many_arrays() -> None:
    arrays = {f"layer{i}": normal(1024, i) for i in range(100)}
    together = lb.encode(arrays, lb.Drive(), key=KEY)
    alone = sum(len(lb.encode(a, lb.Drive(), key=KEY)) for a in arrays.values())
    assert len(together) < alone - 100 * 64
    assert (len(together) - header_length(together)) % 16 == 0


def test_out_of_a_mapping() -> None:
    arrays = model(lb.Drive())
    message = lb.encode(arrays, lb.Drive(), key=KEY)
    want = lb.decode(message, key=KEY)
    out = {name: np.zeros_like(array) for name, array in want.items()}
    back = lb.decode(message, key=KEY, out=out)
    for name, array in want.items():
        assert back[name] is out[name]
        assert_same(out[name], array)
