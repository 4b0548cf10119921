"""The bounds hold where they can be measured, and the counts of bits are their inverses."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

import lowbit as lb
from lowbit import convex, theory


def problem_of(d: int, l2: float = 0.1) -> convex.LeastSquares:
    rng = np.random.default_rng(d)
    x = rng.normal(size=(200, d)) / np.sqrt(d)
    return convex.LeastSquares(x, x @ rng.uniform(-1, 1, d) + 0.1 * rng.normal(size=200), l2=l2)


@pytest.mark.parametrize("kind", [convex.LeastSquares, convex.Logistic])
def test_constants_are_what_they_say(kind):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(50, 6))
    problem = kind(x, np.sign(x @ rng.normal(size=6) + rng.normal(size=50)), l2=0.2)
    found, w = theory.constants(problem), problem.minimum().w
    rows = problem.gradients(w)
    assert found.sigma == pytest.approx(np.sqrt((rows**2).sum() / 50))
    assert found.sigma1 == pytest.approx(np.abs(rows).sum() / 50)
    assert (found.mu, found.L, found.d) == (problem.strong_convexity, problem.smoothness, 6)
    assert found.kappa == found.L / found.mu
    assert (found.radius, found.norm) == (np.abs(w).max(), np.linalg.norm(w))
    assert found.sigma1 <= 6**0.5 * found.sigma
    assert found.L1 <= 6**0.5 * found.L
    for _ in range(200):
        a, b = rng.normal(size=(2, 6)) * 5
        apart = np.abs(problem.gradients(a) - problem.gradients(b)).sum(axis=1).max()
        assert apart <= found.L1 * np.linalg.norm(a - b) * (1 + 1e-12)
    assert theory.constants(convex.LeastSquares([[1.0, 0.0]], [1.0])).kappa == math.inf


@pytest.mark.parametrize(("zeta", "delta"), [(0.0, 0.25), (0.5, 0.05), (0.1, 0.01)])
def test_the_variance_of_rounding_a_step_is_within_the_lemma(zeta, delta):
    """Exactly, coordinate by coordinate, from every point of the grid and for steps of every length."""
    positive = [0.0]
    while positive[-1] < 4:
        positive.append(positive[-1] * (1 + zeta) + delta)
    grid = np.array([-q for q in positive[:0:-1]] + positive)
    rng = np.random.default_rng(0)
    for _ in range(300):
        w, g, lr = rng.choice(grid[8:-8], 20), rng.normal(size=20) * rng.choice([0.01, 0.3, 1]), rng.choice([0.01, 0.5])
        u = np.clip(w - lr * g, grid[0], grid[-1] - 1e-12)
        low = np.searchsorted(grid, u, side="right") - 1
        variance = ((u - grid[low]) * (grid[low + 1] - u)).sum()
        bound = theory.rounding_variance(
            lr=lr,
            delta=delta,
            zeta=zeta,
            gradient_l1=np.abs(g).sum(),
            gradient_l2=np.linalg.norm(g),
            norm=np.linalg.norm(w),
        )
        assert variance <= bound * (1 + 1e-9)


@pytest.mark.parametrize("delta", [2.0**-3, 2.0**-5, 2.0**-8])
def test_lp_sgd_stays_within_its_bound(delta):
    problem = problem_of(16)
    found, least = theory.constants(problem), problem.minimum()
    lr = 1 / (16 * found.L)
    constants = {"mu": found.mu, "L": found.L, "L1": found.L1, "sigma": found.sigma, "sigma1": found.sigma1}
    bound = theory.fixed_point_gap(lr=lr, steps=100 * 200, distance=found.norm, delta=delta, **constants)
    # The mean of points has at most the mean gap, which is what the record's points sample.
    gaps = convex.lp_sgd(problem, lr=lr, epochs=100, delta=delta, bits=16).gaps(least.value)
    assert gaps[:-1].mean() <= bound
    floor = theory.fixed_point_floor(delta=delta, mu=found.mu, L1=found.L1, sigma1=found.sigma1)
    assert floor < bound
    assert floor <= theory.fixed_point_floor(
        delta=delta, mu=found.mu, L1=found.d**0.5 * found.L, sigma1=found.d**0.5 * found.sigma
    )


def test_the_gap_of_linear_regression_solves_its_equation():
    given = {"lr": 0.1, "delta": 2.0**-5, "x_l1": 8**0.5, "x_l2": 1.0, "noise_l1": 0.04, "noise_l2": 0.05}
    g = theory.linear_regression_gap(**given)
    left = (4 - 0.2) * g - 2.0**-5 * 8**0.5 * math.sqrt(2 * g)
    assert left == pytest.approx(0.1 * 0.05**2 + 2.0**-5 * 8**0.5 * 0.04)
    # The facts' figure for its sparse design: 2.70e-3, with normal noise.
    assert theory.linear_regression_gap(**given | {"noise_l1": 0.05 * math.sqrt(2 / math.pi)}) == pytest.approx(
        2.70e-3, abs=5e-6
    )


def test_a_logarithmic_grid_is_the_formats():
    delta = theory.logarithmic_delta(8, 0.125, 1.0)
    values = lb.log_grid(zeta=0.125, delta=delta, bits=8).values
    assert max(values) == pytest.approx(1.0, rel=1e-6)
    assert theory.logarithmic_levels(0.125, delta, 1.0) == pytest.approx(127)
    # Without zeta the grid is fixed point's.
    assert theory.logarithmic_delta(8, 1e-12, 1.0) == pytest.approx(theory.fixed_point_delta(8, 1.0))
    assert theory.logarithmic_floor(delta=0.1, zeta=0, mu=1, L=2, L1=3, sigma=1, sigma1=2, norm=5) == pytest.approx(
        0.1 + (0.1 * 3) ** 2 / 4
    )


@pytest.mark.parametrize("gap", [1e-1, 1e-3, 1e-6])
def test_bits_are_the_fewest(gap):
    about = {"mu": 0.1, "L1": 5.0, "sigma1": 1.0}
    bits = theory.bits_fixed_point(gap, radius=2.0, **about)
    floors = [theory.fixed_point_floor(delta=theory.fixed_point_delta(b, 2.0), **about) for b in (bits - 1, bits)]
    assert floors[1] <= gap < floors[0]
    more = about | {"L": 1.0, "sigma": 0.2, "norm": 3.0}
    bits, zeta = theory.bits_logarithmic(gap, radius=2.0, **more)

    def floor(bits: int, zeta: float) -> float:
        return theory.logarithmic_floor(delta=theory.logarithmic_delta(bits, zeta, 2.0), zeta=zeta, **more)

    assert floor(bits, zeta) <= gap
    assert all(floor(bits - 1, zeta) > gap for zeta in np.geomspace(1e-9, 0.05, 200) if 2 ** (bits - 2) * zeta < 600)


def test_bits_of_a_logarithmic_grid_hardly_grow_with_the_dimension():
    def bits(d: int) -> tuple[int, int]:
        one = {"mu": 0.1, "L1": d**0.5, "sigma1": 0.1 * d**0.5}
        fixed = theory.bits_fixed_point(1e-3, radius=1, **one)
        return fixed, theory.bits_logarithmic(1e-3, radius=1, norm=1, L=1, sigma=0.1, **one)[0]

    small, large = bits(2**6), bits(2**22)
    assert large[0] - small[0] in (7, 8, 9), "half a bit each time that the dimension doubles"
    assert large[1] - small[1] <= 2


@pytest.mark.parametrize("gamma", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_the_theorem_of_halp_is_its_inequality(gamma, bits):
    """At the theorem's learning rate and number of steps the contraction is gamma; one step fewer is not enough."""
    kappa, d, smooth = 4.0, 10, 3.0
    lr, inner = theory.halp_lr(smooth, gamma), theory.halp_inner(kappa, d, bits, gamma)
    at = [
        theory.halp_contraction(lr=lr, inner=steps, kappa=kappa, L=smooth, d=d, bits=bits)
        for steps in (inner - 1, inner)
    ]
    assert at[1] <= gamma * (1 + 1e-12) < at[0] * (1 + 1e-9)
    assert theory.halp_contraction(lr=lr, inner=inner, kappa=kappa, L=smooth, d=d, bits=None) < at[1]


def test_bits_of_halp_do_not_depend_on_accuracy_and_are_the_fewest():
    for kappa, d in ((2.0, 3), (50.0, 1000), (1e4, 10)):
        bits = theory.bits_halp(kappa, d)
        theory.halp_inner(kappa, d, bits)
        with pytest.raises(lb.Error, match=f"bits: {bits - 1} are too few.*give at least {bits}"):
            theory.halp_inner(kappa, d, bits - 1)
        inner = theory.halp_inner(kappa, d, bits)
        assert theory.bits_halp(kappa, d, inner=inner) == bits
        assert theory.bits_halp(kappa, d, inner=inner - 1) > bits
    # The sheet's sufficient form: T >= 16 kappa (1 + gamma) / gamma^2 with these bits.
    assert theory.bits_halp(307, 100, 0.5, inner=16 * 307 * 6) == math.ceil(
        1 + math.log2(1 + math.sqrt(4 * 307**2 * 100 * 1.5 / 0.25))
    )


def test_halp_contracts_at_least_as_the_theorem_says():
    problem = problem_of(4, l2=0.5)
    found = theory.constants(problem)
    bits = theory.bits_halp(found.kappa, found.d)
    inner, lr = theory.halp_inner(found.kappa, found.d, bits), theory.halp_lr(found.L)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record = convex.halp(problem, lr=lr, outers=8, inner=inner, mu=found.mu, bits=bits, rows="float")
    gaps = record.gaps(problem.minimum().value)
    assert np.all(gaps[1:] <= 0.5 * gaps[:-1] + 1e-15)
    assert record.scales[0] == theory.halp_scale(record.gradient_norms[0], found.mu, bits)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.fixed_point_floor(delta=-1, mu=1, L1=1, sigma1=1), "delta: -1.0"),
        (lambda: theory.fixed_point_floor(delta=1, mu=0, L1=1, sigma1=1), "mu: 0.0"),
        (
            lambda: theory.fixed_point_gap(lr=1, steps=1, distance=1, delta=0, mu=1, L=1, L1=1, sigma=0, sigma1=0),
            r"lr: 1.0 is above 1 / .4 L. = 0.25",
        ),
        (
            lambda: theory.logarithmic_floor(delta=0, zeta=1, mu=1, L=2, L1=1, sigma=0, sigma1=0, norm=1),
            r"zeta: 1.0 is above mu / .2 L. = 0.25",
        ),
        (
            lambda: theory.linear_regression_gap(lr=2, delta=0, x_l1=1, x_l2=1, noise_l1=0, noise_l2=0),
            "lr: 2.0 is out of range; give less than 2 / x_l2.2 = 2",
        ),
        (lambda: theory.logarithmic_delta(32, 0.5, 1.0), "zeta: 0.5 with 32 bits"),
        (lambda: theory.fixed_point_delta(1, 1.0), "bits: 1"),
        (lambda: theory.bits_fixed_point(1e-60, radius=1, mu=1, L1=1, sigma1=1), "gap: 1e-60 takes more than 64 bits"),
        (lambda: theory.bits_halp(0.5, 1), "kappa: 0.5"),
        (lambda: theory.bits_halp(2, 1, gamma=2), "gamma: 2.0"),
        (lambda: theory.bits_halp(2, 1, inner=3), "inner: 3 steps are too few whatever the bits; give at least 97"),
        (lambda: theory.halp_contraction(lr=1, inner=1, kappa=1, L=1, d=1, bits=8), "lr: 1.0"),
    ],
)
def test_bad_numbers_are_named(call, message):
    with pytest.raises(lb.Error, match=message):
        call()
