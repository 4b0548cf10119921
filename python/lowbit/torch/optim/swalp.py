"""``SWALP``: averages of rounded weights, which lie between the numbers of their grid."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

import lowbit as lb
from lowbit import _arguments
from lowbit.torch import _keys, ops
from lowbit.torch.optim._variance_reduced import finite

if TYPE_CHECKING:
    from lowbit._formats import FormatLike


class SWALP:
    """Average the weights of an optimizer from some step on: stochastic weight averaging in low precision.

    Weights that are rounded stochastically wander about the optimum, at least a step of their grid away from it. Their
    average comes closer than that: the rounding errors, which have the mean zero, cancel.

    The optimizer is used as before; after its ``step`` the average is brought up to date. Where optimizers wrap each
    other, give the outermost, whose weights are the rounded ones.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    start : int
        Steps of the optimizer (from here on) before the first weights are taken.
    every : int
        Steps from one to the next.
    lr : float, optional
        The learning rate of all groups once `start` steps are taken, whatever schedulers say. Default: left alone.
    average : str or Format, optional
        Keep the averages rounded too, stochastically and by the format's own scale rule. Default: float32, or the
        parameters' dtype where that is float64.
    key : Key or int, optional
        The randomness of `average`; by default drawn from torch's generator.

    Attributes
    ----------
    steps : int
        Steps seen.
    averaged : int
        How many weights are in the average so far.

    Raises
    ------
    TypeError
        An argument has the wrong type.
    lowbit.Error
        An argument is out of range, or a key is given for averages that are not rounded.

    Notes
    -----
    The nth weights change the average by ``(w - average) / n``. Running statistics of batch norms belong to the weights
    they were seen with: after a swap, ``torch.optim.swa_utils.update_bn`` computes those of the average. A parameter
    that the optimizer is given later has an average from its own first time on.

    Source: Yang, Zhang, Kirichenko, Bai, Wilson and De Sa, "SWALP: Stochastic Weight Averaging in Low-Precision
    Training", ICML 2019, arXiv:1904.11943, algorithm 1.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch.optim import SWALP
    >>> p = torch.nn.Parameter(torch.zeros(1))
    >>> optimizer = torch.optim.SGD([p], lr=1.0)
    >>> swalp = SWALP(optimizer, start=2, every=1)
    >>> for gradient in (1.0, 1.0, 1.0, 1.0):
    ...     p.grad = torch.tensor([gradient])
    ...     optimizer.step()
    >>> with swalp.applied():  # the mean of -3 and -4
    ...     p.item()
    -3.5
    >>> p.item()
    -4.0
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        start: SupportsIndex,
        every: SupportsIndex,
        lr: float | None = None,
        average: FormatLike | None = None,
        key: lb.Key | int | None = None,
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
        self.optimizer = optimizer
        self.start = _arguments.within(start, "start", 0, (1 << 63) - 1)
        self.every = _arguments.within(every, "every", 1, (1 << 63) - 1)
        self.lr = None if lr is None else finite(lr, "lr", zero=True)
        self.format = None
        if average is not None:
            self.format = (lb.get_format(average) if isinstance(average, str) else average).name
        if self.format is None and key is not None:
            raise lb.Error("key: averages that are not rounded draw nothing from it; leave it out, or give average=")
        words = _keys.draw() if key is None and average is not None else _keys.of(key, private=False)
        self.key = None if words is None else lb.Key.from_words(*_keys.words(words))
        self.steps = self.averaged = 0
        self._averages: dict[Tensor, tuple[Tensor, int]] = {}
        # The weights, while averages are in their place.
        self._kept: dict[Tensor, Tensor] = {}
        self._hooks = (
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        )

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _before(self, *_: Any) -> None:
        if self._kept:
            raise lb.Error("swap: the parameters hold averages; swap back before the optimizer's step")
        if self.lr is not None and self.steps >= self.start:
            for group in self.optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(self.lr)
                else:
                    group["lr"] = self.lr

    @torch.no_grad()
    def _after(self, *_: Any) -> None:
        self.steps += 1
        if self.steps <= self.start or (self.steps - self.start - 1) % self.every:
            return
        for index, p in enumerate(self._parameters()):
            weight = p.detach().to(p.dtype if p.dtype is torch.float64 else torch.float32)
            average, n = self._averages.get(p, (weight, 0))
            if n == 0:
                average = self._rounded(weight.clone(), index)
            else:
                average = self._rounded(average + (weight - average) / (n + 1), index)
            self._averages[p] = average, n + 1
        self.averaged += 1

    def _rounded(self, average: Tensor, index: int) -> Tensor:
        if self.format is None or self.key is None:
            return average
        key = self.key.fold("optim").fold(self.steps).fold(index).fold("average")
        return ops.fake_quantize(average, self.format, rounding="stochastic", key=key)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange parameters and averages; a second call exchanges them back.

        Parameters that have no average yet stay. Averages are rounded to the parameters' dtype while they are there.

        Raises
        ------
        lowbit.Error
            There is no average yet; the message says when there is.
        """
        if self._kept:
            for p, weight in self._kept.items():
                p.copy_(weight)
            self._kept = {}
            return
        if not self._averages:
            raise lb.Error(f"swap: there is no average before step {self.start + 1}; steps so far: {self.steps}")
        # The averages stay as they are, whatever the parameters' dtype makes of them.
        self._kept = {p: p.detach().clone() for p in self._averages}
        for p, (average, _) in self._averages.items():
            p.copy_(average)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give parameters their averages for the length of a ``with`` block.

        Raises
        ------
        lowbit.Error
            There is no average yet, or the parameters hold averages already.
        """
        if self._kept:
            raise lb.Error("swap: the parameters hold averages already")
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def state_dict(self) -> dict[str, Any]:
        """Give averages and counts, for `load_state_dict`; the optimizer's own state is not in it.

        Raises
        ------
        lowbit.Error
            The parameters hold averages: swap back before.
        """
        if self._kept:
            raise lb.Error("swap: the parameters hold averages; swap back before saving")
        found = [self._averages.get(p, (None, 0)) for p in self._parameters()]
        return {
            "steps": self.steps,
            "averaged": self.averaged,
            "averages": [average for average, _ in found],
            "counts": [n for _, n in found],
            "key": None if self.key is None else _keys.pack(self.key.words),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, bit for bit.

        Raises
        ------
        lowbit.Error
            It is of other parameters: their number or shapes differ, or it was (not) rounded.
        """
        parameters = self._parameters()
        averages, counts = state_dict["averages"], state_dict["counts"]
        shapes = [None if average is None else average.shape for average in averages]
        fit = [shape in (None, p.shape) for shape, p in zip(shapes, parameters, strict=False)]
        if len(averages) != len(parameters) or not all(fit):
            raise lb.Error(
                f"state_dict: its {len(averages)} averages are not those of these {len(parameters)} parameters"
            )
        if (state_dict["key"] is None) != (self.key is None):
            raise lb.Error(
                "state_dict: one of the two rounds its averages, the other does not; give both the same average"
            )
        self.steps, self.averaged = int(state_dict["steps"]), int(state_dict["averaged"])
        if self.key is not None:
            self.key = lb.Key.from_words(*_keys.words(state_dict["key"]))
        self._kept = {}
        self._averages = {
            p: (average.to(p.device), int(n))
            for p, average, n in zip(parameters, averages, counts, strict=True)
            if average is not None
        }


def swalp_schedule(optimizer: torch.optim.Optimizer, *, start: SupportsIndex, lr: float) -> LambdaLR:
    """Make the source's schedule: the full rate, a straight fall to a hundredth of it, then a constant rate to average.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Its groups' rates are the full ones.
    start : int
        When averages start, in steps of the scheduler (epochs, in the source, which says 200 of 300). The rates are
        full up to half of that, fall until nine tenths, and stay at a hundredth until `start`.
    lr : float
        The rate of all groups from then on (0.01, where the full one is 0.05).

    Returns
    -------
    torch.optim.lr_scheduler.LambdaLR

    Raises
    ------
    TypeError
        An argument has the wrong type.
    lowbit.Error
        An argument is out of range, or a group's rate is zero.

    Notes
    -----
    Source: the training script of SWALP (arXiv:1904.11943) for VGG16 and ResNet on CIFAR.

    Examples
    --------
    >>> import torch
    >>> from lowbit.torch.optim import swalp_schedule
    >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.05)
    >>> scheduler = swalp_schedule(optimizer, start=20, lr=0.01)
    >>> rates = []
    >>> for epoch in range(22):
    ...     rates.append(round(optimizer.param_groups[0]["lr"], 6))
    ...     optimizer.step()
    ...     scheduler.step()
    >>> rates[0], rates[10], rates[14], rates[18], rates[19], rates[20], rates[21]
    (0.05, 0.05, 0.02525, 0.0005, 0.0005, 0.01, 0.01)
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer: expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
    last, low = _arguments.within(start, "start", 1, (1 << 63) - 1), 0.01
    rate = finite(lr, "lr", zero=True)
    full = [
        finite(group.get("initial_lr", group["lr"]), "lr of a group", zero=False) for group in optimizer.param_groups
    ]

    def factor(full: float, time: int) -> float:
        if time >= last:
            return rate / full
        done = (time / last - 0.5) / 0.4
        return 1.0 - (1.0 - low) * min(max(done, 0.0), 1.0)

    return LambdaLR(optimizer, [partial(factor, of_group) for of_group in full])
