"""Who computes: float32, bfloat16 and int8 by torch, 4 bits on floats and on integers by lowbit."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from networks import batch, network
from plan import Case
from torch import Tensor, nn

import lowbit.torch
from lowbit.torch import recipes

Call = Callable[[], Tensor]
TRAINING = ("float32", "bfloat16", "simulated", "integer")
INFERENCE = ("float32", "bfloat16", "int8", "simulated", "integer")
TITLES = {
    "float32": "float32",
    "bfloat16": "bfloat16 (torch's autocast)",
    "int8": "int8 (torch's dynamic quantization)",
    "simulated": "4 bits on float32",
    "integer": "4 bits on integers",
}
_COMPUTE = {"simulated": "float", "integer": "auto"}


def step(case: Case, contender: str) -> Call:
    """Make a training step of which the loss is returned."""
    model, x = network(case), batch(case)
    if contender in _COMPUTE:
        model = lowbit.torch.prepare(model, recipes.sun2020(), compute=_COMPUTE[contender])
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    target = torch.zeros(())

    def call() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=contender == "bfloat16"):
            y = model(x)
        loss = nn.functional.mse_loss(y.float(), target.expand_as(y))
        loss.backward()
        optimizer.step()
        return loss.detach()

    return call


def forward(case: Case, contender: str) -> Call:
    """Make a forward pass without gradients."""
    model, x = network(case).eval(), batch(case)
    if contender in _COMPUTE:
        model = lowbit.torch.prepare(model.train(), recipes.sun2020(), compute=_COMPUTE[contender])
        with torch.no_grad():
            model(x)  # PACT's clips start here
        model = lowbit.torch.freeze(model.eval(), quiet=True)
    elif contender == "bfloat16":
        model, x = model.bfloat16(), x.bfloat16()
    elif contender == "int8":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)

    def call() -> Tensor:
        with torch.inference_mode():
            return model(x)

    return call
