"""What the tests of layers share: recipes by name, numbers, keys, one training step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lowbit as lb
from lowbit.torch import Products, Recipe, Spec, recipes

FLOAT = Products(weight=None, input=None, grad_input=None, grad_weight=None)
EXACT = replace(FLOAT, weight=Spec("bfloat16"))
"""Takes the quantized way, and changes nothing where weights are bfloat16 numbers (`round_weights`)."""
INT4 = Spec("int4_symmetric", scale="sawb")
SUN = Products(
    weight=INT4,
    input=Spec("int4_symmetric", scale="amax"),
    grad_input=Spec("radix4", scale="gradscale"),
    grad_weight=Spec("radix4_odd", scale="gradscale"),
)
LUQ = Products(
    weight=INT4,
    input=INT4,
    grad_input=Spec("luq4", scale="amax", rounding="stochastic"),
    grad_weight=Spec("luq4", scale="amax", rounding="stochastic"),
)

RECIPES: dict[str, Callable[[], Recipe]] = {
    "int4_rescaled": recipes.int4_rescaled,
    "int4_forward": recipes.int4_forward,
    "sun2020": recipes.sun2020,
    "sun2020, one phase": lambda: recipes.sun2020(phases=1),
    "sun2020, amax": lambda: recipes.sun2020(scaling="amax"),
    "sun2020, fixed": lambda: recipes.sun2020(scaling=2.0**3),
    "sun2020, fp8 dW": lambda: recipes.sun2020(grad_weight="fp8"),
    "sun2020, base 2": lambda: recipes.sun2020(phases=1, base=2),
    "sun2020, base 8": lambda: recipes.sun2020(phases=1, base=8),
    "luq": recipes.luq,
    "luq, two samples": lambda: recipes.luq(samples=2),
    "luq, in hindsight": lambda: recipes.luq(hindsight=0.1),
    "mxfp4": recipes.mxfp4,
    "nvfp4": recipes.nvfp4,
    "nvfp4, unrotated": lambda: recipes.nvfp4(rotation=False),
    "ternary": recipes.ternary,
    "binary": recipes.binary,
    "lp": lambda: recipes.lp("fp8_e4m3fn"),
}
NEAREST = ["int4_rescaled", "int4_forward", "sun2020", "sun2020, amax", "ternary", "binary"]


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """The same numbers on every machine."""
    numbers = np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(scale)
    return torch.from_numpy(np.asarray(numbers))


def n(x: Tensor | None) -> Any:
    """Give a tensor's numbers."""
    assert x is not None
    return x.detach().numpy()


def call_keys(seed: int, count: int) -> list[lb.Key]:
    """The keys that the first calls after ``torch.manual_seed(seed)`` draw; the generator is as before them."""
    torch.manual_seed(seed)
    words = [torch.randint(-(2**63), 2**63 - 1, (2,)).tolist() for _ in range(count)]
    torch.manual_seed(seed)
    return [lb.Key.from_words(*(word % 2**64 for word in pair)) for pair in words]


def call_key(seed: int) -> lb.Key:
    """The first of these."""
    return call_keys(seed, 1)[0]


def same_bits(got: Tensor | None, want: Any) -> None:
    """Every bit is that of float32 `want`; the two zeros are one number."""
    assert got is not None
    np.testing.assert_array_equal(n(got), np.asarray(want, np.float32).reshape(got.shape))


def near(got: Tensor | None, want: Any, error: float = 1e-5) -> None:
    """Within the error of a float32 product, relative to the largest number."""
    assert got is not None
    want = np.asarray(want, np.float64).reshape(got.shape)
    np.testing.assert_allclose(n(got), want, rtol=error, atol=error * max(float(np.abs(want).max(initial=0)), 1e-30))


def compare(got: Tensor | None, want: Any, exact: bool) -> None:
    """Bit for bit where every bit is defined."""
    if exact:
        same_bits(got, want)
    else:
        near(got, want)


def round_weights(module: torch.nn.Module) -> None:
    """Make every parameter a bfloat16 number."""
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(p.bfloat16())


def equal_models(a: torch.nn.Module, b: torch.nn.Module) -> None:
    """Two models have the same state, bit for bit."""
    one, two = a.state_dict(), b.state_dict()
    assert list(one) == list(two)
    for name in one:
        assert torch.equal(torch.nan_to_num(one[name]), torch.nan_to_num(two[name])), name
        assert one[name].dtype == two[name].dtype


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, target: Tensor) -> float:
    """Train once on a squared error."""
    optimizer.zero_grad()
    loss = (model(x) - target).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()
