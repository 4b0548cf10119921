"""Optimizers of low precision: variance reduction with bit centering, and averages of rounded weights."""

from __future__ import annotations

from lowbit.torch.optim.halp import HALP
from lowbit.torch.optim.svrg import LPSVRG, SVRG, full_gradient
from lowbit.torch.optim.swalp import SWALP, swalp_schedule

__all__ = ["HALP", "LPSVRG", "SVRG", "SWALP", "full_gradient", "swalp_schedule"]
