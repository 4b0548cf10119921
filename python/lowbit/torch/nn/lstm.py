"""A quantized LSTM."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import lowbit as lb
from lowbit.torch._site import Site
from lowbit.torch._spec import Products

State = tuple[Tensor, Tensor]


class LSTM(nn.LSTM):
    """`torch.nn.LSTM` whose products are quantized.

    Each layer and direction has two products: of the input, for all steps at once, and of the hidden state, step by
    step (with ``proj_size`` a third). Gates and states stay float.

    Parameters
    ----------
    *args, **kwargs
        As in `torch.nn.LSTM`.
    products : Products
        How each operand is quantized.
    pact_init, grad_scale
        Where the state starts (see `Site`). The hidden state lies in (-1, 1), where its clip starts.
    """

    sites: nn.ModuleDict

    def __init__(
        self, *args: Any, products: Products, pact_init: float | None = None, grad_scale: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.quantize(products, pact_init=pact_init, grad_scale=grad_scale)

    def quantize(self, products: Products, **state: Any) -> None:
        """Give every product its site."""
        self.sites = nn.ModuleDict()
        for layer in range(self.num_layers):
            for end in self._ends():
                for kind in ("ih", "hh", "hr") if self.proj_size else ("ih", "hh"):
                    weight = getattr(self, f"weight_{kind}_l{layer}{end}")
                    self.sites[f"{kind}_l{layer}{end}"] = Site(products, weight, **state)
                cast(Site, self.sites[f"hh_l{layer}{end}"]).start(state.get("pact_init") or 1.0, signed=True)

    def _ends(self) -> tuple[str, ...]:
        return ("", "_reverse") if self.bidirectional else ("",)

    def forward(self, input: Tensor | PackedSequence, hx: State | None = None) -> Any:  # type: ignore[override]
        """Run over (steps, batch, features), or as `torch.nn.LSTM` takes its input."""
        first = cast(Site, self.sites["ih_l0"])
        if not first.products.specs():
            return super().forward(input, hx)  # type: ignore[arg-type]
        if isinstance(input, PackedSequence):
            data, sizes, order, back = input
            if hx is not None and order is not None:
                hx = hx[0].index_select(1, order), hx[1].index_select(1, order)
            y, (h, c) = self._run(data, [int(b) for b in sizes], hx)
            if back is not None:
                h, c = h.index_select(1, back), c.index_select(1, back)
            return PackedSequence(y, sizes, order, back), (h, c)
        if input.dim() not in (2, 3):
            raise lb.Error(f"input: {input.dim()} dimensions; an LSTM takes (steps, batch, features) or no batch")
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(1)
        x = x.transpose(0, 1) if batched and self.batch_first else x
        if hx is not None and not batched:
            hx = hx[0].unsqueeze(1), hx[1].unsqueeze(1)
        steps, batch = x.shape[:2]
        y, (h, c) = self._run(x.flatten(0, 1), [batch] * steps, hx)
        y = y.unflatten(0, (steps, batch))
        if not batched:
            return y.squeeze(1), (h.squeeze(1), c.squeeze(1))
        return (y.transpose(0, 1) if self.batch_first else y), (h, c)

    def _run(self, x: Tensor, sizes: list[int], hx: State | None) -> tuple[Tensor, State]:
        """Run all layers over rows of steps, of which step t has the first sizes[t] sequences."""
        ends = self._ends()
        rows = self.num_layers * len(ends)
        if hx is None:
            h0 = x.new_zeros(rows, sizes[0] if sizes else 0, self.proj_size or self.hidden_size)
            c0 = x.new_zeros(rows, sizes[0] if sizes else 0, self.hidden_size)
        else:
            h0, c0 = hx
            wanted = (rows, sizes[0] if sizes else 0)
            if tuple(h0.shape[:2]) != wanted or tuple(c0.shape[:2]) != wanted:
                raise lb.Error(f"hx: shapes {tuple(h0.shape)} and {tuple(c0.shape)} do not begin with {wanted}")
        last_h, last_c = [], []
        for layer in range(self.num_layers):
            outputs = []
            for k, end in enumerate(ends):
                row = layer * len(ends) + k
                y, h, c = self._direction(x, sizes, h0[row], c0[row], f"l{layer}{end}", reverse=k == 1)
                outputs.append(y)
                last_h.append(h)
                last_c.append(c)
            x = torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0]
            if self.dropout and layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training)
        return x, (torch.stack(last_h), torch.stack(last_c))

    def _product(self, kind: str, name: str, x: Tensor) -> Tensor:
        weight, bias = getattr(self, f"weight_{kind}_{name}"), getattr(self, f"bias_{kind}_{name}", None)
        return cast(Site, self.sites[f"{kind}_{name}"]).multiply(x, weight, bias)

    def _direction(
        self, x: Tensor, sizes: list[int], h: Tensor, c: Tensor, name: str, *, reverse: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run one layer one way."""
        hidden_site = cast(Site, self.sites[f"hh_{name}"])
        hidden_weight = getattr(self, f"weight_hh_{name}")
        hidden_bias = getattr(self, f"bias_hh_{name}", None)
        held = hidden_site.hold(hidden_weight)
        every = self._product("ih", name, x)
        # Autocast's dtype, where it is on.
        from_input, h, c = every.split(sizes), h.to(every.dtype), c.to(every.dtype)
        outputs: list[Tensor] = [x] * len(sizes)
        for t in reversed(range(len(sizes))) if reverse else range(len(sizes)):
            n = sizes[t]
            gates = from_input[t] + hidden_site.multiply(h[:n], hidden_weight, hidden_bias, held=held)
            i, f, g, o = gates.chunk(4, 1)
            cell = torch.sigmoid(f) * c[:n] + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.sigmoid(o) * torch.tanh(cell)
            if self.proj_size:
                hidden = self._product("hr", name, hidden)
            outputs[t] = hidden
            # Sequences that have ended, or have not begun, keep their state.
            h = hidden if n == h.shape[0] else torch.cat([hidden, h[n:]])
            c = cell if n == c.shape[0] else torch.cat([cell, c[n:]])
        return torch.cat(outputs) if outputs else x.new_zeros(0, h.shape[1]), h, c
