"""Problems know their value, gradient, constants and minimum."""

from __future__ import annotations

import numpy as np
import pytest

import lowbit as lb
from lowbit import convex
from test_convex import LOSSES, make


@pytest.mark.parametrize(("kind", "l2"), LOSSES)
def test_gradients_are_the_values_differences(kind, l2):
    problem = make(kind, 30, 4, l2)
    w = np.array([0.3, -1.0, 2.0, 0.0])
    step = 1e-6 * np.eye(4)
    differences = [(problem.value(w + e) - problem.value(w - e)) / 2e-6 for e in step]
    assert problem.gradient(w) == pytest.approx(differences, rel=1e-6, abs=1e-9)
    assert problem.gradients(w).mean(axis=0) == pytest.approx(problem.gradient(w))


@pytest.mark.parametrize(("kind", "l2"), [case for case in LOSSES if case[0] is convex.LeastSquares or case[1]])
def test_the_minimum_has_no_gradient_and_the_constants_hold(kind, l2):
    problem = make(kind, 60, 5, l2)
    w, value = problem.minimum()
    assert np.linalg.norm(problem.gradient(w)) < 1e-9
    rng = np.random.default_rng(1)
    for _ in range(50):
        a, b = rng.normal(size=(2, 5)) * 3
        between = np.linalg.norm(a - b)
        each = np.linalg.norm(problem.gradients(a) - problem.gradients(b), axis=1)
        assert each.max() <= problem.smoothness * between * (1 + 1e-12)
        slope = (problem.gradient(a) - problem.gradient(b)) @ (a - b)
        assert slope >= problem.strong_convexity * between**2 * (1 - 1e-12)
        assert problem.value(a) >= value


def test_least_squares_agree_with_the_hessian():
    problem = make(convex.LeastSquares, 60, 5, 0.1)
    hessian = problem.x.T @ problem.x / 60 + 0.1 * np.eye(5)
    assert problem.strong_convexity == pytest.approx(np.linalg.eigvalsh(hessian)[0])
    assert problem.minimum().w == pytest.approx(np.linalg.solve(hessian, problem.x.T @ problem.y / 60))
    assert make(convex.LeastSquares, 3, 5).strong_convexity == 0


def test_labels_may_be_signs_bools_or_bits():
    x = [[1.0], [2.0], [-1.0]]
    for labels in ([1, -1, 1], [1, 0, 1], np.array([True, False, True])):
        assert convex.Logistic(x, labels).y.tolist() == [1, -1, 1]


@pytest.mark.parametrize(
    ("kind", "x", "y", "l2", "error", "message"),
    [
        (convex.LeastSquares, [1.0, 2.0], [1.0, 2.0], 0, lb.Error, r"x: has shape .2,.; give one .n, d."),
        (convex.LeastSquares, np.zeros((0, 2)), [], 0, lb.Error, "x: shape"),
        (convex.LeastSquares, [[1.0], [2.0]], [1.0], 0, lb.Error, "y: has 1 numbers, but x has 2 rows"),
        (convex.LeastSquares, [[1.0], [np.inf]], [1.0, 1.0], 0, lb.Error, r"x: element .1, 0. is inf"),
        (convex.LeastSquares, [[1.0], [1e200]], [1.0, 1.0], 0, lb.Error, r"x: the squared length"),
        (convex.LeastSquares, [[1.0], [1.0]], [1.0, np.nan], 0, lb.Error, r"y: element .1. is nan"),
        (convex.LeastSquares, [["a"]], [1.0], 0, TypeError, "x: expected real numbers"),
        (convex.LeastSquares, [[1.0]], [1.0], -1, lb.Error, "l2: -1.0 is out of range"),
        (convex.Logistic, [[1.0], [1.0]], [1.0, 2.0], 0, lb.Error, "y: a label is 2.0; give -1 and 1, or 0 and 1"),
        (convex.Logistic, [[1.0], [1.0], [1.0]], [1, -1, 0], 0, lb.Error, "y: a label is both -1 and 0"),
    ],
)
def test_bad_problems_are_refused(kind, x, y, l2, error, message):
    with pytest.raises(error, match=message):
        kind(x, y, l2=l2)


def test_separable_labels_have_no_minimum():
    with pytest.raises(lb.Error, match="l2: without it these labels have no minimum"):
        convex.Logistic([[1.0], [2.0], [-1.0]], [1, 1, -1]).minimum()
