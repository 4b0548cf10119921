"""The problems: sums of losses of linear models, with what the theory asks about them."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from lowbit import _arguments, _core

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Vector = NDArray[np.float64]

_NEWTON_STEPS = 100


class Minimum(NamedTuple):
    """Where a problem is least, and how little."""

    w: Vector
    value: float


class Problem(ABC):
    """f(w) = mean_i phi(x_i . w, y_i) + l2/2 |w|^2: the base of `LeastSquares` and `Logistic`.

    Attributes
    ----------
    x : numpy.ndarray
        Shape (n, d), float64, C order; dense.
    y : numpy.ndarray
        Shape (n,), float64.
    l2 : float
    """

    #: The loss's name in the core.
    loss: ClassVar[str]
    #: The largest second derivative of the loss.
    curvature: ClassVar[float]

    def __init__(self, x: ArrayLike, y: ArrayLike, *, l2: float = 0.0) -> None:
        self.x = finite(_floats(x, "x", 2), "x")
        self.y = finite(_floats(y, "y", 1), "y")
        n, d = self.x.shape
        if not n or not d:
            raise _core.Error(f"x: shape {self.x.shape} has no numbers; give at least one row and one column")
        if len(self.y) != n:
            raise _core.Error(f"y: has {len(self.y)} numbers, but x has {n} rows; give one for each row")
        self.l2 = _arguments.real(l2, "l2")
        if not 0 <= self.l2 < np.inf:
            raise _core.Error(f"l2: {self.l2} is out of range; give a finite number of at least 0")
        if not self.smoothness < np.inf:
            raise _core.Error("x: the squared length of a row is beyond float64; divide x by its largest number")

    @property
    def shape(self) -> tuple[int, int]:
        """How many rows there are, and how many coordinates."""
        n, d = self.x.shape
        return n, d

    @abstractmethod
    def _losses(self, t: Vector) -> Vector:
        """phi(t_i, y_i) of every row."""

    def slopes(self, t: Vector) -> Vector:
        """phi'(t_i, y_i) of every row, by the arithmetic of the inner loops."""
        return _core.convex_derivatives(self.loss, t, self.y)

    def value(self, w: ArrayLike) -> float:
        """Compute f(w); `w` has shape (d,)."""
        at = self.point(w, "w")
        return float(np.mean(self._losses(self.x @ at)) + self.l2 / 2 * (at @ at))

    def gradient(self, w: ArrayLike) -> Vector:
        """Compute the gradient of f, shape (d,), at `w`."""
        at = self.point(w, "w")
        return self._mean_gradient(at, self.slopes(self.x @ at))

    def gradients(self, w: ArrayLike) -> Vector:
        """Compute the gradients of all f_i, shape (n, d), at `w`."""
        at = self.point(w, "w")
        rows: Vector = self.slopes(self.x @ at)[:, None] * self.x + self.l2 * at
        return rows

    def _mean_gradient(self, w: Vector, slopes: Vector) -> Vector:
        mean: Vector = slopes @ self.x / len(self.y) + self.l2 * w
        return mean

    @functools.cached_property
    def smoothness(self) -> float:
        """L: every f_i has an L-Lipschitz gradient (max |x_i|^2 times the loss's curvature, and l2)."""
        return float(self.curvature * np.einsum("ij,ij->i", self.x, self.x).max() + self.l2)

    @property
    @abstractmethod
    def strong_convexity(self) -> float:
        """mu: f is mu-strongly convex everywhere."""

    @abstractmethod
    def minimum(self) -> Minimum:
        """Find where f is least, to about float64's precision, and how little."""

    def point(self, w: ArrayLike, argument: str) -> Vector:
        """Check a point of the problem's space: a float64 array of shape (d,), finite or not."""
        at = _floats(w, argument, 1)
        if len(at) != self.x.shape[1]:
            raise _core.Error(f"{argument}: has {len(at)} numbers, but x has {self.x.shape[1]} columns")
        return at


class LeastSquares(Problem):
    """Linear regression: f(w) = mean_i (x_i . w - y_i)^2 / 2 + l2/2 |w|^2.

    Parameters
    ----------
    x : array_like
        Shape (n, d), real numbers; kept as float64, without a copy where it is that already: leave it as it is then.
    y : array_like
        Shape (n,), real numbers.
    l2 : float, optional
        At least 0.

    Raises
    ------
    TypeError
        `x` or `y` is no array of real numbers.
    lowbit.Error
        A shape does not fit, a number is not finite, or `l2` is out of range.

    Examples
    --------
    >>> import lowbit as lb
    >>> problem = lb.convex.LeastSquares([[1, 0], [0, 2]], [1, 4])
    >>> problem.minimum()
    Minimum(w=array([1., 2.]), value=0.0)
    >>> problem.smoothness, problem.strong_convexity
    (4.0, 0.5)
    """

    loss = "least_squares"
    curvature = 1.0

    def _losses(self, t: Vector) -> Vector:
        squares: Vector = (t - self.y) ** 2 / 2
        return squares

    @functools.cached_property
    def strong_convexity(self) -> float:
        """mu: the least eigenvalue of the Hessian x'x / n + l2."""
        n, d = self.shape
        if n < d:
            return self.l2
        return float(np.linalg.svd(self.x, compute_uv=False)[-1] ** 2 / n + self.l2)

    def minimum(self) -> Minimum:
        """Solve the normal equations; of several minima the one nearest to zero."""
        return self._minimum

    @functools.cached_property
    def _minimum(self) -> Minimum:
        n, d = self.shape
        x, y = self.x, self.y
        if self.l2:
            x = np.vstack([x, np.sqrt(n * self.l2) * np.eye(d)])
            y = np.concatenate([y, np.zeros(d)])
        w = np.linalg.lstsq(x, y, rcond=None)[0]
        w.setflags(write=False)
        return Minimum(w, self.value(w))


class Logistic(Problem):
    """Logistic regression: f(w) = mean_i log(1 + exp(-y_i x_i . w)) + l2/2 |w|^2.

    Parameters
    ----------
    x : array_like
        Shape (n, d), real numbers; kept as float64, without a copy where it is that already: leave it as it is then.
    y : array_like
        Shape (n,): labels -1 and 1, or 0 and 1 (bools too), of which 0 is kept as -1.
    l2 : float, optional
        At least 0. Without it f is not strongly convex, and on separable data has no minimum.

    Raises
    ------
    TypeError
        `x` or `y` is no array of real numbers.
    lowbit.Error
        A shape does not fit, a number is not finite, a label is another, or `l2` is out of range.

    Examples
    --------
    >>> import lowbit as lb
    >>> problem = lb.convex.Logistic([[1.0], [2.0], [-1.0]], [1, 0, 0], l2=0.1)
    >>> problem.y
    array([ 1., -1., -1.])
    >>> round(problem.value([0.0]), 4)
    0.6931
    """

    loss = "logistic"
    curvature = 0.25

    def __init__(self, x: ArrayLike, y: ArrayLike, *, l2: float = 0.0) -> None:
        labels = np.asarray(y)
        super().__init__(x, labels.astype(np.float64) if labels.dtype == bool else y, l2=l2)
        if np.isin(self.y, (0, 1)).all():
            self.y = 2 * self.y - 1
        elif not np.isin(self.y, (-1, 1)).all():
            other = self.y[~np.isin(self.y, (-1, 0, 1))]
            found = f"{other[0]}" if len(other) else "both -1 and 0"
            raise _core.Error(f"y: a label is {found}; give -1 and 1, or 0 and 1")

    def _losses(self, t: Vector) -> Vector:
        losses: Vector = np.logaddexp(0, -self.y * t)
        return losses

    @property
    def strong_convexity(self) -> float:
        """mu: l2 (what the losses add vanishes far out)."""
        return self.l2

    def minimum(self) -> Minimum:
        """Run Newton's method with halved steps.

        Raises
        ------
        lowbit.Error
            There is no minimum to be found: `l2` is 0 and a plane separates the labels.
        """
        return self._minimum

    @functools.cached_property
    def _minimum(self) -> Minimum:
        n, d = self.shape
        w = np.zeros(d)
        value = self.value(w)
        for _ in range(_NEWTON_STEPS):
            p = np.abs(self.slopes(self.x @ w))
            hessian = (self.x.T * (p * (1 - p))) @ self.x / n + self.l2 * np.eye(d)
            step = np.linalg.lstsq(hessian, self.gradient(w), rcond=None)[0]
            size, lower = 1.0, np.inf
            while size > 2.0**-40 and not (lower := self.value(w - size * step)) < value:
                size /= 2
            if not lower < value:
                w.setflags(write=False)
                return Minimum(w, value)
            w, value = w - size * step, lower
        raise _core.Error("l2: without it these labels have no minimum (a plane separates them); give l2 above 0")


def _floats(x: ArrayLike, argument: str, ndim: int) -> NDArray[Any]:
    """Real numbers as C-contiguous, aligned float64 of so many dimensions."""
    given = _arguments.numbers(x, argument)
    if given.ndim != ndim:
        shape = "(n, d)" if ndim == 2 else "of one dimension"
        raise _core.Error(f"{argument}: has shape {given.shape}; give one {shape}")
    return np.require(given, np.float64, ["C", "A"])


def finite(values: NDArray[Any], argument: str) -> NDArray[Any]:
    """Check that all are finite."""
    if not np.isfinite(values).all():
        index = np.argwhere(~np.isfinite(values))[0].tolist()
        raise _core.Error(f"{argument}: element {index} is {values[tuple(index)]}; give finite numbers")
    return values
