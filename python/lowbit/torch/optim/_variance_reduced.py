"""What SVRG, LP-SVRG and HALP share: the two loops, the corrected gradients, and what is saved."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, SupportsIndex, TypeVar

import torch
from torch import Tensor

import lowbit as lb
from lowbit import _arguments
from lowbit.torch import _keys, ops

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

Group = dict[str, Any]
T = TypeVar("T")


class At(NamedTuple):
    """A parameter, what to call it in an error, its number among all, and its group."""

    name: str
    number: int
    group: Group
    p: Tensor


#: Fixed point has 2 to 24 bits: what float32 holds exactly.
MOST_BITS = 24


def finite(value: Any, argument: str, *, zero: bool) -> float:
    """Check a number of a group: positive, or with `zero` not negative."""
    number = _arguments.real(value.item() if isinstance(value, Tensor) else value, argument)
    if not (math.isfinite(number) and (number > 0 or (zero and number == 0))):
        raise lb.Error(f"{argument}: {number} is out of range; give a {'number from 0' if zero else 'positive number'}")
    return number


class VarianceReduced(torch.optim.Optimizer):
    """The loops: a full gradient every `inner` steps, and the correction of every minibatch's."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        inner: SupportsIndex,
        full: Callable[[], object],
        **options: Any,
    ) -> None:
        given: Any = full
        if not callable(given):
            kind = type(given).__name__
            raise TypeError(f"full: expected a function that leaves the whole set's mean gradient, got {kind}")
        self.inner = _arguments.within(inner, "inner", 1, (1 << 63) - 1)
        self.full = full
        #: Steps taken.
        self.steps = 0
        #: Steps until the next full gradient.
        self._left = 0
        super().__init__(params, {"lr": lr, **options})

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters; the next step begins with a full gradient, as theirs is not known.

        Raises
        ------
        TypeError
            A parameter is not float32 or float64, or an option has the wrong type.
        lowbit.Error
            An option is out of range.
        """
        super().add_param_group(param_group)
        try:
            self._check(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise
        self._left = 0

    def _check(self, group: Group) -> None:
        """Check the options of a group and its parameters."""
        finite(group["lr"], "lr", zero=True)
        for option in ("momentum", "weight_decay"):
            group[option] = finite(group[option], option, zero=True)
        for k, p in enumerate(group["params"]):
            if p.dtype not in (torch.float32, torch.float64):
                name = _name(len(self.param_groups) - 1, group, k)
                raise TypeError(f"params: {name} is {p.dtype}; its centre needs float32 or float64")

    def _all(self) -> list[At]:
        parameters = (
            (g, group, k, p) for g, group in enumerate(self.param_groups) for k, p in enumerate(group["params"])
        )
        return [At(_name(g, group, k), n, group, p) for n, (g, group, k, p) in enumerate(parameters)]

    def _gradients(self, call: Callable[[], T], argument: str) -> tuple[list[Tensor | None], T]:
        """Call, and take the gradients that it leaves."""
        self.zero_grad(set_to_none=True)
        with torch.enable_grad():
            result = call()
        found: list[Tensor | None] = []
        for at in self._all():
            if at.p.grad is not None and at.p.grad.layout is not torch.strided:
                raise TypeError(f"{argument}: the gradient of {at.name} is sparse; corrections need dense ones")
            found.append(at.p.grad)
            at.p.grad = None
        return found, result

    def _begin(self) -> None:
        """Make the weights the centre, and compute the gradient of the whole set there."""
        for at in self._all():
            if at.p.requires_grad and "center" not in self.state[at.p]:
                self._start(at)
        found, _ = self._gradients(self.full, "full")
        if all(grad is None for grad in found):
            raise lb.Error(
                "full: left no gradient in any parameter; it calls backward, and does not clear gradients after"
            )
        for at, grad in zip(self._all(), found, strict=True):
            if grad is None:
                self.state[at.p].pop("full_grad", None)
            elif at.group["weight_decay"]:
                self._center(at, grad + at.group["weight_decay"] * at.p.detach())
            else:
                self._center(at, grad.clone())
        self._left = self.inner

    def _start(self, at: At) -> None:
        """See a parameter for the first time."""

    def _center(self, at: At, full_grad: Tensor) -> None:
        """Make where a parameter is its centre."""
        self.state[at.p].update(center=at.p.detach().clone(), full_grad=full_grad)

    @torch.compiler.disable(  # type: ignore[untyped-decorator]
        reason="it counts its steps and draws by them, outside of tensors"
    )
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step.

        Parameters
        ----------
        closure : callable
            Computes the loss of one minibatch, calls ``backward`` and returns the loss; it clears no gradients. It is
            called twice, at the centre and then at the weights, with torch's generators in the same state, and must
            take the same minibatch: take that from a loader outside of it.

        Returns
        -------
        object
            What the closure returned at the weights.

        Raises
        ------
        TypeError
            There is no closure, or a gradient is sparse.
        lowbit.Error
            `full` left no gradient where the closure does, or (`HALP`) one that is not finite.
        """
        if not callable(closure):
            raise TypeError("closure: each step needs the loss at two places; give step(closure), which calls backward")
        with torch.no_grad():
            if self._left == 0:
                self._begin()
            at_center = self._at_center(closure)
            here, loss = self._gradients(closure, "closure")
            gradients = list(zip(self._all(), at_center, here, strict=True))
            for at, _, gradient in gradients:
                if gradient is not None and "full_grad" not in self.state[at.p]:
                    raise lb.Error(f"full: left no gradient for {at.name}, which the closure gives one")
            for at, there, gradient in gradients:
                if "full_grad" in self.state[at.p]:
                    self._take(at, there, gradient)
        self.steps += 1
        self._left -= 1
        return loss

    def _at_center(self, closure: Callable[[], Any]) -> list[Tensor | None]:
        """Compute the minibatch's gradients at the centre, and leave weights and generators as they were."""
        moved = [(at.p, at.p.detach().clone()) for at in self._all() if "full_grad" in self.state[at.p]]
        devices = sorted({p.device.index for p, _ in moved if p.is_cuda})
        try:
            for p, _ in moved:
                p.copy_(self.state[p]["center"])
            with torch.random.fork_rng(devices):
                return self._gradients(closure, "closure")[0]
        finally:
            for p, weight in moved:
                p.copy_(weight)

    def _take(self, at: At, there: Tensor | None, here: Tensor | None) -> None:
        """Correct the gradient of one parameter, and move it."""
        state, group = self.state[at.p], at.group
        # Where the minibatch leaves a parameter out its gradient is zero.
        zero = torch.zeros_like(state["full_grad"])
        d = (zero if here is None else here) - (zero if there is None else there) + state["full_grad"]
        if group["weight_decay"]:
            d = d + group["weight_decay"] * (at.p.detach() - state["center"])
        at.p.grad = d
        if group["momentum"]:
            d = group["momentum"] * state["momentum_buffer"] + d if "momentum_buffer" in state else d.clone()
            state["momentum_buffer"] = d
        self._move(at, float(group["lr"]) * d)

    def _move(self, at: At, change: Tensor) -> None:
        """Subtract a change."""
        at.p.sub_(change)

    def state_dict(self) -> dict[str, Any]:
        """Give the state: torch's, and where in the inner loop it stands."""
        return {**super().state_dict(), "steps": self.steps, "left": self._left}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # type: ignore[override]
        """Resume where `state_dict` was taken, bit for bit.

        Raises
        ------
        lowbit.Error
            It is the state of another kind of optimizer.
        """
        for part in self._parts():
            if part not in state_dict:
                raise lb.Error(f"state_dict: has no {part!r}; it is not of {type(self).__name__}")
        super().load_state_dict(state_dict)
        self.steps, self._left = int(state_dict["steps"]), int(state_dict["left"])

    def _parts(self) -> tuple[str, ...]:
        return "steps", "left"


def _name(g: int, group: Group, k: int) -> str:
    names = group.get("param_names")
    return f"parameter {k} of group {g}" if names is None else repr(names[k])


class Rounding(VarianceReduced):
    """What rounding optimizers share: how they round, and the key of what they draw."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        inner: SupportsIndex,
        full: Callable[[], object],
        *,
        rounding: Literal["nearest", "stochastic"],
        key: lb.Key | int | None,
        **options: Any,
    ) -> None:
        self.rounding = _arguments.choice(rounding, "rounding", ("nearest", "stochastic"))
        if key is not None:
            _arguments.noise(rounding, key)
        words = _keys.draw() if key is None else _keys.of(key, private=False)
        assert words is not None
        if key is None and torch.distributed.is_available() and torch.distributed.is_initialized():
            # Replicas must round alike.
            drawn = [words]
            torch.distributed.broadcast_object_list(drawn, src=0)
            words = drawn[0]
        self.key = lb.Key.from_words(*_keys.words(words))
        super().__init__(params, lr, inner, full, **options)

    def _round(self, x: Tensor, fmt: lb.Format, scale: Any, number: int, label: str) -> Tensor:
        """Round with the words of this step, parameter and purpose."""
        key = None
        if self.rounding == "stochastic":
            key = self.key.fold("optim").fold(self.steps).fold(number).fold(label)
        return ops.fake_quantize(x, fmt, scale=scale, rounding=self.rounding, key=key)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """Give the state: torch's, where in the inner loop it stands, and the key."""
        return {**super().state_dict(), "key": _keys.pack(self.key.words)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume where `state_dict` was taken, bit for bit; its key replaces this one's.

        Raises
        ------
        lowbit.Error
            It is the state of another kind of optimizer.
        """
        super().load_state_dict(state_dict)
        self.key = lb.Key.from_words(*_keys.words(state_dict["key"]))

    def _parts(self) -> tuple[str, ...]:
        return *super()._parts(), "key"


def width(bits: Any) -> int:
    """Check how many bits integers have."""
    return _arguments.within(bits, "bits", 2, MOST_BITS)
