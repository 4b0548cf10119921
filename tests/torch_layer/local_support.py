"""A small model that is trained by local steps."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import lowbit as lb
from lowbit.torch import LocalSteps

#: Takes the mean of the ranks' models.
MEAN = partial(torch.optim.SGD, lr=1.0)
CODECS = [
    (None, {}),
    (lb.Eden(4), {}),
    (lb.Eden(1), {"strategy": "two_phase", "second_codec": lb.Eden(4)}),
    (lb.Eden(0.25), {}),
    (lb.Sign(), {}),
    (lb.Summable(4), {}),
]


class Net(nn.Module):
    """Statistics to average, a mask to leave alone, small parameters, a tied, a frozen and a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(20, 64)
        self.norm = nn.BatchNorm1d(64)
        self.second = nn.Linear(64, 64)
        self.tied = nn.Linear(64, 64)
        self.tied.weight = self.second.weight
        self.frozen = nn.Linear(64, 64).requires_grad_(False)
        self.strided = nn.Parameter(torch.randn(48, 64).mul(0.1).t())
        self.last = nn.Linear(48, 1)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def forward(self, x: Tensor) -> Tensor:
        """Use everything."""
        y = self.norm(self.first(x)).relu()
        return self.last(self.frozen(self.tied(self.second(y).relu())) @ self.strided)


def net(seed: int = 7, dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(seed)
    return Net().to(dtype)


def batch(rank: int, step: int, width: int = 20) -> Tensor:
    return torch.from_numpy(np.random.default_rng([rank, step]).standard_normal((8, width), np.float32))


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    x = x.to(next(model.parameters()).dtype)
    return (model(x) - x.sum(1, keepdim=True)).square().mean()


def train(model: nn.Module, optimizer: Any, rank: int, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, batch(rank, step)).backward()
        optimizer.step()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(t, two[name]) for name, t in one.items())


def start(rank: int, codec: lb.Codec | None, options: dict[str, Any]) -> Any:
    model = net()
    inner = adamw(model)
    optimizer = LocalSteps(model, inner, every=4, codec=codec, seed=5, **options)
    return model, optimizer, torch.optim.lr_scheduler.StepLR(inner, 3, 0.5)


def go(model: nn.Module, optimizer: LocalSteps, schedule: Any, rank: int, steps: range) -> None:
    for step in steps:
        train(model, optimizer, rank, range(step, step + 1))
        schedule.step()
