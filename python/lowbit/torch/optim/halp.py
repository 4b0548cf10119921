"""``HALP``: high accuracy from low precision, by bit centering."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, SupportsIndex

import numpy as np
import torch
from torch import Tensor

import lowbit as lb
from lowbit.torch.optim._variance_reduced import At, Group, Rounding, finite, width

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

#: The scales that the core takes.
SMALLEST, LARGEST = 2.0**-126, 2.0**126


class HALP(Rounding):
    """SVRG that keeps in few bits how far it is from a centre, on a grid that shrinks with the gradient.

    The weights are W + Z: a centre W in full precision, which moves every `inner` steps, and an offset Z of `bits`
    bits, which every step moves. Where the objective is mu-strongly convex, ``|W - w*| <= |G| / mu``, so that the grid
    of Z need reach no further than that; its step

        ``s = |G|_2 / (mu (2^(bits - 1) - 1))``

    falls as the gradient G of the whole set does, and so does the error of rounding: the error has no floor.

        ``Z = s round(clip((Z - lr (grad f_i(W + Z) - grad f_i(W) + G)) / s))``

    Parameters
    ----------
    params, lr, inner, full, momentum, weight_decay
        As in `SVRG`; a group may have its own ``mu`` and ``bits`` too.
    mu : float
        How far offsets reach: no constant of the problem but a knob. Larger is a finer grid that reaches less far;
        too large, Z is clipped and progress stalls; too small, rounding drowns the steps. With the strong convexity of
        the objective the optimum is always in reach, and a few times that is often better.
    bits : int
        2 to 24 of Z's integers, from ``-2^(bits - 1)`` to ``2^(bits - 1) - 1``.
    rounding : {"stochastic", "nearest"}
        Of the offset. To nearest, ties go to even.
    key : Key or int, optional
        The randomness; by default drawn from torch's generator, with torch.distributed from that of rank 0, so that
        replicas stay alike.

    Raises
    ------
    TypeError
        An argument has the wrong type, or a parameter is not float32 or float64.
    lowbit.Error
        An argument is out of range. In a step: the whole set's gradient is not finite, or so large that float32 has no
        scale for it.

    Notes
    -----
    A parameter has its own scale. Where G is zero (or so small that s is below 2^-126) the offset stays zero until the
    next full gradient. The state of a parameter is "center", "offset" (numbers of the grid), "full_grad", "scale" and
    with momentum "momentum_buffer"; gradients and the sum W + Z are in the parameter's dtype.

    Theory asks for ``2^bits ~ kappa sqrt(d)`` at least, whatever the accuracy: the condition number and the dimension.

    Source: De Sa, Leszczynski, Zhang, Marzoev, Aberger, Olukotun and Re, "High-Accuracy Low-Precision Training",
    arXiv:1803.03383, algorithm 3 with the last iterate; a scale for each parameter as in their torchhalp.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch.optim import HALP, full_gradient
    >>> _ = torch.manual_seed(0)
    >>> x = torch.randn(64, 4, dtype=torch.float64)
    >>> y = x @ torch.ones(4, 1, dtype=torch.float64) + torch.randn(64, 1, dtype=torch.float64)
    >>> model, loss = torch.nn.Linear(4, 1).double(), torch.nn.MSELoss()
    >>> batches = list(zip(x.split(4), y.split(4)))
    >>> full = full_gradient(model, loss, batches)
    >>> optimizer = HALP(model.parameters(), lr=0.05, inner=32, full=full, mu=2.0, bits=8, key=0)
    >>> for step in range(640):
    ...     a, b = batches[step % 16]
    ...     def closure():
    ...         value = loss(model(a), b)
    ...         value.backward()
    ...         return value
    ...     _ = optimizer.step(closure)
    >>> optimizer.zero_grad()
    >>> full()
    >>> bool(model.weight.grad.norm() < 1e-10)  # from integers of 8 bits
    True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        inner: SupportsIndex,
        full: Callable[[], object],
        *,
        mu: float,
        bits: SupportsIndex = 8,
        rounding: Literal["nearest", "stochastic"] = "stochastic",
        key: lb.Key | int | None = None,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        options = {"momentum": momentum, "weight_decay": weight_decay, "mu": mu, "bits": bits}
        super().__init__(params, lr, inner, full, rounding=rounding, key=key, **options)

    def _check(self, group: Group) -> None:
        super()._check(group)
        group["mu"], group["bits"] = finite(group["mu"], "mu", zero=False), width(group["bits"])

    def _center(self, at: At, full_grad: Tensor) -> None:
        norm = float(torch.linalg.vector_norm(full_grad, dtype=torch.float64))
        scale = norm / (at.group["mu"] * (2 ** (at.group["bits"] - 1) - 1))
        if not math.isfinite(norm) or scale > LARGEST:
            raise lb.Error(
                f"full: the gradient of {at.name} has the norm {norm:g}, for which there is no grid; lower lr"
            )
        super()._center(at, full_grad)
        # Rounded as the core will. What is below its scales is a gradient of zero.
        scale = 0.0 if scale < SMALLEST else float(np.float32(scale))
        self.state[at.p].update(offset=torch.zeros_like(full_grad), scale=scale)

    def _move(self, at: At, change: Tensor) -> None:
        state = self.state[at.p]
        if state["scale"]:
            z = state["offset"] - change
            state["offset"] = self._round(z, lb.fixed_point(at.group["bits"], 0), state["scale"], at.number, "offset")
            at.p.copy_(state["center"] + state["offset"])
