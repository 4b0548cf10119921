"""Codes of 1 to 16 bits in one flat bit string."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lowbit as lb
from lowbit import reference
from support import SIZES, assert_same, normal, runs


def codes_of(bits: int, n: int) -> np.ndarray:
    return (
        np.random.default_rng([bits, n]).integers(0, 2**bits, n, np.uint16).astype(np.uint8 if bits <= 8 else np.uint16)
    )


@given(data=st.data(), bits=st.integers(1, 16), n=st.integers(0, 70))
def test_the_string_is_one_little_endian_number(data: st.DataObject, bits: int, n: int) -> None:
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=n, max_size=n))
    number = sum(code << (i * bits) for i, code in enumerate(codes))
    packed = lb.pack(np.array(codes, np.uint16), bits)
    assert packed.tobytes() == number.to_bytes(-(-n * bits // 8), "little")
    back = lb.unpack(packed, bits, n)
    assert back.dtype == (np.uint8 if bits <= 8 else np.uint16)
    assert back.tolist() == codes


@pytest.mark.parametrize("bits", range(1, 17))
def test_every_width_and_size(bits: int) -> None:
    for n in SIZES:
        codes = codes_of(bits, n)
        want = reference.pack(codes, bits)
        for run in runs(n):
            assert_same(lb.pack(codes, bits), want, f"{n} {run}")
            assert_same(lb.unpack(want, bits, n), codes, f"{n} {run}")
        assert_same(lb.pack(codes.astype(np.uint16), bits), want)


def test_every_code_of_every_width() -> None:
    for bits in range(1, 17):
        codes = np.arange(2**bits, dtype=np.uint16)
        assert np.array_equal(lb.unpack(lb.pack(codes, bits), bits, codes.size), codes)


def test_layouts() -> None:
    codes = codes_of(4, 600).reshape(20, 30)
    for view in (codes, codes.T, codes[::-1, ::3], np.broadcast_to(codes[0], (3, 30)), codes[:0], codes[0, 0, None]):
        assert_same(lb.pack(view, 4), reference.pack(view, 4))
    assert_same(lb.pack(np.array(5, np.uint8), 4), np.array([5], np.uint8))
    packed = lb.pack(codes, 4)
    frozen = np.frombuffer(b"\0" + packed.tobytes(), np.uint8)[1:]
    assert_same(lb.unpack(frozen, 4, 600), codes.ravel())
    assert_same(lb.unpack(np.repeat(packed, 2)[::2], 4, 600), codes.ravel())


def test_quantize_packs_its_codes(coded: str) -> None:
    name, bits = coded, lb.get_format(coded).bits
    for n in (0, 1, 2, 3, 1023, 16385):
        q = lb.quantize(np.random.default_rng(n).standard_normal(n), name)
        assert_same(q.packed, reference.pack(q.codes, bits))


@pytest.mark.parametrize("bits", [1, 3, 4, 7, 11, 15])
@pytest.mark.parametrize("at", [0, 5, 4999, 100002])
def test_a_code_that_does_not_fit_is_named(bits: int, at: int) -> None:
    codes = codes_of(bits, 100003).astype(np.uint16)
    codes[at] = 2**bits
    for _ in runs(codes.size):
        with pytest.raises(lb.Error, match=rf"codes.*\b{at}\b"):
            lb.pack(codes, bits)


def test_five_trits_a_byte() -> None:
    """The first is the lowest digit in base 3; 1.6 bits for log2(3) = 1.585."""
    for n in SIZES:
        trits = np.random.default_rng(n).integers(0, 3, n, np.uint8)
        padded = np.concatenate([trits, np.zeros(-n % 5, np.uint8)]).astype(int).reshape(-1, 5)
        want = (padded @ [1, 3, 9, 27, 81]).astype(np.uint8)
        for run in runs(n):
            assert_same(lb.pack(trits, 1.6), want, run)
            assert_same(lb.unpack(want, 1.6, n), trits, run)
        assert_same(reference.pack(trits, 1.6), want)
        assert_same(reference.unpack(want, 1.6, n), trits)
        assert_same(lb.pack(trits.astype(np.uint16), 1.6), want)
    every = np.array(list(itertools.product(range(3), repeat=5)), np.uint8)
    assert np.unique(lb.pack(every, 1.6)).tolist() == list(range(243))
    q = lb.quantize(normal(1001), "ternary")
    assert_same(lb.unpack(lb.pack(q.codes, 1.6), 1.6, q.size), q.codes.ravel())


def test_trits_that_are_none() -> None:
    for at in (0, 4, 5, 100002):
        codes = np.zeros(100003, np.uint8)
        codes[at] = 3
        with pytest.raises(lb.Error, match=rf"codes.*\b{at}\b"):
            lb.pack(codes, 1.6)
    for byte in range(243, 256):
        with pytest.raises(lb.Error, match="packed"):
            lb.unpack(np.array([0, byte, 0], np.uint8), 1.6, 15)
    for n in range(1, 5):
        for byte in range(243):
            if byte >= 3**n:
                with pytest.raises(lb.Error, match="packed"):
                    lb.unpack(np.array([byte], np.uint8), 1.6, n)
            else:
                assert lb.unpack(np.array([byte], np.uint8), 1.6, n).size == n
    for n in (0, 5, 10, 16, 2**62):
        with pytest.raises(lb.Error, match="packed"):
            lb.unpack(np.zeros(3, np.uint8), 1.6, n)
    for bits in (1.5, 1.58, 2.6, np.nan):
        with pytest.raises((TypeError, lb.Error), match="bits"):
            lb.pack(np.zeros(5, np.uint8), bits)


def test_bad_input() -> None:
    codes = np.zeros(5, np.uint8)
    for bits in (0, 17, -1):
        with pytest.raises(lb.Error, match="bits"):
            lb.pack(codes, bits)
        with pytest.raises(lb.Error, match="bits"):
            lb.unpack(codes, bits, 3)
    for bits in (True, 4.0, "4"):
        with pytest.raises(TypeError, match="bits"):
            lb.pack(codes, bits)
        with pytest.raises(TypeError, match="bits"):
            lb.unpack(codes, bits, 3)
    for bad in (np.zeros(3), np.zeros(3, np.int64), np.zeros(3, np.int8), np.zeros(3, bool), [1.5]):
        with pytest.raises(TypeError, match="codes"):
            lb.pack(bad, 4)
    for bad in (np.zeros(3), np.zeros(3, np.int8), np.zeros(3, np.uint16)):
        with pytest.raises(TypeError, match="packed"):
            lb.unpack(bad, 4, 6)
    for n in (0, 1, 2, 5, 6, 2**62):
        with pytest.raises(lb.Error, match="packed"):
            lb.unpack(np.zeros(2, np.uint8), 4, n)
    with pytest.raises(lb.Error, match="n"):
        lb.unpack(codes, 4, -1)
    for n in (True, 2.0):
        with pytest.raises(TypeError, match="n"):
            lb.unpack(codes, 4, n)


def test_padding_must_be_zero() -> None:
    for bits in range(1, 17):
        for n in range(1, 9):
            packed = lb.pack(np.full(n, 2**bits - 1, np.uint16), bits)
            for bit in range(n * bits, packed.size * 8):
                spoilt = packed.copy()
                spoilt[-1] |= 1 << bit % 8
                with pytest.raises(lb.Error, match="packed"):
                    lb.unpack(spoilt, bits, n)
