"""A, second half: what is left of dL/dW after a gradient was rounded in every layer on its way back.

A layer passes dL/dx to the one before, which rounds it again: a share of the gradient that every rounding to nearest
takes away is taken away in every layer. The network is plain torch; hooks round what its layers are given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from capture import as_matrices, moments
from gradients import Quantizer, compare
from tasks import TASKS
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import trange

import lowbit as lb

NETWORK = "depth20"
SEEDS = 4
QUANTIZERS = (
    Quantizer("radix-2", "nearest", 1, "gradscale"),
    Quantizer("radix-2", "stochastic", 1, "gradscale"),
    Quantizer("radix-4", "nearest", 1, "gradscale"),
    Quantizer("radix-4", "nearest", 2, "gradscale"),
    Quantizer("radix-4", "stochastic", 1, "gradscale"),
    Quantizer("radix-8", "nearest", 1, "gradscale"),
    Quantizer("INT4", "nearest", 1, "gradscale"),
    Quantizer("INT4", "stochastic", 1, "gradscale"),
)


def weight_gradients(model: nn.Module, x: Tensor, y: Tensor, how: Quantizer | None) -> dict[str, Tensor]:
    """Give dL/dW of all inner convolutions, with every dL/dy rounded as `how` says, or not at all."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    inputs: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}

    def remember(name: str) -> Callable[..., None]:
        return lambda _, args: inputs.__setitem__(name, args[0].detach())

    def catch(name: str, layer: nn.Module, number: int) -> Callable[..., Any]:
        def hook(_: nn.Module, grads: tuple[Tensor]) -> tuple[Tensor]:
            (dy,) = grads
            key = lb.Key(number)
            odd = dy if how is None else how.round(dy, odd=True, key=key)
            seen = as_matrices(name, layer, inputs[name], odd)
            found[name] = seen.dy.T @ seen.x
            return (dy if how is None else how.round(dy, odd=False, key=key),)

        return hook

    hooks = []
    for number, (name, layer) in enumerate(list(layers.items())[1:]):
        hooks.append(layer.register_forward_pre_hook(remember(name)))
        hooks.append(layer.register_full_backward_pre_hook(catch(name, layer, number)))
    cross_entropy(model(x), y).backward()
    model.zero_grad()
    for hook in hooks:
        hook.remove()
    return found


def collect(seeds: int = SEEDS) -> list[dict[str, Any]]:
    """Measure every quantizer at every moment: a row for each layer, counted from the loss, the mean over seeds."""
    seen: dict[tuple[Any, ...], list[dict[str, float]]] = {}
    for seed in trange(seeds, desc="A. through a network"):
        for moment, model, x, y in moments(TASKS[NETWORK], seed):
            state = {name: buffer.clone() for name, buffer in model.named_buffers()}
            true = weight_gradients(model, x, y, None)
            for how in QUANTIZERS:
                rounded = weight_gradients(model, x, y, how)
                for back, name in enumerate(true, start=1):  # in the order of the backward pass
                    seen.setdefault((moment, how, back), []).append(compare([rounded[name]], true[name]))
            with torch.no_grad():  # batch norm's running means saw the batch more than once
                for name, buffer in model.named_buffers():
                    buffer.copy_(state[name])
    return [
        {"network": NETWORK, "moment": moment, **vars(how), "back": back}
        | {name: float(np.mean([row[name] for row in rows])) for name in ("cosine", "projection", "error")}
        for (moment, how, back), rows in seen.items()
    ]
