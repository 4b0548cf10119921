"""``SVRG``: stochastic gradients whose variance vanishes, and ``LPSVRG``, the same with rounded weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import torch
from torch import Tensor, nn

import lowbit as lb
from lowbit.torch.optim._variance_reduced import At, Group, Rounding, VarianceReduced, width

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

    from lowbit._formats import FormatLike


class SVRG(VarianceReduced):
    """Stochastic variance-reduced gradients: each step is corrected by the gradient of the whole set.

    Every `inner` steps the weights are kept as the centre W, and `full` computes the gradient G of all examples there.
    A step with the minibatch i goes along ``grad f_i(w) - grad f_i(W) + G``, whose mean is the gradient of the whole
    set and whose variance vanishes as w and W come to the optimum: no learning rate has to fall.

    Parameters
    ----------
    params : iterable
        Parameters, named parameters or groups, float32 or float64; a group may have its own ``lr``, ``momentum`` and
        ``weight_decay``.
    lr : float
    inner : int
        Steps from one full gradient to the next; once or twice the minibatches of the set is usual.
    full : callable
        ``full()`` leaves in ``p.grad`` the *mean* gradient of the whole set, with the parameters as they are: what
        `full_gradient` makes. Gradients are cleared before it is called.
    momentum : float
        Of the corrected gradients: ``v = momentum v + d``, and v is the direction of the step.
    weight_decay : float
        Adds ``weight_decay |w|^2 / 2`` to the objective, in both gradients as in the full one.

    Raises
    ------
    TypeError
        An argument has the wrong type, or a parameter is not float32 or float64.
    lowbit.Error
        An argument is out of range; the message names it.

    Notes
    -----
    The state of a parameter is "center", "full_grad" and with momentum "momentum_buffer". ``state_dict`` also says
    where in the inner loop it stands, so that training resumes bit for bit. A group that is added later starts a new
    inner loop, since its full gradient is not known. After a step ``p.grad`` is the corrected gradient.

    Sources: Johnson and Zhang, "Accelerating Stochastic Gradient Descent using Predictive Variance Reduction", NeurIPS
    2013, option I (the next centre is the last iterate).

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch.optim import SVRG, full_gradient
    >>> _ = torch.manual_seed(0)
    >>> x = torch.randn(32, 4)
    >>> y = x @ torch.ones(4, 1) + 0.5 * torch.randn(32, 1)
    >>> model, loss = torch.nn.Linear(4, 1), torch.nn.MSELoss()
    >>> batches = list(zip(x.split(4), y.split(4)))
    >>> full = full_gradient(model, loss, batches)
    >>> optimizer = SVRG(model.parameters(), lr=0.05, inner=16, full=full)
    >>> for step in range(480):
    ...     a, b = batches[step % 8]
    ...     def closure():
    ...         value = loss(model(a), b)
    ...         value.backward()
    ...         return value
    ...     _ = optimizer.step(closure)
    >>> full()
    >>> bool(model.weight.grad.norm() < 1e-5)
    True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        inner: SupportsIndex,
        full: Callable[[], object],
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, inner, full, momentum=momentum, weight_decay=weight_decay)


class LPSVRG(Rounding):
    """`SVRG` whose weights are rounded after every step: low precision without bit centering.

    Its error has a floor that the grid's step sets; `HALP`, whose grid shrinks, has none.

    Parameters
    ----------
    params, lr, inner, full, momentum, weight_decay
        As in `SVRG`; a group may have its own ``bits`` and ``scale`` too.
    bits : int, str or Format
        Integers of so many bits (2 to 24), or any number format.
    scale : float or str, optional
        The step of the integers (by which a format's numbers are multiplied), or a scale rule. Default: of integers
        "amax", the largest weight of each parameter at each step; of a format its own.
    rounding : {"stochastic", "nearest"}
    key : Key or int, optional
        The randomness; by default drawn from torch's generator, with torch.distributed from that of rank 0, so that
        replicas stay alike.

    Raises
    ------
    TypeError, lowbit.Error
        As in `SVRG`; there is no such format, or it has no such scale.

    Notes
    -----
    The weights are rounded a first time before their first full gradient. Source: LP-SVRG of De Sa et al.,
    "High-Accuracy Low-Precision Training", arXiv:1803.03383.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch.optim import LPSVRG, full_gradient
    >>> model = torch.nn.Linear(2, 1)
    >>> x, y = torch.ones(1, 2), torch.ones(1, 1)
    >>> full = full_gradient(model, torch.nn.MSELoss(), [(x, y)])
    >>> optimizer = LPSVRG(model.parameters(), lr=0.1, inner=2, full=full, bits=8, scale=2**-5)
    >>> def closure():
    ...     value = torch.nn.functional.mse_loss(model(x), y)
    ...     value.backward()
    ...     return value
    >>> _ = optimizer.step(closure)
    >>> bool((model.weight * 32 == (model.weight * 32).round()).all())
    True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        inner: SupportsIndex,
        full: Callable[[], object],
        *,
        bits: SupportsIndex | FormatLike = 8,
        scale: float | str | None = None,
        rounding: Literal["nearest", "stochastic"] = "stochastic",
        key: lb.Key | int | None = None,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        options = {"momentum": momentum, "weight_decay": weight_decay, "bits": bits, "scale": scale}
        super().__init__(params, lr, inner, full, rounding=rounding, key=key, **options)

    def _check(self, group: Group) -> None:
        super()._check(group)
        bits = group["bits"]
        if isinstance(bits, str | lb.Format):
            # A name, so that `state_dict` is plain data.
            group["bits"] = lb.get_format(bits).name if isinstance(bits, str) else bits.name
        else:
            group["bits"] = width(bits)
            group["scale"] = "amax" if group["scale"] is None else group["scale"]
        # The rule or the number is checked by who knows it.
        self._grid(At("", 0, group, torch.zeros(1)), torch.zeros(1), "weight")

    def _grid(self, at: At, x: Tensor, label: str) -> Tensor:
        bits = at.group["bits"]
        fmt = lb.get_format(bits) if isinstance(bits, str) else lb.fixed_point(bits, 0)
        return self._round(x, fmt, at.group["scale"], at.number, label)

    def _start(self, at: At) -> None:
        at.p.copy_(self._grid(at, at.p.detach(), "start"))

    def _move(self, at: At, change: Tensor) -> None:
        at.p.copy_(self._grid(at, at.p.detach() - change, "weight"))


def full_gradient(
    model: nn.Module, loss: Callable[[Any, Any], Tensor], batches: Iterable[tuple[Any, Any]]
) -> Callable[[], None]:
    """Make the `full` of `SVRG`, `LPSVRG` and `HALP`: the mean gradient of a whole set, batch after batch.

    Parameters
    ----------
    model : torch.nn.Module
    loss : callable
        ``loss(model(inputs), targets)`` is the mean over a batch.
    batches : iterable
        Gives all pairs of inputs and targets each time anew: a list, a DataLoader. Batches count by their
        ``len(targets)``, so that a short one weighs less.

    Returns
    -------
    callable
        Without arguments; adds the mean gradient to what is in ``p.grad``, so clear that before.

    Raises
    ------
    TypeError
        `batches` can be gone through once only, or `model` or `loss` cannot be called.
    lowbit.Error
        Raised by the function: `batches` gave no example.

    Notes
    -----
    The model's mode is left as it is: what dropout and batch norms do, they do here too. The batches' losses are added
    as sums, in their order, and the gradients divided by the number of examples at the end.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch.optim import full_gradient
    >>> model, x = torch.nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [2.0], [3.0]])
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> full = full_gradient(model, torch.nn.MSELoss(), list(zip(x.split(2), x.split(2))))
    >>> full()
    >>> model.weight.grad  # -2 (1 + 4 + 9) / 3
    tensor([[-9.3333]])
    """
    if not callable(model):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not callable(loss):
        raise TypeError(f"loss: expected a function of outputs and targets, got {type(loss).__name__}")
    if not isinstance(batches, Iterable) or isinstance(batches, Iterator):
        raise TypeError("batches: gone through once for every full gradient; give a list or a DataLoader, no iterator")

    def full() -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        before = [p.grad for p in parameters]
        for p in parameters:
            p.grad = None
        count = 0
        with torch.enable_grad():
            for inputs, targets in batches:
                n = len(targets)
                (loss(model(inputs), targets) * n).backward()  # type: ignore[no-untyped-call]
                count += n
        if count == 0:
            raise lb.Error("batches: gave no example")
        for p, earlier in zip(parameters, before, strict=True):
            if p.grad is not None:
                p.grad = p.grad / count if earlier is None else earlier + p.grad / count
            else:
                p.grad = earlier

    return full
