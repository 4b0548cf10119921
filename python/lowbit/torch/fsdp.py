"""Gradients of FSDP2 (``torch.distributed.fsdp.fully_shard``) in few bits: its reduce_scatter (docs/torch-local.md).

>>> import torch, lowbit as lb
>>> from torch.distributed.fsdp import fully_shard
>>> from lowbit.torch import fsdp
>>> torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
>>> mesh = torch.distributed.init_device_mesh("cpu", (1,))
>>> state = fsdp.register(fully_shard(torch.nn.Linear(64, 64), mesh=mesh), lb.Eden(1))
>>> state
State(Eden(bits=1.0, scale='unbiased', rounds=2, entropy_coded=False), 1 modules, rank 0 of 1)
>>> torch.distributed.destroy_process_group()
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

import lowbit as lb
from lowbit import _arguments
from lowbit._messages import check_codec
from lowbit.torch._exchange import run
from lowbit.torch._rounds import Piece, Rounds, shared_seed
from lowbit.torch.ddp._stats import Stats

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["ReduceScatter", "ShardStats", "State", "register"]

_MOST = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class ShardStats(Stats):
    """As `lowbit.torch.ddp.Stats`, compared with a ring reduce_scatter; `steps` counts calls, one for each module."""

    @property
    def ratio_float32(self) -> float:
        """How many times more a ring reduce_scatter of float32 would have received; NaN if nothing was received."""
        ring = 4 * (self.size - 1) / self.size * self.numbers
        return ring / self.received if self.received else float("nan")

    @property
    def ratio_bfloat16(self) -> float:
        """The same for bfloat16."""
        return self.ratio_float32 / 2

    def __str__(self) -> str:
        return Stats.__str__(self).replace("all_reduce", "reduce_scatter").replace("steps", "calls")


class ReduceScatter:
    """What one module of FSDP2 calls in place of reduce_scatter: for ``FSDPModule.set_custom_reduce_scatter``.

    `register` makes one for each module.

    Parameters
    ----------
    state : State
        That of the model.
    name : str
        The module's.
    parameters : dict of str to Parameter
        The module's own, as FSDP orders them.
    group : torch.distributed.ProcessGroup
        Over which they are sharded.
    """

    def __init__(self, state: State, name: str, parameters: Mapping[str, nn.Parameter], group: ProcessGroup) -> None:
        self.state, self.name, self.group, self.calls = state, name, group, 0
        self._parameters = dict(parameters)
        # Replicas of HSDP average what each has averaged: with one key for all, alike gradients made alike errors.
        self._others = _place(next(iter(self._parameters.values())))[1]

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Make room, as FSDP asks for."""
        return torch.empty(*size, dtype=dtype, device=device)

    def chunks(self, numel: int) -> list[tuple[str, int, bool]]:
        """Say what a rank's chunk consists of, as FSDP lays it out: names, how many numbers, whether to code them.

        FSDP leaves out parameters without a gradient and does not say which: a chunk that does not have all is one run.
        """
        size, least = dist.get_world_size(self.group), self.state.min_numel
        runs = []
        for name, p in self._parameters.items():
            if p.requires_grad:
                assert isinstance(p, DTensor)
                axis = next((place.dim for place in p.placements if not place.is_replicate()), 0)  # type: ignore[attr-defined]
                rest = p.numel() // max(p.shape[axis], 1)
                runs.append((name, -(-p.shape[axis] // size) * rest, p.numel() >= least))
        if sum(count for _, count, _ in runs) == numel:
            return runs
        return [(f"{numel} numbers of {self.name or 'the model'}", numel, numel * size >= least)]

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: ProcessGroup,
        op: Any,
        async_op: bool = False,  # noqa: ARG002 - FSDP's protocol; it never asks for it
    ) -> None:
        """Write the sum or average of the ranks' chunks for this one.

        Raises
        ------
        lowbit.Error
            On every rank of the group: one could not encode or decode (`lowbit.DecodeError`); or FSDP asks for
            something else than a sum or an average over the ranks that were found.
        RuntimeError
            The backend lost another rank, or waited for too long.
        """
        rounds = self.state.rounds[self.group]
        if (dist.get_world_size(group), dist.get_rank(group)) != (rounds.size, rounds.rank):
            raise lb.Error(f"group: {self.name or 'the model'} is not sharded over the ranks that its first mesh says")
        if op not in (dist.ReduceOp.SUM, dist.ReduceOp.AVG):
            raise lb.Error(
                "op: only sums and averages; where a gradient_divide_factor is set, call "
                "model.set_force_sum_reduction_for_comms(True) too"
            )
        factor = rounds.size if op == dist.ReduceOp.SUM else 1
        rows = input_tensor.view(rounds.size, -1)
        rounds.traffic.numbers += input_tensor.numel()
        parts, owners, small, places = self._parts(rows)
        for piece, mean in run(rounds.to_owners(parts, owners)) if parts else []:
            if mean is not None and piece.name == _SMALL:
                for (at, count), part in zip(small, np.split(mean, np.cumsum([n for _, n in small])[:-1]), strict=True):
                    output_tensor[at : at + count] = torch.from_numpy(part) * factor
            elif mean is not None:
                at, count = places[piece.name]
                output_tensor[at : at + count] = torch.from_numpy(mean) * factor
        self.calls += 1
        if not rounds.settle():
            # On every rank, so that each one's GradScaler skips the step.
            output_tensor.fill_(torch.nan)
            self.state.skipped += 1

    def _parts(self, rows: Tensor) -> tuple[list[Piece], list[int], list[tuple[int, int]], dict[str, tuple[int, int]]]:
        """Cut every rank's chunk at the boundaries of parameters: pieces, whose they are, and where they go."""
        state, exact = self.state, lb.Float32()
        key = lb.Key(state.seed).fold("fsdp", self.name, self.calls, *self._others)
        places, small, at = {}, [], 0
        for name, count, coded in self.chunks(rows.shape[1]):
            if coded and count:
                places[name] = at, count
            elif count:
                small.append((at, count))
            at += count
        parts: list[Piece] = []
        owners: list[int] = []
        for rank, row in enumerate(rows):
            for name, (at, count) in places.items():
                parts.append(Piece(name, row[at : at + count], state.codec, exact, key, rank))
            if small:
                joined = torch.cat([row[at : at + count].float() for at, count in small])
                parts.append(Piece(_SMALL, joined, exact, exact, key, rank))
            owners += [rank] * (len(parts) - len(owners))
        return parts, owners, small, places


_SMALL = "small tensors"


class State:
    """What one rank remembers of a model sharded by FSDP2: keys, error feedback, and what was sent.

    `register` makes it.

    Attributes
    ----------
    codec : Codec
        Of messages.
    seed : int
        That of the first rank.
    modules : dict of str to ReduceScatter
        By the name of each module that `fully_shard` was applied to.
    rounds : dict
        By group.
    skipped : int
        How many calls met numbers that were not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        codec: lb.Codec,
        *,
        seed: SupportsIndex = 0,
        error_feedback: bool | None = None,
        min_numel: SupportsIndex = 1024,
    ) -> None:
        if not isinstance(model, FSDPModule):
            raise TypeError(f"model: expected what fully_shard was applied to, got {type(model).__name__}")
        check_codec(codec)
        self.codec, self.skipped = codec, 0
        self.min_numel = _arguments.within(min_numel, "min_numel", 0, _MOST)
        self.rounds: dict[ProcessGroup, Rounds] = {}
        self.modules: dict[str, ReduceScatter] = {}
        for name, module in model.named_modules():
            own = _own(module, name) if issubclass(type(module), FSDPModule) else {}
            if own:
                group = _place(next(iter(own.values())))[0]
                if group not in self.rounds:
                    self.rounds[group] = Rounds(
                        codec,
                        group=group,
                        strategy="two_phase",
                        second_codec=lb.Float32(),
                        min_numel=self.min_numel,
                        error_feedback=error_feedback,
                    )
                self.modules[name] = ReduceScatter(self, name, own, group)
        if not self.modules:
            raise lb.Error("model: it has no sharded parameters; register it before its first forward pass")
        self.seed = next(shared_seed(seed, group) for group in self.rounds)

    @property
    def stats(self) -> ShardStats:
        """What was sent and received, compared with a reduce_scatter."""
        traffics = [rounds.traffic for rounds in self.rounds.values()]
        return ShardStats(
            "reduce_scatter",
            next(iter(self.rounds.values())).size,
            sum(module.calls for module in self.modules.values()),
            sum(traffic.numbers for traffic in traffics),
            sum(traffic.message for traffic in traffics),
            sum(traffic.sent_payload for traffic in traffics),
            sum(traffic.sent_overhead for traffic in traffics),
            sum(traffic.received_payload for traffic in traffics),
            sum(traffic.received_overhead for traffic in traffics),
            self.skipped,
        )

    def rescale(self, factor: float) -> None:
        """Multiply error feedback, as of `lowbit.torch.ddp.State.rescale`."""
        for rounds in self.rounds.values():
            rounds.memories.rescale(factor)

    def state_dict(self) -> dict[str, Any]:
        """Give all that is needed to go on as if training had not stopped; every rank saves its own."""
        memory = [rounds.memories.state_dict() for rounds in self.rounds.values()]
        calls = {name: module.calls for name, module in self.modules.items()}
        return {"codec": repr(self.codec), "seed": self.seed, "calls": calls, "memory": memory}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, on a fresh model that is sharded alike.

        Parameters
        ----------
        state : mapping
            This rank's. One of another rank, or of another number of ranks, will do, but for error feedback, which is
            then dropped with a warning.

        Raises
        ------
        TypeError
            `state` is not such a mapping.
        lowbit.Error
            It is of another model.
        """
        if not isinstance(state, Mapping) or set(state) != {"codec", "seed", "calls", "memory"}:
            raise TypeError("state: expected what state_dict gave: codec, seed, calls, memory")
        if set(state["calls"]) != set(self.modules) or len(state["memory"]) != len(self.rounds):
            raise lb.Error("state: it is of a model that is sharded otherwise")
        if state["codec"] != repr(self.codec):
            warnings.warn(
                f"codec: it was {state['codec']} when this was saved, and is {self.codec}", UserWarning, stacklevel=2
            )
        self.seed = _arguments.within(state["seed"], "seed", 0, (1 << 64) - 1)
        for name, calls in state["calls"].items():
            self.modules[name].calls = calls
        for rounds, memory in zip(self.rounds.values(), state["memory"], strict=True):
            rounds.memories.load_state_dict(memory)

    def __repr__(self) -> str:
        rounds = next(iter(self.rounds.values()))
        return f"State({self.codec}, {len(self.modules)} modules, rank {rounds.rank} of {rounds.size})"


def _own(module: nn.Module, prefix: str) -> dict[str, nn.Parameter]:
    """Give what a module shards itself, as FSDP orders it: children first, without those that shard themselves."""
    found: dict[str, nn.Parameter] = {}
    seen: set[nn.Module] = set()

    def visit(at: nn.Module, name: str) -> None:
        seen.add(at)
        for child_name, child in at.named_children():
            if child not in seen and not isinstance(child, FSDPModule):
                visit(child, f"{name}.{child_name}".lstrip("."))
        for own, p in at.named_parameters(recurse=False):
            if isinstance(p, DTensor) and all(p is not other for other in found.values()):
                found[f"{name}.{own}".lstrip(".")] = p

    visit(module, prefix)
    return found


def _place(p: nn.Parameter) -> tuple[ProcessGroup, list[int]]:
    """Give the group over which FSDP shards a parameter, and where that is among the other such groups.

    It is that of the first mesh dimension along which the parameter is sharded. Beside tensor parallelism FSDP's own
    placement is a strided one, which does not say that it is a shard.
    """
    assert isinstance(p, DTensor)
    mesh, axis = p.device_mesh, next(at for at, place in enumerate(p.placements) if not place.is_replicate())
    return mesh.get_group(axis), [at for i, at in enumerate(mesh.get_coordinate() or []) if i != axis]


def register(
    model: nn.Module,
    codec: lb.Codec,
    *,
    seed: SupportsIndex = 0,
    error_feedback: bool | None = None,
    min_numel: SupportsIndex = 1024,
) -> State:
    """Let FSDP2 reduce its gradients by messages of few bits.

    Every rank calls it with the same arguments, after `fully_shard` and before the first forward pass. Each rank
    encodes every other's chunk of the gradients, sends it there, and averages what it gets for its own: the error of
    one message, and nothing to decode but one's own chunk. Parameters are gathered as ever, in their own dtype.

    Parameters
    ----------
    model : torch.distributed.fsdp.FSDPModule
        What `fully_shard` was applied to last, with all nested ones.
    codec : Codec
        How a rank writes a gradient.
    seed : int, optional
        Of all randomness; the group's first rank's counts.
    error_feedback : bool, optional
        Whether each rank remembers what its messages leave out. Default: where `codec` is biased (but for `Summable`).
        A float32 copy of all gradients, not sharded.
    min_numel : int, optional
        Parameters of fewer numbers travel exactly, as float32.

    Returns
    -------
    State
        Its ``stats`` count bytes; its ``state_dict()`` belongs into checkpoints.

    Raises
    ------
    TypeError
        An argument has the wrong type.
    lowbit.Error
        A value is out of range; ranks gave different arguments; nothing is sharded; this torch has no
        `set_custom_reduce_scatter`.

    Notes
    -----
    FSDP hands over one buffer for each module. It is cut at the boundaries of parameters, of which each rank's share is
    a message of its own, unless some of the module's parameters had no gradient in this step: then FSDP does not say
    which, and each rank's whole chunk is one message.

    Examples
    --------
    See `lowbit.torch.fsdp`.
    """
    state = State(model, codec, seed=seed, error_feedback=error_feedback, min_numel=min_numel)
    for name, comm in state.modules.items():
        module: Any = model.get_submodule(name)
        if not hasattr(module, "set_custom_reduce_scatter"):
            raise lb.Error("model: FSDP of this torch takes no other reduce_scatter; a newer one does")
        module.set_custom_reduce_scatter(comm)
    return state
