"""Optimizers of low precision: any optimizer on numbers of a few bits, and bfloat16 weights rounded at random."""

from __future__ import annotations

from lowbit.torch.optim._store import Footprint
from lowbit.torch.optim.low_precision import LowPrecision

__all__ = ["Footprint", "LowPrecision"]
