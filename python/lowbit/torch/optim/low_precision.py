"""``LowPrecision``: any optimizer, on numbers of a few bits."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed
from torch import Tensor
from torch.optim import LBFGS, Optimizer

import lowbit as lb
from lowbit import _arguments
from lowbit.torch import _keys
from lowbit.torch.optim import _fused, _slots
from lowbit.torch.optim._slots import Momentum
from lowbit.torch.optim._store import ACCUMULATOR, Footprint, Store, footprint
from lowbit.torch.optim._swap import Options, Swap, Work, step

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lowbit._formats import FormatLike, KeyLike
    from lowbit.torch._spec import Spec

#: The entry of a state_dict that is not the inner optimizer's.
_ENTRY = "low_precision"

#: What is copied and pickled.
_OWN = (
    "optimizer",
    "weight",
    "grad",
    "momentum",
    "accumulator",
    "grad_scale",
    "store",
    "ranks",
    "key",
    "steps",
)

#: What an optimizer calls when something happens; shared, so that hooks of either object are called once.
_HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


class LowPrecision(Optimizer):
    """Keep the numbers of any optimizer in few bits: gradients, weights, states, and accumulators behind the weights.

    A step rounds gradients, lets `optimizer` step, and rounds what it wrote: ``g = Q_grad(g grad_scale) / grad_scale``;
    the optimizer's step, on the accumulators where there are any; ``acc = Q_acc(w)``, ``w = Q_weight(w)``; then the
    states. This is the order of QPyTorch's ``OptimLP``, which does not undo the scale of the gradient.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Any. Its parameter groups, state and hooks are this object's too, so that schedulers, ``GradScaler`` and the
        like can be given either; call this one's ``step``.
    weight, grad, accumulator : str, Format or lowbit.torch.Spec, optional
        The formats. A plain format has its own scale rule, and blocks, if any, along the last axis; a `Spec` says these
        and its rounding itself. ``weight="bfloat16"`` is for bfloat16 parameters (one pass over memory for SGD, Adam
        and AdamW) or float32 ones (which then hold bfloat16's numbers). Without `accumulator` the rounded weight
        is what the next step starts from.
    momentum : the same, or mapping from a state's name to one, optional
        For every state that is a float tensor of its parameter's shape (``exp_avg``, ``momentum_buffer``, ...), or for
        those named. ``"bfloat16"`` is stored as that dtype.
    rounding : {"stochastic", "nearest"}
        Of plain formats.
    key : Key or int, optional
        The randomness. Default: drawn from torch's generator now; with `torch.distributed` initialized and
        ``ranks="alike"`` it is rank 0's.
    grad_scale : float
        What gradients are multiplied by before they are rounded, and divided by after.
    store : {"float", "packed"}
        Whether states and accumulators lie between steps as rounded floats, or as packed codes and scales. The numbers
        are the same. Packed, parameters are stepped one after another, so that only one is unpacked at a time:
        optimizers that look at all of them at once (LBFGS, Prodigy) want ``"float"``.
    ranks : {"alike", "differ"}
        Whether all ranks round with the same words (replicas), or each with its own (shards).

    Raises
    ------
    TypeError
        An argument has the wrong type; in a step, a gradient is sparse.
    lowbit.Error
        A format cannot hold what its slot must (no zero, no negative numbers), or an option has no such value.

    Notes
    -----
    Number i of a tensor is rounded with the i-th word of ``key.fold("optim").fold(step).fold(index).fold(name)``, where
    index counts the parameters of all groups and name is ``"grad"``, ``"weight"``, ``"accumulator"`` or the state's.
    Key and count of steps are in the ``state_dict``, so that a resumed run is the same run.

    A closure is called by the inner optimizer, and gradients are rounded after each call. The first call sees the
    weights as they were; a later one (a line search) what the optimizer is trying, in the parameters' dtype.

    References
    ----------
    QPyTorch (arXiv:1910.04540) for the order; arXiv:2010.06192 for bfloat16 weights.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch.optim import LowPrecision
    >>> w = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    >>> optimizer = LowPrecision(torch.optim.SGD([w], lr=2**-10), weight="bfloat16", key=1)
    >>> for _ in range(64):
    ...     w.grad = torch.ones_like(w)
    ...     optimizer.step()
    >>> w.data  # 1 - 64 / 1024, in steps of 1 / 256; rounded to nearest it would still be 1
    tensor([0.9414, 0.9453, 0.9414, 0.9492], dtype=torch.bfloat16)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        weight: FormatLike | Spec | None = None,
        grad: FormatLike | Spec | None = None,
        momentum: FormatLike | Spec | Mapping[str, FormatLike | Spec] | None = None,
        accumulator: FormatLike | Spec | None = None,
        rounding: Literal["stochastic", "nearest"] = "stochastic",
        key: KeyLike | None = None,
        grad_scale: float = 1.0,
        store: Literal["float", "packed"] = "float",
        ranks: Literal["alike", "differ"] = "alike",
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if isinstance(optimizer, LowPrecision):
            raise lb.Error("optimizer: it is a LowPrecision already; give one all the formats")
        _arguments.choice(rounding, "rounding", ("stochastic", "nearest"))
        _arguments.choice(store, "store", ("float", "packed"))
        _arguments.choice(ranks, "ranks", ("alike", "differ"))
        if any(group.get("differentiable") for group in optimizer.param_groups):
            raise lb.Error("optimizer: differentiable=True has no meaning where numbers are rounded; leave it out")
        self.optimizer = optimizer
        self.weight = _slots.slot(weight, "weight", rounding)
        self.grad = _slots.slot(grad, "grad", rounding)
        self.momentum = Momentum(momentum, rounding)
        self.accumulator = _slots.slot(accumulator, "accumulator", rounding)
        self.grad_scale = _arguments.real(grad_scale, "grad_scale")
        self.store = Store(store == "packed", self.momentum, self.accumulator)
        self.ranks = ranks
        self._check_slots()
        for group in optimizer.param_groups:
            _check_parameters(group)
        self.key = self._first_key(key)
        self.steps = 0
        self._share()

    def _check_slots(self) -> None:
        for name, slot in (("weight", self.weight), ("grad", self.grad), ("accumulator", self.accumulator)):
            if slot is not None:
                _slots.check(slot, name, zero=name == "accumulator", negative=True)
        if not (math.isfinite(self.grad_scale) and self.grad_scale > 0):
            raise lb.Error(f"grad_scale: {self.grad_scale} is not a positive number")
        if self.grad_scale != 1 and self.grad is None:
            raise lb.Error("grad_scale: it scales what grad= rounds; give grad= too")
        if self.store.packed:
            kept = [*self.momentum.slots(), *([self.accumulator] if self.accumulator else [])]
            if not kept:
                raise lb.Error("store: 'packed' is for states and accumulators; give momentum= or accumulator=")
            for slot in kept:
                if not lb.get_format(slot.format).coded:
                    raise lb.Error(f"store: 'packed' needs codes, which {slot.format} has none of; give 'float'")
            if isinstance(self.optimizer, LBFGS):
                raise lb.Error(
                    "store: LBFGS looks at all parameters at once, and 'packed' steps one at a time; give 'float'"
                )

    def _first_key(self, key: KeyLike | None) -> lb.Key:
        if key is not None:
            words = _arguments.words(key, private=False)
            assert words is not None
            return lb.Key.from_words(*words)
        slots = [self.weight, self.grad, self.accumulator, *self.momentum.slots()]
        if not any(slot is not None and slot.random for slot in slots):
            return lb.Key(0)
        drawn = [_keys.words(_keys.draw())]
        if self.ranks == "alike" and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast_object_list(drawn, src=0)
        return lb.Key.from_words(*drawn[0])

    def _share(self) -> None:
        """Be an optimizer whose groups, state and hooks are the inner one's."""
        for name in _HOOKS:
            hooks = self.optimizer.__dict__.setdefault(name, OrderedDict())
            setattr(self, name, hooks)
        self.defaults = self.optimizer.defaults
        self._fused = None
        if self.accumulator is None:
            self._fused = _fused.fused(self.optimizer, self.weight, self.momentum)
        self._patch_step_function()  # type: ignore[no-untyped-call]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The inner optimizer's."""
        return self.optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        """The inner optimizer's."""
        return self.optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.optimizer.state = state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters: the inner optimizer's method."""
        self.optimizer.add_param_group(param_group)
        _check_parameters(self.param_groups[-1])

    def footprint(self) -> Footprint:
        """Count the bytes of weights, accumulators and states, and what they would be in float32.

        Returns
        -------
        Footprint

        Examples
        --------
        >>> import torch
        >>> from lowbit.torch.optim import LowPrecision
        >>> w = torch.nn.Parameter(torch.ones(64, 64))
        >>> inner = torch.optim.AdamW([w])
        >>> formats = {"exp_avg": "mxfp8", "exp_avg_sq": "bfloat16"}
        >>> optimizer = LowPrecision(inner, momentum=formats, store="packed", key=1)
        >>> w.grad = torch.ones_like(w)
        >>> optimizer.step()
        >>> print(optimizer.footprint())
        28804 bytes instead of 49156 (59%)
        """
        return footprint((p for group in self.param_groups for p in group["params"]), self.state)

    @torch.compiler.disable(  # type: ignore[untyped-decorator]
        reason="it counts its steps and draws by them, outside of tensors"
    )
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Step once.

        Parameters
        ----------
        closure : callable, optional
            Computes the loss again and its gradients, and returns the loss.

        Returns
        -------
        The loss, or None without a closure.

        Raises
        ------
        TypeError
            A gradient is sparse.
        lowbit.Error
            `momentum` names a state that the optimizer does not have.
        """
        key = self.key.fold("optim")
        if self.ranks == "differ":
            key = key.fold("rank", _rank())
        key = key.fold(self.steps)
        with torch.no_grad():
            loss = self._step(closure, key)
        self.steps += 1
        # What a scheduler of the inner optimizer looks at.
        self.optimizer._opt_called = True  # type: ignore[attr-defined]
        return loss

    def _step(self, closure: Callable[[], Any] | None, key: lb.Key) -> Any:
        loss = None
        if closure is not None and (self._fused is not None or self.store.packed):
            # SGD and Adam call it once, before anything else.
            with torch.enable_grad():
                loss = closure()
            closure = None
        work, first = [], 0
        for group in self.param_groups:
            found = []
            for index, p in enumerate(group["params"], first):
                if p.grad is not None if closure is None else p.requires_grad:
                    found.append(Work(index, group, p, p))
                    self._check_dense(found[-1])
            first += len(group["params"])
            if self._fused is not None and _fused.suits(group):
                found = self._step_fused(self._fused, group, found, key)
            work += found
        if not self.store.packed:
            return self._step_all(work, closure, key) if work else loss
        options = Options()
        for item in work:
            options.rewind(item.group)
            self._step_all([item], None, key)
        return loss

    def _step_fused(self, fused: _fused.Fused, group: dict[str, Any], work: list[Work], key: lb.Key) -> list[Work]:
        """Step what the core can step of a group; give the rest."""
        tensors, rest = [], []
        for item in work:
            p, state = item.p, self.state[item.p]
            if _fused.fits(p, state):
                grad = p.grad
                assert grad is not None
                if self.grad is not None:
                    grad = self._rounded(grad.to(torch.float32, copy=True), item.index, key)
                tensors.append((item.index, p, grad, state))
            else:
                rest.append(item)
        if tensors:
            fused.step(group, tensors, key)
            self.momentum.check_names(set(tensors[0][-1]))
        return rest

    def _step_all(self, work: list[Work], closure: Callable[[], Any] | None, key: lb.Key) -> Any:
        """Let the inner optimizer step, and round what it wrote."""
        for item in work:
            self._lend(item)
        swap, calls = Swap(self.optimizer, work), 0

        def evaluate() -> Any:
            nonlocal calls
            swap.__exit__(None, None, None)
            if calls:
                for item in work:
                    if item.master is not item.p:
                        item.p.detach().copy_(item.master.detach())
            assert closure is not None
            loss = closure()
            with torch.no_grad():
                for item in work:
                    self._check_dense(item)
                    self._give_gradient(item, key, calls)
            calls += 1
            swap.__enter__()
            return loss

        try:
            if closure is None:
                for item in work:
                    self._give_gradient(item, key, 0)
            with swap:
                loss = step(self.optimizer, None if closure is None else evaluate)
        except BaseException:
            # Nothing is rounded, and no accumulator is lost.
            for item in work:
                if self.accumulator is not None:
                    self.state[item.p][ACCUMULATOR] = item.master.detach()
            raise
        for item in work:
            self._take(item, key.fold(item.index))
        self.momentum.check_names({name for item in work for name in self.state.get(item.p, ())})
        return loss

    def _lend(self, item: Work) -> None:
        """Find the tensor that is stepped, and make plain tensors of its states."""
        p, state = item.p, self.state.get(item.p, {})
        dtype = torch.promote_types(p.dtype, torch.float32)
        if self.accumulator is not None:
            kept = state.pop(ACCUMULATOR, None)
            wide = p.detach().to(dtype, copy=True)
            if kept is not None:
                wide = self.store.take(ACCUMULATOR, kept, p.shape, dtype)
            item.master = torch.nn.Parameter(wide)
        elif self.weight is not None and p.dtype is not dtype:
            item.master = torch.nn.Parameter(p.detach().to(dtype))
        self.store.lend(state, item.master)

    def _give_gradient(self, item: Work, key: lb.Key, call: int) -> None:
        """Round a parameter's gradient, in place where it is wide enough, and hand it to the tensor that is stepped."""
        grad, wide = item.p.grad, None
        if self.grad is None and item.master is item.p:
            return
        if grad is not None:
            wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
            if self.grad is not None:
                self._rounded(wide, item.index, key, call)
        if item.master is not item.p:
            item.master.grad = None if wide is None else wide.to(item.master.dtype)
        elif wide is not None and wide is not grad:
            assert grad is not None
            grad.copy_(wide)

    def _rounded(self, grad: Tensor, index: int, key: lb.Key, call: int = 0) -> Tensor:
        assert self.grad is not None
        words = key.fold(index).fold("grad")
        if self.grad_scale != 1:
            grad.mul_(self.grad_scale)
        self.grad.round_(grad, words.fold(call) if call else words)
        if self.grad_scale != 1:
            grad.div_(self.grad_scale)
        return grad

    def _take(self, item: Work, key: lb.Key) -> None:
        """Round what the inner optimizer wrote."""
        p, value = item.p.detach(), item.master.detach()
        if item.p.grad is None:
            # A closure left it alone.
            if self.accumulator is not None:
                self.state[item.p][ACCUMULATOR] = value
            return
        if self.accumulator is not None:
            kept = self.store.put(value, self.accumulator, key.fold("accumulator"))
            self.state[item.p][ACCUMULATOR] = kept
            value = self.store.take(ACCUMULATOR, kept, p.shape, value.dtype)
        if self.weight is not None:
            if value is not p and self.accumulator is not None:
                value = value.clone()
            self.weight.round_(value, key.fold("weight"))
        if item.master is not item.p:
            p.copy_(value)
        if self.momentum and item.p in self.state:
            self.store.keep(self.state[item.p], p.shape, key)

    def _check_dense(self, item: Work) -> None:
        if item.p.grad is not None and item.p.grad.layout is not torch.strided:
            raise TypeError(
                f"optimizer: the gradient of parameter {self._name(item)} is {item.p.grad.layout}, and only dense "
                "ones are rounded; use a layer that makes those (Embedding(sparse=False)), or another optimizer for it"
            )

    def _name(self, item: Work) -> str:
        """Say which parameter it is: its name where the optimizer was given names, else its number."""
        names = item.group.get("param_names")
        if names:
            place = next(i for i, p in enumerate(item.group["params"]) if p is item.p)
            return repr(names[place])
        return f"number {item.index}"

    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]
        """Give the inner optimizer's state_dict with, under ``"low_precision"``, the key and the count of steps."""
        state = self.optimizer.state_dict()
        state[_ENTRY] = {"key": _keys.pack(self.key.words), "steps": self.steps}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # type: ignore[override]
        """Load what `state_dict` gave; what the inner optimizer alone gave loads too, and leaves key and count."""
        given = {name: part for name, part in state_dict.items() if name != _ENTRY}
        self.optimizer.load_state_dict(given)
        # torch casts states to their parameter's dtype; here they have their own.
        numbers = (number for group in given["param_groups"] for number in group["params"])
        parameters = (p for group in self.param_groups for p in group["params"])
        for number, p in zip(numbers, parameters, strict=True):
            for name, saved in given["state"].get(number, {}).items():
                if _slots.is_packed(saved):
                    self.state[p][name] = {
                        part: value.to(p.device, copy=True) if isinstance(value, Tensor) else value
                        for part, value in saved.items()
                    }
                elif isinstance(saved, Tensor) and name != "step" and saved.dtype is not p.dtype:
                    self.state[p][name] = saved.to(p.device, copy=True)
        if _ENTRY in state_dict:
            self.key = lb.Key.from_words(*_keys.words(state_dict[_ENTRY]["key"]))
            self.steps = int(state_dict[_ENTRY]["steps"])

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in _OWN}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._share()

    def __repr__(self) -> str:
        slots = (("weight", self.weight), ("grad", self.grad), ("accumulator", self.accumulator))
        given = "".join(f"{name}={slot.format!r}, " for name, slot in slots if slot is not None)
        return f"LowPrecision({given}{self.momentum}{self.optimizer!r})"


def _check_parameters(group: dict[str, Any]) -> None:
    for p in group["params"]:
        if not p.is_floating_point():
            raise TypeError(f"optimizer: a parameter of {p.dtype} cannot be rounded; give real ones")


def _rank() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
