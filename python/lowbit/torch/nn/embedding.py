"""A quantized embedding table."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

import lowbit as lb
from lowbit.torch import ops
from lowbit.torch._operands import groups
from lowbit.torch._spec import Spec


class Embedding(nn.Embedding):
    """`torch.nn.Embedding` whose table is quantized; its gradient, which is no product, stays float.

    Parameters
    ----------
    *args, **kwargs
        As in `torch.nn.Embedding`.
    weight_spec : Spec or None
        How the table is quantized (None: not at all); blocks and ``per="channel"`` (a row) go along a row.
    """

    weight_spec: Spec | None

    def __init__(self, *args: Any, weight_spec: Spec | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.max_norm is not None or self.sparse:
            raise lb.Error("max_norm, sparse: a quantized table has neither")
        if weight_spec is not None and not isinstance(weight_spec, Spec):
            raise TypeError(f"weight_spec: expected a lowbit.torch.Spec, got {type(weight_spec).__name__}")
        self.weight_spec = weight_spec

    def forward(self, input: Tensor) -> Tensor:
        """Look up rows."""
        spec = self.weight_spec
        if spec is None:
            return super().forward(input)
        table = ops.fake_quantize(
            self.weight,
            spec.format,
            scale=spec.scale,
            **groups(spec, 1),
            rounding=spec.rounding,
            gradient=spec.gradient,
        )
        return F.embedding(input, table, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq)
