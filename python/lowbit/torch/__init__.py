"""Train below 8 bits in PyTorch: operations on tensors, quantized layers, recipes.

>>> import torch, lowbit.torch
>>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
>>> model = lowbit.torch.prepare(model, lowbit.torch.recipes.sun2020())
>>> model(torch.ones(1, 4)).shape
torch.Size([1, 2])
"""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError:
    message = "lowbit.torch needs PyTorch: pip install 'lowbit[torch]'"
    raise ModuleNotFoundError(message, name="torch") from None

from lowbit.torch import nn, ops, optim, qtorch, recipes
from lowbit.torch._freeze import freeze
from lowbit.torch._local_stats import LocalStats
from lowbit.torch._prepare import param_groups, prepare
from lowbit.torch._spec import Products, Recipe, Rotation, Spec
from lowbit.torch._summary import summary
from lowbit.torch._watch import watch
from lowbit.torch.local_steps import LocalSteps

__all__ = [
    "LocalStats",
    "LocalSteps",
    "Products",
    "Recipe",
    "Rotation",
    "Spec",
    "freeze",
    "nn",
    "ops",
    "optim",
    "param_groups",
    "prepare",
    "qtorch",
    "recipes",
    "summary",
    "watch",
]
