"""SGD and Adam of bfloat16 weights in one pass over memory, by the core (``docs/torch-optim.md``: the arithmetic)."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from lowbit import _core
from lowbit._keys import _label
from lowbit.torch._options import on_core
from lowbit.torch.optim._slots import Momentum, Slot, is_packed

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
        batches: dict[tuple[float, ...], list[Any]] = defaultdict(list)
        names = self.names if self.names == _MOMENTS or group["momentum"] != 0 else ()
        for index, p, grad, state in tensors:
            numbers = self._adam(group, state) if names == _MOMENTS else _sgd(group, names, state)
            kept = [_array(self._state(p, state, name)) for name in names]
            batches[numbers].append((index, _array(p), _array(grad.contiguous()), kept))
        labels = [_label("weight"), *map(_label, names)]
        for numbers, batch in batches.items():
            if names == _MOMENTS:
                _core.adam_step(batch, key.words, labels, self.nearest, numbers)
            else:
                _core.sgd_step(batch, key.words, labels, self.nearest, numbers, bool(group["nesterov"]))

    def _state(self, p: Tensor, state: dict[str, Any], name: str) -> Tensor:
        entry = state.get(name)
        if entry is None:
            state[name] = torch.zeros(p.shape, dtype=self.dtype)
        elif entry.dtype is not self.dtype or not entry.is_contiguous():
            # From a checkpoint of another setting.
            state[name] = entry.to(self.dtype).contiguous()
        return state[name]  # type: ignore[no-any-return]

    def _adam(self, group: dict[str, Any], state: dict[str, Any]) -> tuple[float, ...]:
        count = state.get("step")
        if not isinstance(count, Tensor):
            count = state["step"] = torch.tensor(float(count or 0))
        count += 1
        steps = round(count.item())
        beta1, beta2 = (float(beta) for beta in group["betas"])
        lr, decay = float(group["lr"]), float(group["weight_decay"])
        # AdamW shrinks the weight instead of adding to its gradient.
        decoupled = self.decoupled or group.get("decoupled_weight_decay", False)
        first, second = 1.0 - _power(beta1, steps), 1.0 - _power(beta2, steps)
        sign = -1.0 if group["maximize"] else 1.0
        shrink = (0.0, 1.0 - lr * decay) if decoupled else (decay, 1.0)
        return sign, *shrink, 1.0 - beta1, beta2, 1.0 - beta2, 1.0 / math.sqrt(second), lr / first, float(group["eps"])


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


def fits(p: Tensor, group: dict[str, Any], state: dict[str, Any]) -> bool:
    """Whether a parameter's memory and its group's options are what the core steps."""
    if p.dtype is not torch.bfloat16 or type(p) not in (Tensor, torch.nn.Parameter) or not on_core(p):
        return False
    plain = not (group.get("amsgrad") or group.get("differentiable") or group.get("capturable"))
    return plain and p.is_contiguous() and not any(is_packed(entry) for entry in state.values())


def _array(t: Tensor) -> NDArray[Any]:
    """See float32 numbers as they are, and bfloat16 as its bits."""
    t = t.detach()
    return t.view(torch.uint16).numpy() if t.dtype is torch.bfloat16 else t.numpy()


def _sgd(group: dict[str, Any], names: tuple[str, ...], state: dict[str, Any]) -> tuple[float, ...]:
    first = bool(names) and state.get(names[0]) is None
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
