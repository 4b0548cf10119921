"""How many bits a convex problem needs: the bounds for low-precision SGD and HALP, as functions of its constants.

The setting is f = mean_i f_i with f mu-strongly convex, every f_i convex and L-smooth, and

* ||grad f_i(w) - grad f_i(v)||_1 <= L1 ||w - v||_2 (always with L1 <= sqrt(d) L; for s-sparse rows L1 <= sqrt(s) L),
* sigma^2 = E ||grad f_i(w*)||_2^2 and sigma1 = E ||grad f_i(w*)||_1 (<= sqrt(d) sigma) at the minimum w*.

`constants` measures all of them on a `lowbit.convex` problem. The statements are those of Li and De Sa, "Dimension-Free
Bounds for Low-Precision Training" (NeurIPS 2019), and De Sa et al., "High-Accuracy Low-Precision Training"
(arXiv:1803.03383). **The proofs and constants here are re-derived, not copied**: every docstring has its derivation in
short, and a published constant may differ by a factor. "Dimension-free" means that d is absent given (mu, L, L1, sigma,
sigma1); without regularization a linear model has L/mu >= d, by the trace of its Hessian.
"""

from lowbit.theory._bits import bits_fixed_point, bits_logarithmic
from lowbit.theory._constants import Constants, constants
from lowbit.theory._floors import (
    fixed_point_floor,
    fixed_point_gap,
    linear_regression_gap,
    logarithmic_floor,
    rounding_variance,
)
from lowbit.theory._grids import fixed_point_delta, logarithmic_delta, logarithmic_levels
from lowbit.theory._halp import bits_halp, halp_contraction, halp_inner, halp_lr, halp_scale

__all__ = [
    "Constants",
    "bits_fixed_point",
    "bits_halp",
    "bits_logarithmic",
    "constants",
    "fixed_point_delta",
    "fixed_point_floor",
    "fixed_point_gap",
    "halp_contraction",
    "halp_inner",
    "halp_lr",
    "halp_scale",
    "linear_regression_gap",
    "logarithmic_delta",
    "logarithmic_floor",
    "logarithmic_levels",
    "rounding_variance",
]
