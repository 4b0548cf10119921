"""The Hadamard transform and the random rotation, against matrices, the reference and their own inverses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

import lowbit as lb
from lowbit import reference
from support import BFLOAT16, DTYPES, KEY, assert_same, bits, cast, datasets, normal, on_flushing_thread, runs

#: Lengths with every kind of tail: none, overlapping by nearly all or nearly nothing, in rows under and over a block.
LENGTHS = [*range(1, 301), 1000, 4096, 4097, 65537, 70000, 131072 + 200]


@pytest.mark.parametrize("k", range(13))
def test_it_is_the_matrix(k):
    d = 1 << k
    x = normal(3 * d).reshape(3, d)
    want = x.astype(np.float64) @ scipy.linalg.hadamard(d, np.int8) / math.sqrt(d)
    # Every stage rounds every number once.
    error = np.linalg.norm(lb.hadamard_transform(x) - want, axis=-1) / np.linalg.norm(want, axis=-1)
    assert error.max() <= (k + 2) * 2.0**-24


@pytest.mark.parametrize("k", [*range(13), 14, 16, 17, 18, 20])
def test_the_bits_are_the_references(k):
    d = 1 << k
    x = normal(d * (3 if k < 17 else 1)).reshape(-1, d)
    want = reference.hadamard_transform(x)
    for run in runs(x.size):
        assert_same(lb.hadamard_transform(x), want, f"2^{k} {run}")


def test_very_long_rows():
    """2^25 numbers: one at a place gives a row of the matrix, whose signs are parities."""
    d, place = 1 << 25, 0x155_AAC3
    x = np.zeros(d, np.float32)
    x[place] = 1
    y = lb.hadamard_transform(x, out=x)
    where = np.random.default_rng(1).integers(0, d, 10_000)
    odd = np.bitwise_count(where & place) % 2 == 1
    assert_same(y[where], np.where(odd, np.float32(-1), np.float32(1)) * np.float32(2.0**-12.5))


@pytest.mark.parametrize("d", [1, 2, 8, 64, 128, 2048, 1 << 17])
def test_every_kind_of_number(d):
    for what, x in datasets(max(d, 512)).items():
        rows = x.reshape(-1, d)
        want = reference.hadamard_transform(rows)
        turned = reference.randomized_hadamard_transform(rows, KEY)
        for run in runs(x.size):
            assert_same(lb.hadamard_transform(rows), want, f"{what} {run}")
            assert_same(lb.randomized_hadamard_transform(rows, KEY), turned, f"{what} {run}")


def test_every_nan_is_the_quiet_one():
    x = np.zeros((2, 64), np.float32)
    x[0, 5] = bits(x).dtype.type(0xFFC12345).view(np.float32)
    x[1, 3], x[1, 4] = np.inf, -np.inf
    for y in (lb.hadamard_transform(x), lb.randomized_hadamard_transform(x, 1)):
        assert set(bits(y)[np.isnan(y)].tolist()) == {0x7FC00000}
        assert np.isnan(y[0]).all()


@pytest.mark.parametrize("d", [1, 2, 32, 1024, 1 << 17])
def test_twice_is_the_identity_and_lengths_stay(d):
    x = normal(d)
    y = lb.hadamard_transform(x)
    assert np.linalg.norm(y.astype(np.float64)) == pytest.approx(np.linalg.norm(x.astype(np.float64)), rel=1e-6)
    assert np.abs(lb.hadamard_transform(y) - x).max() < 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_layout(dtype):
    x = cast(normal(6 * 128 * 4).reshape(6, 128, 4), dtype)
    for view in (x[::2, ::-1, 1].T.copy().T, x[:, :, 0], np.moveaxis(x, 1, 2), x[::-2, 64:, :].swapaxes(1, 2)):
        want, turned = reference.hadamard_transform(view), reference.randomized_hadamard_transform(view, KEY)
        assert_same(lb.hadamard_transform(view), want)
        assert_same(lb.randomized_hadamard_transform(view, KEY), turned)
        if dtype != BFLOAT16:
            assert_same(lb.hadamard_transform(view.astype(view.dtype.newbyteorder())), want, "byte order")


@pytest.mark.parametrize("d", [8, 128, 4096, 1 << 17, 1 << 21])
def test_out_is_written_wherever_it_lies(d):
    x = normal(2 * d).reshape(2, d)
    for transform in (lb.hadamard_transform, lambda x, **out: lb.randomized_hadamard_transform(x, KEY, **out)):
        want = transform(x)
        new = np.empty_like(x)
        assert transform(x, out=new) is new
        assert_same(new, want)
        same = x.copy()
        assert_same(transform(same, out=same), want, "in place")
        wide = np.full((2, d, 3), 7, np.float32)
        assert_same(transform(x, out=wide[::-1, :, 1]), want, "strided")
        assert (wide[:, :, ::2] == 7).all(), "and nothing else"
        wide[:, :, 1] = x
        assert_same(transform(wide[:, :, 1], out=wide[:, :, 1]), want, "strided, in place")
        raw = np.zeros(8 * d + 1, np.uint8)[1:].view(np.float32).reshape(2, d)
        assert_same(transform(x, out=raw), want, "unaligned")
        for shift in range(1, 17):  # against the cache lines
            row = np.zeros(2 * d + 17, np.float32)
            target = row[shift : shift + 2 * d].reshape(2, d)
            assert_same(transform(x, out=target), want, f"shifted by {shift}")
            assert not row[:shift].any()
            assert not row[shift + 2 * d :].any()
        kept = x.copy()
        assert_same(transform(kept[:, ::1]), want)
        assert_same(kept, x, "x is not touched")


@pytest.mark.parametrize("d", LENGTHS)
def test_the_rotation_is_the_references(d):
    x = normal(2 * d if d < 5000 else d).reshape(-1, d)
    for rounds in (1, 2, 3) if d < 5000 else (2,):
        want = reference.randomized_hadamard_transform(x, KEY, rounds=rounds)
        back = reference.randomized_hadamard_transform(x, KEY, rounds=rounds, inverse=True)
        for run in runs(x.size):
            what = f"{d} numbers, {rounds} rounds, {run}"
            assert_same(lb.randomized_hadamard_transform(x, KEY, rounds=rounds), want, what)
            assert_same(lb.randomized_hadamard_transform(x, KEY, rounds=rounds, inverse=True), back, f"inverse, {what}")


@pytest.mark.parametrize("d", [1, 2, 3, 127, 129, 300, 4097, 70000])
def test_a_rotation_keeps_lengths_and_angles_and_is_undone(d):
    x = normal(2 * d).reshape(2, d).astype(np.float64)
    y = lb.randomized_hadamard_transform(x, 5).astype(np.float64)
    assert y @ y.T == pytest.approx(x @ x.T, rel=1e-5, abs=1e-5 * d)
    assert np.abs(lb.randomized_hadamard_transform(y, 5, inverse=True) - x).max() < 1e-5
    if d > 100:
        assert np.abs(lb.randomized_hadamard_transform(y, 6, inverse=True) - x).max() > 1e-2, (
            "another key is another one"
        )


@given(st.integers(1, 700), st.integers(1, 8), st.integers(0, 2**64 - 1))
def test_any_length_rounds_and_key(d, rounds, seed):
    x = normal(d)
    y = lb.randomized_hadamard_transform(x, seed, rounds=rounds)
    assert_same(y, reference.randomized_hadamard_transform(x, seed, rounds=rounds))
    assert np.abs(lb.randomized_hadamard_transform(y, lb.Key(seed), rounds=rounds, inverse=True) - x).max() < 1e-5


def test_the_signs_are_bits_of_the_stream():
    """Rounds of a block of one number only flip it; of others the first row of the matrix adds up what was flipped."""
    key = lb.Key(99)
    sign = [int(lb.random_bits(key.fold("rotation", r), 1)[0]) & 1 for r in range(8)]
    for rounds in range(1, 9):
        y = lb.randomized_hadamard_transform(np.float32([3.0]), key, rounds=rounds)
        assert y[0] == 3.0 * (-1) ** sum(sign[:rounds])
    d = 1 << 16
    words = lb.random_bits(key.fold("rotation", 0), d // 32 + 4)
    flipped = (words[np.arange(d) // 32] >> (np.arange(d) % 32).astype(np.uint32)) & 1
    for place in (0, 31, 32, 33, 65535):
        x = np.zeros(d, np.float32)
        x[place] = 256
        assert lb.randomized_hadamard_transform(x, key, rounds=1)[0] == 1 - 2 * int(flipped[place])
    # Of 65536 + 100 numbers the last 128 are rotated again, with the signs that follow.
    x = np.zeros(d + 100, np.float32)
    x[d + 7] = 1
    y = lb.randomized_hadamard_transform(x, key, rounds=1)
    position = d + 128 - 100 + 7
    want = 1 - 2 * (int(words[position // 32]) >> (position % 32) & 1)
    assert y[d - 28] == np.float32(want / math.sqrt(128))
    assert not y[: d - 28].any()


def test_every_row_has_the_same_rotation():
    x = normal(5 * 300).reshape(5, 300)
    together = lb.randomized_hadamard_transform(x, KEY)
    for row, turned in zip(x, together, strict=True):
        assert_same(lb.randomized_hadamard_transform(row, KEY), turned)


def test_one_round_is_not_enough_and_two_are():
    """(3, 1, 1, 0, ...): after one round the signs are always those of its first number, so they say one thing only."""
    x = np.zeros(1024, np.float32)
    x[:3] = 3, 1, 1
    column = lb.hadamard_transform(np.eye(1, 1024, dtype=np.float32)[0])
    kurtosis = []
    for rounds in (1, 2):
        y = np.stack([lb.randomized_hadamard_transform(x, seed, rounds=rounds) for seed in range(200)]).astype(
            np.float64
        )
        same = (y > 0) == (column > 0)
        assert bool((same.all(axis=1) | ~same.any(axis=1)).all()) == (rounds == 1)
        kurtosis.append(float((y**4).mean() / (y**2).mean() ** 2))
    # Of +-3 +-1 +-1, all signs alike: (625 + 2 81 + 1) / 4 / 11^2; a normal number has 3.
    assert kurtosis[0] == pytest.approx((5**4 + 2 * 3**4 + 1) / 4 / 11**2, abs=1e-3)
    assert kurtosis[1] == pytest.approx(3, abs=0.05)


def test_the_callers_float_state_is_not_seen():
    x = cast(normal(1024) * np.float32(1e-38), np.float64)
    for transform in (lb.hadamard_transform, lambda x: lb.randomized_hadamard_transform(x, KEY)):
        want = transform(x)
        got = on_flushing_thread(lambda transform=transform: transform(x))
        if got is not None:
            assert_same(got, want)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 8), (2, 0, 4), (0, 3)])
def test_empty_arrays(shape):
    x = np.zeros(shape, np.float32)
    assert lb.randomized_hadamard_transform(x, 1).shape == shape
    if shape[-1] in (4, 8):
        assert lb.hadamard_transform(x).shape == shape


@pytest.mark.parametrize("d", [0, 3, 100, 65537])
def test_a_wrong_length_says_what_would_work(d):
    with pytest.raises(lb.Error, match=rf"^x: .* {d}\b.*power of two") as error:
        lb.hadamard_transform(np.zeros((2, d), np.float32))
    if d:
        assert str(1 << d.bit_length()) in str(error.value)
        assert "randomized_hadamard_transform" in str(error.value)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"rounds": 0}, lb.Error, "rounds: 0 .* 1 to 8"),
        ({"rounds": 9}, lb.Error, "rounds: 9 .* 1 to 8"),
        ({"rounds": 1.5}, TypeError, "rounds"),
        ({"key": None}, TypeError, "^key"),
        ({"key": -1}, lb.Error, "^key"),
        ({"key": np.random.default_rng(1)}, TypeError, "^key"),
        ({"x": np.float32(1)}, lb.Error, "^x: .*dimension"),
        ({"x": np.zeros(4, np.int32)}, TypeError, "^x: .*astype"),
        ({"x": np.zeros(4, np.complex64)}, TypeError, "^x"),
        ({"x": np.ma.zeros(4, np.float32)}, TypeError, "^x: .*masked"),
        ({"out": np.zeros(5, np.float32)}, lb.Error, "^out: .*shape"),
        ({"out": np.zeros(4)}, TypeError, "^out: .*float32"),
        ({"out": [0.0] * 4}, TypeError, "^out"),
        ({"out": np.broadcast_to(np.float32(0), 4)}, lb.Error, "^out: .*read-only"),
    ],
)
def test_wrong_arguments_are_named(options, error, words):
    x, key = options.pop("x", np.zeros(4, np.float32)), options.pop("key", 1)
    with pytest.raises(error, match=words):
        lb.randomized_hadamard_transform(x, key, **options)
    if "rounds" not in options and key == 1:
        with pytest.raises(error, match=words):
            lb.hadamard_transform(x, **options)


def test_a_partial_overlap_is_refused():
    memory = np.zeros(24, np.float32)
    for transform in (lb.hadamard_transform, lambda x, **out: lb.randomized_hadamard_transform(x, 1, **out)):
        for x, out in [(memory[:16], memory[8:]), (memory[:16], memory[15::-1]), (memory[:8], memory[:16:2])]:
            with pytest.raises(lb.Error, match=r"^out: partly overlaps x"):
                transform(x, out=out)
