"""The recipes that are compared, by the names that records and tables use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from lowbit import torch as lt
from lowbit.torch import Recipe
from lowbit.torch import recipes as r

#: Scales of the curve: the gradient is multiplied by 2**k before it is rounded.
POWERS = range(0, 25, 4)
FIXED = 12  # the fixed power of the switch matrix: the middle of the curve
#: Where GradScale starts when it does not start at 1: of what the paper's figure shows, the least.
START = 20


def core() -> dict[str, Callable[[], Recipe]]:
    """List the recipes that are compared on every task (float32 is torch alone)."""
    return {
        "int4_forward": r.int4_forward,
        "sun2020": r.sun2020,
        "luq": r.luq,
        "nvfp4": r.nvfp4,
        "ternary": r.ternary,
    }


def switches() -> dict[str, Callable[[], Recipe]]:
    """Turn the switches of `sun2020`: phases and scales together, where GradScale starts, each FP8 by itself."""
    one = partial(r.sun2020, phases=1)
    return {
        "one phase": one,
        "amax": partial(r.sun2020, scaling="amax"),
        "one phase, amax": partial(one, scaling="amax"),
        f"2^{FIXED}": partial(r.sun2020, scaling=2.0**FIXED),
        f"from 2^{START}": partial(r.sun2020, grad_scale=2.0**START),
        f"one phase, 2^{FIXED}": partial(one, scaling=2.0**FIXED),
        "pointwise fp8": partial(r.sun2020, pointwise="fp8"),
        "grad_weight fp8": partial(r.sun2020, grad_weight="fp8"),
    }


def bases() -> dict[str, Callable[[], Recipe]]:
    """Take one grid for both gradients, by amax: powers of 2, 4 and 8, and integers, nearest or drawn."""
    return {
        f"{'INT4' if base == 'int4' else f'base {base}'}, {rounding}": partial(
            r.sun2020, phases=1, scaling="amax", base=base, rounding=rounding
        )
        for base in (2, 4, 8, "int4")
        for rounding in ("nearest", "stochastic")
        if (base, rounding) != (4, "nearest")  # that is "one phase, amax"
    }


def curve() -> dict[str, Callable[[], Recipe]]:
    """Fix the scale of `sun2020`."""
    return {f"2^{k}": partial(r.sun2020, scaling=2.0**k) for k in POWERS}


def find(name: str) -> Recipe:
    """Make the recipe of a name."""
    return (core() | switches() | curve() | bases())[name]()


def prepared(model: nn.Module, recipe: str, decay: float) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Prepare a model and list its parameters for the optimizer; float32 is left as torch made it.

    PACT's clips decay as everything else does.
    """
    if recipe == "float32":
        return model, [{"params": list(model.parameters()), "weight_decay": decay}]
    model = lt.prepare(model, find(recipe))
    return model, lt.param_groups(model, pact_decay=decay, weight_decay=decay)
