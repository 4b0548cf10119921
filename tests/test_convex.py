"""Methods on linear models: bit for bit the slow twin, on every level; and they converge as their theory has it."""

from __future__ import annotations

import itertools
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import convex_twin as twin
import lowbit as lb
from lowbit import _core, convex

LOSSES = [(convex.LeastSquares, 0.0), (convex.LeastSquares, 0.05), (convex.Logistic, 0.0), (convex.Logistic, 0.05)]


def make(kind: type[convex.Problem], n: int, d: int, l2: float = 0.0, seed: int = 0) -> convex.Problem:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) / np.sqrt(d)
    t = x @ rng.normal(size=d) + 0.1 * rng.normal(size=n)
    return kind(x, np.sign(t) if kind is convex.Logistic else t, l2=l2)


def section() -> convex.LeastSquares:
    """The run of the facts: 1000 Gaussian rows of 100 numbers, the longest of length 1; condition number 307."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 100))
    x /= np.sqrt((x**2).sum(axis=1)).max()
    return convex.LeastSquares(x, x @ rng.normal(size=100) + 0.1 * rng.normal(size=1000))


@pytest.fixture
def _no_theory():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", convex.TheoryWarning)
        yield


@pytest.mark.parametrize(("kind", "l2"), LOSSES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sgd_and_svrg_are_their_twins(kind, l2, dtype, level):
    problem = make(kind, 30, 37, l2)
    got = convex.sgd(problem, lr=0.2, epochs=2, key=5, dtype=dtype)
    points = twin.plain(problem, lr=0.2, epochs=2, key=5, dtype=dtype)
    assert np.array_equal(got.w, points[-1])
    assert got.values.tolist() == [problem.value(w) for w in points]
    got = convex.svrg(problem, lr=0.2, outers=2, inner=40, key=5, dtype=dtype)
    points = twin.centred(problem, lr=0.2, outers=2, inner=40, key=5, dtype=dtype)
    assert np.array_equal(got.w, points[-1])
    assert got.gradient_norms.tolist() == [float(np.linalg.norm(problem.gradient(w))) for w in points]


@pytest.mark.parametrize(("kind", "l2"), LOSSES)
@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_methods_on_a_grid_are_their_twins(kind, l2, rounding, level):
    problem, grid = make(kind, 25, 33, l2), (2.0**-6 / 3, -128.0, 127.0, rounding == "stochastic")
    options = {"delta": grid[0], "bits": 8, "rounding": rounding, "key": 9}
    got = convex.lp_sgd(problem, lr=0.2, epochs=2, **options)
    assert np.array_equal(got.w, twin.plain(problem, lr=0.2, epochs=2, key=9, grid=grid)[-1])
    assert set(got.scales.tolist()) == {grid[0]}
    got = convex.lp_svrg(problem, lr=0.2, outers=2, inner=30, **options)
    assert np.array_equal(got.w, twin.centred(problem, lr=0.2, outers=2, inner=30, key=9, grid=grid)[-1])


@pytest.mark.usefixtures("_no_theory")
@pytest.mark.parametrize(("kind", "l2"), LOSSES)
@pytest.mark.parametrize("bits", [2, 5, 8, 9, 13, 16])
@pytest.mark.parametrize("rows", ["float", "rounded"])
def test_halp_is_its_twin(kind, l2, bits, rows, level):
    problem = make(kind, 25, 33, l2)
    options = {"lr": 0.4, "outers": 2, "inner": 70, "mu": 0.1, "bits": bits, "rows": rows, "key": 3}
    assert np.array_equal(convex.halp(problem, **options).w, twin.halp(problem, **options)[-1])
    if rows == "float":
        options |= {"rounding": "nearest"}
        assert np.array_equal(convex.halp(problem, **options).w, twin.halp(problem, **options)[-1])


@pytest.mark.usefixtures("_no_theory")
@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 12),
    d=st.integers(1, 70),
    bits=st.integers(2, 16),
    seed=st.integers(0, 2**32),
    scale=st.sampled_from([1e-150, 1e-3, 1.0, 1e3, 1e100]),
    lr=st.sampled_from([1e-4, 0.5, 30.0]),
    l2=st.sampled_from([0.0, 1e-6, 0.3]),
    mu=st.sampled_from([1e-3, 0.1, 10.0]),
)
def test_integers_of_any_shape_and_size_are_the_twins(n, d, bits, seed, scale, lr, l2, mu):
    """Steps that are cut, rows that vanish beside others, boxes that do not reach: always the formula's bits."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * (rng.random((n, d)) < 0.7)
    x[rng.random(n) < 0.2] = 0
    problem = convex.LeastSquares(x * np.exp2(rng.integers(-6, 6, (n, 1))), rng.normal(size=n) * scale, l2=l2)
    options = {"lr": lr, "outers": 1, "inner": 40, "mu": mu, "bits": bits, "rows": "rounded", "key": seed % 2**20}
    assert np.array_equal(convex.halp(problem, **options).w, twin.halp(problem, **options)[-1])


@pytest.mark.usefixtures("_no_theory")
def test_neither_threads_nor_calls_change_a_bit(monkeypatch):
    problem = make(convex.LeastSquares, 50, 40)
    before = lb.get_num_threads()

    def results():
        halp = {"lr": 0.4, "outers": 2, "inner": 300, "mu": 0.1, "key": 1}
        yield convex.halp(problem, rows="rounded", **halp).w
        yield convex.halp(problem, rows="float", **halp).w
        yield convex.svrg(problem, lr=0.3, outers=2, inner=300).w

    want = list(results())
    try:
        lb.set_num_threads(7)
        # Some steps a call: 2 where rows are padded to 64 numbers.
        monkeypatch.setattr(convex._steps, "_CALL", 150)
        assert all(np.array_equal(got, w) for got, w in zip(results(), want, strict=True))
    finally:
        lb.set_num_threads(before)


def test_rounding_a_step_is_unbiased():
    """The mean of one integer step from the centre, over many keys, is the step that floats take."""
    problem, mu = make(convex.LeastSquares, 1, 40), 0.02
    lr = 0.05
    options = {"lr": lr, "outers": 1, "inner": 1, "mu": mu, "bits": 8, "rows": "rounded"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", convex.TheoryWarning)
        steps = np.array([convex.halp(problem, key=key, **options).w for key in range(4000)])
    gradient = problem.gradient(np.zeros(40))
    scale = np.linalg.norm(gradient) / (mu * 127)
    up = -lr * gradient / scale
    p = up - np.floor(up)
    deviation = np.sqrt(p * (1 - p) / 4000) + 2.0**-16
    assert np.abs(steps.mean(axis=0) / scale - up).max() < (5 * deviation).max()
    assert np.abs((steps.mean(axis=0) / scale - up) / deviation).max() < 5


@pytest.mark.usefixtures("_no_theory")
def test_halp_passes_the_floors_of_low_precision():
    """The facts' run: 8 bits go on where LP-SGD and LP-SVRG stop, 16 bits are SVRG."""
    problem = section()
    least, mu = problem.minimum(), problem.strong_convexity
    assert problem.smoothness / mu == pytest.approx(307, abs=1)
    common = {"lr": 0.25, "outers": 12, "inner": 4000}
    svrg = convex.svrg(problem, **common).gaps(least.value)
    assert svrg[-1] < 1e-12
    delta = lb.theory.fixed_point_delta(8, np.abs(least.w).max())
    assert convex.lp_sgd(problem, lr=0.25, epochs=48, delta=delta).gaps(least.value).min() > 1e-4
    assert convex.lp_svrg(problem, delta=delta, **common).gaps(least.value).min() > 1e-4
    for rows in ("float", "rounded"):
        eight = convex.halp(problem, mu=3 * mu, bits=8, rows=rows, **common)
        assert eight.gaps(least.value)[-1] < 1e-8
        assert eight.scales[-1] < 1e-3 * eight.scales[0]
        sixteen = convex.halp(problem, mu=3 * mu, bits=16, rows=rows, **common).gaps(least.value)
        assert np.all(np.abs(np.log10(sixteen / svrg)) < 0.5), "16 bits are SVRG at every point"


@pytest.mark.parametrize("rows", ["float", "rounded"])
def test_logistic_regression_converges_as_well(rows):
    problem = make(convex.Logistic, 300, 20, 0.02)
    mu, lr = problem.strong_convexity, 0.5 / problem.smoothness
    record = convex.halp(problem, lr=lr, outers=20, inner=2000, mu=mu, bits=9, rows=rows)
    assert record.gaps(problem.minimum().value)[-1] < 1e-13


def test_a_zero_gradient_stays():
    problem = convex.LeastSquares([[1.0, 2.0], [3.0, 4.0]], [0.0, 0.0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", convex.TheoryWarning)
        for rows in ("float", "rounded"):
            record = convex.halp(problem, lr=0.01, outers=3, inner=5, mu=0.1, rows=rows)
            assert record.w.tolist() == [0.0, 0.0]
            assert record.scales.tolist() == [0.0] * 4


def test_a_record_has_an_entry_for_every_point():
    problem = make(convex.LeastSquares, 20, 3)
    start = np.ones(3)
    record = convex.svrg(problem, lr=0.1, outers=4, inner=7, start=start)
    for column in (record.values, record.gradient_norms, record.scales, record.seconds, record.steps):
        assert len(column) == 5
    assert record.values[0] == problem.value(start)
    assert record.steps.tolist() == [0, 7, 14, 21, 28]
    assert np.all(np.diff(record.seconds) > 0)
    assert start.tolist() == [1, 1, 1], "the caller's start is not written"
    assert convex.sgd(problem, lr=0.1, epochs=2).steps.tolist() == [0, 20, 40]
    assert "5 points, 28 steps" in repr(record)


def test_the_start_of_a_grid_is_on_it():
    problem = make(convex.LeastSquares, 20, 3)
    record = convex.lp_sgd(problem, lr=1e-9, epochs=1, delta=0.25, bits=3, start=[0.3, -9.0, 9.0], rounding="nearest")
    assert record.w.tolist() == [0.25, -1.0, 0.75]


def test_ctrl_c_keeps_the_record_so_far(monkeypatch):
    problem, calls = make(convex.LeastSquares, 20, 3), itertools.count()
    real = _core.convex_float

    def interrupted(*arguments):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    whole = convex.svrg(problem, lr=0.1, outers=5, inner=7)
    monkeypatch.setattr(_core, "convex_float", interrupted)
    record = convex.svrg(problem, lr=0.1, outers=5, inner=7)
    assert record.interrupted
    assert record.values.tolist() == whole.values[:4].tolist()
    assert problem.value(record.w) == record.values[-1]


@pytest.mark.parametrize("with_tqdm", [True, False])
def test_progress_is_told(monkeypatch, capsys, with_tqdm):
    if with_tqdm:
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    convex.svrg(make(convex.LeastSquares, 20, 3), lr=0.1, outers=3, inner=7, progress=True)
    shown = capsys.readouterr().err
    assert "svrg" in shown
    assert "3/3" in shown


def test_divergence_is_said_and_ends_the_run():
    problem = make(convex.LeastSquares, 50, 3)
    with pytest.warns(RuntimeWarning, match=r"lr: svrg diverged.*1 / \(4 L\)"):
        record = convex.svrg(problem, lr=1e60, outers=30, inner=50)
    assert len(record.values) < 31
    assert not np.isfinite(record.values[-1])


def test_conditions_of_the_theory_are_told_with_their_numbers():
    problem = make(convex.LeastSquares, 200, 10)
    mu, smooth = problem.strong_convexity, problem.smoothness
    options = {"lr": 0.1, "outers": 1, "inner": 1}
    with pytest.warns(convex.TheoryWarning, match=f"mu: {2 * mu:.4g} is above the strong convexity {mu:.4g}"):
        convex.halp(problem, mu=2 * mu, bits=16, **options)
    needed = f"must be above 2 kappa sqrt.d. = {2 * smooth / mu * 10**0.5:.4g}"
    with pytest.warns(convex.TheoryWarning, match=needed):
        convex.halp(problem, mu=mu, bits=4, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convex.halp(problem, mu=mu, bits=16, **options)


GOOD = {"lr": 0.1, "outers": 1, "inner": 1, "mu": 1e-4, "bits": 16}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"lr": 0}, lb.Error, "lr: 0.0 is out of range"),
        ({"lr": float("nan")}, lb.Error, "lr: nan"),
        ({"lr": "fast"}, TypeError, "lr"),
        ({"outers": 0}, lb.Error, "outers: 0"),
        ({"inner": -1}, lb.Error, "inner: -1"),
        ({"inner": 1.5}, TypeError, "inner"),
        ({"mu": 0}, lb.Error, "mu: 0.0"),
        ({"bits": 1}, lb.Error, "bits: 1 is out of range; give 2 to 16"),
        ({"bits": 17}, lb.Error, "bits: 17"),
        ({"rows": "int8"}, lb.Error, "rows: 'int8' is not known; known are: float, rounded"),
        ({"rounding": "up"}, lb.Error, "rounding"),
        ({"rows": "rounded", "rounding": "nearest"}, lb.Error, "rounding: rounded rows"),
        ({"key": None}, TypeError, "key"),
        ({"key": -1}, lb.Error, "key"),
        ({"start": [1.0]}, lb.Error, "start: has 1 numbers, but x has 3 columns"),
        ({"start": [1.0, np.nan, 0.0]}, lb.Error, "start: element .1. is nan"),
    ],
)
def test_bad_arguments_of_halp_are_named(change, error, message):
    with pytest.raises(error, match=message):
        convex.halp(make(convex.LeastSquares, 20, 3), **(GOOD | change))


def test_bad_arguments_of_the_others_are_named():
    problem = make(convex.LeastSquares, 20, 3)
    with pytest.raises(lb.Error, match=r"delta: 0.0"):
        convex.lp_sgd(problem, lr=0.1, epochs=1, delta=0)
    with pytest.raises(lb.Error, match="bits: 33 is out of range; give 2 to 32"):
        convex.lp_svrg(problem, lr=0.1, outers=1, inner=1, delta=0.1, bits=33)
    with pytest.raises(lb.Error, match="dtype: float16"):
        convex.sgd(problem, lr=0.1, epochs=1, dtype=np.float16)
    with pytest.raises(TypeError, match="dtype"):
        convex.svrg(problem, lr=0.1, outers=1, inner=1, dtype="half a float")
    with pytest.raises(TypeError, match="problem: expected a LeastSquares or Logistic, got str"):
        convex.sgd("problem", lr=0.1, epochs=1)
