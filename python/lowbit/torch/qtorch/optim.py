"""QPyTorch's optimizer wrapper."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

import lowbit as lb

if TYPE_CHECKING:
    from torch import Tensor

    Quantize = Callable[[Tensor], Tensor]

__all__ = ["OptimLP"]


class OptimLP(Optimizer):
    """An optimizer whose gradients, weights, states and accumulators are rounded, each by a function of its own.

    A step is, for every parameter p with the gradient g: ``g = grad_quant(g * grad_scaling)``; with accumulators,
    ``p = accumulator``; the optimizer's own step; with accumulators, ``accumulator = p = acc_quant(p)``;
    ``p = weight_quant(p)``; and every state tensor of p's shape becomes ``momentum_quant`` of itself.
    `lowbit.torch.optim.LowPrecision` does the same by formats, with packed states and with keys of its own.

    Parameters
    ----------
    optim : Optimizer
        Any; its parameter groups and state are shared.
    weight_quant, grad_quant, momentum_quant, acc_quant : callable, optional
        From tensor to tensor, such as `quantizer` makes; None rounds nothing. With `acc_quant` every parameter gets an
        accumulator, which the optimizer's steps are added to.
    grad_scaling : float
        What gradients are multiplied with before `grad_quant` (and only then); it is not undone.

    Raises
    ------
    TypeError
        `optim` is no optimizer.
    lowbit.Error
        `grad_scaling` is not positive.

    Notes
    -----
    QPyTorch, arXiv:1910.04540. States are found by name and shape, so that optimizers other than SGD and Adam work.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch.qtorch import FixedPoint
    >>> from lowbit.torch.qtorch.optim import OptimLP
    >>> from lowbit.torch.qtorch.quant import quantizer
    >>> weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> optimizer = OptimLP(
    ...     torch.optim.SGD([weight], lr=0.1), weight_quant=quantizer(FixedPoint(8, 4), forward_rounding="nearest")
    ... )
    >>> weight.square().sum().backward()
    >>> optimizer.step()
    >>> weight.data
    tensor([0.8125, 1.6250])
    """

    def __init__(
        self,
        optim: Optimizer,
        weight_quant: Quantize | None = None,
        grad_scaling: float = 1.0,
        grad_quant: Quantize | None = None,
        momentum_quant: Quantize | None = None,
        acc_quant: Quantize | None = None,
    ) -> None:
        if not isinstance(optim, Optimizer):
            raise TypeError(f"optim: expected a torch.optim.Optimizer, got {type(optim).__name__}")
        if not grad_scaling > 0:
            raise lb.Error(f"grad_scaling: {grad_scaling} is not a positive number")
        super().__init__(optim.param_groups, optim.defaults)
        self.optim, self.grad_scaling = optim, grad_scaling
        self.weight_quant, self.grad_quant = weight_quant, grad_quant
        self.momentum_quant, self.acc_quant = momentum_quant, acc_quant
        self.weight_acc: dict[Tensor, Tensor] = {}
        self._share()

    def _share(self) -> None:
        """Have the same groups and states as the optimizer within, and accumulators for all that it steps."""
        self.param_groups, self.state = self.optim.param_groups, self.optim.state
        if self.acc_quant is not None:
            for p in self._parameters():
                self.weight_acc.setdefault(p, p.detach().clone())

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, also after steps."""
        if "optim" not in self.__dict__:
            super().add_param_group(param_group)
            return
        self.optim.add_param_group(param_group)
        self._share()

    def _round_gradients(self) -> None:
        if self.grad_quant is None:
            return
        for p in self._parameters():
            if p.grad is not None:
                p.grad.copy_(self.grad_quant(p.grad * self.grad_scaling))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss and the gradients anew and returns the loss. It sees rounded weights, and gradients are
            rounded after each call, however often the optimizer calls it.

        Returns
        -------
        What the closure returned, or None.
        """
        # The memory of the parameters themselves, while the optimizer works on the accumulators.
        weights = {p: p.data for p in self.weight_acc}
        first = True

        def evaluate() -> Any:
            nonlocal first
            points = {p: p.data for p in weights}
            for p, weight in weights.items():
                # The first call is for the weights as they are.
                p.data = weight if first else self._rounded_into(weight, points[p])
            first = False
            with torch.enable_grad():
                loss = closure() if closure is not None else None
            self._round_gradients()
            for p, point in points.items():
                p.data = point
            return loss

        if closure is None:
            self._round_gradients()
        for p, accumulator in self.weight_acc.items():
            p.data = accumulator
        try:
            loss = self.optim.step(None if closure is None else evaluate)
        finally:
            for p, weight in weights.items():
                p.data = weight
        for p in self._parameters():
            weight = p.data
            point = self.weight_acc.get(p, weight)
            if self.acc_quant is not None:
                point.copy_(self.acc_quant(point))
            self._rounded_into(weight, point)
        self._round_states()
        return loss

    def _rounded_into(self, weight: Tensor, point: Tensor) -> Tensor:
        if self.weight_quant is not None:
            return weight.copy_(self.weight_quant(point))
        return weight if weight is point else weight.copy_(point)

    def _round_states(self) -> None:
        if self.momentum_quant is None:
            return
        for p in self._parameters():
            if p.grad is None:
                continue
            for name, value in self.state[p].items():
                same = isinstance(value, torch.Tensor) and value.shape == p.shape and value.is_floating_point()
                # A counter of a parameter without dimensions has its shape too.
                if same and name != "step":
                    value.copy_(self.momentum_quant(value))

    def state_dict(self) -> dict[str, Any]:
        """Give the optimizer's own state, and the accumulators in the order of the parameters."""
        found = self.optim.state_dict()
        if self.acc_quant is not None:
            found["accumulators"] = [self.weight_acc[p] for p in self._parameters()]
        return found

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises
        ------
        lowbit.Error
            There should be accumulators, or as many as parameters, and there are not.
        """
        rest = dict(state_dict)
        accumulators = rest.pop("accumulators", [])
        if self.acc_quant is not None and len(accumulators) != len(self._parameters()):
            wanted = len(self._parameters())
            raise lb.Error(f"state_dict: has {len(accumulators)} accumulators for {wanted} parameters")
        self.optim.load_state_dict(rest)
        self._share()
        if self.acc_quant is not None:
            for p, accumulator in zip(self._parameters(), accumulators, strict=True):
                self.weight_acc[p].copy_(accumulator)

    def __repr__(self) -> str:
        return f"LP Optimizer: {self.optim!r}"
