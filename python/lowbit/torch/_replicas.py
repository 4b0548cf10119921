"""Replicas of a model on the ranks of a group: whether they are the same, and how they become so."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import lowbit as lb
from lowbit.torch._site import Site

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from lowbit.torch._exchange import Exchange


def _bytes(t: Tensor) -> Tensor:
    """Give a tensor's numbers as bytes, of whatever dtype and layout they are."""
    return t.detach().contiguous().reshape(-1).view(torch.uint8)


def digest(tensors: Iterable[Tensor], start: int = 0) -> int:
    """Give a checksum of all bits of tensors."""
    for t in tensors:
        start = zlib.crc32(_bytes(t).cpu().numpy().data, start)
    return start


def spread(tensors: Mapping[str, Tensor], exchange: Exchange) -> bool:
    """Give every rank the first one's numbers, unless all have the same; tell which it was."""
    digests = exchange.gathered([digest(tensors.values())])
    if digests.count(digests[0]) == len(digests):
        return False
    assert exchange.group is not None
    first = dist.get_global_rank(exchange.group, 0)
    for t in tensors.values():
        if t.numel():
            sent = _bytes(t).to(exchange.device(t), copy=True)
            dist.broadcast(sent, first, group=exchange.group)
            t.detach().copy_(sent.to(t.device).view(t.dtype).view(t.shape))
    return True


def copy_of(t: Tensor) -> Tensor:
    """Copy numbers in at least float32."""
    return t.detach().to(torch.promote_types(t.dtype, torch.float32), copy=True).contiguous()


def parameters_of(model: nn.Module, inner: Optimizer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Give the parameters that are trained, and those that are not."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, DistributedDataParallel):
        raise TypeError(
            "model: it is wrapped in DistributedDataParallel, which averages gradients in every step; give "
            "model.module, if its ranks are one site of several, or do not wrap it"
        )
    if not isinstance(inner, torch.optim.Optimizer):
        raise TypeError(f"inner: expected a torch.optim.Optimizer, got {type(inner).__name__}")
    trained: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, p in trained.items():
        if not p.is_floating_point() or type(p) not in (nn.Parameter, Tensor):
            raise TypeError(f"model: {name} is a {type(p).__name__} of {p.dtype}; expected plain tensors of floats")
    if not trained:
        raise lb.Error("model: it has no parameter that needs a gradient")
    foreign = strange(trained.values(), moved_by(inner))
    if foreign:
        raise lb.Error(
            f"inner: it moves {len(foreign)} parameters that are not of the model, and would differ on each rank"
        )
    return trained, {name: p for name, p in model.named_parameters() if not p.requires_grad}


def moved_by(optimizer: Optimizer) -> list[Tensor]:
    """Give the parameters of all groups of an optimizer."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def strange(known: Iterable[Tensor], tensors: Iterable[Tensor]) -> list[Tensor]:
    """Give those that need a gradient and are none of the known ones."""
    ids = {id(p) for p in known}
    return [p for p in tensors if p.requires_grad and id(p) not in ids]


def statistics_of(model: nn.Module) -> list[str]:
    """Name the buffers to average: of floats, saved with the model, no masks of infinities, no scales of gradients."""
    saved, own = set(model.state_dict(keep_vars=True)), set()
    for name, module in model.named_modules():
        if isinstance(module, Site):  # a rank's own powers of two
            own |= {f"{name}.{buffer}".lstrip(".") for buffer, _ in module.named_buffers()}
    floats = {name: b for name, b in model.named_buffers() if name in saved - own and b.is_floating_point()}
    return [name for name, b in floats.items() if b.isfinite().all()]
