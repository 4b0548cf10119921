"""What a run leaves behind, and the loop that all runs share."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowbit.convex._problems import Problem

    Vector = NDArray[np.float64]


class TheoryWarning(UserWarning):
    """A parameter lies outside what the theory covers; the message has the condition with its numbers."""


@dataclass(frozen=True, eq=False)
class Record:
    """How a run converged: arrays with one entry for every point it passed, the start included.

    Attributes
    ----------
    method : str
        The function's name.
    w : numpy.ndarray
        Shape (d,), float64: the last point.
    values : numpy.ndarray
        f at every point.
    gradient_norms : numpy.ndarray
        The Euclidean norm of f's gradient at every point.
    scales : numpy.ndarray
        The step of the grid that the steps from every point are rounded to; 0 where nothing is rounded.
    seconds : numpy.ndarray
        The time until every point: set-up, full gradients and steps, without the evaluation of f.
    steps : numpy.ndarray
        int64: how many steps it took.
    interrupted : bool
        Whether Ctrl-C ended the run; what is recorded was complete before.
    """

    method: str
    w: Vector
    values: Vector
    gradient_norms: Vector
    scales: Vector
    seconds: Vector
    steps: NDArray[np.int64]
    interrupted: bool = False

    def gaps(self, minimum: float) -> Vector:
        """f - `minimum` at every point."""
        gaps: Vector = self.values - minimum
        return gaps

    def __repr__(self) -> str:
        end = ", interrupted" if self.interrupted else ""
        return (
            f"Record({self.method}: {len(self.values)} points, {self.steps[-1]} steps, "
            f"f {self.values[0]:.6g} -> {self.values[-1]:.6g}{end})"
        )


class Round(Protocol):
    """Go from a point to the next: ``(w, gradient, scale, first step) -> w``."""

    def __call__(self, w: Vector, gradient: Vector, scale: float, first: int) -> Vector:
        """Take the steps of one point."""


@dataclass
class Run:
    """A run in progress: `rounds` times `steps` steps."""

    method: str
    problem: Problem
    rounds: int
    steps: int
    progress: bool
    began: float
    #: The scale of the steps from a point, given the gradient's norm there.
    scale: Callable[[float], float] = field(default=lambda norm: 0.0)
    #: Whether the method itself needs full gradients, so that they count as its time.
    centred: bool = True

    def go(self, w: Vector, advance: Round) -> Record:
        """Run from `w`; Ctrl-C keeps what has been recorded."""
        points: list[tuple[float, float, float, float, int]] = []
        interrupted, last = False, w
        spent = time.perf_counter() - self.began
        with _bar(self.method, self.rounds, self.progress) as tell:
            try:
                for k in range(self.rounds + 1):
                    start = time.perf_counter()
                    gradient = self.problem.gradient(w)
                    if self.centred and k < self.rounds:
                        spent += time.perf_counter() - start
                    norm = float(np.linalg.norm(gradient))
                    value, scale = self.problem.value(w), self.scale(norm)
                    points.append((value, norm, scale, spent, k * self.steps))
                    last = w
                    tell(k, value)
                    if k == self.rounds:
                        break
                    if not (np.isfinite(value) and np.isfinite(norm)):
                        self._diverged(k)
                        break
                    start = time.perf_counter()
                    w = advance(w, gradient, scale, k * self.steps)
                    spent += time.perf_counter() - start
            except KeyboardInterrupt:
                interrupted = True
                if not points:
                    raise
        values, norms, scales, seconds, steps = zip(*points, strict=True)
        columns = [np.array(column, np.float64) for column in (values, norms, scales, seconds)]
        return Record(self.method, last, *columns, np.array(steps, np.int64), interrupted)

    def _diverged(self, k: int) -> None:
        most = 1 / (4 * self.problem.smoothness)
        what = f"lr: {self.method} diverged before point {k} (f is no longer finite); the run ends there"
        warnings.warn(f"{what}. Learning rates up to 1 / (4 L) = {most:.3g} are safe", RuntimeWarning, stacklevel=4)


@contextmanager
def _bar(name: str, total: int, wanted: bool) -> Iterator[Callable[[int, float], None]]:
    """Say how far a run is: by tqdm where it is installed, else by a line on standard error."""
    if not wanted:
        yield lambda k, value: None
        return
    try:
        from tqdm import tqdm  # noqa: PLC0415 (an optional dependency)
    except ImportError:

        def line(k: int, value: float) -> None:
            print(f"\r{name}: {k}/{total}, f = {value:.6g}", end="", file=sys.stderr, flush=True)

        yield line
        print(file=sys.stderr)
        return
    bar: Any
    with tqdm(total=total, desc=name) as bar:

        def tell(k: int, value: float) -> None:
            bar.update(k - bar.n)
            bar.set_postfix_str(f"f = {value:.6g}")

        yield tell
