"""Products of operands whose values are whole numbers of steps: exact, so the same on any BLAS.

float32 holds whole numbers up to 2^24. A sum of products is exact in any order, on any number of threads, with or without
fused multiply-adds, if the sum of magnitudes stays below 2^24 steps. That is certain for short sums (INT4 x INT4: 2^18
terms); for longer ones it is read off the operands' own magnitudes, and where it does not hold the sum is cut in halves,
which are added in order. Operands that are no whole numbers of steps (block scales) are multiplied as they are: the result
then has the error bound of a float32 product.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import grad as conv_grad

import lowbit as lb

_EXACT = float(1 << 24)


@dataclass(frozen=True)
class Steps:
    """Values that are whole multiples of `step`, at most `most` of them."""

    step: float
    most: int

    def times(self, n: int) -> Steps:
        """Describe sums of n such values."""
        return Steps(self.step, self.most * n)


@lru_cache(maxsize=256)
def steps(format: str) -> Steps | None:
    """Find the steps of a format; None where its values are no whole numbers of steps, or of too many."""
    fmt = lb.get_format(format)
    counts = fmt.values.astype(np.float64) / fmt.smallest
    if (counts != np.rint(counts)).any() or np.abs(counts).max() > 1 << 14:
        return None
    return Steps(fmt.smallest, int(np.abs(counts).max()))


def _sure(a: Steps | None, b: Steps | None, terms: int) -> bool:
    """Say whether nothing need be looked at: no whole numbers, or few enough terms."""
    return a is None or b is None or terms * a.most * b.most <= _EXACT


def _fits(a: Tensor, sa: Steps, sb: Steps, dims: list[int], times: int = 1) -> bool:
    """Say whether sums over `dims` of magnitudes of `a`, times the largest of the other, stay below 2^24 steps."""
    if a.numel() == 0:
        return True
    mass = float(torch.linalg.vector_norm(a, 1, dim=dims).amax())
    # What is not finite cannot be made exact, and must not be cut for ever.
    return not mass * times * sb.most / sa.step >= _EXACT or mass == float("inf")


def matmul(a: Tensor, b: Tensor, sa: Steps | None, sb: Steps | None) -> Tensor:
    """Multiply a (m, k) by b (k, n)."""
    k = a.shape[1]
    if k <= 1 or _sure(sa, sb, k) or sa is None or sb is None:
        return a @ b
    if _fits(a, sa, sb, [1]) or _fits(b, sb, sa, [0]):
        return a @ b
    half = k // 2
    return matmul(a[:, :half], b[:half], sa, sb).add_(matmul(a[:, half:], b[half:], sa, sb))


@dataclass(frozen=True)
class Convolution:
    """The geometry of a convolution with zero padding."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def forward(self, x: Tensor, w: Tensor, sx: Steps | None, sw: Steps | None) -> Tensor:
        """Compute y (n, o, ...) of x (n, c, ...) and w (o, c / groups, ...)."""
        run = F.conv1d if w.dim() == 3 else F.conv2d
        exact = _sure(sx, sw, w[0].numel()) or sx is None or sw is None
        if exact or _fits(w, sw, sx, list(range(1, w.dim()))):  # type: ignore[arg-type]  # exact where one is None
            return run(x, w, None, self.stride, self.padding, self.dilation, self.groups)
        return run(x.double(), w.double(), None, self.stride, self.padding, self.dilation, self.groups).float()

    def grad_input(self, shape: torch.Size, g: Tensor, w: Tensor, sg: Steps | None, sw: Steps | None) -> Tensor:
        """Compute dL/dx of g = dL/dy and w."""
        run = conv_grad.conv1d_input if w.dim() == 3 else conv_grad.conv2d_input
        kernel, channels = w[0, 0].numel(), w.shape[0] // self.groups
        rest = self.stride, self.padding, self.dilation, self.groups
        if _sure(sg, sw, kernel * channels) or sg is None or sw is None or _fits(g, sg, sw, [1], kernel):
            return run(shape, w, g, *rest)
        if self.groups > 1 or channels == 1:
            return run(shape, w.double(), g.double(), *rest).float()
        half = channels // 2
        low = self.grad_input(shape, g[:, :half], w[:half], sg, sw)
        return low.add_(self.grad_input(shape, g[:, half:], w[half:], sg, sw))

    def grad_weight(self, shape: torch.Size, g: Tensor, x: Tensor, sg: Steps | None, sx: Steps | None) -> Tensor:
        """Compute dL/dW of g = dL/dy and x."""
        run = conv_grad.conv1d_weight if x.dim() == 3 else conv_grad.conv2d_weight
        n = g.shape[0]
        rest = self.stride, self.padding, self.dilation, self.groups
        sums = [0, *range(2, g.dim())]
        terms = n * g[0, 0].numel() if n else 0
        if _sure(sg, sx, terms) or sg is None or sx is None or _fits(g, sg, sx, sums):
            return run(x, shape, g, *rest)
        if n == 1:
            return run(x.double(), shape, g.double(), *rest).float()
        half = n // 2
        low = self.grad_weight(shape, g[:half], x[:half], sg, sx)
        return low.add_(self.grad_weight(shape, g[half:], x[half:], sg, sx))
