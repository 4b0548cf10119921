"""SGD and SVRG, with and without a fixed grid: what HALP is compared with."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit import _arguments, _core
from lowbit.convex import _steps
from lowbit.convex._record import Record, Run

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from lowbit._formats import KeyLike
    from lowbit.convex._problems import Problem

    Vector = NDArray[np.float64]


def sgd(
    problem: Problem,
    *,
    lr: float,
    epochs: int,
    key: KeyLike = 0,
    start: ArrayLike | None = None,
    dtype: DTypeLike = np.float64,
    progress: bool = False,
) -> Record:
    """Run stochastic gradient descent: w <- w - lr grad f_i(w), i drawn with replacement.

    Parameters
    ----------
    problem : LeastSquares or Logistic
    lr : float
        The learning rate, above 0.
    epochs : int
        How many times n steps to take; each is a point of the record.
    key : Key, int or numpy.random.Generator, optional
        What rows are drawn with. Methods with the same key draw the same rows.
    start : array_like, optional
        Shape (d,); zeros by default.
    dtype : {numpy.float64, numpy.float32}, optional
        What the steps are computed in.
    progress : bool, optional
        Show a progress bar (tqdm's where it is installed) on standard error.

    Returns
    -------
    Record

    Raises
    ------
    TypeError, lowbit.Error
        An argument of a wrong type, or out of range; the message names it.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> x = np.random.default_rng(1).normal(size=(200, 5)) / 3
    >>> problem = lb.convex.LeastSquares(x, x @ np.arange(5))
    >>> lb.convex.sgd(problem, lr=0.1, epochs=20)
    Record(sgd: 21 points, 4000 steps, f 1.59183 -> 1.41681e-11)
    """
    return _plain("sgd", problem, lr, epochs, None, key, start, progress, dtype)


def lp_sgd(
    problem: Problem,
    *,
    lr: float,
    epochs: int,
    delta: float,
    bits: int = 8,
    rounding: str = "stochastic",
    key: KeyLike = 0,
    start: ArrayLike | None = None,
    progress: bool = False,
) -> Record:
    """Run SGD whose weights stay on a fixed-point grid: w <- Q(w - lr grad f_i(w)).

    Q rounds to {delta k : -2^(bits-1) <= k < 2^(bits-1)}; gradients are float64.

    Parameters
    ----------
    problem, lr, epochs, key, start, progress
        As for `sgd`; the start is rounded to the grid's nearest point.
    delta : float
        The grid's step, above 0 (`lowbit.theory.fixed_point_delta` finds it for a radius).
    bits : int, optional
        2 to 32.
    rounding : {"stochastic", "nearest"}, optional
        Unbiased, or to the nearest point with ties up.

    Returns
    -------
    Record

    Raises
    ------
    TypeError, lowbit.Error
        An argument of a wrong type, or out of range; the message names it.

    Notes
    -----
    LP-SGD of Li and De Sa, "Dimension-Free Bounds for Low-Precision Training" (NeurIPS 2019): it stops at a noise floor
    that the grid sets (`lowbit.theory.fixed_point_floor`).

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> x = np.random.default_rng(1).normal(size=(200, 5)) / 3
    >>> problem = lb.convex.LeastSquares(x, x @ np.arange(5))
    >>> lb.convex.lp_sgd(problem, lr=0.1, epochs=20, delta=4 / 127).values[-1] < 1e-3
    True
    """
    return _plain("lp_sgd", problem, lr, epochs, (delta, bits, rounding), key, start, progress)


def svrg(
    problem: Problem,
    *,
    lr: float,
    outers: int,
    inner: int,
    key: KeyLike = 0,
    start: ArrayLike | None = None,
    dtype: DTypeLike = np.float64,
    progress: bool = False,
) -> Record:
    """Run SVRG: w <- w - lr (grad f_i(w) - grad f_i(W) + grad f(W)), `inner` times from every centre W.

    The last of the inner points is the next centre.

    Parameters
    ----------
    problem, lr, key, start, dtype, progress
        As for `sgd`.
    outers : int
        How many centres to start from; each is a point of the record.
    inner : int
        Steps from each.

    Returns
    -------
    Record

    Raises
    ------
    TypeError, lowbit.Error
        An argument of a wrong type, or out of range; the message names it.

    Notes
    -----
    Johnson and Zhang, "Accelerating Stochastic Gradient Descent using Predictive Variance Reduction" (NeurIPS 2013).

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> x = np.random.default_rng(1).normal(size=(200, 5)) / 3
    >>> problem = lb.convex.LeastSquares(x, x @ np.arange(5))
    >>> bool(lb.convex.svrg(problem, lr=0.1, outers=10, inner=400).values[-1] < 1e-9)
    True
    """
    return _centred("svrg", problem, lr, outers, inner, None, key, start, progress, dtype)


def lp_svrg(
    problem: Problem,
    *,
    lr: float,
    outers: int,
    inner: int,
    delta: float,
    bits: int = 8,
    rounding: str = "stochastic",
    key: KeyLike = 0,
    start: ArrayLike | None = None,
    progress: bool = False,
) -> Record:
    """Run SVRG whose weights stay on a fixed-point grid, as those of `lp_sgd` do.

    Parameters
    ----------
    problem, lr, outers, inner, key, start, progress
        As for `svrg`; the start is rounded to the grid's nearest point.
    delta, bits, rounding
        As for `lp_sgd`.

    Returns
    -------
    Record

    Raises
    ------
    TypeError, lowbit.Error
        An argument of a wrong type, or out of range; the message names it.

    Notes
    -----
    What HALP is compared with in De Sa et al. (arXiv:1803.03383): the gradient's noise vanishes, the grid's does not.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> x = np.random.default_rng(1).normal(size=(200, 5)) / 3
    >>> problem = lb.convex.LeastSquares(x, x @ np.arange(5))
    >>> bool(lb.convex.lp_svrg(problem, lr=0.1, outers=10, inner=400, delta=4 / 127).values[-1] < 1e-3)
    True
    """
    return _centred("lp_svrg", problem, lr, outers, inner, (delta, bits, rounding), key, start, progress)


def _grid(given: tuple[float, int, str] | None) -> tuple[float, _steps.Grid | None]:
    """Check a fixed grid: its step, and how the core has it."""
    if given is None:
        return 0.0, None
    delta, bits = _steps.positive(given[0], "delta"), _arguments.within(given[1], "bits", 2, 32)
    half = float(1 << (bits - 1))
    return delta, (delta, -half, half - 1, _steps.is_stochastic(given[2]))


def _onto(w: Vector, grid: _steps.Grid | None) -> Vector:
    if grid is None:
        return w
    delta, low, high, _ = grid
    on_grid: Vector = np.clip(np.rint(w / delta), low, high) * delta
    return on_grid


def _floats(problem: Problem, lr: float, grid: _steps.Grid | None, key: KeyLike, dtype: DTypeLike) -> _steps.Floats:
    """Check what the methods share; x in the dtype of the steps."""
    try:
        kind = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"dtype: expected numpy.float64 or numpy.float32, got {dtype!r}") from None
    if kind not in (np.dtype(np.float64), np.dtype(np.float32)):
        raise _core.Error(f"dtype: {kind} is not a type of steps; give numpy.float64 or numpy.float32")
    x = _steps.problem(problem).x.astype(kind, copy=False)
    return _steps.Floats(problem, x, _steps.positive(lr, "lr"), _steps.Words.of(key), lambda scale: grid)


def _plain(
    method: str,
    problem: Problem,
    lr: float,
    epochs: int,
    grid: tuple[float, int, str] | None,
    key: KeyLike,
    start: ArrayLike | None,
    progress: bool,
    dtype: DTypeLike = np.float64,
) -> Record:
    """SGD: nothing is added to a row's gradient."""
    began = time.perf_counter()
    delta, fixed = _grid(grid)
    floats = _floats(problem, lr, fixed, key, dtype)
    n, d = problem.shape
    none, nowhere = np.zeros(d), np.zeros(n)

    def advance(w: Vector, gradient: Vector, scale: float, first: int) -> Vector:
        z = floats.run(w.astype(floats.x.dtype), none, nowhere, nowhere, scale, first, n)
        return np.asarray(z, np.float64)

    epochs = _steps.count(epochs, "epochs")
    run = Run(method, problem, epochs, n, progress, began, _always(delta), centred=False)
    return run.go(_onto(_steps.start_of(problem, start), fixed), advance)


def _centred(
    method: str,
    problem: Problem,
    lr: float,
    outers: int,
    inner: int,
    grid: tuple[float, int, str] | None,
    key: KeyLike,
    start: ArrayLike | None,
    progress: bool,
    dtype: DTypeLike = np.float64,
) -> Record:
    """SVRG: a row's gradient at the centre is replaced by the mean of all."""
    began = time.perf_counter()
    delta, fixed = _grid(grid)
    floats = _floats(problem, lr, fixed, key, dtype)
    outers, inner = _steps.count(outers, "outers"), _steps.count(inner, "inner")
    nowhere = np.zeros(problem.shape[0])

    def advance(w: Vector, gradient: Vector, scale: float, first: int) -> Vector:
        anchor, g = problem.slopes(problem.x @ w), gradient - problem.l2 * w
        z: Any = floats.run(w.astype(floats.x.dtype), g, nowhere, anchor, scale, first, inner)
        return np.asarray(z, np.float64)

    run = Run(method, problem, outers, inner, progress, began, _always(delta))
    return run.go(_onto(_steps.start_of(problem, start), fixed), advance)


def _always(delta: float) -> Callable[[float], float]:
    return lambda norm: delta
