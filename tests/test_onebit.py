"""One real number in one bit: costs, unbiasedness, the kernel against the reference, and every bad input."""

from __future__ import annotations

import ctypes
import doctest
import itertools
import json
import math
import platform
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import lowbit as lb
from lowbit import _core, onebit, reference
from support import on_flushing_thread

ONLY = {"deterministic": (None, 0), "randomized": (None, 0), "clipped_dither": (None,)}
SCHEMES = ["deterministic", "randomized", "dither", "clipped_dither", "optimal_biased", "optimal_unbiased"]
SERVED = [(scheme, bits) for scheme in SCHEMES for bits in ONLY.get(scheme, (None, 0, 1, 2, 3, 4, 9, 16))]
UNBIASED = [(scheme, bits) for scheme, bits in SERVED if scheme in ("randomized", "dither", "optimal_unbiased")]

Z = 0.17349
#: Clipped dither by hand. At 0, clipped estimates weigh 1/2 + z and the others fall evenly on [z, 1/2]; at 1/2 they
#: fall evenly on [0, 1], clipped at both ends.
AT_ZERO = Z * Z * (0.5 + Z) + (0.125 - Z**3) / 3
AT_HALF = 2 * Z * (0.5 - Z) ** 2 + 2 / 3 * (0.5 - Z) ** 3
#: Worst cases with how well each is known: exactly, or as a rounded optimum.
WORST = [
    ("deterministic", None, 1 / 16, 1e-12),
    ("randomized", None, 1 / 4, 1e-12),
    *[("dither", bits, 1 / 12 + 4.0**-bits / 6, 1e-12) for bits in range(17)],
    ("dither", None, 1 / 12, 1e-12),
    ("clipped_dither", None, max(AT_ZERO, AT_HALF), 1e-12),
    ("clipped_dither", None, 0.0601974, 2e-5),
    ("optimal_biased", 0, 1 / 16, 1e-12),
    ("optimal_biased", 1, 1 / 20, 1e-12),
    ("optimal_biased", 2, 0.0478097, 2e-5),
    ("optimal_biased", 3, 0.0464584, 2e-5),
    ("optimal_biased", 4, 0.046317, 1e-6),
    ("optimal_biased", 8, 0.045986, 1e-6),
    ("optimal_biased", None, 1 / (8 * math.e), 1e-12),
    ("optimal_unbiased", 0, 1 / 4, 1e-12),
    ("optimal_unbiased", 1, 1 / 8, 1e-12),
    ("optimal_unbiased", 2, 1 / 11, 1e-12),
    ("optimal_unbiased", 3, 0.0814476, 2e-5),
    ("optimal_unbiased", 4, 0.07941, 1e-5),
    ("optimal_unbiased", 8, 0.07826, 1e-5),
    ("optimal_unbiased", None, 1 / (2 * (math.e**2 - 1)), 1e-12),
]


@pytest.fixture
def _settings_restored():
    level, threads = _core.cpu_level(), lb.get_num_threads()
    yield
    _core.set_cpu_level(level)
    lb.set_num_threads(threads)


@pytest.mark.parametrize(("scheme", "bits", "cost", "known"), WORST)
def test_worst_case_is_the_papers_and_is_attained(scheme, bits, cost, known):
    worst = onebit.worst_case_error(scheme, bits)
    assert worst == pytest.approx(cost, abs=known, rel=0)
    grid = onebit.squared_error(np.linspace(0, 1, 10_001), scheme, bits)
    assert grid.max() <= worst + 1e-15, "no number does worse"
    assert grid.max() >= worst - 1e-4, "and some number does as badly"


@pytest.mark.parametrize("scheme", ["dither", "optimal_biased", "optimal_unbiased"])
def test_every_shared_bit_helps(scheme):
    costs = [onebit.worst_case_error(scheme, bits) for bits in [*range(17), None]]
    assert all(a > b for a, b in itertools.pairwise(costs)), costs


@pytest.mark.parametrize(("scheme", "bits"), [s for s in UNBIASED if s[1] is not None or s[0] == "randomized"])
def test_sums_over_the_shared_bits_keep_the_mean(scheme, bits):
    """The coin of rank j is linear between knots j and j + 1: the mean of a + P(one) (b - a) is exactly x."""
    pairs = onebit._pairs(scheme, bits)
    knots = onebit._knots(pairs)
    assert knots[0] == pytest.approx(0, abs=1e-12)
    assert knots[-1] == pytest.approx(1, abs=1e-12)
    for x in np.linspace(0, 1, 41):
        up = np.clip((x - knots[:-1]) / np.diff(knots), 0, 1)
        mean = np.mean(pairs[:, 0] + up * (pairs[:, 1] - pairs[:, 0]))
        square = np.mean(pairs[:, 0] ** 2 + up * (pairs[:, 1] ** 2 - pairs[:, 0] ** 2))
        assert mean == pytest.approx(x, abs=1e-12)
        assert square - x * x == pytest.approx(float(onebit.squared_error(x, scheme, bits)), abs=1e-12)


def integral(f, low, high):
    """Gauss and Legendre's, exact to rounding for what is integrated here."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    return float(np.sum(weights * f((high - low) / 2 * nodes + (high + low) / 2))) * (high - low) / 2


@pytest.mark.parametrize("x", np.linspace(0, 1, 21))
def test_the_unlimited_forms_by_quadrature(x):
    c, turn = 1 / (2 * math.sinh(1)), math.asinh((2 * x - 1) * math.sinh(1))

    def moment(power):
        ones = integral(lambda h: (0.5 + c * np.exp(h)) ** power / 2, -1, turn)
        return ones + integral(lambda h: (0.5 - c * np.exp(-h)) ** power / 2, turn, 1)

    mean, square = moment(1), moment(2)
    assert mean == pytest.approx(x, abs=1e-12)
    assert square - x * x == pytest.approx(float(onebit.squared_error(x, "optimal_unbiased")), abs=1e-12)

    def one(h):
        return (0.5 + k * np.exp(h) - x) ** 2

    def zero(h):
        return (0.5 - k * np.exp(-h) - x) ** 2

    k = 0.5 * math.exp(-0.5)
    turn = float(np.clip(math.asinh((x - 0.5) / k), -0.5, 0.5))
    ends = sum(float(min(one(h), zero(h))) for h in (-0.5, 0.5)) / 4
    total = ends + (integral(one, -0.5, turn) + integral(zero, turn, 0.5)) / 2
    assert total == pytest.approx(float(onebit.squared_error(x, "optimal_biased")), abs=1e-12)

    def clipped(t):
        return (np.clip(np.where(t <= x, t + 0.5, t - 0.5), Z, 1 - Z) - x) ** 2

    edges = np.unique([0, 0.5 - Z, x, 0.5 + Z, 1])
    total = sum(integral(clipped, a, b) for a, b in itertools.pairwise(edges))
    assert total == pytest.approx(float(onebit.squared_error(x, "clipped_dither")), abs=1e-12)


@pytest.mark.parametrize(("scheme", "bits"), SERVED)
def test_monte_carlo_agrees_within_four_sigma(scheme, bits):
    n = 200_000
    for i, x in enumerate([0.0, 0.13, 0.5, 0.81, 1.0]):
        options = {"scheme": scheme, "shared_bits": bits, "key": lb.Key(77).fold(scheme, i)}
        y = onebit.decode(onebit.encode(np.full(n, x), **options), n, **options).astype(np.float64)
        sent = float(np.float32(x))
        errors = (y - sent) ** 2
        expected = float(onebit.squared_error(sent, scheme, bits))
        assert abs(errors.mean() - expected) <= 4 * errors.std() / math.sqrt(n) + 1e-6, f"error at {x}"
        if (scheme, bits) in UNBIASED:
            assert abs(y.mean() - sent) <= 4 * y.std() / math.sqrt(n) + 1e-6, f"mean at {x}"


@pytest.mark.usefixtures("_settings_restored")
@pytest.mark.parametrize(("scheme", "bits"), SERVED)
def test_the_kernel_is_the_reference_bit_for_bit(scheme, bits):
    rng = np.random.default_rng(5)
    for n in (0, 1, 7, 8, 9, 1000, 4097, 70_001):
        for low, high in ((0.0, 1.0), (-2.5, 0.7)):
            x = np.clip((low + (high - low) * rng.random(n)).astype(np.float32), np.float32(low), np.float32(high))
            x[: min(n, 4)] = [low, high, -0.0, (low + high) / 2][: min(n, 4)]
            key = lb.Key(3).fold(n)
            options = {"scheme": scheme, "shared_bits": bits, "sender": 9, "low": low, "high": high, "key": key}
            want = reference.onebit_encode(x, **options)
            want_y = reference.onebit_decode(want, n, **options)
            for level in _core.cpu_levels():
                _core.set_cpu_level(level)
                for threads in (1, 2, 7) if n > 4097 else (1,):
                    lb.set_num_threads(threads)
                    got = onebit.encode(x, **options)
                    np.testing.assert_array_equal(got, want, f"encode, {n}, {level}, {threads} threads")
                    y = onebit.decode(got, n, **options)
                    np.testing.assert_array_equal(y.view(np.uint32), want_y.view(np.uint32), f"decode, {n}, {level}")


def test_any_layout_and_float_type_is_the_same_numbers():
    options = {"scheme": "optimal_unbiased", "key": 4}
    x = np.random.default_rng(1).random((6, 33, 5)).astype(np.float16)
    want = onebit.encode(x, **options)
    frozen = x.copy()
    frozen.flags.writeable = False
    flipped = x[::-1, ::-1].copy()[::-1, ::-1]
    for same in (x.astype(np.float32), x.astype(">f8"), np.asfortranarray(x), flipped, frozen, x.tolist()):
        np.testing.assert_array_equal(onebit.encode(same, **options), want)
    assert onebit.decode(want, x.shape, **options).shape == x.shape
    assert onebit.decode(onebit.encode(np.float32(0.5), **options), (), **options).shape == ()


@pytest.mark.parametrize(("scheme", "bits"), UNBIASED)
def test_two_senders_differ_and_their_errors_average_out(scheme, bits):
    x = np.full(20_000, 0.4, np.float32)
    options = {"scheme": scheme, "shared_bits": bits, "key": 8}
    one, two = (onebit.encode(x, sender=s, **options) for s in (0, 1))
    assert not np.array_equal(one, two), "different senders throw different coins"
    mean = (onebit.decode(one, x.shape, sender=0, **options) + onebit.decode(two, x.shape, sender=1, **options)) / 2
    single = float(onebit.squared_error(0.4, scheme, bits))
    assert np.mean((mean - 0.4) ** 2) == pytest.approx(single / 2, rel=0.06)


def test_private_noise_takes_a_generator():
    x = np.linspace(0, 1, 100)
    for scheme, bits in (("randomized", None), ("dither", 0), ("optimal_unbiased", 0)):
        sent = onebit.encode(x, scheme=scheme, shared_bits=bits, key=np.random.default_rng(2))
        words = np.random.default_rng(2).integers(0, 1 << 64, size=2, dtype=np.uint64)
        again = onebit.encode(x, scheme=scheme, shared_bits=bits, key=lb.Key.from_words(*words.tolist()))
        np.testing.assert_array_equal(sent, again)
        assert set(onebit.decode(sent, 100, scheme=scheme, shared_bits=bits)) == {0.0, 1.0}, "no key to decode"
    with pytest.raises(TypeError, match="key: 'dither' shares words"):
        onebit.encode(x, scheme="dither", key=np.random.default_rng(2))
    with pytest.raises(TypeError, match="key: a Generator cannot"):
        onebit.decode(sent, 100, scheme="randomized", key=np.random.default_rng(2))


def test_nothing_random_needs_no_key():
    x = np.array([0.0, 0.49, 0.5, 1.0], np.float32)
    for scheme, bits in (("deterministic", None), ("optimal_biased", 0)):
        sent = onebit.encode(x, scheme=scheme, shared_bits=bits)
        assert sent.tolist() == [0b1100]
        assert onebit.decode(sent, 4, scheme=scheme, shared_bits=bits).tolist() == [0.25, 0.25, 0.75, 0.75]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [0.5, 1.5]}, lb.Error, r"x: element 1 \(C order\) is 1.5, outside"),
        ({"x": [0.5, 0.1, -1e-9]}, lb.Error, "x: element 2 "),
        ({"x": [np.nan]}, lb.Error, "x: element 0 .* NaN"),
        ({"x": [[0.5, np.inf]]}, lb.Error, "x: element 1 "),
        ({"x": [1, 0]}, TypeError, "x: dtype int64"),
        ({"x": [1j]}, TypeError, "x: dtype complex128"),
        ({"x": np.ma.masked_array([0.5])}, TypeError, "x: "),
        ({"scheme": "magic"}, lb.Error, 'scheme: "magic" is not known; known are: deterministic, randomized'),
        ({"scheme": "randomized", "shared_bits": 1}, lb.Error, "shared_bits: .* it serves 0 or None"),
        ({"scheme": "clipped_dither", "shared_bits": 3}, lb.Error, "shared_bits: .* it serves None"),
        ({"shared_bits": 17}, lb.Error, "shared_bits: .* it serves 0 to 16 and None"),
        ({"shared_bits": 1 << 40}, lb.Error, "shared_bits: "),
        ({"shared_bits": -1}, lb.Error, "shared_bits: "),
        ({"shared_bits": 1.0}, TypeError, "shared_bits: "),
        ({"key": None}, lb.Error, r"key: .*lowbit.Key\(seed\)"),
        ({"key": None, "scheme": "randomized"}, lb.Error, "key: .* not used before"),
        ({"key": "secret"}, TypeError, "key: "),
        ({"sender": -1}, lb.Error, "sender: "),
        ({"sender": True}, TypeError, "sender: "),
        ({"low": 1.0}, lb.Error, "low: must be finite and less than high"),
        ({"low": np.nan}, lb.Error, "low: "),
        ({"high": np.inf}, lb.Error, "low: .*high = inf"),
        ({"low": -3e38, "high": 3e38}, lb.Error, "high: high - low"),
        ({"low": 0.0, "high": 1e-40}, lb.Error, "high: high - low"),
        ({"low": "a"}, TypeError, "low: expected one real number"),
        ({"high": "0.5"}, TypeError, "high: expected one real number"),
        ({"high": None}, TypeError, "high: expected one real number"),
        ({"high": True}, TypeError, "high: expected one real number"),
        ({"low": [0.0]}, TypeError, "low: expected one real number"),
        ({"low": 1j}, TypeError, "low: expected one real number"),
        ({"low": -(10**400)}, TypeError, "low: expected one real number that float64 holds"),
        ({"scheme": None}, TypeError, "scheme: expected a name .* got NoneType"),
        ({"scheme": b"dither"}, TypeError, "scheme: expected a name .* got bytes"),
        ({"scheme": "\ud800"}, lb.Error, "scheme: .* is not known; known are: deterministic"),
    ],
)
def test_bad_input_to_encode_is_named(change, error, message):
    options = {"x": np.full(9, 0.5), "scheme": "dither", "key": 1} | change
    with pytest.raises(error, match=message):
        onebit.encode(options.pop("x"), **options)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"bits": np.zeros(1, np.uint8)}, lb.DecodeError, "1 bytes, but 9 numbers take 2"),
        ({"bits": np.zeros(3, np.uint8)}, lb.DecodeError, "3 bytes, but 9 numbers take 2"),
        ({"bits": np.array([0, 2], np.uint8)}, lb.DecodeError, "the rest must be zero"),
        ({"bits": np.zeros(2, np.int8)}, TypeError, "bits: expected"),
        ({"bits": np.ma.masked_array(np.zeros(2, np.uint8))}, TypeError, "bits: a masked array"),
        ({"bits": np.zeros((1, 2), np.uint8)}, TypeError, "bits: expected"),
        ({"shape": 1 << 62}, lb.DecodeError, "2 bytes"),
        ({"shape": (1 << 40, 1 << 40)}, lb.Error, "shape: "),
        ({"shape": -9}, lb.Error, "shape: "),
        ({"shape": 9.0}, TypeError, "shape: "),
        ({"key": None}, lb.Error, "key: "),
        ({"scheme": "magic"}, lb.Error, "scheme: "),
        ({"high": 0.0}, lb.Error, "low: "),
        ({"high": "1"}, TypeError, "high: "),
        ({"scheme": 3}, TypeError, "scheme: "),
        ({"scheme": "dither\udfff"}, lb.Error, "scheme: "),
    ],
)
def test_bad_input_to_decode_is_named(change, error, message):
    options = {"bits": np.zeros(2, np.uint8), "shape": 9, "scheme": "dither", "key": 1} | change
    with pytest.raises(error, match=message):
        onebit.decode(options.pop("bits"), options.pop("shape"), **options)


def test_bad_input_to_the_formulas_is_named():
    with pytest.raises(lb.Error, match="x: element 1 "):
        onebit.squared_error([0.5, 1.01], "dither")
    with pytest.raises(lb.Error, match="shared_bits: "):
        onebit.worst_case_error("randomized", 2)
    with pytest.raises(lb.Error, match="scheme: "):
        onebit.squared_error(0.5, "magic")
    for bad in (3, None, ["dither"]):
        with pytest.raises(TypeError, match="scheme: "):
            onebit.worst_case_error(bad)
        with pytest.raises(TypeError, match="scheme: "):
            onebit.squared_error(0.5, bad)
    with pytest.raises(lb.Error, match="scheme: "):
        onebit.worst_case_error("\ud800")


def test_any_real_number_is_an_end_of_the_interval():
    x = np.linspace(-1, 2, 50)
    want = onebit.encode(x, scheme="dither", key=1, low=-1.0, high=2.0)
    for kind in (int, np.int8, np.float16, np.float32, np.float64, np.array):
        got = onebit.encode(x, scheme="dither", key=1, low=kind(-1), high=kind(2))
        np.testing.assert_array_equal(got, want)


def rounding_upward(call):
    """Run `call` with the caller's rounding mode set to upward."""
    upward = {"x86_64": 0x800, "aarch64": 0x400000}.get(platform.machine())
    if upward is None or sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        pytest.skip("no known way to round upward on this platform")
    libm = ctypes.CDLL("libm.so.6")
    third = np.float64(1), np.float64(3)
    nearest = third[0] / third[1]
    assert libm.fesetround(upward) == 0
    try:
        upwards, result = third[0] / third[1], call()
    finally:
        libm.fesetround(0)
    assert upwards > nearest, "the division was meant to round upward"
    return result


@pytest.mark.parametrize(("scheme", "bits"), SERVED)
def test_the_callers_rounding_mode_never_shows(scheme, bits):
    x = np.random.default_rng(2).uniform(0.101, 0.699, 1000)
    options = {"scheme": scheme, "shared_bits": bits, "key": lb.Key(1), "low": np.float64(0.1), "high": 0.7}
    sent = onebit.encode(x, **options)
    read = onebit.decode(sent, x.shape, **options)
    got = rounding_upward(lambda: (onebit.encode(x, **options), onebit.decode(sent, x.shape, **options)))
    np.testing.assert_array_equal(got[0], sent)
    np.testing.assert_array_equal(got[1].view(np.uint32), read.view(np.uint32))
    pairs = _core.onebit_pairs(scheme, bits)
    assert rounding_upward(lambda: _core.onebit_pairs(scheme, bits)) == pairs


@pytest.mark.parametrize(("scheme", "bits"), SERVED)
def test_a_caller_that_flushes_subnormals_never_shows(scheme, bits):
    options = {"scheme": scheme, "shared_bits": bits, "key": lb.Key(1), "low": -6e-39, "high": 1.2e-38}
    x = np.random.default_rng(2).uniform(-6e-39, 1.2e-38, 1000).clip(-5.99e-39, 1.19e-38).astype(np.float32)
    sent = onebit.encode(x, **options)
    read = onebit.decode(sent, x.shape, **options)
    got = on_flushing_thread(lambda: (onebit.encode(x, **options), onebit.decode(sent, x.shape, **options)))
    if got is None:
        pytest.skip("this platform offers no way to flush subnormals")
    np.testing.assert_array_equal(got[0], sent)
    np.testing.assert_array_equal(got[1].view(np.uint32), read.view(np.uint32))


def test_a_number_just_outside_is_found_by_a_caller_that_flushes_subnormals():
    x = np.array([0.5, -1e-40], np.float32)

    def message():
        with pytest.raises(lb.Error) as caught:
            onebit.encode(x, scheme="dither", key=1)
        return str(caught.value)

    want = message()
    assert want.startswith("x: element 1 (C order) is -0.0000")
    assert on_flushing_thread(message) in (None, want)


def test_bits_may_be_written_by_another_thread_meanwhile():
    """What is read is then undefined, as with NumPy; but it is no error."""
    n = 1 << 21
    bits, errors = np.zeros(n // 8, np.uint8), []
    x = np.zeros(n // 4, np.float32)
    lb.set_num_threads(1)

    def write():
        try:
            for _ in range(30):
                lb.quantize(x, "int4", scale=1.0, out=bits)
        except Exception as error:
            errors.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    for _ in range(30):
        onebit.decode(bits, n, scheme="dither", key=1)
    writer.join()
    assert not errors


def test_version_1_gives_these_bytes_for_ever():
    golden = json.loads((Path(__file__).parent / "golden" / "onebit-v1.json").read_text())
    n, words = golden["count"], lb.random_bits(golden["seed"], golden["count"])
    x = ((words >> np.uint32(8)) * 2.0**-24).astype(np.float32)
    assert {message["scheme"] for message in golden["messages"]} == set(SCHEMES)
    for message in golden["messages"]:
        options = {name: message[name] for name in ("scheme", "shared_bits")}
        options |= {"key": golden["seed"], "sender": golden["sender"]}
        bits = onebit.encode(x, **options)
        assert bits.tobytes().hex() == message["bits"], f"bits of {options}"
        assert onebit.decode(bits, n, **options).astype("<f4").tobytes().hex() == message["estimates"], f"{options}"


def test_the_page_says_what_the_functions_say():
    page = Path(__file__).parents[1] / "docs" / "onebit.md"
    failed, tried = doctest.testfile(str(page), module_relative=False)
    assert tried >= 7
    assert failed == 0
