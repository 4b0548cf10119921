"""The state of a quantized product, and what happens to it when the optimizer steps."""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import math
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import lowbit as lb
from lowbit.torch import _keys
from lowbit.torch._autograd import RECORDS, Plan, product
from lowbit.torch._contract import Convolution
from lowbit.torch._product import SLOTS, Held, hold
from lowbit.torch._spec import Products

#: Every site that is alive: an optimizer's step is told to those whose weight it moves.
_SITES: weakref.WeakSet[Site] = weakref.WeakSet()
_ORDER = itertools.count()
#: Whether this rank runs a model that the others do not: a trial, which must not wait for them.
_ALONE = contextvars.ContextVar("lowbit_alone", default=False)
#: Votes are exchanged in multiples of so many, so that ranks may have different numbers of sites.
_PADDED = 256
_UNKNOWN, _UNSIGNED, _SIGNED = -1, 0, 1


class Site(nn.Module):
    """One quantized product: how its operands are quantized, and the state that needs.

    Parameters
    ----------
    products : Products
    weight : Parameter
        The weight that is multiplied: an optimizer's step is this site's if the optimizer has it.
    pact_init : float, optional
        Where the clip of PACT starts. None: at the largest magnitude of the first training batch.
    grad_scale : float
        Where the power of two of GradScale starts.

    Attributes
    ----------
    clip : Parameter or None
        PACT's clip, a scalar.
    grad_scale : Tensor or None
        GradScale's power of two: what dL/dy is multiplied by before it is rounded.
    grad_max : Tensor or None
        The running maximum of ``scale="hindsight"``; 0 before the first step.
    record : Tensor
        The last numbers seen, in the order of `SLOTS`. Shares are seen only while `recording`.
    """

    SLOTS = SLOTS
    clip: Tensor | None
    clip_signed: Tensor | None
    grad_scale: Tensor | None
    grad_max: Tensor | None
    record: Tensor

    def __init__(
        self, products: Products, weight: Tensor, *, pact_init: float | None = None, grad_scale: float = 1.0
    ) -> None:
        super().__init__()
        if not isinstance(products, Products):
            raise TypeError(f"products: expected lowbit.torch.Products, got {type(products).__name__}")
        # In a list, so that it is not a parameter of this module too.
        self._weight = [_leaf(weight)]
        self.products = products
        self.recording = False
        rules = {spec.scale for _, spec in products.specs()}
        # A Parameter from the start, so that an optimizer made before the first batch has it.
        self.clip = nn.Parameter(torch.tensor(pact_init or 0.0)) if "pact" in rules else None
        self.pact_init = pact_init
        self._settle(_UNKNOWN)
        self.register_buffer("clip_signed", torch.tensor(_UNKNOWN) if "pact" in rules else None)
        self.register_buffer("grad_scale", torch.tensor(float(grad_scale)) if "gradscale" in rules else None)
        self.register_buffer("grad_max", torch.tensor(0.0) if "hindsight" in rules else None)
        # No buffer, and on the CPU: what one rank has seen since the last step is no other's.
        self.record = torch.zeros(len(SLOTS))
        self._enlist()
        self._clip_in_optimizer = False
        self._stepped = False
        self._strange = 0  # steps of optimizers that have not its weight, while none has had it

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._enlist()

    def _enlist(self) -> None:
        """Be one of the sites that are alive, with a number of its own."""
        self._order = next(_ORDER)
        self._number = torch.tensor(self._order)
        RECORDS[self._order] = self.record
        _SITES.add(self)

    def _apply(self, fn: Any, recurse: bool = True) -> Site:
        """Move with the model, but stay float32: the scales of gradients go beyond what half precision holds."""
        before = {**self._parameters, **self._buffers}
        super()._apply(fn, recurse)
        for own in (self._parameters, self._buffers):
            for name, now in own.items():
                was = before[name]
                if now is not None and was is not None and now.dtype != was.dtype:
                    now.data = was.detach().to(now.device)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.clip_signed is not None:
            self._settle(int(self.clip_signed))

    def _settle(self, sign: int) -> None:
        """Take on a sign that was found before."""
        self._sign = sign
        self._plan = Plan.of(self.products if sign == _UNKNOWN else _signed(self.products, sign == _SIGNED))

    def extra_repr(self) -> str:
        """Say how each operand is quantized."""
        return ", ".join(f"{name}={spec!r}" for name, spec in self.products.specs())

    def multiply(
        self,
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        geometry: Convolution | None = None,
        *,
        owner: Tensor | None = None,
        held: Held | None = None,
    ) -> Tensor:
        """Multiply the quantized input and weight and add the bias; in autocast's dtype, or else the input's.

        `owner` is the parameter that `w` is a part of; `held` is what `hold` made of it.
        """
        device = x.device.type
        cast = _autocast(device)
        if not x.is_floating_point():
            raise TypeError(f"input: expected a float tensor, got dtype {x.dtype}")
        if x.dtype != w.dtype and cast is None:
            raise TypeError(f"input: its dtype is {x.dtype}, the weight's {w.dtype}; cast one, or use torch.autocast")
        if self.training:
            self._see(w if owner is None else owner)
        plan = self._plan if self.clip is None or self._sign != _UNKNOWN else self._first(x)
        # Rows, outside of the product: what it returns must be no view, or nobody could work on it in place.
        seen = self.training or self.recording
        rows = x.reshape(-1, x.shape[-1]) if geometry is None and x.dim() != 2 else x
        y = product(
            _narrow(rows),
            w,
            bias,
            self.clip if plan.pact else None,
            # As dropout does: of torch's generator, outside of the operation.
            _keys.draw() if plan.draws(self.training) else None,
            self.grad_scale,
            self.grad_max,
            self.record if seen else torch.zeros(len(SLOTS)),
            self._number if seen else torch.full((), -1, dtype=torch.int64, device="cpu"),
            plan,
            geometry,
            self.recording,
            held,
        )
        y = y.to(x.dtype if cast is None else cast)
        return y if rows is x else y.reshape(*x.shape[:-1], w.shape[0])

    def hold(self, w: Tensor) -> Held | None:
        """Round a weight once for many products; a compiler is better served by rounding it in each."""
        return None if _keys.watched() or w.device.type == "meta" else hold(w, self.products)

    def start(self, clip: float, *, signed: bool) -> None:
        """Set PACT's clip and whether it holds negative numbers, as the first batch would."""
        if self.clip is None or self.clip_signed is None:
            return
        with torch.no_grad():
            self.clip.fill_(clip)
            self.clip_signed.fill_(_SIGNED if signed else _UNSIGNED)
        self._settle(int(signed))

    @torch.compiler.disable(  # type: ignore[untyped-decorator]
        reason="PACT's clips start at the first batch: run one before torch.compile(fullgraph=True)"
    )
    def _first(self, x: Tensor) -> Plan:
        """Start PACT by its first batch, of all ranks: signed if that was negative anywhere."""
        if x.device.type == "meta" or _keys.watched():
            return Plan.of(_signed(self.products, True))
        if self.clip_signed is not None and int(self.clip_signed) != _UNKNOWN:
            # Somebody copied the state of a model that had started, as averages of weights do.
            self._settle(int(self.clip_signed))
            return self._plan
        low, high = torch.aminmax(x.detach()) if x.numel() else (torch.zeros(()), torch.zeros(()))
        top, signed = float(max(-low, high)), bool(low < 0)
        if self.training:
            top = top if math.isfinite(top) else 0.0
            if _many():
                both = torch.tensor([top, float(signed)], device=x.device)
                torch.distributed.all_reduce(both, torch.distributed.ReduceOp.MAX)
                top, signed = both[0].item(), bool(both[1])
            if top > 0:
                self.start(self.pact_init or top, signed=signed)
                return self._plan
        # Nothing to start from: not training, all zero, or not finite. Such a batch is scaled by its own maximum.
        return Plan.of(_unclipped(self.products, signed))

    def _see(self, w: Tensor) -> None:
        """Notice another weight in the old one's place; complain of a clip that no optimizer has."""
        if torch.compiler.is_compiling():
            return
        if self._weight[0] is not w:
            self._weight = [_leaf(w)]
        if self._stepped and not self._clip_in_optimizer and self.clip is not None and self.clip.requires_grad:
            self._clip_in_optimizer = True
            warnings.warn(
                "the clips of PACT are in no optimizer that has stepped, so they stay as they are: give the optimizer "
                "lowbit.torch.param_groups(model, pact_decay=...), or make it after prepare",
                UserWarning,
                stacklevel=5,
            )

    def vote(self) -> int:
        """Vote on the scale of the gradients by the largest one: +1 to double it, 0, or -1 to halve it.

        Sun et al., NeurIPS 2020, figure 3a: m = max |scale dL/dy| in [0, 32]: +1; in (32, 64]: 0; above 64: -1.
        """
        assert self.grad_scale is not None
        spec = next(spec for _, spec in self.products.specs() if spec.scale == "gradscale")
        reference = lb.get_format(spec.format).reference
        m = float(self.grad_scale) * float(self.record[0])
        if math.isnan(m) or not self.record[-1]:
            return 0
        return 1 if m <= reference / 2 else -1 if m > reference else 0

    def step(self, votes: int) -> None:
        """Take a step of the optimizer: move the scales of the gradients, and forget their magnitude."""
        if self.grad_scale is not None and votes:
            factor = 2.0 if votes > 0 else 0.5
            self.grad_scale = (self.grad_scale * factor).clamp(2.0**-126, 2.0**126)
        if self.grad_max is not None and self.record[-1]:
            peak = self.record[0].to(self.grad_max.device)
            spec = next(spec for _, spec in self.products.specs() if spec.scale == "hindsight")
            eta = spec.momentum or 0.0
            if torch.isfinite(peak):
                self.grad_max = (1 - eta) * peak + eta * self.grad_max if self.grad_max > 0 else peak.clone()
        self.record[0] = 0.0
        self.record[-1] = 0.0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Run what no other rank runs."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def _leaf(w: Tensor) -> Tensor:
    """Give a weight without what it was computed by (a parametrization), if it was."""
    return w if w.is_leaf else w.detach()


def _autocast(device: str) -> torch.dtype | None:
    """Give the dtype that autocast is on with."""
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def _narrow(x: Tensor) -> Tensor:
    """Round float64 to float32, as everywhere in lowbit."""
    return x.to(torch.float32) if x.dtype == torch.float64 else x


def _signed(products: Products, signed: bool) -> Products:
    """Give PACT's input the format of its sign: all codes from 0 up, or as many on either side of it."""
    spec = products.input
    assert spec is not None
    fmt = lb.get_format(spec.format)
    if fmt.signed == signed:
        return products
    other = f"int{fmt.bits}_symmetric" if signed else f"uint{fmt.bits}"
    return _with_format(products, other, "pact")


def _unclipped(products: Products, signed: bool) -> Products:
    return _with_format(_signed(products, signed), None, "amax")


def _with_format(products: Products, format: str | None, scale: str) -> Products:
    spec = products.input
    assert spec is not None
    return products.with_input(replace(spec, format=format or spec.format, scale=scale))


def _stepped(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Tell every site whose weight this optimizer moves, or none does, that a step was taken."""
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    sites = []
    for site in sorted(_SITES, key=lambda site: site._order):
        weight = site._weight[0]
        if site.clip is not None and id(site.clip) in moved:
            site._clip_in_optimizer = True
        site._strange += 1
        if id(weight) in moved:
            site._stepped, site._strange = True, -(1 << 62)
        # A weight that no optimizer has is frozen, computed, or a copy of what one moves; or its own has yet to step.
        if id(weight) in moved or site._strange > 1 or not (weight.requires_grad and weight.is_leaf):
            sites.append(site)
    for site, vote in _voted(sites):
        site.step(vote)
    for site in sites:
        if site.grad_scale is None:
            site.step(0)


def _voted(sites: list[Site]) -> list[tuple[Site, int]]:
    """Give the votes of the sites that take a step, summed over ranks.

    A site steps if it does so on any rank, with the votes of all: an optimizer of shards (ZeRO) has other weights on
    each.
    """
    if not _many():
        return [(site, site.vote()) for site in sites if site.grad_scale is not None]
    # In the order in which they were made, which is the same on every rank; one that has more of them, such as the
    # averages of its weights, has made them last.
    scaled = [site for site in sorted(_SITES, key=lambda site: site._order) if site.grad_scale is not None]
    if not scaled:
        return []
    total = torch.zeros(2, len(scaled) + -len(scaled) % _PADDED, dtype=torch.int64)
    taken = set(sites)
    for i, site in enumerate(scaled):
        total[0, i], total[1, i] = site.vote(), site in taken
    assert scaled[0].grad_scale is not None
    total = total.to(scaled[0].grad_scale.device)
    torch.distributed.all_reduce(total)
    return [(site, vote) for site, vote, steps in zip(scaled, *total.tolist(), strict=False) if steps]


def _many() -> bool:
    """Say whether there are other ranks that run what this one runs."""
    return not _ALONE.get() and torch.distributed.is_available() and torch.distributed.is_initialized()


register_optimizer_step_post_hook(_stepped)
