"""gfloat rounds any small float with given random bits: what one word of ours does is what one integer of theirs does.

gfloat moves a magnitude away from zero by its distance d above the lower neighbour (in steps) and an integer S of n
bits. With w the upper 31 bits of a word whose bits are flipped for negative numbers, ours goes away iff
w < floor(d 2^31). So, with S = 2^31 - 1 - w,

* StochasticFastest (d + S 2^-31 >= 1) is ours;
* Stochastic and StochasticOdd, which first round d to 31 bits, and StochasticFast, which adds half a bit, are ours but
  for the one word w = floor(d 2^31), and for none where d has at most 31 bits;
* with n < 31 bits, S = 2^n - 1 - floor(w 2^(n-31)), StochasticFastest is ours but for the words with
  floor(w 2^(n-31)) = floor(d 2^n) and w < floor(d 2^31): there it stays, which is its bias towards zero.
"""

from __future__ import annotations

import numpy as np
import pytest
from gfloat import Domain, FormatInfo, RoundMode, decode_float, round_ndarray

import lowbit as lb
from lowbit import _core
from support import assert_same, bits, float32, wild

#: Exponent bits, mantissa bits, bias and what is infinite or NaN, of every float that gfloat can describe.
FLOATS: dict[str, tuple[int, int, int, str]] = {
    "fp4_e2m1": (2, 1, 1, "none"),
    "fp6_e2m3": (2, 3, 1, "none"),
    "fp6_e3m2": (3, 2, 3, "none"),
    "fp8_e3m4": (3, 4, 3, "ieee"),
    "fp8_e4m3": (4, 3, 7, "ieee"),
    "fp8_e4m3fn": (4, 3, 7, "fn"),
    "fp8_e4m3fnuz": (4, 3, 8, "fnuz"),
    "fp8_e4m3b11fnuz": (4, 3, 11, "fnuz"),
    "fp8_e5m2": (5, 2, 15, "ieee"),
    "fp8_e5m2fnuz": (5, 2, 16, "fnuz"),
    "float16": (5, 10, 15, "ieee"),
    "bfloat16": (8, 7, 127, "ieee"),
    "float(3,4,bias=5)": (3, 4, 5, "none"),
    "float(8,14,ieee)": (8, 14, 127, "ieee"),
    "cfloat8(4,0)": (4, 3, 0, "none"),
    "cfloat8(4,7)": (4, 3, 7, "none"),
    "cfloat8(4,31)": (4, 3, 31, "none"),
    "cfloat8(5,63)": (5, 2, 63, "none"),
    "cfloat16(shp,15)": (5, 10, 15, "none"),
}

NEAR = 1 << 18


def describe(name: str) -> FormatInfo:
    """Say it in gfloat's words."""
    e, m, bias, inf_nan = FLOATS[name]
    return FormatInfo(
        name,
        1 + e + m,
        m + 1,
        bias=bias,
        is_signed=True,
        domain=Domain.Extended if inf_nan == "ieee" else Domain.Finite,
        has_nz=inf_nan != "fnuz",
        num_high_nans={"ieee": 2**m - 1, "fn": 1}.get(inf_nan, 0),
        has_subnormals=True,
        is_twos_complement=False,
    )


def theirs(x: np.ndarray, name: str, mode: RoundMode, srbits: np.ndarray | None = None, n: int = 0) -> np.ndarray:
    """Round in float64, which holds every sum exactly enough, and saturate as ours does."""
    with np.errstate(all="ignore"):
        got = round_ndarray(describe(name), x.astype(np.float64), mode, sat=True, srbits=srbits, srnumbits=n)
        return np.asarray(got).astype(np.float32)


def numbers(name: str, seed: int, n: int) -> np.ndarray:
    """Any n numbers but NaN, then as many as `NEAR` in the format's own range, its subnormals and below."""
    e, m, bias, _ = FLOATS[name]
    rng = np.random.default_rng(seed)
    x = wild(n, seed)
    exponents = rng.integers(max(-126, -bias - m - 3), min(127, 2**e - bias) + 1, NEAR)
    near = np.ldexp(1 + rng.integers(0, 1 << 23, NEAR) / (1 << 23), exponents) * rng.choice([-1.0, 1.0], NEAR)
    x = np.concatenate([x, near.astype(np.float32)])
    return x[~np.isnan(x)]


@pytest.mark.parametrize("small", FLOATS)
def test_every_code(small: str) -> None:
    fmt, info = lb.get_format(small), describe(small)
    if not fmt.coded or fmt.bits > 8:
        return
    want = np.float32([decode_float(info, code).fval for code in range(1 << fmt.bits)])
    nan = np.isnan(want)
    np.testing.assert_array_equal(np.isnan(fmt.decode_table), nan)
    assert_same(fmt.decode_table[~nan], want[~nan], small)


@pytest.mark.parametrize("small", FLOATS)
def test_nearest(small: str) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    for x in (
        float32(patterns.astype(np.uint32) << 16),
        patterns.view(np.float16).astype(np.float32),
        numbers(small, 1, 1 << 22),
    ):
        t = x[~np.isnan(x)]
        assert_same(lb.fake_quantize(t, small, scale=1.0), theirs(t, small, RoundMode.TiesToEven), small)


def stochastic(name: str, seed: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Numbers, what ours makes of them, the 31 bits that decide, and d: the distance above the lower neighbour."""
    _, m, bias, _ = FLOATS[name]
    x = numbers(name, seed, n)
    x = x[np.abs(x) < lb.get_format(name).max]
    step = np.maximum(np.frexp(x.astype(np.float64))[1] - 1, 1 - bias) - m
    lifted = np.ldexp(np.abs(x.astype(np.float64)), -step)
    away = lifted - np.floor(lifted)
    words = np.random.default_rng([seed, 7]).integers(0, 1 << 32, x.size, np.uint32)
    # A third of the words at the threshold, where conventions part.
    edge = np.floor(away * 2.0**31).astype(np.int64)[::3] + np.random.default_rng(seed).integers(-2, 3, x[::3].size)
    flip = np.where(np.signbit(x), np.uint32(0xFFFFFFFF), np.uint32(0))
    words[::3] = (np.clip(edge, 0, 2**31 - 1).astype(np.uint32) << np.uint32(1)) ^ flip[::3]
    return x, _core.round_with_words(x, name, words), ((words ^ flip) >> np.uint32(1)).astype(np.int64), away


@pytest.mark.parametrize("small", FLOATS)
def test_stochastic_with_all_our_bits(small: str) -> None:
    x, got, w, away = stochastic(small, 2, 1 << 22)
    srbits = 2**31 - 1 - w
    assert_same(got, theirs(x, small, RoundMode.StochasticFastest, srbits, 31), small)
    x, got, w, srbits, away = (each[-NEAR:] for each in (x, got, w, srbits, away))
    scaled = away * 2.0**31
    at_threshold = (w == np.floor(scaled)) & (scaled != np.floor(scaled))
    for mode in (RoundMode.Stochastic, RoundMode.StochasticOdd, RoundMode.StochasticFast):
        other = bits(theirs(x, small, mode, srbits, 31)) != bits(got)
        assert not np.any(other & ~at_threshold), f"{small}, {mode}"


@pytest.mark.parametrize("n", [1, 4, 8, 16])
@pytest.mark.parametrize("small", FLOATS)
def test_stochastic_with_fewer_bits(small: str, n: int) -> None:
    x, got, w, away = stochastic(small, 3, NEAR)
    few = w >> (31 - n)
    want = theirs(x, small, RoundMode.StochasticFastest, 2**n - 1 - few, n)
    stays = (few == np.floor(away * 2.0**n)) & (w < np.floor(away * 2.0**31))
    np.testing.assert_array_equal(bits(want) != bits(got), stays)
    assert np.all(np.abs(want[stays]) < np.abs(got[stays]))
