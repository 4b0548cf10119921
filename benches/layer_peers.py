"""The contenders of ``torch_layer.py``: a layer's forward and backward pass in float32 and quantized by four programs.

Each builds a call that gives y, dL/dx and dL/dW (and whatever gradients of its own) for the same x, W and dL/dy.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Problem:
    """One layer and its batch: what `y = product(x, W)` is, and numbers as training has them."""

    name: str
    layer: nn.Module
    x: Tensor
    g: Tensor

    def float_layer(self) -> nn.Module:
        """Give another layer with the same weights."""
        return copy.deepcopy(self.layer)

    def product(self, x: Tensor, w: Tensor) -> Tensor:
        """Compute the forward product."""
        return F.linear(x, w) if w.dim() == 2 else F.conv2d(x, w, padding=1)

    def gradients(self, g_input: Tensor, g_weight: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """Compute both gradients, each of its own rounding of dL/dy."""
        if w.dim() == 2:
            return g_input @ w, g_weight.t() @ x
        return self._convolved(g_input, x, w, [True, False])[0], self._convolved(g_weight, x, w, [False, True])[1]

    @staticmethod
    def _convolved(g: Tensor, x: Tensor, w: Tensor, wanted: list[bool]) -> Any:
        ones = [1, 1]
        return torch.ops.aten.convolution_backward(g, x, w, None, ones, ones, ones, False, [0, 0], 1, [*wanted, False])


def problems() -> list[Problem]:
    """Make the two layers of the goal."""
    torch.manual_seed(0)
    made = []
    for name, layer, shape in (
        ("Linear 1024x1024, batch 256", nn.Linear(1024, 1024), (256, 1024)),
        ("Conv2d 64x64 3x3, 28x28, batch 64", nn.Conv2d(64, 64, 3, padding=1), (64, 64, 28, 28)),
    ):
        x = torch.randn(shape).relu_()
        # Gradients of some orders of magnitude, as a loss averaged over a batch has them.
        g = torch.randn(shape) * torch.exp(torch.randn(shape)) * 2.0**-16
        made.append(Problem(name, layer, x, g))
    return made


Call = Callable[[], Any]


def _step(layer: nn.Module, problem: Problem) -> Call:
    """Forward and backward of a module."""
    x = problem.x.clone().requires_grad_()
    wanted = [x, *layer.parameters()]

    def call() -> tuple[Tensor, ...]:
        y = layer(x)
        return (y.detach(), *torch.autograd.grad(y, wanted, problem.g))

    return call


def gemms(problem: Problem) -> Call:
    """Compute the three products and nothing else: what overhead is measured from."""
    w = problem.layer.weight.detach()
    assert isinstance(w, Tensor)

    def call() -> tuple[Tensor, ...]:
        return problem.product(problem.x, w), *problem.gradients(problem.g, problem.g, problem.x, w)

    return call


def float32(problem: Problem) -> Call:
    """Run torch's own layer: the unit."""
    return _step(problem.float_layer(), problem)


def lowbit(problem: Problem) -> Call:
    """Run the layer that `prepare` makes of it, by sun2020."""
    from lowbit.torch import prepare, recipes

    # Alone it would be the first layer, which stays float32.
    recipe = recipes.sun2020(grad_scale=_power(problem))
    layer = prepare(nn.Sequential(nn.Linear(1, 1), problem.float_layer(), nn.Linear(1, 1)), recipe)[1]
    call = _step(layer, problem)
    call()  # PACT's clip starts at the first batch
    return call


def qtorch(problem: Problem) -> Call:
    """Run QPyTorch: fixed point for weight and input, radix 2 for the gradient (once), scales fixed before."""
    from qtorch import FixedPoint
    from qtorch.quant import Quantizer, float_quantize

    inputs = Quantizer(FixedPoint(4, 1), forward_rounding="nearest")
    weights = Quantizer(FixedPoint(4, 6 if problem.x.dim() == 2 else 5), forward_rounding="nearest")
    scale = _power(problem) / 8  # its largest power of two is 16 or so

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, y: Tensor) -> Tensor:
            return y.view_as(y)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return float_quantize(g * scale, 3, 0, rounding="nearest") / scale

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = problem.float_layer()

        def forward(self, x: Tensor) -> Tensor:
            y = problem.product(inputs(x), weights(self.inner.weight))
            return Gradient.apply(y) + self.inner.bias.view(-1, *(1,) * (x.dim() - 2))

    return _step(Layer(), problem)


def torch_eager(problem: Problem) -> Call:
    """Run sun2020 in torch's operations: SAWB, PACT, GradScale, both phases; radix 4 by the bits of the exponent."""

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor, scale: Tensor, peak: Tensor) -> Tensor:
            ctx.save_for_backward(x, w, scale, peak)
            return problem.product(x, w)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
            x, w, scale, peak = ctx.saved_tensors
            torch.maximum(peak, g.abs().amax(), out=peak)
            even, odd = radix4(g * scale), radix4(g * (2 * scale))
            dx, dw = problem.gradients(even, odd, x, w)
            return dx / scale, dw / (2 * scale), None, None

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = problem.float_layer()
            self.inner.register_parameter("clip", nn.Parameter(problem.x.max()))
            self.register_buffer("grad_scale", torch.tensor(_power(problem)))
            self.register_buffer("peak", torch.tensor(0.0))

        def forward(self, x: Tensor) -> Tensor:
            clip = self.inner.clip
            x = torch.minimum(x.relu(), clip)
            step = clip / 15
            x = x + ((x / step).round() * step - x).detach()
            w = self.inner.weight
            with torch.no_grad():
                limit = 12.035 * w.square().mean().sqrt() - 12.03 * w.abs().mean()
            step = limit / 7
            w = w.clamp(-limit, limit)
            w = w + ((w / step).round() * step - w).detach()
            y = Product.apply(x, w, self.grad_scale, self.peak)
            return y + self.inner.bias.view(-1, *(1,) * (x.dim() - 2))

    return _step(Layer(), problem)


def radix4(t: Tensor) -> Tensor:
    """Round to a power of four from 1/64 to 64 or to 0, at thresholds 0.625 * 4^n."""
    field = (t * 1.6).abs().view(torch.int32) & 0x7F800000
    # An exponent that is odd goes down by one: the bias 127 is odd.
    power = (((field + 0x00800000) & 0x7F000000) - 0x00800000).view(torch.float32)
    return torch.where(power < 2.0**-6, 0.0, power.clamp(max=64.0)).copysign(t)


def _power(problem: Problem) -> float:
    """GradScale's power of two, as it would have settled: the largest gradient is brought to 32 ... 64."""
    return 2.0 ** math.floor(math.log2(64 / float(problem.g.abs().max())))


CONTENDERS = {"gemms": gemms, "float32": float32, "lowbit": lowbit, "qtorch": qtorch, "torch_eager": torch_eager}
