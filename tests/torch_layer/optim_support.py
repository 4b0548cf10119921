"""Slow, obvious NumPy twins of optimizers and of their roundings: what the optimizers of lowbit are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import lowbit as lb

F = np.float32


def words(key: lb.Key, step: int, index: int, name: str, n: int) -> np.ndarray:
    """The words that round the numbers of one tensor."""
    return lb.random_bits(key.fold("optim").fold(step).fold(index).fold(name).fold("rounding"), n)


def brain(x: np.ndarray, drawn: np.ndarray | None) -> np.ndarray:
    """Round float32 to bfloat16's numbers: up iff the word's upper half is below the bits that are dropped.

    "Up" is away from zero above zero; below zero the word is inverted. None: to nearest, ties to even.
    """
    bits = x.view(np.uint32).astype(np.uint64)
    magnitude = np.minimum(bits & 0x7FFFFFFF, 0x7F7F0000)
    dropped, kept = magnitude & 0xFFFF, magnitude >> 16
    if drawn is None:
        away = (dropped > 0x8000) | ((dropped == 0x8000) & (kept % 2 == 1))
    else:
        upper = np.where(bits >> 31 == 1, ~drawn, drawn).astype(np.uint32) >> 16
        away = upper < dropped
    rounded = ((kept + away) << 16) | (bits & 0x80000000)
    return np.where(np.isnan(x), F("nan"), rounded.astype(np.uint32).view(F))


class Twin:
    """SGD or Adam(W) of one bfloat16 weight, in float32, in the order that docs/torch-optim.md writes.

    `state` is None (float32 states) or "bfloat16".
    """

    def __init__(
        self, w: torch.Tensor, key: lb.Key, index: int = 0, *, state: str | None, nearest: bool = False
    ) -> None:
        self.w = w.detach().float().numpy().copy()
        self.key, self.index, self.brain, self.nearest = key, index, state == "bfloat16", nearest
        self.states: dict[str, np.ndarray] = {}
        self.count = 0

    def rounded(self, x: np.ndarray, name: str) -> np.ndarray:
        """Round with the words of this step and name."""
        drawn = None if self.nearest else words(self.key, self.count, self.index, name, x.size).reshape(x.shape)
        return brain(x, drawn)

    def kept(self, name: str, x: np.ndarray) -> None:
        """Keep a state."""
        self.states[name] = self.rounded(x, name) if self.brain else x

    def sgd(self, g: np.ndarray, o: dict[str, Any]) -> None:
        """Step."""
        lr, decay, momentum = F(o["lr"]), F(o["weight_decay"]), F(o["momentum"])
        sign = F(-1 if o["maximize"] else 1)
        g = sign * g + decay * self.w
        d = g
        if o["momentum"]:
            first = "momentum_buffer" not in self.states
            share = F(1.0 if first else 1.0 - o["dampening"])
            b = momentum * self.states.get("momentum_buffer", np.zeros_like(g)) + share * g
            d = g + momentum * b if o["nesterov"] else b
            self.kept("momentum_buffer", b)
        self.w = self.rounded(self.w - lr * d, "weight")
        self.count += 1

    def adam(self, g: np.ndarray, o: dict[str, Any], *, decoupled: bool) -> None:
        """Step."""
        beta1, beta2, t = *o["betas"], self.count + 1
        first, second = 1.0 - power(beta1, t), 1.0 - power(beta2, t)
        sign, lr, decay = F(-1 if o["maximize"] else 1), o["lr"], o["weight_decay"]
        zero = np.zeros_like(g)
        g = sign * g + F(0 if decoupled else decay) * self.w
        m, v = self.states.get("exp_avg", zero), self.states.get("exp_avg_sq", zero)
        m = m + F(1.0 - beta1) * (g - m)
        v = F(beta2) * v + F(1.0 - beta2) * (g * g)
        denominator = np.sqrt(v) * F(1.0 / np.sqrt(second)) + F(o["eps"])
        keep = F(1.0 - lr * decay if decoupled else 1.0)
        self.w = self.rounded(keep * self.w - F(lr / first) * (m / denominator), "weight")
        self.kept("exp_avg", m)
        self.kept("exp_avg_sq", v)
        self.count += 1


def power(base: float, exponent: int) -> float:
    """Raise to a whole power by squaring."""
    if exponent == 0:
        return 1.0
    half = power(base * base, exponent // 2)
    return half * base if exponent % 2 else half
