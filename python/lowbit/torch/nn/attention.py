"""Quantized attention: the projections; the products of queries, keys and values stay float."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lowbit as lb
from lowbit.torch._site import Site
from lowbit.torch._spec import Products
from lowbit.torch.nn.linear import Linear


class MultiheadAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` whose four projections are quantized.

    Parameters
    ----------
    *args, **kwargs
        As in `torch.nn.MultiheadAttention`.
    products : Products
        How each operand is quantized.
    pact_init, grad_scale
        Where the state starts (see `Site`).

    Notes
    -----
    Where query, key and value are one tensor they are projected by one product, whose weight is one tensor to a spec.
    """

    site: Site

    def __init__(
        self, *args: Any, products: Products, pact_init: float | None = None, grad_scale: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.quantize(products, pact_init=pact_init, grad_scale=grad_scale)

    def quantize(self, products: Products, *, output: bool = True, **state: Any) -> None:
        """Give every projection its site; that of the output only if asked."""
        packed = self.in_proj_weight if self._qkv_same_embed_dim else self.q_proj_weight
        self.site = Site(products, packed, **state)
        if not self._qkv_same_embed_dim:
            self.key_site = Site(products, self.k_proj_weight, **state)
            self.value_site = Site(products, self.v_proj_weight, **state)
        if output:
            self.out_proj.__class__ = Linear  # type: ignore[assignment]  # it is an nn.Linear
            self.out_proj.site = Site(products, self.out_proj.weight, **state)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        weights: tuple[Tensor, ...]
        if not self._qkv_same_embed_dim:
            weights = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
            sites = self.site, self.key_site, self.value_site
        elif query is key and key is value:
            q, k, v = self.site.multiply(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
            return q, k, v
        else:
            weights, sites = self.in_proj_weight.chunk(3), (self.site,) * 3
        owner = self.in_proj_weight
        q, k, v = (
            site.multiply(x, w, b, owner=w if owner is None else owner)
            for site, x, w, b in zip(sites, (query, key, value), weights, biases, strict=True)
        )
        return q, k, v

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend, as `torch.nn.MultiheadAttention` does."""
        if not self.site.products.specs():
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        if is_causal and attn_mask is None:
            raise lb.Error("attn_mask: is_causal is a hint about a mask that must be given")
        batched = query.dim() == 3
        same = query is key and key is value

        def rows(x: Tensor) -> Tensor:
            return x.unsqueeze(0) if not batched else x if self.batch_first else x.transpose(0, 1)

        q = rows(query)
        k, v = (q, q) if same else (rows(key), rows(value))
        q, k, v = self._projected(q, k, v)
        if k.shape[:2] != v.shape[:2] or k.shape[0] != q.shape[0]:
            raise lb.Error(
                f"key, value: {tuple(k.shape[:2])} and {tuple(v.shape[:2])} (batch, length) do not go with a query of "
                f"batch {q.shape[0]}"
            )
        mask = _mask(attn_mask, key_padding_mask, q, k.shape[1], self.num_heads, batched)
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.transpose(0, 1).expand(k.shape[0], -1, -1).to(k.dtype)], 1)
            v = torch.cat([v, self.bias_v.transpose(0, 1).expand(v.shape[0], -1, -1).to(v.dtype)], 1)
            mask = None if mask is None else F.pad(mask, (0, 1))
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
            mask = None if mask is None else F.pad(mask, (0, 1))
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            weights = F.dropout(torch.softmax(scores if mask is None else scores + mask, -1), dropout)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        y = self.out_proj(y.transpose(1, 2).flatten(-2))
        if not batched:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return (y if self.batch_first else y.transpose(0, 1)), weights


def _mask(
    attention: Tensor | None, padding: Tensor | None, q: Tensor, keys: int, heads: int, batched: bool
) -> Tensor | None:
    """Join both masks to what is added to the scores: (batch or 1, heads or 1, queries, keys)."""
    batch, queries = q.shape[:2]

    def added(mask: Tensor, name: str, *shapes: tuple[int, ...]) -> Tensor:
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise TypeError(f"{name}: expected bool (True: left out) or a float dtype (added), got {mask.dtype}")
        if tuple(mask.shape) not in shapes:
            raise lb.Error(f"{name}: its shape is {tuple(mask.shape)}, not {' or '.join(map(str, shapes))}")
        if mask.dtype != torch.bool:
            return mask.to(q.dtype)
        return torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, float("-inf"))

    total: Tensor | None = None
    if attention is not None:
        total = added(attention, "attn_mask", (queries, keys), (batch * heads, queries, keys))
        total = total.unflatten(0, (-1, heads)) if total.dim() == 3 else total[None, None]
    if padding is not None:
        rows = added(padding, "key_padding_mask", (batch, keys) if batched else (keys,)).reshape(batch, 1, 1, keys)
        total = rows if total is None else total + rows
    return total


class TransformerEncoderLayer(nn.TransformerEncoderLayer):
    """`torch.nn.TransformerEncoderLayer` whose projections and linear layers are quantized.

    Parameters
    ----------
    *args, **kwargs
        As in `torch.nn.TransformerEncoderLayer`.
    products : Products
        How each operand is quantized.
    pact_init, grad_scale
        Where the state starts (see `Site`).
    """

    def __init__(
        self, *args: Any, products: Products, pact_init: float | None = None, grad_scale: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.self_attn.__class__ = MultiheadAttention
        cast(MultiheadAttention, self.self_attn).quantize(products, pact_init=pact_init, grad_scale=grad_scale)
        for linear in (self.linear1, self.linear2):
            linear.__class__ = Linear
            linear.site = Site(products, linear.weight, pact_init=pact_init, grad_scale=grad_scale)
        keep_from_fused(self)


def keep_from_fused(layer: nn.TransformerEncoderLayer) -> None:
    """Tell torch that a layer is not one that its fused inference path, which reads the weights, can run."""
    layer.activation_relu_or_gelu = 0
