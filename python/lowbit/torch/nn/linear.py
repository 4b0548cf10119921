"""A quantized linear layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lowbit.torch._site import Site
from lowbit.torch._spec import Products


class Linear(nn.Linear):
    """`torch.nn.Linear` whose three products are quantized.

    Parameters
    ----------
    in_features, out_features, bias, device, dtype
        As in `torch.nn.Linear`.
    products : Products
        How each operand is quantized.
    **state
        ``pact_init``, ``grad_scale``: where the state starts (see `Site`).

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch import nn, Products, Spec
    >>> _ = torch.manual_seed(0)
    >>> layer = nn.Linear(4, 2, products=Products(weight=Spec("int4"), input=Spec("int4")))
    >>> layer(torch.ones(1, 4)).shape
    torch.Size([1, 2])
    """

    site: Site

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        products: Products,
        **state: Any,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.site = Site(products, self.weight, **state)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer to (..., in_features)."""
        if not self.site.products.specs():
            return super().forward(input)
        return self.site.multiply(input, self.weight, self.bias)
