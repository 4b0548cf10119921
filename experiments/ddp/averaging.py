"""The ways to average, made for one model: what steps, and how many bytes a rank was sent."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from lowbit.torch import ddp

from .plan import MIN_NUMEL, Way

#: PowerSGD's rank, and its first step: torch has it begin after DDP has made its buckets anew.
RANK, FIRST = 2, 2
#: One number of so many is sent by top-k: with its place 64 bits, that is one for each number.
ONE_OF = 64


@dataclass(frozen=True)
class Averaging:
    """A model whose ranks average.

    Attributes
    ----------
    model : torch.nn.Module
        To call.
    optimizer : object
        To step.
    received : callable
        Bytes that this rank received so far.
    message : callable
        Bits of its own messages for each number; NaN where there are no messages.
    """

    model: nn.Module
    optimizer: Any
    received: Callable[[], float]
    message: Callable[[], float] = lambda: float("nan")


def averaging(way: Way, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> Averaging:
    """Let the ranks average in one way."""
    if way.kind == "local":
        return _local(way, model, optimizer, seed)
    # One bucket: PowerSGD and top-k look at all parameters at once. Statistics of batch norms stay a rank's own until
    # the test.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer torch has another name for it
        wrapped = DistributedDataParallel(model, broadcast_buffers=False, bucket_cap_mb=100)
    if way.kind == "messages":
        options = {"seed": seed, "start_step": 0, "min_numel": MIN_NUMEL, **dict(way.options)}
        state = ddp.register(wrapped, way.codec, **options)
        return Averaging(wrapped, optimizer, lambda: state.stats.received, lambda: state.stats.bits_per_number)
    group, size = dist.group.WORLD, dist.get_world_size()
    numbers = sum(p.numel() for p in model.parameters() if p.requires_grad)
    steps = Counter()
    wrapped.register_forward_pre_hook(steps)
    if way.kind == "powersgd":
        powers = powerSGD_hook.PowerSGDState(group, RANK, FIRST)
        wrapped.register_comm_hook(powers, powerSGD_hook.powerSGD_hook)

        def received() -> float:
            exact = min(steps.n, FIRST) * numbers
            return _ring(size, 4) * (exact + powers.total_numel_after_compression)

        return Averaging(wrapped, optimizer, received)
    if way.kind == "top":
        top = Top(size)
        wrapped.register_comm_hook(top, _top)
        return Averaging(wrapped, optimizer, lambda: top.received)
    if way.kind == "bfloat16":
        wrapped.register_comm_hook(group, default_hooks.bf16_compress_hook)
    width = 2 if way.kind == "bfloat16" else 4
    return Averaging(wrapped, optimizer, lambda: _ring(size, width) * numbers * steps.n)


def _ring(size: int, width: int) -> float:
    """Bytes that a ring all_reduce brings a rank, for each number."""
    return 2 * (size - 1) / size * width


class Counter:
    """Counts the calls of a module that learns."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self, module: nn.Module, _: object) -> None:
        """Be a hook that runs before the forward pass."""
        self.n += module.training


def _local(way: Way, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> Averaging:
    """Local steps; the outer optimizer takes the mean of the ranks' models."""
    from lowbit.torch import LocalSteps

    options = {"seed": seed, "min_numel": MIN_NUMEL, **dict(way.options)}
    mean = partial(torch.optim.SGD, lr=1.0)
    steps = LocalSteps(model, optimizer, mean, every=way.every, codec=way.codec, **options)
    return Averaging(model, steps, lambda: steps.stats.received, lambda: steps.stats.bits_per_number)


class Top:
    """What top-k remembers: by parameter, what was left out (error feedback)."""

    def __init__(self, size: int) -> None:
        self.size, self.received = size, 0
        self.left: dict[int, Tensor] = {}


def _top(state: Top, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Send the largest numbers of the bucket and their places to all, and add what all sent."""
    buffer, parameters = bucket.buffer(), bucket.parameters()
    kept = [state.left.get(id(p), torch.zeros(p.numel())) for p in parameters]
    wanted = buffer + torch.cat(kept)
    k = max(wanted.numel() // ONE_OF, 1)
    places = wanted.abs().topk(k).indices
    values = wanted[places]
    wanted[places] = 0
    for p, left in zip(parameters, wanted.split([p.numel() for p in parameters]), strict=True):
        state.left[id(p)] = left.clone()
    everyone = (
        [torch.empty(k) for _ in range(state.size)],
        [torch.empty(k, dtype=torch.int32) for _ in range(state.size)],
    )
    dist.all_gather(everyone[0], values)
    dist.all_gather(everyone[1], places.int())
    state.received += (state.size - 1) * k * 8
    buffer.zero_()
    for theirs, where in zip(*everyone, strict=True):
        buffer.index_add_(0, where, theirs, alpha=1 / state.size)
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(buffer)
    return future


_top.__annotations__.clear()  # DDP compares them with its own
