"""Messages between the ranks of a group: collectives that carry bytes, and what they cost.

Everything that communicates is a generator. It launches a collective, yields while that is under way, and waits for it
when it is resumed; so whoever drives several of them decides what overlaps, and all ranks launch the same collectives
in the same order as long as they resume alike.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from lowbit._codec import Codec

T = TypeVar("T")
Steps = Generator[None, None, T]


class Slot(NamedTuple):
    """Room for one message."""

    length: int | None
    """In bytes, where the codec knows it beforehand."""
    limit: int
    """The longest that is accepted."""


def slot_of(codec: Codec, d: int) -> Slot:
    """Give the room that a message of `d` numbers needs."""
    if isinstance(codec._payload(d), int):
        length = round(codec.bits_per_element(d) * d / 8)
        return Slot(length, length)
    # QuicFl's worst case: every number an outlier of 6 bytes beside its code; the rest is for tables and headers.
    return Slot(None, 8 * d + (1 << 16))


@dataclass(slots=True)
class Traffic:
    """Bytes of one rank, if collectives pass messages on in a ring."""

    numbers: int = 0
    """Numbers that were averaged."""
    message: int = 0
    """Bytes of this rank's own messages, each counted once."""
    sent_payload: int = 0
    sent_overhead: int = 0
    received_payload: int = 0
    received_overhead: int = 0

    def add(self, sent: tuple[int, int], received: tuple[int, int]) -> None:
        """Count bytes: payload, and all else (headers, lengths, padding)."""
        self.sent_payload += sent[0]
        self.sent_overhead += sent[1]
        self.received_payload += received[0]
        self.received_overhead += received[1]


def _payload_of(message: memoryview) -> int:
    """Read the length of the payload off a header (docs/wire.md), which may lie."""
    return min(int.from_bytes(message[24:32], "little"), len(message)) if len(message) >= 64 else 0


def _split(parcel: memoryview, lengths: Sequence[int]) -> list[memoryview]:
    messages, at = [], 0
    for length in lengths:
        messages.append(parcel[at : at + length])
        at += length
    return messages


def _bytes(t: Tensor) -> memoryview:
    """View a tensor of bytes as what codecs read."""
    return t.cpu().numpy().data


class Exchange:
    """How the ranks of one group reach each other.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup or None
        None is the default group.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = dist.group.WORLD if group is None else group
        self.rank: int = dist.get_rank(self.group)
        self.size: int = dist.get_world_size(self.group)
        self.traffic = Traffic()
        self._on_cpu = dist.get_backend(self.group) == "gloo"

    def device(self, like: Tensor | None = None) -> torch.device:
        """Give the device that collectives want: gloo the CPU, others that of the tensors."""
        if self._on_cpu:
            return torch.device("cpu")
        return like.device if like is not None else torch.device(torch.accelerator.current_accelerator() or "cpu")

    def gather(self, mine: Tensor) -> tuple[Tensor, Any]:
        """Begin to give everyone's tensor to all: one row for each rank, and what to wait for."""
        everyone = mine.new_empty(self.size * mine.numel())
        work = dist.all_gather_into_tensor(everyone, mine, group=self.group, async_op=True)
        return everyone.view(self.size, mine.numel()), work

    def gathered(self, numbers: Sequence[int]) -> list[list[int]]:
        """Give everyone's integers to all, at once."""
        rows, work = self.gather(torch.tensor(numbers, dtype=torch.int64, device=self.device()))
        work.wait()
        return rows.tolist()

    def _lengths(
        self, slots: Sequence[Sequence[Slot]], messages: Sequence[bytes], device: torch.device
    ) -> Steps[list[list[int]]]:
        """Agree on how long every rank's messages are; one that is longer than its limit counts as none."""
        if all(slot.length is not None for row in slots for slot in row):
            return [[slot.length or 0 for slot in row] for row in slots]
        most = max(map(len, slots))
        own = [*map(len, messages), *[0] * (most - len(messages))]
        rows, work = self.gather(torch.tensor(own, dtype=torch.int64, device=device))
        yield
        work.wait()
        others = (self.size - 1) * 8 * most
        self.traffic.add((0, others), (0, others))
        claimed = [row[: len(mine)] for row, mine in zip(rows.tolist(), slots, strict=True)]
        return [
            [length if 0 <= length <= slot.limit else 0 for length, slot in zip(row, mine, strict=True)]
            for row, mine in zip(claimed, slots, strict=True)
        ]

    def _parcel(self, messages: Sequence[bytes], lengths: Sequence[int], width: int, device: torch.device) -> Tensor:
        """Put messages one behind the other; one that is missing is zeros."""
        placed = b"".join(m[:length].ljust(length, b"\0") for m, length in zip(messages, lengths, strict=True))
        self.traffic.message += len(placed)
        return torch.from_numpy(np.frombuffer(bytearray(placed.ljust(width, b"\0")), np.uint8)).to(device)

    def to_all(
        self, slots: Sequence[Sequence[Slot]], messages: Sequence[bytes], device: torch.device
    ) -> Steps[list[list[memoryview]]]:
        """Send messages to all ranks.

        Parameters
        ----------
        slots
            For each rank, those of the messages that it sends.
        messages
            This rank's.
        device
            Of the collective.

        Returns
        -------
        list of list of memoryview
            For each rank, its messages.
        """
        table = yield from self._lengths(slots, messages, device)
        width = max(map(sum, table))
        if not width:
            return [[memoryview(b"") for _ in row] for row in table]
        rows, work = self.gather(self._parcel(messages, table[self.rank], width, device))
        yield
        work.wait()
        everyone = [_split(_bytes(row), lengths) for row, lengths in zip(rows, table, strict=True)]
        payload = [sum(map(_payload_of, row)) for row in everyone]
        own, others = payload[self.rank], sum(payload) - payload[self.rank]
        total = (self.size - 1) * width
        self.traffic.add(((self.size - 1) * own, total - (self.size - 1) * own), (others, total - others))
        return everyone

    def to_each(
        self, slots: Sequence[Slot], owners: Sequence[int], messages: Sequence[bytes], device: torch.device
    ) -> Steps[list[list[memoryview]]]:
        """Send every message to one rank.

        Parameters
        ----------
        slots, owners, messages
            Of each message, the same for all ranks: its slot and to whom it goes; this rank's bytes.
        device
            Of the collective.

        Returns
        -------
        list of list of memoryview
            For each rank, what it sent to this one.
        """
        table = yield from self._lengths([slots] * self.size, messages, device)
        order = sorted(range(len(slots)), key=owners.__getitem__)
        mine = [at for at in order if owners[at] == self.rank]
        lengths = table[self.rank]
        sent = [sum(lengths[at] for at in order if owners[at] == rank) for rank in range(self.size)]
        received = [sum(row[at] for at in mine) for row in table]
        parcel = self._parcel([messages[at] for at in order], [lengths[at] for at in order], 0, device)
        arrived = parcel.new_empty(sum(received))
        work: Any = dist.all_to_all_single(arrived, parcel, received, sent, group=self.group, async_op=True)
        yield
        work.wait()
        rows = _split(_bytes(arrived), received)
        everyone = [_split(row, [table[rank][at] for at in mine]) for rank, row in enumerate(rows)]
        self.traffic.add(
            _sums([messages[at] for at in order if owners[at] != self.rank]),
            _sums([message for rank, row in enumerate(everyone) if rank != self.rank for message in row]),
        )
        return everyone

    def reduce(self, tensor: Tensor, op: Any = dist.ReduceOp.SUM) -> Any:
        """Begin an all_reduce in place, and give what to wait for."""
        share = round(2 * (self.size - 1) / self.size * tensor.numel() * tensor.element_size())
        self.traffic.add((share, 0), (share, 0))
        return dist.all_reduce(tensor, op, group=self.group, async_op=True)


def _sums(messages: Sequence[bytes | memoryview]) -> tuple[int, int]:
    """Give the bytes of payloads, and of headers."""
    payload = sum(_payload_of(memoryview(message)) for message in messages)
    return payload, sum(map(len, messages)) - payload


def run(steps: Steps[T]) -> T:
    """Drive one exchange to its end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
