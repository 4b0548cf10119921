"""Products of operands whose values are whole numbers of steps: exact, so the same on any BLAS.

float32 holds whole numbers up to 2^24. A sum of products is exact in any order, on any number of threads, with or
without fused multiply-adds, if the sum of magnitudes stays below 2^24 steps. That is certain for short sums
(INT4 x INT4: 2^18 terms). For longer ones it is read off the gradient's own magnitudes, and where it does not hold the
sum is cut into pieces, which are added in float64 (or, if one part alone is too much, all of it is taken there). So a
result is the exact sum, rounded once, as that of integers is (`_integer`). Operands that are no whole numbers of steps
(block scales) are multiplied as they are: the result then has the error bound of a float32 product.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

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
    if (counts != np.rint(counts)).any() or np.abs(counts).max() > 1 << 13:
        return None
    return Steps(fmt.smallest, int(np.abs(counts).max()))


def _sure(a: Steps | None, b: Steps | None, terms: int) -> bool:
    """Say whether nothing need be looked at: no whole numbers, or few enough terms."""
    return a is None or b is None or terms * a.most * b.most <= _EXACT


def _pieces(masses: Tensor, a: Steps, b: Steps, times: int = 1) -> list[int] | None:
    """Cut a sum into as few runs of its parts as keep every result exact.

    Row i of `masses` holds the sums of magnitudes of part i of operand a, for each result; each is multiplied by
    `times` values of b at most. None where one part alone is too much.
    """
    limit = _EXACT * a.step / (b.most * times)
    # What is not finite is NaN however it is added.
    rows = masses.nan_to_num(0.0, 0.0, 0.0).double()
    if not rows.numel() or float(rows.sum(0).amax()) < limit:
        return [len(masses)]
    if float(rows.amax()) >= limit:
        return None
    counts, total = [0], torch.zeros_like(rows[0])
    for row in rows:
        total = total + row
        if float(total.amax()) >= limit:
            counts.append(0)
            total = row
        counts[-1] += 1
    return counts


def _added(products: Iterable[Tensor]) -> Tensor:
    """Add exact pieces, and round once."""
    first, *rest = products
    total = first.double()
    for product in rest:
        total += product
    return total.float()


#: Terms of one part of a matrix product's sum: few enough for every pair of formats that `steps` lets through.
_PART = 128


def matmul(a: Tensor, b: Tensor, sa: Steps | None, sb: Steps | None) -> Tensor:
    """Multiply a (m, k) by b (k, n); what is looked at, if anything, is a."""
    k = a.shape[1]
    if sa is None or sb is None or _sure(sa, sb, k):
        return a @ b
    whole = k - k % _PART
    masses = [a[:, :whole].unflatten(1, (-1, _PART)).abs().sum(2).t()]
    if whole < k:
        masses.append(a[:, whole:].abs().sum(1)[None])
    pieces = _pieces(torch.cat(masses), sa, sb)
    if pieces is None:
        return (a.double() @ b.double()).float()
    if len(pieces) == 1:
        return a @ b
    sizes = [_PART * n for n in pieces[:-1]]
    sizes.append(k - sum(sizes))
    return _added(x @ y for x, y in zip(a.split(sizes, 1), b.split(sizes), strict=True))


@dataclass(frozen=True)
class Convolution:
    """The geometry of a convolution with zero padding."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def result_shape(self, x: Sequence[int], w: Sequence[int]) -> tuple[int, ...]:
        """Give the shape of y for those of x and w."""
        sizes = zip(x[2:], self.padding, self.dilation, w[2:], self.stride, strict=True)
        return (x[0], w[0], *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in sizes))

    def forward(self, x: Tensor, w: Tensor, sx: Steps | None, sw: Steps | None) -> Tensor:
        """Compute y (n, o, ...) of x (n, c, ...) and w (o, c / groups, ...)."""
        run = F.conv1d if w.dim() == 3 else F.conv2d
        rest = self.stride, self.padding, self.dilation, self.groups
        if sx is None or sw is None or _sure(sx, sw, w[0].numel()):
            return run(x, w, None, *rest)
        masses = w.flatten(1).abs().sum(1)[None]
        if _pieces(masses, sw, sx) is None:
            return run(x.double(), w.double(), None, *rest).float()
        return run(x, w, None, *rest)

    def grad_input(self, shape: torch.Size, g: Tensor, w: Tensor, sg: Steps | None, sw: Steps | None) -> Tensor:
        """Compute dL/dx of g = dL/dy and w."""
        kernel, channels = w[0, 0].numel(), w.shape[0] // self.groups
        if sg is None or sw is None or _sure(sg, sw, kernel * channels):
            return self._grad_input(shape, g, w)
        # The channels of one place meet each number of the kernel once.
        few = max(1, _PART // kernel)
        parts = g.split(few if self.groups == 1 else g.shape[1], 1)
        masses = torch.stack([part.abs().sum(1).flatten() for part in parts])
        pieces = _pieces(masses, sg, sw, kernel)
        if pieces is None:
            return self._grad_input(shape, g.double(), w.double()).float()
        if len(pieces) == 1:
            return self._grad_input(shape, g, w)
        sizes = [few * n for n in pieces[:-1]]
        sizes.append(g.shape[1] - sum(sizes))
        pairs = zip(g.split(sizes, 1), w.split(sizes), strict=True)
        return _added(self._grad_input(shape, part, rows) for part, rows in pairs)

    def _grad_input(self, shape: torch.Size, g: Tensor, w: Tensor) -> Tensor:
        run: Any = conv_grad.conv1d_input if w.dim() == 3 else conv_grad.conv2d_input
        dx: Tensor = run(shape, w, g, self.stride, self.padding, self.dilation, self.groups)
        return dx

    def grad_weight(self, shape: torch.Size, g: Tensor, x: Tensor, sg: Steps | None, sx: Steps | None) -> Tensor:
        """Compute dL/dW of g = dL/dy and x."""
        n = len(g)
        if sg is None or sx is None or n == 0 or _sure(sg, sx, n * g[0, 0].numel()):
            return self._grad_weight(shape, g, x)
        pieces = _pieces(g.flatten(2).abs().sum(2), sg, sx)
        if pieces is None:
            return self._grad_weight(shape, g.double(), x.double()).float()
        pairs = zip(g.split(pieces), x.split(pieces), strict=True)
        return _added(self._grad_weight(shape, part, rows) for part, rows in pairs)

    def _grad_weight(self, shape: torch.Size, g: Tensor, x: Tensor) -> Tensor:
        run: Any = conv_grad.conv1d_weight if x.dim() == 3 else conv_grad.conv2d_weight
        dw: Tensor = run(x, shape, g, self.stride, self.padding, self.dilation, self.groups)
        return dw
