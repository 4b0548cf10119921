"""``freeze``: a prepared model's copy for inference, whose quantized weights are kept packed."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

import lowbit as lb
from lowbit.torch import _keys, _product
from lowbit.torch import nn as quantized
from lowbit.torch._autograd import _geometry, _listed, result_shape
from lowbit.torch._contract import Convolution
from lowbit.torch._layers import sites_of
from lowbit.torch._operands import Kept, decode, encode
from lowbit.torch._site import _UNKNOWN, Site, _autocast, _narrow
from lowbit.torch._spec import Products, Spec

Model = TypeVar("Model", bound=nn.Module)


class PackedWeight(nn.Module):
    """A weight as packed codes and scales, in the place where its layer had a Parameter.

    Parameters
    ----------
    weight : Tensor
        The float weight.
    spec : Spec
        How it is quantized.

    Attributes
    ----------
    packed : Tensor
        Codes, uint8.
    scale : Tensor
        float32, or codes (uint8) where the format's scales have a format of their own.
    rest : Tensor
        Offsets, or the scale of the whole tensor, where the format has one; else empty.
    """

    packed: Tensor
    scale: Tensor
    rest: Tensor

    def __init__(self, weight: Tensor, spec: Spec) -> None:
        super().__init__()
        self.spec, self.shape, self.dtype = spec, weight.shape, weight.dtype
        self.text = Products(weight=spec).text  # as operations take it
        # Noise, where a spec asks for it, is drawn once and for all.
        key = _product.words(_keys.draw()) if spec.random else None
        kept = encode(weight.detach(), spec, axis=1, key=key)
        self.kept_shape = kept.shape
        for name in ("packed", "scale", "rest"):
            self.register_buffer(name, getattr(kept, name).clone())
        self.parts = nn.ModuleList()

    def _apply(self, fn: Any, recurse: bool = True) -> PackedWeight:
        """Move with the model, but keep codes and scales as they are; what is decoded takes on the dtype."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, now in self._buffers.items():
            was = before[name]
            if now is not None and was is not None and now.dtype != was.dtype:
                self._buffers[name] = was.to(now.device)
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return self

    def dim(self) -> int:
        """Count the dimensions, as of a tensor."""
        return len(self.shape)

    def chunk(self, n: int) -> tuple[nn.Module, ...]:
        """Give the parts of an attention's joint projection, each quantized by itself."""
        if len(self.parts) != n:
            raise lb.Error(
                "query, key, value: they are not one tensor, so each projection is quantized by itself; "
                "say freeze(model, cross_attention=True), which keeps those codes too"
            )
        return tuple(self.parts)

    def extra_repr(self) -> str:
        """Say what it holds."""
        return f"{tuple(self.shape)}, {self.spec.format}, {sum(b.nbytes for b in self.buffers(recurse=False))} bytes"


class FrozenSite(Site):
    """A product whose weight is packed: forward only, as in eval mode."""

    def train(self, mode: bool = True) -> FrozenSite:  # noqa: ARG002
        """Stay in eval mode: nothing is left to train."""
        super().train(False)
        return self

    def hold(self, w: Any) -> None:
        """Hold nothing: the weight is codes already."""

    def multiply(
        self,
        x: Tensor,
        w: Any,
        bias: Tensor | None,
        geometry: Convolution | None = None,
        *,
        owner: Any = None,  # noqa: ARG002
        held: Any = None,  # noqa: ARG002
    ) -> Tensor:
        """Compute what `Site.multiply` does, of the decoded weight."""
        if not x.is_floating_point():
            raise TypeError(f"input: expected a float tensor, got dtype {x.dtype}")
        cast_to = _autocast(x.device.type)
        plan = self._plan if self.clip is None or self._sign != _UNKNOWN else self._first(x)
        rows = x.reshape(-1, x.shape[-1]) if geometry is None and x.dim() != 2 else x
        y = (_frozen_op if _keys.watched() else _frozen)(
            _narrow(rows),
            *(w.packed, w.scale, w.rest, bias),
            self.clip if plan.pact else None,
            _keys.draw() if plan.forward_random else None,
            *(plan.text, _listed(geometry), list(w.shape), list(w.kept_shape)),
        )
        y = y.to(x.dtype if cast_to is None else cast_to)
        return y if rows is x else y.reshape(*x.shape[:-1], w.shape[0])


def _frozen(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    rest: Tensor,
    bias: Tensor | None,
    clip: Tensor | None,
    key: Tensor | None,
    products: str,
    geometry: list[int],
    shape: list[int],
    kept_shape: list[int],
) -> Tensor:
    """Multiply by a weight that is there as codes."""
    parsed = Products.parse(products)
    codes = Kept(packed, scale, rest, tuple(kept_shape))
    held = _product.Held(codes, decode(codes, cast(Spec, parsed.weight), axis=1, shape=tuple(shape)))
    call = _product.Call(parsed, _geometry(geometry), keep=False, recording=False, held=held)
    return _product.forward(x, torch.empty(shape, device="meta"), bias, clip, key, call)[0]


#: The same, opaque to a compiler.
_frozen_op = torch.library.custom_op("lowbit::frozen_product", _frozen, mutates_args=())


@_frozen_op.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    geometry, shape, _ = rest[-3:]
    return x.new_empty(result_shape(x, shape, _geometry(geometry)), dtype=torch.float32)


class FrozenEmbedding(quantized.Embedding):
    """An embedding that decodes the rows that are looked up."""

    def forward(self, input: Tensor) -> Tensor:
        """Look up rows."""
        w = cast(PackedWeight, self.weight)
        look_up = _rows_op if _keys.watched() else _rows
        rows = look_up(input, w.packed, w.scale, w.rest, w.text, list(w.shape), list(w.kept_shape))
        return rows.to(w.dtype)


def _rows(
    indices: Tensor,
    packed: Tensor,
    scale: Tensor,
    rest: Tensor,
    products: str,
    shape: list[int],
    kept_shape: list[int],
) -> Tensor:
    """Decode the rows with these indices, to (..., columns) in float32."""
    spec = cast(Spec, Products.parse(products).weight)
    rows, columns = shape
    flat = indices.reshape(-1)
    kept = Kept(packed, scale, rest, tuple(kept_shape))
    if columns * lb.get_format(spec.format).bits % 8 == 0 and spec.per != "tile":
        # Rows begin with a byte: only these need be decoded.
        def chosen(per_row: Tensor) -> Tensor:
            return per_row[flat] if per_row.dim() == 2 and per_row.shape[0] == rows > 1 else per_row

        some = packed.view(rows, -1)[flat].view(-1)
        kept = Kept(some, chosen(scale), chosen(rest), (flat.numel(), columns))
        flat = torch.arange(flat.numel(), device=flat.device)
    table = decode(kept, spec, axis=1, shape=tuple(shape))
    values = table.values if table.scale is None else table.values * table.scale
    return values[flat].view(*indices.shape, columns)


#: The same, opaque to a compiler.
_rows_op = torch.library.custom_op("lowbit::frozen_rows", _rows, mutates_args=())


@_rows_op.register_fake
def _(indices: Tensor, packed: Tensor, *rest: Any) -> Tensor:
    return packed.new_empty((*indices.shape, rest[-2][1]), dtype=torch.float32)


@dataclass(frozen=True)
class FrozenBytes:
    """What a frozen model takes, measured from its tensors, beside the model that it was made of.

    Attributes
    ----------
    weights, float_weights : int
        Bytes of the packed weights with their scales, and of the same weights before.
    model, float_model : int
        Bytes of all parameters and buffers, and of all before.
    """

    weights: int
    float_weights: int
    model: int
    float_model: int

    def __str__(self) -> str:
        def line(what: str, after: int, before: int) -> str:
            return f"{what}: {after} bytes, {after / max(before, 1):.3f} of {before}"

        weights = line("packed weights, with scales", self.weights, self.float_weights)
        return f"{weights}; {line('the whole model', self.model, self.float_model)}"


def freeze(model: Model, *, cross_attention: bool = False, quiet: bool = False) -> Model:
    """Copy a prepared model for inference: quantized weights become packed codes, decoded where they are used.

    The copy computes what the prepared model computes in eval mode, bit for bit, and has no gradients. Its state is
    made of plain tensors (``weight.packed``, ``weight.scale``), for ``torch.save``, ``weights_only=True`` and
    safetensors, and fits any model frozen in the same way. A layer's weight is float32 again only while the layer runs;
    of an embedding only the rows that are looked up.

    Parameters
    ----------
    model : torch.nn.Module
        What `prepare` gave.
    cross_attention : bool
        Attention quantizes its joint projection as one weight where query, key and value are one tensor, and as three
        elsewhere. Keep the codes of the three too.
    quiet : bool
        Do not print the bytes. They are ``.nbytes`` of the copy, a `FrozenBytes`.

    Returns
    -------
    torch.nn.Module
        A copy in eval mode, of which nothing requires gradients.

    Raises
    ------
    lowbit.Error
        Nothing in the model is quantized, it is frozen already, or a weight is not finite.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch import prepare, recipes
    >>> net = torch.nn.Sequential(*(torch.nn.Linear(256, 256, bias=False) for _ in range(4)))
    >>> frozen = freeze(prepare(net, recipes.int4_forward()))
    packed weights, with scales: 65544 bytes, 0.125 of 524288; the whole model: 589856 bytes, 0.563 of 1048600
    >>> sorted(frozen[1].state_dict())
    ['site.clip', 'site.clip_signed', 'weight.packed', 'weight.rest', 'weight.scale']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if any(isinstance(module, PackedWeight) for module in model.modules()):
        raise lb.Error("model: it is frozen already")
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    before = _bytes(frozen)
    floats = 0
    tied: _Tied = {}
    for name, module in list(frozen.named_modules()):
        for weight, spec in _weights(module):
            floats += _freeze(module, weight, spec, f"{name}.{weight}".lstrip("."), cross_attention, tied)
    packed = [module for module in frozen.modules() if isinstance(module, PackedWeight)]
    if not packed:
        raise lb.Error(
            "model: none of its weights is quantized; prepare it first, with a recipe that quantizes weights"
        )
    nbytes = FrozenBytes(sum(map(_bytes, packed)), floats, _bytes(frozen), before)
    frozen.nbytes = nbytes  # type: ignore[assignment]  # no tensor, no module: a plain attribute
    if not quiet:
        print(nbytes)
    return frozen


def _weights(module: nn.Module) -> list[tuple[str, Spec]]:
    """Name the Parameters of a layer that are quantized; their sites then take codes."""
    if isinstance(module, quantized.Embedding):
        return [] if module.weight_spec is None else [("weight", module.weight_spec)]
    found = []
    for name, site in sites_of(module).items():
        if site.products.weight is not None:
            site.__class__ = FrozenSite
            site.grad_scale = site.grad_max = None
            site._weight = [torch.empty(0)]  # the float weight is to go
            found.append((name, site.products.weight))
    return found


#: Of every Parameter and spec the Parameter, which must not go before its number is forgotten, and its codes.
_Tied = dict[tuple[int, Spec], tuple[Tensor, PackedWeight]]


def _freeze(module: nn.Module, name: str, spec: Spec, path: str, cross_attention: bool, tied: _Tied) -> int:
    """Put packed codes in the place of a Parameter and give its bytes, or none where a tied one has them already."""
    weight: Tensor = getattr(module, name)
    again = (id(weight), spec) in tied
    if not torch.isfinite(weight).all():
        raise lb.Error(f"model: {path} is not finite everywhere; what is not has no codes")
    _, made = tied.setdefault((id(weight), spec), (weight, PackedWeight(weight, spec)))
    if cross_attention and name == "in_proj_weight":
        made.parts.extend(PackedWeight(part, spec) for part in weight.chunk(3))
    del module._parameters[name]
    module._modules[name] = made
    if isinstance(module, quantized.LSTM):
        module._flat_weights = []  # torch's own list of them
    elif isinstance(module, quantized.Embedding):
        module.__class__ = FrozenEmbedding
    return 0 if again else weight.nbytes


def _bytes(module: nn.Module) -> int:
    """Measure parameters and buffers, each once."""
    storages = {t.untyped_storage().data_ptr(): t for t in [*module.parameters(), *module.buffers()] if t.numel()}
    return sum(t.untyped_storage().nbytes() for t in storages.values())
