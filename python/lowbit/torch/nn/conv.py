"""Quantized convolutions."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lowbit.torch._contract import Convolution
from lowbit.torch._site import Site
from lowbit.torch._spec import Products


def _convolve(layer: Conv1d | Conv2d, input: Tensor) -> Tensor:
    """Pad as the layer says, then multiply, then add the bias."""
    dims = layer.weight.dim() - 2
    if input.dim() not in (dims + 1, dims + 2):
        # Of torch's kind, which is what a caller of a layer expects.
        raise RuntimeError(f"input: expected {dims + 1} or {dims + 2} dimensions, got shape {tuple(input.shape)}")
    x = input if input.dim() == dims + 2 else input.unsqueeze(0)
    padding: tuple[int, ...] | str = layer.padding
    if isinstance(padding, str) or layer.padding_mode != "zeros":
        # torch's own list, last axis first; with "same" the two sides may differ.
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * dims
    geometry = Convolution(layer.stride, padding, layer.dilation, layer.groups)
    y = layer.site.multiply(x, layer.weight, layer.bias, geometry)
    return y if input.dim() == dims + 2 else y.squeeze(0)


class _Quantized(nn.modules.conv._ConvNd):
    """What both have in common."""

    site: Site

    def __init__(
        self, *args: Any, products: Products, pact_init: float | None = None, grad_scale: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.site = Site(products, self.weight, pact_init=pact_init, grad_scale=grad_scale)


class Conv2d(_Quantized, nn.Conv2d):
    """`torch.nn.Conv2d` whose three products are quantized.

    Parameters
    ----------
    *args, **kwargs
        As in `torch.nn.Conv2d`.
    products : Products
        How each operand is quantized.
    pact_init, grad_scale
        Where the state starts (see `Site`).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ([n,] channels, height, width)."""
        return _convolve(self, input) if self.site.products.specs() else super().forward(input)


class Conv1d(_Quantized, nn.Conv1d):
    """`torch.nn.Conv1d` whose three products are quantized; arguments as in `Conv2d`."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ([n,] channels, length)."""
        return _convolve(self, input) if self.site.products.specs() else super().forward(input)
