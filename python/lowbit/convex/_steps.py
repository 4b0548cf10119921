"""Arguments that the methods share, and runs of steps in the core, cut so that Ctrl-C is heard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit import _arguments, _core
from lowbit._keys import Key
from lowbit.convex._problems import Problem

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from lowbit._formats import KeyLike

    Vector = NDArray[np.float64]
    Rows = tuple[str, Vector, Vector, Vector]
    Grid = tuple[float, float, float, bool]

#: About as many coordinates are moved in one call: some hundredths of a second.
_CALL = 1 << 25


def problem(value: Any) -> Problem:
    """Check that it is a problem."""
    if not isinstance(value, Problem):
        raise TypeError(f"problem: expected a LeastSquares or Logistic, got {type(value).__name__}")
    return value


def positive(value: float, argument: str) -> float:
    """Check that it is a finite number above zero."""
    number = _arguments.real(value, argument)
    if not 0 < number < np.inf:
        raise _core.Error(f"{argument}: {number} is out of range; give a finite number above 0")
    return number


def count(value: int, argument: str) -> int:
    """Check that it is at least 1."""
    return _arguments.within(value, argument, 1, 1 << 40)


def is_stochastic(rounding: str) -> bool:
    """Check a rounding's name."""
    return _arguments.choice(rounding, "rounding", ("nearest", "stochastic")) == "stochastic"


def start_of(of: Problem, start: ArrayLike | None) -> Vector:
    """Give the first point: zeros unless told."""
    return np.zeros(of.shape[1]) if start is None else of.point(start, "start").copy()


@dataclass(frozen=True)
class Words:
    """The keys of a run."""

    key: Key

    @classmethod
    def of(cls, key: KeyLike) -> Words:
        """Take the key of a run as the user gives it."""
        words = _arguments.words(key, private=True)
        if words is None:
            raise TypeError("key: expected a lowbit.Key or an int, got NoneType")
        return cls(Key.from_words(*words))

    @property
    def draws(self) -> tuple[int, int]:
        """Which rows are drawn."""
        return self.key.fold("convex", "draw").words

    @property
    def rounding(self) -> tuple[int, int]:
        """How coordinates are rounded."""
        return self.key.fold("convex", "rounding").words

    @property
    def gradient(self) -> Key:
        """How full gradients are rounded."""
        return self.key.fold("convex", "gradient")


def cut(first: int, steps: int, width: int) -> Iterator[tuple[int, int]]:
    """Cut steps into calls of the core: ``(first, steps)`` of each."""
    most = max(1, _CALL // width)
    for at in range(first, first + steps, most):
        yield at, min(most, first + steps - at)


@dataclass(frozen=True)
class Floats:
    """A method's steps on floats."""

    problem: Problem
    x: NDArray[Any]
    lr: float
    words: Words
    grid: Callable[[float], Grid | None] = lambda scale: None

    def run(
        self, z: NDArray[Any], g: Vector, shift: Vector, anchor: Vector, scale: float, first: int, steps: int
    ) -> Any:
        """Take steps from `z`; the table of ``src/convex/mod.rs`` says what is what."""
        rows = (self.problem.loss, self.problem.y, shift, anchor)
        g, rates, grid = g.astype(self.x.dtype), (self.lr, self.problem.l2), self.grid(scale)
        for at, some in cut(first, steps, len(z)):
            z = _core.convex_float(self.x, z, g, rows, rates, grid, self.words.draws, self.words.rounding, at, some)
        return z
