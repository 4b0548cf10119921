"""SGD and Adam of bfloat16 weights in one pass over memory, by the core (``docs/torch-optim.md``: the arithmetic)."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from lowbit import _core
from lowbit._keys import _label
from lowbit.torch._options import on_core
from lowbit.torch.optim._slots import Momentum, Slot

if TYPE_CHECKING:
    from numpy.typing import NDArray

    import lowbit as lb

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fused:
    """What one optimizer's steps are rounded with."""

    names: tuple[str, ...]
    nearest: bool
    dtype: torch.dtype
    decoupled: bool
    _views: WeakIdKeyDictionary = field(default_factory=WeakIdKeyDictionary, repr=False, compare=False)

    def step(
        self, group: dict[str, Any], tensors: list[tuple[int, Tensor, Tensor, dict[str, Any]]], key: lb.Key
    ) -> None:
        """Step weights of a group.

        Parameters
        ----------
        group : dict
            The options.
        tensors : list
            Of each weight its number, itself, its gradient and its state.
        key : Key
            This step's.
        """
        moments = self.names == _MOMENTS
        names = self.names if moments or group["momentum"] != 0 else ()
        batches: dict[float, list[Any]] = defaultdict(list)
        kinds = _counted(tensors) if moments else [bool(names) and names[0] in state for *_, state in tensors]
        for kind, (index, p, grad, state) in zip(kinds, tensors, strict=True):
            views = self._views.get(p)
            if views is None or not views.still(p, [state.get(name) for name in names]):
                views = self._views[p] = _Views(p, [self._state(p, state, name) for name in names])
            batches[kind].append((index, views.weight, _array(grad), views.states))
        labels = [_label("weight"), *map(_label, names)]
        for kind, batch in batches.items():
            if moments:
                _core.adam_step(batch, key.words, labels, self.nearest, self._adam(group, round(kind)))
            else:
                numbers = _sgd(group, first=bool(names) and not kind)
                _core.sgd_step(batch, key.words, labels, self.nearest, numbers, bool(group["nesterov"]))

    def _state(self, p: Tensor, state: dict[str, Any], name: str) -> Tensor:
        entry = state.get(name)
        if entry is None:
            state[name] = torch.zeros(p.shape, dtype=self.dtype)
        elif entry.dtype is not self.dtype or not entry.is_contiguous():
            # From a checkpoint of another setting.
            state[name] = entry.to(self.dtype).contiguous()
        return state[name]  # type: ignore[no-any-return]

    def _adam(self, group: dict[str, Any], steps: int) -> tuple[float, ...]:
        beta1, beta2 = (float(beta) for beta in group["betas"])
        lr, decay = float(group["lr"]), float(group["weight_decay"])
        # AdamW shrinks the weight instead of adding to its gradient.
        decoupled = self.decoupled or group.get("decoupled_weight_decay", False)
        first, second = 1.0 - _power(beta1, steps), 1.0 - _power(beta2, steps)
        sign = -1.0 if group["maximize"] else 1.0
        shrink = (0.0, 1.0 - lr * decay) if decoupled else (decay, 1.0)
        return sign, *shrink, 1.0 - beta1, beta2, 1.0 - beta2, 1.0 / math.sqrt(second), lr / first, float(group["eps"])


class _Views:
    """Arrays over a weight and its states, which take longer to make than a small tensor to step."""

    def __init__(self, p: Tensor, states: list[Tensor]) -> None:
        self.weight = _array(p)
        self.states = [_array(state) for state in states]
        self._tensors = states
        self._places = [t.data_ptr() for t in (p, *states)]

    def still(self, p: Tensor, states: list[Any]) -> bool:
        """Whether they are over the memory of these."""
        return (
            len(states) == len(self._tensors)
            and all(new is old for new, old in zip(states, self._tensors, strict=True))
            and p.shape == self.weight.shape
            and [t.data_ptr() for t in (p, *states)] == self._places
        )


def _counted(tensors: list[tuple[int, Tensor, Tensor, dict[str, Any]]]) -> list[float]:
    """Count this step in every state, as torch does; give the counts."""
    counts = []
    for *_, state in tensors:
        count = state.get("step")
        if not isinstance(count, Tensor):
            count = state["step"] = torch.tensor(float(count or 0))
        counts.append(count)
    torch._foreach_add_(counts, 1)
    return [count.item() for count in counts]


def fused(optimizer: Optimizer, weight: Slot | None, momentum: Momentum) -> Fused | None:
    """Say how this optimizer's bfloat16 weights are stepped in one pass, if they are."""
    if weight is None or not weight.is_bfloat16 or type(optimizer) not in (SGD, Adam, AdamW):
        return None
    names = ("momentum_buffer",) if type(optimizer) is SGD else _MOMENTS
    slots = [momentum.of(name) for name in names]
    brain = [slot is not None and slot.is_bfloat16 and slot.rounding == weight.rounding for slot in slots]
    if not all(brain) and any(slot is not None for slot in slots):
        return None
    return Fused(names, not weight.random, torch.bfloat16 if all(brain) else torch.float32, type(optimizer) is AdamW)


def suits(group: dict[str, Any]) -> bool:
    """Whether a group's options are what the core steps."""
    return not (group.get("amsgrad") or group.get("differentiable") or group.get("capturable"))


def fits(p: Tensor, state: dict[str, Any]) -> bool:
    """Whether a parameter's memory is what the core steps."""
    if p.dtype is not torch.bfloat16 or type(p) not in (torch.nn.Parameter, Tensor) or not on_core(p):
        return False
    return p.is_contiguous() and not any(type(entry) is dict for entry in state.values())


def _array(t: Tensor) -> NDArray[Any]:
    """See float32 numbers as they are, and bfloat16 as its bits."""
    if t.requires_grad:
        t = t.detach()
    if not t.is_contiguous():
        t = t.contiguous()
    return t.view(torch.uint16).numpy() if t.dtype is torch.bfloat16 else t.numpy()


def _sgd(group: dict[str, Any], *, first: bool) -> tuple[float, ...]:
    share = 1.0 if first else 1.0 - float(group["dampening"])
    sign = -1.0 if group["maximize"] else 1.0
    return float(group["lr"]), sign, float(group["weight_decay"]), float(group["momentum"]), share


def _power(base: float, exponent: int) -> float:
    """Raise to a whole power by squaring: the same bits on every machine, which `pow` does not promise."""
    result = 1.0
    while exponent:
        result = result * base if exponent & 1 else result
        base, exponent = base * base, exponent >> 1
    return result
