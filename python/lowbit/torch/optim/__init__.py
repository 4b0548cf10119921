"""Optimizers of low precision: any optimizer on numbers of a few bits, variance reduction with bit centering, averages.

`LowPrecision` keeps the weights, gradients and states of any optimizer in few bits; `HALP`, `LPSVRG` and `SVRG` step by
full gradients and samples; `SWALP` averages weights that are rounded.
"""

from __future__ import annotations

from lowbit.torch.optim._store import Footprint
from lowbit.torch.optim.halp import HALP
from lowbit.torch.optim.low_precision import LowPrecision
from lowbit.torch.optim.svrg import LPSVRG, SVRG, full_gradient
from lowbit.torch.optim.swalp import SWALP, swalp_schedule

__all__ = ["HALP", "LPSVRG", "SVRG", "SWALP", "Footprint", "LowPrecision", "full_gradient", "swalp_schedule"]
