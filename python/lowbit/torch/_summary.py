"""``summary``: what each layer of a model runs in, what it holds, and what its products would cost in 4 bits."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import lowbit as lb
from lowbit import _table
from lowbit.torch import nn as quantized
from lowbit.torch._freeze import PackedWeight
from lowbit.torch._layers import sites_of
from lowbit.torch._operands import encode
from lowbit.torch._site import Site, alone
from lowbit.torch._spec import Products, Spec

#: Sun et al., NeurIPS 2020: throughput for the area of a multiplier, of FP16's, by the wider operand's bits. 7.3 is
#: section 5's INT4 x FP4 unit; with it and 2 for FP8 the paper's estimated training speeds come out (2.7, 3.9, 7.3).
DENSITY = {4: 7.3, 8: 2.0}
_DENSITY_NOTE = (
    "by Sun et al. 2020 (products of 4 bits 7.3, of 8 bits 2, wider 1): a model of energy, not a measurement"
)
_WIDE = "float32"
#: Products of a layer: the operands' names in the record, and in the table.
_OPERANDS = ("weight", "input", "grad")


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """One weight of a model and the products that it takes part in.

    Attributes
    ----------
    name, kind : str
        Where it is, and the layer's class.
    weight, input, grad_input, grad_weight : str
        What the operands are rounded to: a format and its scale rule, or ``"float32"``. `grad_input` and `grad_weight`
        are dL/dy as the operand of dL/dx and of dL/dW.
    parameters : int
        Numbers in the weight.
    nbytes, float_nbytes : int
        Bytes of the weight as packed codes and scales (its float bytes where it is not quantized), and in float32.
    clip, grad_scale : float or None
        PACT's clip and GradScale's power of two, now.
    scales, clipped, zeros : tuple of float or None
        Of weight, input and dL/dy, as last seen: the mean scale, the share of numbers beyond the largest value that was
        given, and the share of those that were not zero and were rounded to it. None: not seen.
    macs : int
        Multiply-accumulates of the forward product, for the input of `summary`.
    pairs : dict
        Multiply-accumulates of all its products, backward ones too, by their operands: ``"uint4 x int4_symmetric"``.
    """

    name: str
    kind: str
    weight: str
    input: str
    grad_input: str
    grad_weight: str
    parameters: int
    nbytes: int
    float_nbytes: int
    clip: float | None
    grad_scale: float | None
    scales: tuple[float, ...] | None
    clipped: tuple[float, ...] | None
    zeros: tuple[float, ...] | None
    macs: int
    pairs: dict[str, int]


@dataclass(frozen=True, slots=True, repr=False)
class Summary(Sequence[LayerSummary]):
    """A table of a model's layers, as `summary` makes it: a sequence of rows that prints well.

    ``table["encoder.0"]`` is the first row of that name. ``repr`` is a table of text, and a notebook shows one of HTML.

    Attributes
    ----------
    rows : tuple of LayerSummary
        In the model's order.
    """

    rows: tuple[LayerSummary, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[LayerSummary]:
        return iter(self.rows)

    def __getitem__(self, which: Any) -> Any:
        if not isinstance(which, str):
            return self.rows[which]
        for row in self.rows:
            if row.name == which:
                return row
        raise KeyError(f"{which!r} is not in the table; rows are: {', '.join(row.name for row in self.rows)}")

    def to_dict(self) -> dict[str, list[Any]]:
        """Give the table as columns: what ``pandas.DataFrame`` takes."""
        records = [asdict(row) for row in self.rows]
        return {name: [record[name] for record in records] for name in LayerSummary.__slots__}

    @property
    def pairs(self) -> dict[str, int]:
        """Multiply-accumulates of all layers by their operands, most first."""
        total: Counter[str] = Counter()
        for row in self.rows:
            total.update(row.pairs)
        return dict(total.most_common())

    @property
    def modelled_cost(self) -> float:
        """Area times time of all products, of what FP16 would take: a model of energy, not a measurement.

        A product counts as one of 4 bits where both operands have at most 4, and as one of 8 where both have at most 8
        (`DENSITY`). NaN without products.
        """
        pairs = self.pairs
        cost = sum(macs / _density(pair) for pair, macs in pairs.items())
        return cost / total if (total := sum(pairs.values())) else math.nan

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        head = ["layer", "class", "weight", "input", "dL/dy for dL/dx", "dL/dy for dL/dW"]
        head += [
            "clip",
            "GradScale",
            "parameters",
            "bytes",
            "of float32",
            "scales w, x, g",
            "clipped",
            "to zero",
            "MACs",
        ]
        body = [
            [
                *(row.name, row.kind, row.weight, row.input, row.grad_input, row.grad_weight),
                "" if row.clip is None else f"{row.clip:.3g}",
                "" if row.grad_scale is None else f"2^{math.log2(row.grad_scale):g}",
                f"{row.parameters}",
                f"{row.nbytes}",
                f"{row.nbytes / row.float_nbytes:.3f}" if row.float_nbytes else "",
                "" if row.scales is None else ", ".join(f"{s:.2g}" if s else "-" for s in row.scales),
                *("" if s is None else ", ".join(map(_table.share, s)) for s in (row.clipped, row.zeros)),
                f"{row.macs}" if row.macs else "",
            ]
            for row in self.rows
        ]
        used = [i for i in range(len(head)) if any(cells[i] for cells in body) or i < 2]
        return [head[i] for i in used], [[cells[i] for i in used] for cells in body]

    def _caption(self) -> str:
        after, before = sum(row.nbytes for row in self.rows), sum(row.float_nbytes for row in self.rows)
        return f"{len(self)} weights, {after} bytes packed, {before} in float32"

    def _notes(self) -> list[str]:
        pairs = self.pairs
        if not pairs:
            return []
        total = sum(pairs.values())
        listed = [f"  {pair}: {macs} ({_table.share(macs / total)})" for pair, macs in pairs.items()]
        cost = f"modelled cost: {self.modelled_cost:.3f} of FP16's, {_DENSITY_NOTE}"
        return ["multiply-accumulates of a step, by operands:", *listed, cost]

    def __repr__(self) -> str:
        head, body = self._cells()
        table = _table.text(self._caption(), head, body, left=_left(head))
        return "\n".join([table, *self._notes()])

    def _repr_html_(self) -> str:
        head, body = self._cells()
        notes = "".join(f"<div>{note.strip()}</div>\n" for note in self._notes())
        return f"{_table.as_html(self._caption(), head, body, left=_left(head))}\n{notes}"


def _left(head: Sequence[str]) -> int:
    return sum(name in ("layer", "class", "weight", "input") or name.startswith("dL/dy") for name in head)


def summary(model: nn.Module, input: Any = None, *, loss: Callable[[Any], Tensor] | None = None) -> Summary:
    """Tell what each layer of a model runs in, its bytes, its last scales, and what was clipped or lost.

    Parameters
    ----------
    model : torch.nn.Module
        A prepared model, or one that `freeze` gave; layers that are not quantized are in the table too.
    input : Tensor, tuple or dict, optional
        One batch: what the model is called with. A copy of the model then takes one step forward and backward on it
        (the model itself, its gradients and the random state stay as they are), which tells scales, shares and
        multiply-accumulates. Without it the table has the scales and shares that were last seen, while `watch` ran.
    loss : callable, optional
        Makes a scalar of the model's output. Default: the mean square of its floats. Of gradients with a GradScale the
        shares depend on how large the loss is, so give the loss of training.

    Returns
    -------
    Summary
        A row for each weight of two or more dimensions.

    Examples
    --------
    >>> import torch, lowbit.torch
    >>> from lowbit.torch import recipes
    >>> _ = torch.manual_seed(0)
    >>> net = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3)))
    >>> table = summary(lowbit.torch.prepare(net, recipes.luq()), torch.randn(16, 64))
    >>> table["1"].weight, table["1"].grad_weight, table["1"].macs
    ('int4_symmetric sawb', 'luq4 amax stochastic', 65536)
    >>> table.pairs
    {'float32 x float32': 327680, 'luq4 x int4_symmetric': 131072, 'int4_symmetric x int4_symmetric': 65536}
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if input is None:
        return Summary(tuple(_rows(model, {})))
    trial = copy.deepcopy(model)
    for module in trial.modules():
        if isinstance(module, Site):
            module.recording = True
    with alone():
        counted = _step(trial, input, loss)
    return Summary(tuple(_rows(trial, counted)))


#: Multiply-accumulates of one weight: forward, dL/dx, dL/dW.
_Macs = list[int]


def _step(model: nn.Module, input: Any, loss: Callable[[Any], Tensor] | None) -> dict[str, _Macs]:
    """Take a step and count the multiply-accumulates of each weight."""
    counted: dict[str, _Macs] = {}

    def hook(name: str) -> Callable[..., None]:
        def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = (x.data if isinstance(x, PackedSequence) else x for x in (*args, *kwargs.values()))
            inputs = [x for x in given if isinstance(x, Tensor)]
            for weight, macs in _macs(module, inputs, output).items():
                counts = counted.setdefault(f"{name}.{weight}".lstrip("."), [0, 0, 0])
                trained = getattr(getattr(module, weight), "requires_grad", False)
                backward = any(part.requires_grad for part in _tensors(output))
                counts[0] += macs
                counts[1] += macs * (backward and _differentiable(module, inputs, weight))
                counts[2] += macs * (backward and trained)

        return count

    handles = [m.register_forward_hook(hook(name), with_kwargs=True) for name, m in model.named_modules() if _names(m)]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    model.train()
    with torch.random.fork_rng(devices), torch.enable_grad():
        output = (
            model(**input) if isinstance(input, dict) else model(*(input if isinstance(input, tuple) else (input,)))
        )
        squares = (part.float().square().mean() for part in _tensors(output) if part.is_floating_point())
        total = sum(squares, torch.zeros(())) if loss is None else loss(output)
        if total.requires_grad:
            torch.autograd.backward(total)
    for handle in handles:
        handle.remove()
    return counted


def _tensors(output: Any) -> list[Tensor]:
    """Find the tensors in whatever a module gives."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _names(module: nn.Module) -> list[str]:
    """Name the weights of a layer that multiply something."""
    kinds = nn.Linear | nn.modules.conv._ConvNd | nn.RNNBase | nn.MultiheadAttention | nn.Embedding
    if not isinstance(module, kinds):
        return []
    own = [name for name, p in module.named_parameters(recurse=False) if p.dim() > 1 and "bias" not in name]
    return own + [name for name, child in module.named_children() if isinstance(child, PackedWeight)]


def _macs(module: nn.Module, inputs: list[Tensor], output: Any) -> dict[str, int]:
    """Count the multiply-accumulates of a layer's forward products."""
    if isinstance(module, nn.Embedding) or not inputs:
        return {}
    names = _names(module)
    sizes = {name: math.prod(getattr(module, name).shape) for name in names}
    if isinstance(module, nn.MultiheadAttention):
        rows = [x.numel() // x.shape[-1] for x in inputs[:3]]
        if len(names) == 1:
            return {names[0]: sum(rows) * sizes[names[0]] // 3}
        return {name: n * sizes[name] for name, n in zip(names, rows, strict=True)}
    if isinstance(module, nn.modules.conv._ConvNd):
        # Of a transposed convolution every input meets every kernel; of others every output.
        other = inputs[0] if module.transposed else output
        return {name: other.numel() * sizes[name] // getattr(module, name).shape[0] for name in names}
    rows = [inputs[0].numel() // inputs[0].shape[-1]]
    return {name: rows[0] * size for name, size in sizes.items()}


def _differentiable(module: nn.Module, inputs: list[Tensor], weight: str) -> bool:
    """Say whether there is a dL/dx: of a hidden state always."""
    hidden = isinstance(module, nn.RNNBase) and not weight.startswith("weight_ih_l0")
    return hidden or any(x.requires_grad for x in inputs)


def _rows(model: nn.Module, counted: dict[str, _Macs]) -> Iterator[LayerSummary]:
    for name, module in model.named_modules():
        sites = sites_of(module)
        for weight in _names(module):
            path = f"{name}.{weight}".lstrip(".")
            label = name if weight == "weight" and name else path
            yield _row(label, module, getattr(module, weight), sites.get(weight), counted.get(path, [0, 0, 0]))


def _row(name: str, module: nn.Module, weight: Any, site: Site | None, macs: _Macs) -> LayerSummary:
    products = Products() if site is None else site._plan.products
    if isinstance(module, quantized.Embedding):
        products = Products(weight=module.weight_spec)
    pairs: Counter[str] = Counter()
    for pair, count in zip(_pairs(products), macs, strict=True):
        pairs[pair] += count
    seen = None
    if site is not None and site.record[1:10].any():
        seen = dict(zip(site.SLOTS, site.record.tolist(), strict=True))

    def of(what: str) -> tuple[float, ...] | None:
        return None if seen is None else tuple(seen[f"{operand}_{what}"] for operand in _OPERANDS)

    floats = 4 * math.prod(weight.shape)
    return LayerSummary(
        name=name,
        kind=type(module).__name__,
        weight=_said(products.weight),
        input=_said(products.input),
        grad_input=_said(products.grad_input),
        grad_weight=_said(products.grad_weight),
        parameters=math.prod(weight.shape),
        nbytes=_packed(weight, products.weight),
        float_nbytes=floats,
        clip=None if site is None or site.clip is None else float(site.clip.detach()),
        grad_scale=None if site is None or site.grad_scale is None else float(site.grad_scale),
        scales=of("scale"),
        clipped=of("clipped"),
        zeros=of("zeros"),
        macs=macs[0],
        pairs={pair: count for pair, count in pairs.items() if count},
    )


def _said(spec: Spec | None) -> str:
    """Write a spec in a few words."""
    if spec is None:
        return _WIDE
    fmt = lb.get_format(spec.format)
    rule = fmt.default_scale if spec.scale is None else spec.scale
    words = [spec.format, rule if isinstance(rule, str) else f"{rule:g}"]
    words += [f"per {spec.per}"] * (spec.per != "tensor") + ["stochastic"] * spec.random
    words += [f"x{spec.samples}"] * (spec.samples > 1)
    return " ".join(words)


def _packed(weight: Any, spec: Spec | None) -> int:
    """Bytes of codes and scales, by packing."""
    if isinstance(weight, PackedWeight):
        return sum(buffer.nbytes for buffer in weight.buffers(recurse=False))
    if spec is None:
        return int(weight.nbytes)
    kept = encode(weight.detach(), replace(spec, rounding="nearest", samples=1), axis=1)
    return kept.packed.nbytes + kept.scale.nbytes + kept.rest.nbytes


def _pairs(products: Products) -> list[str]:
    """Name the operands of the three products."""
    p = products

    def format_of(spec: Spec | None) -> str:
        return _WIDE if spec is None else spec.format

    # A rotated operand without a spec of its own is not rounded again.
    weight = p.weight_again or (None if p.rotate_input else p.weight)
    signal = p.input_again or (None if p.rotate_weight else p.input)
    operands = [(p.input, p.weight), (p.grad_input, weight), (p.grad_weight, signal)]
    return [f"{format_of(a)} x {format_of(b)}" for a, b in operands]


def _density(pair: str) -> float:
    bits = max(32 if name == _WIDE else lb.get_format(name).bits for name in pair.split(" x "))
    return next((density for most, density in sorted(DENSITY.items()) if bits <= most), 1.0)
