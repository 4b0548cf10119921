"""Low-precision SGD on linear models, where its theory can be watched: HALP, SVRG, LP-SVRG, SGD and LP-SGD.

A problem (`LeastSquares`, `Logistic`) knows its value, gradient, constants and minimum; a method runs on it and returns a
`Record` of how it converged. The inner loops run in Rust: `halp` with ``rows="rounded"`` on 8- or 16-bit integers alone,
everything else on floats as the papers write it. ``docs/convex.md`` tells what to expect, `lowbit.theory` what is proved.
"""

from lowbit.convex._halp import halp
from lowbit.convex._methods import lp_sgd, lp_svrg, sgd, svrg
from lowbit.convex._problems import LeastSquares, Logistic, Minimum, Problem
from lowbit.convex._record import Record, TheoryWarning

__all__ = [
    "LeastSquares",
    "Logistic",
    "Minimum",
    "Problem",
    "Record",
    "TheoryWarning",
    "halp",
    "lp_sgd",
    "lp_svrg",
    "sgd",
    "svrg",
]
