"""HALP: SVRG in low precision, around centres that move and grids that shrink."""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit import _arguments, _core, theory
from lowbit.convex import _steps
from lowbit.convex._record import Record, Run, TheoryWarning

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from lowbit._formats import KeyLike
    from lowbit.convex._problems import Problem

    Vector = NDArray[np.float64]

#: The integer loop's rows are padded to a multiple of this.
_LANES = 32
#: One, in the integer loop's fixed point.
_ONE = 65536


def halp(
    problem: Problem,
    *,
    lr: float,
    outers: int,
    inner: int,
    mu: float,
    bits: int = 8,
    rows: str = "float",
    rounding: str = "stochastic",
    key: KeyLike = 0,
    start: ArrayLike | None = None,
    progress: bool = False,
) -> Record:
    """Run HALP: from every centre W, SVRG on an offset Z of a few bits, whose grid shrinks with the gradient.

    The grid's step is s = ||grad f(W)||_2 / (mu (2^(bits-1) - 1)), so that the box it spans reaches the minimum, which is
    within ||grad f(W)|| / mu of W; then `inner` times Z <- Q(Z - lr (grad f_i(W + Z) - grad f_i(W) + grad f(W))) on
    {s k : -2^(bits-1) <= k < 2^(bits-1)}, and W + Z is the next centre.

    Parameters
    ----------
    problem, lr, outers, inner, key, start, progress
        As for `svrg`.
    mu : float
        Above 0: what takes the place of the strong convexity in the grid's step. The theory wants it at most
        ``problem.strong_convexity``; a few times that is often better in practice (finer grids), and much more stalls.
    bits : int, optional
        2 to 16: the bits of Z.
    rows : {"float", "rounded"}, optional
        "float": gradients are float64, as in the published algorithm. "rounded": the rows of x are rounded once to 8 or
        16 bits (each row with a scale of its own), and the inner loop multiplies and adds integers only. Full gradients
        are of the exact rows either way, so both converge to the same minimum.
    rounding : {"stochastic", "nearest"}, optional
        Unbiased, or nearest with ties up (the authors' code calls it biased). Rounded rows have the former only.

    Returns
    -------
    Record
        Its `scales` are the s of every point.

    Raises
    ------
    TypeError, lowbit.Error
        An argument of a wrong type, or out of range; the message names it.

    Warns
    -----
    TheoryWarning
        `mu` is above the strong convexity, or `bits` are too few for the theorem to promise any progress
        (`lowbit.theory.bits_halp`). Both are sufficient conditions: a run beyond them may well converge.

    Notes
    -----
    De Sa, Leszczynski, Zhang, Marzoev, Aberger, Olukotun and Re, "High-Accuracy Low-Precision Training"
    (arXiv:1803.03383). A zero gradient leaves the point where it is.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> x = np.random.default_rng(1).normal(size=(200, 5)) / 3
    >>> problem = lb.convex.LeastSquares(x, x @ np.arange(5))
    >>> mu, lr = problem.strong_convexity, 0.25 / problem.smoothness
    >>> record = lb.convex.halp(problem, lr=lr, outers=12, inner=1000, mu=mu, bits=10, rows="rounded")
    >>> bool(record.values[-1] < 1e-12)
    True
    """
    began = time.perf_counter()
    problem = _steps.problem(problem)
    lr, mu = _steps.positive(lr, "lr"), _steps.positive(mu, "mu")
    outers, inner = _steps.count(outers, "outers"), _steps.count(inner, "inner")
    bits = _arguments.within(bits, "bits", 2, 16)
    words, stochastic = _steps.Words.of(key), _steps.is_stochastic(rounding)
    first = _steps.start_of(problem, start)
    loop: _Integers | _Floats
    if _arguments.choice(rows, "rows", ("float", "rounded")) == "rounded":
        if not stochastic:
            raise _core.Error('rounding: rounded rows have "stochastic" only; give rows="float" for "nearest"')
        loop = _Integers(problem, lr, bits, words)
    else:
        loop = _Floats(problem, lr, bits, words, stochastic)
    _tell_theory(problem, mu, bits)

    def advance(w: Vector, gradient: Vector, scale: float, at: int) -> Vector:
        if scale == 0:
            return w
        shift = problem.x @ w
        return w + loop.run(gradient, shift, problem.slopes(shift), scale, at, inner)

    run = Run("halp", problem, outers, inner, progress, began, lambda norm: theory.halp_scale(norm, mu, bits))
    return run.go(first, advance)


def _tell_theory(problem: Problem, mu: float, bits: int) -> None:
    """Say which of the theorem's conditions do not hold."""
    strong, smooth, d = problem.strong_convexity, problem.smoothness, problem.shape[1]
    if mu > strong * (1 + 1e-9):
        what = f"mu: {mu:.4g} is above the strong convexity {strong:.4g}, so the grid may not reach the minimum"
        warnings.warn(f"{what} (||w* - W|| <= ||grad f(W)|| / {strong:.4g} is all that is known)", TheoryWarning, 3)
    kappa = max(1.0, smooth / mu)
    least = theory.bits_halp(kappa, d, gamma=1.0, inner=None)
    if bits < least:
        half = 2 ** (bits - 1) - 1
        what = f"bits: with {bits} nothing is proved: 2^(bits-1) - 1 = {half} must be above"
        how = f"2 kappa sqrt(d) = {2 * kappa * d**0.5:.4g} for kappa = L/mu = {kappa:.4g} and d = {d}"
        warnings.warn(f"{what} {how}, that is {least} bits", TheoryWarning, 3)


class _Floats:
    """The inner loop as published: only Z is rounded."""

    def __init__(self, problem: Problem, lr: float, bits: int, words: _steps.Words, stochastic: bool) -> None:
        half = float(1 << (bits - 1))
        self._steps = _steps.Floats(problem, problem.x, lr, words, lambda scale: (scale, -half, half - 1, stochastic))

    def run(self, g: Vector, shift: Vector, anchor: Vector, scale: float, first: int, steps: int) -> Vector:
        z: Vector = self._steps.run(np.zeros(len(g)), g, shift, anchor, scale, first, steps)
        return z


class _Integers:
    """The inner loop on integers (``src/convex/integer.rs``)."""

    def __init__(self, problem: Problem, lr: float, bits: int, words: _steps.Words) -> None:
        self._problem, self._lr, self._bits, self._words = problem, lr, bits, words
        self._x, self._row_scales = round_rows(problem.x, bits)

    def run(self, g: Vector, shift: Vector, anchor: Vector, scale: float, first: int, steps: int) -> Vector:
        problem, words = self._problem, self._words
        whole, fraction = self._fixed(g * (-self._lr / scale), first)
        z: NDArray[Any] = np.zeros(self._x.shape[1], self._x.dtype)
        rows, rates, grid = (problem.loss, problem.y, shift, anchor), (self._lr, problem.l2), (scale, self._bits)
        for at, some in _steps.cut(first, steps, len(z)):
            z = _core.convex_integer(
                self._x,
                z,
                (whole, fraction),
                rows,
                rates,
                self._row_scales,
                grid,
                words.draws,
                words.rounding,
                at,
                some,
            )
        offset: Vector = z[: len(g)] * scale
        return offset

    def _fixed(self, steps: Vector, first: int) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
        """Round steps of the grid to 2^-16 of them, stochastically: whole part, and fraction less 2^15."""
        coins = _core.random_bits(*self._words.gradient.fold(first).words, len(steps), 0) * 2.0**-32
        limit = float(_ONE << 14)
        fixed = np.zeros(self._x.shape[1], np.int64)
        fixed[: len(steps)] = np.clip(np.floor(steps * _ONE + coins), -limit, limit - 1)
        return (fixed >> 16).astype(np.int16), ((fixed & 0xFFFF) - 0x8000).astype(np.int16)


def round_rows(x: Vector, bits: int) -> tuple[NDArray[Any], Vector]:
    """Round rows to nearest in 8 bits (16 where `bits` are more than 8), each by its largest number; pad them with zeros."""
    n, d = x.shape
    most, dtype = (127, np.int8) if bits <= 8 else (32767, np.int16)
    scales = np.abs(x).max(axis=1) / most
    scales[scales == 0] = 1.0
    rounded = np.zeros((n, -(-d // _LANES) * _LANES), dtype)
    rounded[:, :d] = np.clip(np.rint(x / scales[:, None]), -most, most)
    return rounded, scales
