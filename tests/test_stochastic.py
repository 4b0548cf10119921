"""Stochastic rounding by exact thresholds on the random word, then by sampling; subtractive dither."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

import lowbit as lb
from lowbit import _core, reference
from support import CODED, FORMATS, KEY, allowed, around, assert_same, bits, float32, normal, runs, values_of

WORDS = 2**32


def between(name: str) -> np.ndarray:
    """Points strictly between neighbouring values of the grid, near its values, near zero and anywhere."""
    values = values_of(name, 200)
    rng = np.random.default_rng(7)
    low, high = values[:-1], values[1:]
    some = rng.uniform(size=40 if values.size < 40 else 8)
    spread = [low + f * (high - low) for f in (0.5, 0.25, 0.75, 1 / 3, 2**-20, 1 - 2**-20, *some)]
    t = [np.concatenate(spread).astype(np.float32), around(values, 3), float32(rng.integers(0, 2**23, 50))]
    t.append(np.ldexp(np.float32(0.7), np.arange(-140, 0, dtype=np.int32)))
    t = np.concatenate([*t, -t[-1], -t[-2]])
    return np.unique(t[(t > values[0]) & (t < values[-1]) & ~np.isin(t, exact_values(name, t))])


def exact_values(name: str, t: np.ndarray) -> np.ndarray:
    """The grid; of a format without codes, its values next to `t`."""
    if name in CODED:
        return lb.get_format(name).values
    return np.unique(reference.get_format(name).nearest(t))


def thresholds(rounded: object, t: np.ndarray) -> np.ndarray:
    """The least word, for each t, with which it no longer goes up: found by bisection."""
    low, high = np.zeros(t.size, np.uint64), np.full(t.size, WORDS, np.uint64)
    while (low < high).any():
        middle = (low + high) // np.uint64(2)
        up = rounded(t, np.minimum(middle, np.uint64(WORDS - 1)).astype(np.uint32)) > t
        low, high = np.where(up & (low < high), middle + np.uint64(1), low), np.where(up, high, middle)
    return low


def test_thresholds_are_exact(name: str) -> None:
    t = between(name)
    spec = reference.get_format(name)
    want = thresholds(spec.stochastic, t)
    for run in runs(t.size):
        got = thresholds(lambda t, words: _core.round_with_words(t, name, words), t)
        assert_same(got, want, run)
    if name not in CODED:
        return
    values = lb.get_format(name).values
    above = np.searchsorted(values, t)
    for one, low, high, threshold in zip(t, values[above - 1], values[above], want.tolist(), strict=True):
        p = (Fraction(float(one)) - Fraction(float(low))) / (Fraction(float(high)) - Fraction(float(low)))
        if spec.uniform or name.startswith("fixed"):
            assert threshold == math.floor(p * WORDS), f"{one}"
        else:
            assert abs(threshold - p * WORDS) <= Fraction(WORDS, 2**23) + 1, f"{one}"


def test_the_threshold_parts_the_words(name: str) -> None:
    """Up for every word below the threshold and for none from it on: so bisection found the only step."""
    t = np.random.default_rng(0).choice(between(name), 200)
    spec = reference.get_format(name)
    least = thresholds(spec.stochastic, t)
    words = np.random.default_rng(1).integers(0, WORDS, (500, t.size), np.uint32)
    words[:6] = np.clip([least.astype(np.int64) + i for i in range(-3, 3)], 0, WORDS - 1).astype(np.uint32)
    words[6:8] = np.array([[0], [WORDS - 1]], np.uint32)
    for run in runs(t.size):
        y = _core.round_with_words(np.tile(t, 500), name, words.ravel()).reshape(500, -1)
        assert np.array_equal(y > t, words < least), run
        assert np.array_equal(spec.nearest(y), y)


def test_words_agree_with_the_reference(name: str) -> None:
    wild = float32([0x7F800000, 0xFF800000, 0x7F7FFFFF, 0xFF7FFFFF] * 4)
    t = np.concatenate([wild, normal(50001), normal(50001, 1) * np.float32(20), wild[:2]])
    words = np.random.default_rng(2).integers(0, WORDS, t.size, np.uint32)
    want = reference.get_format(name).stochastic(t, words)
    for run in runs(t.size):
        assert_same(_core.round_with_words(t, name, words), want, run)


def test_values_on_the_grid_never_move(name: str) -> None:
    words = np.random.default_rng(3).integers(0, WORDS, 10**5, np.uint32)
    words[:4] = [0, 1, WORDS - 2, WORDS - 1]
    values = values_of(name, 20).astype(np.float32)
    for run in runs(1):
        for value in values if values.size < 20 else np.random.default_rng(4).choice(values, 20):
            y = _core.round_with_words(np.full(words.size, value), name, words)
            assert (bits(y) == bits(value)).all(), f"{value} moved, {run}"
    every = np.unique(values_of(name, 70_000)).astype(np.float32)
    for word in (0, 1, WORDS // 2, WORDS - 2, WORDS - 1):
        assert_same(_core.round_with_words(every, name, np.full(every.size, word, np.uint32)), every, word)


def test_frequency_and_variance_by_sampling(coded: str) -> None:
    """The share p that goes up and its variance p (1 - p), within five standard deviations."""
    n, name = 100_000, coded
    values = lb.get_format(name).values
    pairs = np.array(list(zip(values[:-1].tolist(), values[1:].tolist(), strict=True)))
    if len(pairs) > 15:
        n, pairs = 20_000, np.random.default_rng(6).choice(pairs, 15, replace=False)
    for low, high in pairs.tolist():
        t = np.float32(low + 0.3 * (high - low))
        p = (float(t) - low) / (high - low)
        y = lb.fake_quantize(np.full(n, t), name, scale=1.0, rounding="stochastic", key=KEY)
        assert set(y.tolist()) == {low, high}
        up = (y == high).astype(np.float64)
        assert abs(up.mean() - p) < 5 * math.sqrt(p * (1 - p) / n)
        variance = (up - p) ** 2
        assert abs(variance.mean() - p * (1 - p)) < 5 * math.sqrt(variance.var() / n) + 1e-12


def test_the_words_are_those_of_the_key_folded_with_rounding(name: str) -> None:
    t = normal(1001)
    words = lb.random_bits(KEY.fold("rounding"), t.size)
    y = lb.fake_quantize(t, name, scale=1.0, rounding="stochastic", key=KEY)
    assert_same(y, _core.round_with_words(t, name, words))


def test_elements_are_numbered_in_c_order(name: str) -> None:
    x = normal(24).reshape(4, 6)
    options = {"scale": 0.5, "rounding": "stochastic", "key": KEY}
    y = lb.fake_quantize(x, name, **options)
    assert_same(lb.fake_quantize(np.asfortranarray(x), name, **options), y)
    assert_same(lb.fake_quantize(x.ravel(), name, **options), y.ravel())


def test_what_can_be_a_key(name: str) -> None:
    x = normal(1000)
    # Within the range of any format.
    draw = {"scale": allowed(name, 3 / min(lb.get_format(name).max, 2.0**10)), "rounding": "stochastic"}
    y = lb.fake_quantize(x, name, **draw, key=1234)
    assert_same(y, lb.fake_quantize(x, name, **draw, key=lb.Key(1234)))
    assert (y != lb.fake_quantize(x, name, **draw, key=1235)).any()
    k0, k1 = np.random.default_rng(5).integers(0, 2**64, size=2, dtype=np.uint64)
    rng = np.random.default_rng(5)
    first = lb.fake_quantize(x, name, **draw, key=rng)
    assert_same(first, lb.fake_quantize(x, name, **draw, key=lb.Key.from_words(int(k0), int(k1))))
    assert (first != lb.fake_quantize(x, name, **draw, key=rng)).any(), "a generator moves on"


# --- Subtractive dither -----------------------------------------------------------------------------------------------

UNIFORM = [name for name in FORMATS if lb.get_format(name).uniform]
SIGNALS = {
    "zero": np.zeros(200_000, np.float32),
    "constant": np.full(200_000, 0.3, np.float32),
    "ramp": np.linspace(0.1, 6.4, 200_000, dtype=np.float32),
    "grid": np.resize(np.arange(1, 6, dtype=np.float32), 200_000),
}


@pytest.mark.parametrize("uniform", UNIFORM)
@pytest.mark.parametrize("signal", SIGNALS)
def test_the_error_of_dither_is_uniform_whatever_the_signal(uniform: str, signal: str) -> None:
    step, values = 0.25, lb.get_format(uniform).values
    x = SIGNALS[signal] * np.float32(step)
    if values[-1] < 7:
        x = np.minimum(x, np.float32((values[-1] - 1) * step))
    if uniform.startswith("uint"):  # off the edge, where dither would be clipped
        x = x + np.float32(step)
    q = lb.quantize(x, uniform, scale=step, rounding="dither", key=KEY)
    error = (lb.dequantize(q, key=KEY).astype(np.float64) - x) / step
    assert np.abs(error).max() <= 0.5 + 1e-6
    assert abs(error.mean()) < 5 * math.sqrt(1 / 12 / x.size)
    assert abs((error**2).mean() - 1 / 12) < 5 * math.sqrt(1 / 180 / x.size)
    assert abs(np.corrcoef(error[1:], error[:-1])[0, 1]) < 5 / math.sqrt(x.size)


@pytest.mark.parametrize("uniform", UNIFORM)
def test_dither_wants_its_key_again(uniform: str) -> None:
    x = normal(100)
    q = lb.quantize(x, uniform, rounding="dither", key=KEY)
    assert isinstance(q.key_id, bytes)
    assert len(q.key_id) == 8
    assert int.from_bytes(q.key_id, "little") == KEY.fold("key id").words[1]
    assert_same(lb.dequantize(q, key=KEY), lb.fake_quantize(x, uniform, rounding="dither", key=KEY))
    assert_same(lb.dequantize(q, key=1234), lb.dequantize(q, key=KEY))
    with pytest.raises(lb.Error, match="key"):
        lb.dequantize(q)
    with pytest.raises(lb.Error, match="key"):
        lb.dequantize(q, key=lb.Key(1235))
    with pytest.raises(lb.Error, match="key"):
        np.asarray(q)


def test_only_dither_keeps_a_key_id(coded: str) -> None:
    assert lb.quantize(normal(10), coded).key_id is None
    assert lb.quantize(normal(10), coded, rounding="stochastic", key=KEY).key_id is None
