"""The codecs' tables: that they are what they claim to be, and the same in Rust, the reference and the package."""

from __future__ import annotations

import importlib.util
import math
import re
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import ndtr

from lowbit import _core, _tables
from lowbit.reference import tables

ROOT = Path(__file__).resolve().parent.parent
T = float(tables.QUICFL_T)
BITS = sorted(tables.QUICFL_VALUES)


def density(x):
    return np.exp(-np.square(x) / 2) / math.sqrt(2 * math.pi)


@pytest.fixture(scope="module")
def solver() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quicfl", ROOT / "tables/quicfl.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Lloyd-Max codebooks.

#: Of EDEN's public code (arXiv 2108.08842), which is not quite converged at four bits.
PUBLISHED = {
    1: [0.7978845608],
    2: [0.4527800399, 1.5104176087],
    3: [0.2450941631, 0.7560052490, 1.3439092614, 2.1519456699],
    4: [
        *(0.1283950167, 0.3880482345, 0.6567589958, 0.9423402689),
        *(1.2562309480, 1.6180460517, 2.0690167302, 2.7325888041),
    ],
}


def edges(bits: int) -> np.ndarray:
    return np.concatenate([[0], np.float64(tables.BOUNDARIES[bits]), [np.inf]])


@pytest.mark.parametrize("bits", range(1, 9))
def test_centroids_are_the_means_of_their_cells(bits: int) -> None:
    low, high = edges(bits)[:-1], edges(bits)[1:]
    centroids = np.float64(tables.CENTROIDS[bits])
    assert centroids.shape == (2 ** (bits - 1),)
    # Masses from the upper tail, where they are small.
    means = (density(low) - density(high)) / (ndtr(-low) - ndtr(-high))
    np.testing.assert_allclose(centroids, means, rtol=2.5e-7)


@pytest.mark.parametrize("bits", range(1, 9))
def test_boundaries_are_the_middles(bits: int) -> None:
    centroids = np.float64(tables.CENTROIDS[bits])
    assert np.all(np.diff(centroids) > 0)
    # Rounded from the middles of the float64 centroids: one rounding here, half of two there.
    np.testing.assert_allclose(tables.BOUNDARIES[bits], (centroids[1:] + centroids[:-1]) / 2, rtol=2**-23)


@pytest.mark.parametrize("bits", PUBLISHED)
def test_centroids_are_the_published_ones(bits: int) -> None:
    np.testing.assert_allclose(tables.CENTROIDS[bits], PUBLISHED[bits], rtol=3e-7)


@pytest.mark.parametrize("bits", range(1, 9))
def test_distortion_is_that_of_the_codebook(bits: int) -> None:
    error = 0.0
    for c, (low, high) in zip(np.float64(tables.CENTROIDS[bits]), pairwise(edges(bits)), strict=True):
        error += 2 * quad(lambda z, c=c: (z - c) ** 2 * density(z), low, high, epsabs=0, epsrel=1e-11)[0]
    assert _tables.LLOYD_MAX_DISTORTION[bits] == pytest.approx(error, rel=1e-9)


def test_distortions_are_the_known_ones() -> None:
    biased = [1, 0.3633802, 0.1174818, 0.0345478, 0.00950101, 0.00250467, 0.000644240, 0.000163478, 4.1185e-5]
    unbiased = [0.5707963, 0.1331212, 0.0357840, 0.00959214, 0.00251096, 0.000644655, 0.000163505, 4.1187e-5]
    ours = np.array(_tables.LLOYD_MAX_DISTORTION)
    np.testing.assert_allclose(ours, biased, rtol=1.2e-5, err_msg="five digits or more are known")
    np.testing.assert_allclose(ours[1:] / (1 - ours[1:]), unbiased, rtol=1.2e-5)
    assert ours[1] == pytest.approx(1 - 2 / math.pi, rel=1e-14)


# Entropy-coded grids.


def entropy(step: float) -> float:
    edge = (np.arange(math.ceil(12 / step) + 1) + 0.5) * step
    mass = np.concatenate([[1 - 2 * ndtr(-edge[0])], np.repeat(ndtr(-edge[:-1]) - ndtr(-edge[1:]), 2)])
    return float(-np.sum(mass * np.log2(mass)))


def test_a_grid_has_the_entropy_that_was_asked_for() -> None:
    for bits in np.geomspace(0.05, 8, 1500):
        assert entropy(float(tables.entropy_step(bits))) == pytest.approx(bits, rel=2e-5), bits


def test_steps_are_monotone_and_these_for_ever() -> None:
    grid = [tables.entropy_step(bits) for bits in np.linspace(0.05, 8, 10_001)]
    assert np.all(np.diff(grid) < 0)
    frozen = {0.05: 0x40B3D94E, 0.1: 0x40A249D8, 1.0: 0x401AFBD0, 1.7: 0x3FAF0897, 3.99999: 0x3E849E14, 8.0: 0x3C843FB4}
    assert {bits: int(tables.entropy_step(bits).view(np.uint32)) for bits in frozen} == frozen


def test_steps_are_the_same_bits_in_rust() -> None:
    for bits in [*np.random.default_rng(1).uniform(0.05, 8, 10_000), 0.05, 0.125, 1 / 3, 1, 2, 8]:
        assert _core.entropy_step(bits) == tables.entropy_step(bits), bits


@pytest.mark.parametrize(
    ("bits", "step", "error"),
    [
        (0.1, 5.0715142, 9.9313),
        (0.2, 4.4520260, 4.7983),
        (0.5, 3.4561779, 1.61326),
        (0.9, 2.6070499, 0.65162),
        (1, 2.4216195, 0.534697),
        (2, 1.0824465, 0.0976409),
        (3, 0.5224332, 0.0227447),
        (4, 0.2590167, 0.00559081),
    ],
)
def test_steps_and_errors_are_the_known_ones(bits: float, step: float, error: float) -> None:
    ours = float(tables.entropy_step(bits))
    assert ours == pytest.approx(step, rel=1e-6)
    cross, square = _tables.grid_moments(ours)
    assert square / cross**2 - 1 == pytest.approx(error, rel=1e-5)
    assert square / cross**2 - 1 > 1 / (4**bits - 1), "rate and distortion"


@pytest.mark.parametrize("step", [0.016, 0.3, 1.0, 2.5, 6.0])
def test_moments_of_a_grid(step: float) -> None:
    j = np.arange(1, math.ceil(15 / step) + 1)
    low, high = (j - 0.5) * step, (j + 0.5) * step
    cross = 2 * np.sum(j * step * (density(low) - density(high)))
    square = 2 * np.sum((j * step) ** 2 * (ndtr(-low) - ndtr(-high)))
    np.testing.assert_allclose(_tables.grid_moments(step), [cross, square], rtol=1e-12)


# QUIC-FL.


def tables_of(bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = (tables.QUICFL_VALUES[bits], tables.QUICFL_KNOTS[bits], tables.QUICFL_WIDTHS[bits])
    return tuple(np.float64(table) for table in found)


def expected(bits: int, z: np.ndarray, power: int = 1) -> np.ndarray:
    """E[value**power] over shared bits and coin, for every z, by the float32 knots and widths."""
    r, knots, widths = tables_of(bits)
    crossed = np.clip((z[:, None, None] - knots) / widths, 0, 1)
    return np.mean(r[:, 0] ** power) + np.sum(crossed * np.diff(r**power, axis=1), axis=(1, 2)) / len(r)


@pytest.mark.parametrize("bits", BITS)
def test_rows_ascend_and_are_mirrored(bits: int) -> None:
    r, knots, widths = tables_of(bits)
    rows, messages = 2 ** tables.QUICFL_SHARED_BITS[bits], 2**bits
    assert r.shape == (rows, messages)
    assert knots.shape == widths.shape == (rows, messages - 1)
    assert np.all(np.diff(r, axis=1) > 0)
    assert np.array_equal(r, -r[::-1, ::-1])
    assert np.all(widths > 0)
    assert np.all(knots[:, 1:] > (knots + widths)[:, :-1]), "a coin decides one gap of a row at most"


@pytest.mark.parametrize("bits", BITS)
def test_knots_follow_from_the_values(bits: int) -> None:
    r, knots, widths = tables_of(bits)
    pairs = sorted((r[h, x] + r[h, x + 1], h, x) for h in range(len(r)) for x in range(r.shape[1] - 1))
    knot = math.fsum(r[:, 0]) / len(r)
    assert knot <= -T
    for _, h, x in pairs:
        width = (r[h, x + 1] - r[h, x]) / len(r)
        assert (knots[h, x], widths[h, x]) == (np.float32(knot), np.float32(width)), (h, x)
        knot += width
    assert T <= knot < T + 1e-6


@pytest.mark.parametrize("bits", BITS)
def test_the_mean_is_the_number(bits: int) -> None:
    _, knots, widths = tables_of(bits)
    # The bias is linear between the ends of gaps, so its extremes are there.
    z = np.concatenate([knots.ravel(), (knots + widths).ravel(), [-T, T, 0]])
    z = z[np.abs(z) <= T]
    bias = expected(bits, z) - z
    assert np.max(np.abs(bias)) < 1e-6
    assert np.max(np.abs(bias)) < 5e-7, "as measured"


@pytest.mark.parametrize("bits", BITS)
def test_the_mean_over_every_coin_is_the_number(bits: int) -> None:
    """The sender's arithmetic in float32, for all 2^23 coins."""
    r, knots, widths = tables.QUICFL_VALUES[bits], tables.QUICFL_KNOTS[bits], tables.QUICFL_WIDTHS[bits]
    coins = ((2 * np.arange(2**23) + 1) * 2.0**-24).astype(np.float32)
    for u in np.float32([-T, -2.9, -1.234567, -0.1, 0.0, 0.0371, 0.5, 1.7, 3.0, T]):
        # All coins say the same where u is not within a gap.
        sure = (knots[:, :, None] + np.float32([0, 1]) * widths[:, :, None] <= u).sum(1)
        total = 0.0
        for h in range(len(r)):
            if sure[h, 0] == sure[h, 1]:
                total += float(r[h, sure[h, 0]])
            else:
                gap = sure[h, 1]
                up = np.count_nonzero(u >= knots[h, gap] + coins * widths[h, gap]) / coins.size
                total += float(r[h, gap]) * (1 - up) + float(r[h, gap + 1]) * up
        assert total / len(r) == pytest.approx(float(u), abs=1e-6), u


@pytest.mark.parametrize("bits", BITS)
def test_the_error_is_the_objective(bits: int) -> None:
    _, knots, _ = tables_of(bits)
    ends = np.unique(np.concatenate([np.clip(knots, -T, T).ravel(), [-T, T]]))
    x, weights = np.polynomial.legendre.leggauss(12)
    low, high = ends[:-1, None], ends[1:, None]
    z = ((low + high) / 2 + (high - low) / 2 * x).ravel()
    error = (expected(bits, z, 2) - z * z) * density(z)
    total = np.sum((weights * (high - low) / 2).ravel() * error)
    assert total == pytest.approx(_tables.QUICFL_ERROR[bits], rel=1e-6)
    # The tables of QUIC-FL's public code (arXiv 2205.13341) have 1.46706, .214922, .0431175, .00968443.
    assert total < {1: 1.4671, 2: 0.21493, 3: 0.04313, 4: 0.009690}[bits]


def test_as_many_numbers_are_within_t_as_the_paper_says() -> None:
    assert 2 * ndtr(-T) == pytest.approx(2**-9, rel=1e-6)


@pytest.mark.parametrize("bits", BITS)
def test_no_direction_improves_the_error(bits: int, solver: ModuleType) -> None:
    """Among the tables whose knots reach from -T to T: r[:, 0] and r[:, -1] keep their means."""
    r = tables_of(bits)[0]
    value, gradient = solver.objective(r)
    assert value == _tables.QUICFL_ERROR[bits]
    gradient[:, [0, -1]] -= gradient[:, [0, -1]].mean(0)
    assert np.max(np.abs(gradient)) < 1e-8
    rng = np.random.default_rng(bits)
    for _ in range(20):
        step = 1e-2 * rng.standard_normal(r.shape)
        step[:, [0, -1]] -= step[:, [0, -1]].mean(0)
        assert solver.objective(r + step)[0] > value


def test_one_bit_approaches_the_closed_form(solver: ModuleType) -> None:
    """Thresholds as dense as sqrt(F (1 - F)), F of N(0, 1) within T: 1.449532 with unlimited shared bits."""
    inside = ndtr(T) - ndtr(-T)
    z = T * np.sin(np.linspace(-math.pi / 2, math.pi / 2, 400_001))
    below = np.clip((ndtr(z) - ndtr(-T)) / inside, 0, 1)
    root = np.sqrt(below * (1 - below))
    rank = np.concatenate([[0], np.cumsum((root[1:] + root[:-1]) / 2 * np.diff(z))])
    assert rank[-1] == pytest.approx(1.5594615, rel=1e-7)
    errors = []
    for shared_bits in (6, 10, 14):
        # Each cell of thresholds reads as its mean of k sqrt(F / (1 - F)), which is rows times the integral of F.
        t = np.interp(np.linspace(0, rank[-1], 2**shared_bits + 1), rank, z)
        high = 2**shared_bits * np.diff((t * ndtr(t) + density(t) - t * ndtr(-T)) / inside)
        r = np.stack([high - 2**shared_bits * np.diff(t), high], axis=1)
        errors.append(solver.objective(r)[0])
    assert 1.449532 < errors[2] < errors[1] < errors[0]
    assert errors[2] == pytest.approx(1.449532, rel=4e-5)
    assert _tables.QUICFL_ERROR[1] < errors[0], "64 rows in closed form"


# The same numbers everywhere.


def rust_numbers(name: str) -> dict[str, np.ndarray]:
    """By constant: every number in the file, in order."""
    text = re.sub(r"//.*|#!?\[.*", "", (ROOT / f"src/message/tables/{name}.rs").read_text())
    found = re.findall(r"const (\w+): [^=]*= ([^;]*);", text)
    return {constant: np.array([float(n) for n in re.findall(r"-?\d+\.\d+", body)]) for constant, body in found}


def test_rust_and_the_reference_hold_the_same_numbers() -> None:
    want = {
        ("lloyd_max", "CENTROIDS"): tables.CENTROIDS,
        ("lloyd_max", "BOUNDARIES"): tables.BOUNDARIES,
        ("quicfl", "VALUES"): tables.QUICFL_VALUES,
        ("quicfl", "KNOTS"): tables.QUICFL_KNOTS,
        ("quicfl", "WIDTHS"): tables.QUICFL_WIDTHS,
    }
    for (file, constant), arrays in want.items():
        ours = np.concatenate([np.ravel(arrays[bits]) for bits in sorted(arrays)])
        assert np.array_equal(rust_numbers(file)[constant].astype(np.float32), ours), constant
    assert np.array_equal(rust_numbers("entropy")["STEPS"], np.ravel(tables._STEPS))
