"""Letting an optimizer step some of its parameters, or other tensors in their place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from torch.optim import Optimizer


@dataclass
class Work:
    """One parameter in one step, and the tensor that the optimizer steps for it: itself, or a float32 copy."""

    index: int
    group: dict[str, Any]
    p: Tensor
    master: Tensor


class Swap:
    """While it is entered, the optimizer knows the masters only, with their parameters' states.

    Lists are changed in place: LBFGS and others hold on to them.
    """

    def __init__(self, optimizer: Optimizer, work: Sequence[Work]) -> None:
        self._optimizer = optimizer
        self._work = work
        self._entered = False
        self._groups: list[dict[str, Any]] = []
        self._params: list[list[Tensor]] = []

    def __enter__(self) -> None:
        groups = self._optimizer.param_groups
        self._groups = list(groups)
        self._params = [list(group["params"]) for group in groups]
        masters: dict[int, list[Tensor]] = {id(group): [] for group in groups}
        for item in self._work:
            masters[id(item.group)].append(item.master)
        for group in self._groups:
            group["params"][:] = masters[id(group)]
        groups[:] = [group for group in self._groups if group["params"]]
        self._move((item.p, item.master) for item in self._work)
        self._entered = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._entered:
            return
        self._entered = False
        for group, params in zip(self._groups, self._params, strict=True):
            group["params"][:] = params
        self._optimizer.param_groups[:] = self._groups
        self._move((item.master, item.p) for item in self._work)

    def _move(self, pairs: Any) -> None:
        state = self._optimizer.state
        for old, new in pairs:
            if old is not new and old in state:
                state[new] = state.pop(old)


class Options:
    """The options of groups while their parameters are stepped one by one: counts of steps must not run away."""

    def __init__(self) -> None:
        self._saved: dict[int, dict[str, Any]] = {}

    def rewind(self, group: dict[str, Any]) -> None:
        """Put a group's options back to what they were when it was first seen."""
        saved = self._saved.get(id(group))
        if saved is None:
            pairs = ((name, value) for name, value in group.items() if name != "params")
            self._saved[id(group)] = {n: v.clone() if isinstance(v, Tensor) else v for n, v in pairs}
            return
        for name in [name for name in group if name != "params" and name not in saved]:
            del group[name]
        for name, value in saved.items():
            if isinstance(value, Tensor) and isinstance(group.get(name), Tensor):
                group[name].copy_(value)
            else:
                group[name] = value


def step(optimizer: Optimizer, closure: Callable[[], Any] | None) -> Any:
    """Call an optimizer's `step` without the hooks around it, which the outer step calls."""
    function: Any = type(optimizer).step
    if getattr(function, "hooked", False):
        function = function.__wrapped__
    return function(optimizer) if closure is None else function(optimizer, closure)
