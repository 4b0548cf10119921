"""The recipes that are compared, by the names that records and tables use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

#: Scales of the curve: the gradient is multiplied by 2**k before it is rounded.
POWERS = range(0, 25, 3)
FIXED = 10  # the fixed power of the switch matrix: the middle of what an earlier trial found to work


def core() -> dict[str, Callable[[], Any]]:
    """The recipes that are compared on every task (float32 is torch alone)."""
    from lowbit.torch import recipes as r

    return {
        "int4_forward": r.int4_forward,
        "sun2020": r.sun2020,
        "luq": r.luq,
        "nvfp4": r.nvfp4,
        "ternary": r.ternary,
    }


def switches() -> dict[str, Callable[[], Any]]:
    """Turn every switch of the 4-bit recipe by itself, and phases and scales together."""
    from lowbit.torch import recipes as r

    one = partial(r.sun2020, phases=1)
    return {
        "one phase": one,
        "amax": partial(r.sun2020, scaling="amax"),
        "one phase, amax": partial(one, scaling="amax"),
        f"2^{FIXED}": partial(r.sun2020, scaling=2.0**FIXED),
        f"one phase, 2^{FIXED}": partial(one, scaling=2.0**FIXED),
        "pointwise fp8": partial(r.sun2020, pointwise="fp8"),
        "grad_weight fp8": partial(r.sun2020, grad_weight="fp8"),
    }


def bases() -> dict[str, Callable[[], Any]]:
    """One grid for both gradients: powers of 2, 4 and 8, powers of 4 without zero, integers; nearest or drawn."""
    from lowbit.torch import recipes as r

    grids = {
        "radix-2": "radix(2,3)",
        "radix-4": "radix4",
        "radix-8": "radix(8,3)",
        "radix-4 without zero": "radix(4,3,nozero)",
        "INT4": "int4_symmetric",
    }
    ways: dict[str, Callable[[], Any]] = {
        f"{title}, {rounding}": partial(with_gradients, r.sun2020, format=grid, rounding=rounding)
        for title, grid in grids.items()
        for rounding in ("nearest", "stochastic")
        if not (grid == "radix4" and rounding == "nearest")  # that is "one phase, amax"
    }
    return ways


def curve() -> dict[str, Callable[[], Any]]:
    """The 4-bit recipe at fixed scales."""
    from lowbit.torch import recipes as r

    return {f"2^{k}": partial(r.sun2020, scaling=2.0**k) for k in POWERS}


def with_gradients(recipe: Callable[[], Any], *, format: str, rounding: str) -> Any:
    """Round both gradients of a recipe to one format, by the largest magnitude."""
    from lowbit.torch import Spec

    made = recipe()
    spec = Spec(format, scale="amax", rounding=rounding)
    return replace(made, inner=replace(made.inner, grad_input=spec, grad_weight=spec))


def find(name: str) -> Any:
    """Make the recipe of a name."""
    return (core() | switches() | curve() | bases())[name]()


def groups(model: nn.Module, recipe: str, decay: float) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Prepare a model and list its parameters for the optimizer; float32 is left as torch made it.

    Weights decay, biases and the parameters of norms do not; PACT's clips do, as in its paper.
    """
    if recipe != "float32":
        from lowbit import torch as lt

        model = lt.prepare(model, find(recipe))
    clips = [p for n, p in model.named_parameters() if n.endswith("site.clip")]
    others = [p for n, p in model.named_parameters() if not n.endswith("site.clip")]
    return model, [
        {"params": [p for p in others if p.ndim > 1] + clips, "weight_decay": decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
