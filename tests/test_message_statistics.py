"""What the codecs promise on average, against closed forms, with fixed seeds: errors, bias, sizes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

import lowbit as lb
from lowbit.reference.hadamard import rotate
from lowbit.reference.rotation import turns
from message_support import ROTATING
from support import normal

KEY = lb.Key(2026).fold("statistics")
FULL = 1 << 16


def error(x: np.ndarray, y: np.ndarray) -> float:
    """The squared error as a share of the squared norm."""
    wide = x.astype(np.float64)
    return float(np.sum((y - wide) ** 2) / np.sum(wide**2))


def errors(x: np.ndarray, codec: Any, count: int, key: lb.Key = KEY) -> np.ndarray:
    """The error of `count` senders' messages of the same vector."""
    return np.array([error(x, sent(x, codec, s, key)) for s in range(count)])


def sent(x: np.ndarray, codec: Any, sender: int, key: lb.Key = KEY) -> np.ndarray:
    return np.asarray(lb.decode(lb.encode(x, codec, key=key, sender=sender), key=key))


def mean_error(x: np.ndarray, codec: Any, count: int) -> tuple[float, float]:
    """Mean error of one message over keys, and the standard error of that mean."""
    made = np.array([error(x, sent(x, codec, 0, KEY.fold(i))) for i in range(count)])
    return float(made.mean()), float(made.std() / math.sqrt(count))


def near(found: tuple[float, float], want: float, slack: float = 0.002) -> None:
    """Four standard errors, and what a finite dimension and float32 may add."""
    mean, standard = found
    assert abs(mean - want) <= 4 * standard + slack * want, f"{mean:.6g} +- {standard:.2g}, wanted {want:.6g}"


# --- One message: the published errors -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "want"),
    [
        (lb.Eden(0.1), 14.708),
        (lb.Eden(0.25), 5.28319),
        (lb.Eden(0.5), 2.14159),
        (lb.Eden(0.75), 1.0944),
        (lb.Eden(1), 0.5707963),
        (lb.Drive(), 0.5707963),
        (lb.Eden(1.5), 0.316536),
        (lb.Eden(2), 0.1331212),
        (lb.Eden(2.5), 0.0822684),
        (lb.Eden(3), 0.0357840),
        (lb.Eden(3.5), 0.0225204),
        (lb.Eden(4), 0.00959214),
        (lb.Eden(5), 0.00251096),
        (lb.Eden(6), 0.000644655),
        (lb.Eden(7), 0.000163505),
        (lb.Eden(8), 4.1187e-5),
        (lb.Eden(1, "min_error"), 0.3633802),
        (lb.Eden(2, "min_error"), 0.1174818),
        (lb.Eden(3, "min_error"), 0.0345478),
        (lb.Eden(4, "min_error"), 0.00950101),
        (lb.Eden(8, "min_error"), 4.1185e-5),
        (lb.Eden(1, "norm"), 0.4042309),
        (lb.Eden(2, "norm"), 0.1211513),
        (lb.Eden(3, "norm"), 0.0348514),
        (lb.Eden(4, "norm"), 0.00952368),
        (lb.Eden(0.1, entropy_coded=True), 9.9313),
        (lb.Eden(0.2, entropy_coded=True), 4.7983),
        (lb.Eden(0.5, entropy_coded=True), 1.61326),
        (lb.Eden(0.9, entropy_coded=True), 0.65162),
        (lb.Eden(1, entropy_coded=True), 0.534697),
        (lb.Eden(2, entropy_coded=True), 0.0976409),
        (lb.Eden(3, entropy_coded=True), 0.0227447),
        (lb.Eden(4, entropy_coded=True), 0.00559081),
    ],
    ids=str,
)
def test_errors_of_eden(codec: Any, want: float) -> None:
    """Lloyd and Max's distortions, and those of grids of the same entropy (docs and facts: arXiv:2108.08842)."""
    x = np.exp(normal(FULL))  # LogNormal(0, 1), as in the papers
    near(mean_error(x, codec, 40), want)


@pytest.mark.parametrize(("bits", "most"), [(1, 1.4671), (2, 0.21493), (3, 0.04313), (4, 0.009690)])
def test_errors_of_quic_fl(bits: int, most: float) -> None:
    mean, standard = mean_error(np.exp(normal(FULL)), lb.QuicFl(bits), 40)
    assert mean <= most + 4 * standard, f"{mean:.6g} +- {standard:.2g}"
    assert mean > 0.9 * most


def test_errors_of_drive_plus() -> None:
    """Never above Drive's on the same rotation, and near it: rotated numbers are nearly normal."""
    x = np.exp(normal(FULL))
    near(mean_error(x, lb.DrivePlus(), 40), math.pi / 2 - 1)
    for n in (128, 1000):
        short = np.exp(2 * normal(n))
        plus, drive = (errors(short, codec, 200).mean() for codec in (lb.DrivePlus(), lb.Drive()))
        assert plus <= drive * 1.001


@pytest.mark.parametrize("bits", range(1, 9))
def test_errors_of_summable(bits: int) -> None:
    """A step's square over 12, and what lies beyond the grid."""
    reach = 3.0972691
    delta, tail = 2 * reach / (2**bits - 1), stats.norm.sf(reach)
    density = stats.norm.pdf(reach)
    clipped = 2 * ((1 + reach**2) * tail - reach * density)  # E (|Z| - T)^2 beyond T, at the least
    mean, standard = mean_error(normal(FULL), lb.Summable(bits), 20)
    assert abs(mean - delta**2 / 12) <= 4 * standard + 0.1 * delta**2 / 12 + 2 * clipped


# --- Identities of one vector ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize("n", [128, 4096])
def test_the_identities_of_one_vector(n: int, rounds: int) -> None:
    """Given the rotated y the errors are known: d |y|^2 / |y|_1^2 - 1, 1 - |y|_1^2 / (d |y|^2), and between."""
    for sender, make in enumerate((normal, lambda n: np.exp(2 * normal(n, 1)), lambda n: normal(n, 2) ** 3)):
        x = np.asarray(make(n), np.float32)
        words = KEY.fold("rotation", sender).words
        y = rotate(x, words, 0, rounds=turns(rounds, n)).astype(np.float64)
        ratio = n * np.sum(y**2) / np.sum(np.abs(y)) ** 2
        wanted = {"unbiased": ratio - 1, "min_error": 1 - 1 / ratio, "norm": 2 - 2 / math.sqrt(ratio)}
        for scale, want in wanted.items():
            got = error(x, sent(x, lb.Eden(1, scale, rounds=rounds), sender))
            assert got == pytest.approx(want, rel=3e-5), f"{scale}, sender {sender}"


@pytest.mark.parametrize("bits", [0.3, 1, 1.7, 2, 3, 4.5, 8])
@pytest.mark.parametrize("entropy_coded", [False, True], ids=["codebook", "entropy-coded"])
def test_scales_are_in_their_order(bits: float, entropy_coded: bool) -> None:
    """min_error <= norm <= unbiased for every vector, and the second keeps the norm."""
    for n in (512, 4096, 65536 + 1024):  # no padding, whose error nobody sees
        x = np.exp(normal(n))
        for sender in range(5):
            codecs = [lb.Eden(bits, scale, entropy_coded=entropy_coded) for scale in ("min_error", "norm", "unbiased")]
            made = [sent(x, codec, sender) for codec in codecs]
            found = [error(x, y) for y in made]
            assert found == sorted(found)
    x = np.exp(normal(4096))
    y = sent(x, lb.Eden(bits, "norm", entropy_coded=entropy_coded), 1)
    assert np.linalg.norm(y) == pytest.approx(np.linalg.norm(x), rel=1e-5)


# --- One rotation is biased, two are not -----------------------------------------------------------------------------


def sparse(values: list[float], n: int = 4096) -> np.ndarray:
    x = np.zeros(n, np.float32)
    x[: len(values)] = values
    return x


@pytest.mark.parametrize(
    ("values", "want", "wrong"),
    [
        ([3, 1, 1], [11 / 3], 0.2222),
        ([2.0**-i for i in range(1, 20)], [2 / 3], 1 / 3),
        ([1, 1], None, 1.0),
        ([1], [1], 0.0),
    ],
    ids=["3, 1, 1", "powers of 1/2", "1, 1", "1"],
)
def test_one_rotation_is_biased_and_two_are_not(values: list[float], want: list[float] | None, wrong: float) -> None:
    """Whoever averages cannot see it: all messages are wrong alike (facts: derived oracles)."""
    x = sparse(values)
    once, twice = (errors(x, lb.Eden(1, rounds=r), 100) for r in (1, 2))
    np.testing.assert_allclose(once, wrong, atol=2e-4)
    if want is not None:
        for sender in range(20):
            y = sent(x, lb.Eden(1, rounds=1), sender)
            np.testing.assert_allclose(y, sparse(want), atol=2e-5)
    near((float(twice.mean()), float(twice.std() / 10)), math.pi / 2 - 1, slack=0.01)
    assert not_biased(x, lb.Drive(), 4000, "two rotations")


# --- No bias ----------------------------------------------------------------------------------------------------------


def mean_of(x: np.ndarray, codec: Any, count: int) -> np.ndarray:
    """The mean of what `count` senders, each with noise of its own, send of one vector."""
    mean = lb.Mean(KEY)
    for sender in range(count):
        mean.add(lb.encode(x, codec, key=KEY, sender=sender))
    return np.asarray(mean.result()).astype(np.float64)


def not_biased(x: np.ndarray, codec: Any, count: int, what: object) -> bool:
    """Whether the squared norm of the mean error is what independent errors leave of one message's."""
    single = errors(x, codec, 200)
    left = error(x, mean_of(x, codec, count))
    if left < 1e-8:  # what adding up 10^4 float32 numbers costs
        return True
    ratio = left * count / single.mean()
    # Like chi-square over its degrees of freedom: the numbers' own errors. Heavy tails and 200 messages: some more.
    most = stats.chi2.isf(1e-7, x.size) / x.size * 1.15
    print(f"{codec!s:70} {what!s:>6}: error {single.mean():.3g}, squared bias {left:.3g}, {ratio:.3f} of 1 / n")
    return bool(ratio <= most)


UNBIASED = [
    lb.Packed("int4", rounding="stochastic"),
    lb.Packed("radix4", block_size=16, rounding="stochastic"),
    lb.Packed("nf4", rounding="stochastic"),
    lb.Dither(1),
    lb.Dither(2, -8.0, 8.0),
    lb.OneBit("randomized", -8.0, 8.0),
    lb.OneBit("dither", -8.0, 8.0),
    lb.OneBit("optimal_unbiased", -8.0, 8.0),
    lb.TernGrad(),
    lb.Qsgd(3),
    lb.Drive(),
    lb.Eden(0.5),
    lb.Eden(2.5),
    lb.Eden(1, entropy_coded=True),
    lb.DrivePlus(),
    lb.QuicFl(1),
    lb.QuicFl(3),
]


@pytest.mark.parametrize("codec", UNBIASED, ids=str)
def test_no_bias_beyond_sampling_error(codec: Any) -> None:
    """10^4 senders' mean of one vector, lengths from 1 to 130 and 4096."""
    assert codec.unbiased in {"exact", "asymptotic"}
    for n in (1, 2, 3, 13, 64, 127, 130):
        x = np.clip(np.exp(normal(n)) - 0.5, -8, 8).astype(np.float32)
        assert not_biased(x, codec, 10_000, n)
    # One number, much smaller ones, nothing: where too few rotations leave ties.
    for x in (
        [1, 0.01],
        [1, 0.9],
        [3, 1, 1],
        np.r_[1, 1e-3 * normal(126)],
        np.r_[2.0 ** -np.arange(20), np.zeros(980)],
    ):
        assert not_biased(np.asarray(x, np.float32), codec, 10_000, f"sparse {len(x)}")
    assert not_biased(np.clip(normal(4096) ** 3, -8, 8), codec, 2_000, 4096)


def test_which_codecs_say_that_they_are_unbiased() -> None:
    exact = [lb.Float32(), *UNBIASED[:10], lb.QuicFl(2), lb.OneBit("optimal_unbiased", shared_bits=2)]
    exact += [lb.Packed(name, rounding="stochastic") for name in ("bfloat16", "luq4", "radix(8,3)")]
    asymptotic = [lb.Eden(0.3), lb.Eden(3), lb.DrivePlus(), lb.Eden(2, entropy_coded=True)]
    no = [
        lb.Eden(2, "min_error"),
        lb.Eden(2, "norm"),
        lb.Sign(),
        lb.Sign("l2"),
        lb.Packed("int4"),
        lb.OneBit("deterministic"),
        lb.OneBit("optimal_biased"),
        lb.OneBit("clipped_dither"),
        lb.Summable(4),
    ]
    # What each clips: what is negative, the largest, what is beyond the grid, beyond a power of two, beyond the mean.
    clipping = ["uint4", "radix4_odd", "fp8_e4m3fn", "fixed(8,4)", "cfloat16(uhp)", "mxfp4", "nvfp4", "ternary", "sign"]
    no += [lb.Packed(name, rounding="stochastic") for name in clipping]
    no += [lb.Packed("table(-1,0,1)", rounding="stochastic")]
    for answer, codecs in (("exact", exact), ("asymptotic", asymptotic), ("no", no)):
        for codec in codecs:
            assert codec.unbiased == answer, codec


@pytest.mark.parametrize(
    "codec",
    [
        lb.Drive(),
        lb.Eden(0.5),
        lb.Eden(1, entropy_coded=True),
        lb.DrivePlus(),
        lb.QuicFl(1),
        lb.Dither(1),
        lb.TernGrad(),
    ],
    ids=str,
)
def test_the_mean_of_n_falls_as_one_over_n(codec: Any) -> None:
    x = normal(4096)
    single = float(errors(x, codec, 50).mean())
    for n in (2, 10, 100, 1000):
        assert error(x, mean_of(x, codec, n)) * n == pytest.approx(single, rel=0.12), n


def test_what_a_biased_scale_leaves() -> None:
    """The mean of n of the least errors D: D^2 + D (1 - D) / n; the unbiased scale is better from n = 3."""
    x, d = normal(FULL), 0.3633802
    for n in (1, 2, 3, 10, 100):
        biased, unbiased = (error(x, mean_of(x, lb.Eden(1, scale), n)) for scale in ("min_error", "unbiased"))
        assert biased == pytest.approx(d**2 + d * (1 - d) / n, rel=0.02)
        assert (unbiased < biased) == (n >= 3)


# --- What codecs tell of themselves ----------------------------------------------------------------------------------


def typical(codec: Any, n: int, seed: int) -> np.ndarray:
    """A vector of the kind that `expected_error` speaks of."""
    if isinstance(codec, (lb.Dither, lb.OneBit)):
        low, high = (-1.0, 1.0) if codec.low is None else (codec.low, codec.high)
        return np.random.default_rng([seed, n]).uniform(low, high, n).astype(np.float32)
    return normal(n, seed)


TOLD = [
    lb.Float32(),
    lb.Packed("int4"),
    lb.Packed("int4", block_size=32, rounding="stochastic"),
    lb.Packed("radix4", rounding="stochastic"),
    lb.Packed("radix(2,2)"),
    lb.Packed("ternary"),
    lb.Packed("ternary", block_size=40, rounding="stochastic"),
    lb.Packed("sign", block_size=9),
    lb.Packed("fp4_e2m1"),
    lb.Packed("fp8_e5m2", rounding="stochastic"),
    lb.Packed("log(4,0.5,0.05)"),
    lb.Packed("float16"),
    lb.Packed("cfloat16(uhp)"),
    lb.Packed("mxfp4"),
    lb.Packed("mxfp6", rounding="stochastic"),
    lb.Packed("mxint8"),
    lb.Packed("bfp(4)"),
    lb.Packed("nvfp4"),
    lb.Packed("nvfp4", rounding="stochastic"),
    lb.Packed("block(fp8_e4m3fn,e4m3,32)"),
    lb.Dither(1),
    lb.Dither(4),
    lb.Dither(3, -2.0, 2.0),
    lb.OneBit("randomized"),
    lb.OneBit("optimal_biased"),
    lb.OneBit("dither", -1.0, 1.0, shared_bits=2),
    lb.Sign(),
    lb.Sign("l2"),
    lb.TernGrad(),
    lb.Qsgd(1),
    lb.Qsgd(100),
    *(lb.Eden(bits, scale) for bits in (0.2, 1, 2.5, 4) for scale in ("unbiased", "min_error", "norm")),
    lb.Eden(0.3, entropy_coded=True),
    lb.Eden(2, "min_error", entropy_coded=True),
    lb.DrivePlus(),
    *(lb.QuicFl(bits) for bits in (1, 2, 3, 4)),
    *(lb.Summable(bits) for bits in (1, 4, 8)),
]


@pytest.mark.parametrize("codec", TOLD, ids=str)
def test_expected_error(codec: Any) -> None:
    # Below one bit the first numbers of a block are sent, whose error is not spread evenly over the padding.
    short = 200 if getattr(codec, "bits", 1) >= 1 else 1024
    for n, count, slack in ((short, 400, 0.06), (4096, 60, 0.02), (5000, 60, 0.02)):
        made = np.array([error(x := typical(codec, n, i), sent(x, codec, 0, KEY.fold(i))) for i in range(count)])
        near((float(made.mean()), float(made.std() / math.sqrt(count))), codec.expected_error(n), slack)


@pytest.mark.parametrize("codec", TOLD, ids=str)
def test_bits_per_element(codec: Any) -> None:
    for n in (1, 15, 1000, 4097, 200_000):
        made = 8 * np.mean([len(lb.encode(typical(codec, n, i), codec, key=KEY, sender=i)) for i in range(10)]) / n
        told = codec.bits_per_element(n)
        varies = isinstance(codec, lb.QuicFl) or (isinstance(codec, lb.Eden) and codec.entropy_coded)
        if not varies:
            assert told == pytest.approx(made, rel=1e-12), n
        else:
            # Padding to 16 bytes hides up to that much; the table of frequencies and the outliers vary.
            assert abs(told - made) <= 0.02 * made + 8 * 32 / n, n


@pytest.mark.parametrize("bits", [0.05, 0.1, 0.5, 1, 2, 3.3, 6])
def test_entropy_coded_messages_take_the_bits_asked_for(bits: float) -> None:
    x = np.exp(normal(1 << 20))
    real = 8 * len(lb.encode(x, lb.Eden(bits, entropy_coded=True), key=KEY)) / x.size
    assert bits * 0.99 < real < bits * 1.01 + 0.005, real


@pytest.mark.parametrize("codec", [lb.Eden(1), lb.Eden(0.3), lb.Eden(3.7), lb.QuicFl(2), lb.Summable(3)], ids=str)
def test_real_bytes_of_long_vectors(codec: Any) -> None:
    n = 1 << 20
    real = 8 * len(lb.encode(normal(n), codec, key=KEY)) / n
    outliers = 48 / 512 if isinstance(codec, lb.QuicFl) else 0
    assert codec.bits + outliers - 0.01 < real < codec.bits + outliers + 0.02


def test_rotating_codecs_need_not_know_the_distribution() -> None:
    """The error is the same for every kind of vector, once it is long and rotated twice."""
    n = 8192
    kinds = {"normal": normal(n), "spike": sparse([1.0], n), "lognormal": np.exp(2 * normal(n)), "ones": np.ones(n)}
    for codec in (lb.Drive(), lb.Eden(3), lb.QuicFl(2), lb.Summable(4), lb.DrivePlus()):
        assert isinstance(codec, ROTATING)
        for x in kinds.values():
            near(mean_error(x.astype(np.float32), codec, 60), codec.expected_error(n), 0.01)
