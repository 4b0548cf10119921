"""Rounds: the ranks of a group average tensors by messages. Hooks of DDP and local steps are made of them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, get_args

import numpy as np
import torch
import torch.distributed as dist

import lowbit as lb
from lowbit import _arguments
from lowbit._messages import check_codec
from lowbit.torch import _bridge, _sums
from lowbit.torch._exchange import Exchange, Slot, Steps, Traffic, run, slot_of
from lowbit.torch._memories import Memories

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Strategy = Literal["auto", "all_gather", "two_phase", "sum"]

#: "auto" sends every message to all while a rank then receives less than this share of what a bfloat16 ring all_reduce
#: would give it: n b / 32, as (n - 1) b bits for each number stand against 32 (n - 1) / n.
_SHARE = 0.3
#: Pieces of "two_phase" are multiples of this: blocks of at least 4,096 numbers need two rotations only.
_CUT = 4096
#: Where a header has its flags, which of them it is, and where its sender is (docs/wire.md).
_FLAGS, _NOT_FINITE, _SENDER = 12, 1, slice(40, 48)
#: The most that a rank may say of its failure, in bytes.
_WORDS = 2000


@dataclass(slots=True)
class Piece:
    """A run of numbers that is one message."""

    name: str
    place: Tensor
    codec: lb.Codec
    second: lb.Codec
    key: lb.Key
    part: int = 0

    @property
    def memory(self) -> str:
        return f"{self.name}[{self.part}]"

    def key_of(self, stage: str) -> lb.Key:
        return self.key.fold(stage, self.name, self.part)


class Rounds:
    """How the ranks of a group average tensors.

    Every rank makes one with the same arguments, and averages the same tensors in the same order.

    Parameters
    ----------
    codec : Codec
        Of messages.
    group : torch.distributed.ProcessGroup, optional
        Whose ranks average. Default: the default group.
    strategy : {"auto", "all_gather", "two_phase", "sum"}
        As for `lowbit.torch.ddp.register`.
    second_codec : Codec, optional
        Of "two_phase": how means are sent back. Default `codec`.
    min_numel : int, optional
        Tensors of fewer numbers travel exactly (as float32).
    error_feedback : bool, optional
        Default: for biased codecs.

    Raises
    ------
    TypeError
        An argument has the wrong type.
    lowbit.Error
        A value is out of range, or ranks gave different arguments.
    """

    def __init__(
        self,
        codec: lb.Codec,
        *,
        group: dist.ProcessGroup | None = None,
        strategy: Strategy = "auto",
        second_codec: lb.Codec | None = None,
        min_numel: SupportsIndex = 1024,
        error_feedback: bool | None = None,
    ) -> None:
        check_codec(codec)
        if second_codec is not None:
            check_codec(second_codec)
        wanted = _arguments.choice(strategy, "strategy", get_args(Strategy))
        self.min_numel = _arguments.within(min_numel, "min_numel", 0, (1 << 63) - 1)
        if not dist.is_initialized():
            raise lb.Error("group: there is none; call torch.distributed.init_process_group first")
        _check_group(group)
        self.exchange = Exchange(group)
        self.group, self.rank, self.size = self.exchange.group, self.exchange.rank, self.exchange.size
        self.strategy = _strategy(wanted, codec, self.size)
        if second_codec is not None and wanted not in ("auto", "two_phase"):
            raise lb.Error(f'second_codec: {wanted!r} has no second stage; give it with strategy="two_phase"')
        self.codec, self.second = codec, second_codec or codec
        stages = {"first": codec, "second": self.second} if self.strategy == "two_phase" else {"first": codec}
        self.memories = Memories(stages, error_feedback, self.strategy, self.rank, self.size)
        self._finite = True
        self._failure: Exception | None = None
        self.agree(
            codec=self.codec,
            second_codec=self.second,
            strategy=self.strategy,
            min_numel=self.min_numel,
            error_feedback=sorted(self.memories.stages),
        )

    def agree(self, **settings: object) -> None:
        """Find out if ranks were given different settings, now, when it can be said: collectives would wait for ever.

        Raises
        ------
        lowbit.Error
            On all ranks.
        """
        digests = self.exchange.gathered([zlib.crc32(repr(value).encode()) for value in settings.values()])
        for at, (name, value) in enumerate(settings.items()):
            others = [rank for rank, row in enumerate(digests) if row[at] != digests[0][at]]
            if others:
                raise lb.Error(
                    f"{name}: ranks {others} were given another than rank 0; on rank {self.rank} it is {value}"
                )

    @property
    def traffic(self) -> Traffic:
        """What was sent and received so far."""
        return self.exchange.traffic

    def average(self, tensors: Mapping[str, Tensor], key: lb.Key) -> bool:
        """Replace every tensor by its mean over the ranks.

        Parameters
        ----------
        tensors : mapping of str to torch.Tensor
            Float tensors, the same names and shapes on every rank, in one order.
        key : Key
            This round's, the same on every rank; use it once.

        Returns
        -------
        bool
            Whether all numbers of all ranks were finite. If not, the tensors (or blocks) that had such are NaN
            everywhere, and error feedback is as if there had been no round.

        Raises
        ------
        TypeError
            A tensor has no float dtype.
        lowbit.Error
            Some rank could not encode or decode (`lowbit.DecodeError`: it was sent bytes that are no good message): on
            every rank, with the reason.
        RuntimeError
            The backend lost another rank, or waited for too long.
        """
        run(self.begin(tensors, key))
        return self.settle()

    def begin(self, tensors: Mapping[str, Tensor], key: lb.Key, *, exact: bool = False) -> Steps[None]:
        """Average in steps, without the last word: `settle` must follow, once for one or more of these.

        With `exact` all travel as small tensors do. A failure is noted for `settle` in place of being raised here,
        where the others would wait for ever.
        """
        pieces, copies = self._cut(tensors, key, exact)
        self.traffic.numbers += sum(t.numel() for t in tensors.values())
        if self.strategy == "sum" and isinstance(self.codec, lb.Summable):
            yield from _sums.add_up(self, pieces, self.codec)
        elif self.strategy == "two_phase":
            yield from self._two_phase(pieces)
        else:
            yield from self._all_gather(pieces)
        for target, source in copies:
            target.copy_(source.view_as(target))

    def _cut(
        self, tensors: Mapping[str, Tensor], key: lb.Key, exact: bool
    ) -> tuple[list[Piece], list[tuple[Tensor, Tensor]]]:
        """Give the pieces to average, and what to copy where afterwards, because it could not be averaged in place."""
        pieces, small, copies = [], [], []
        for name, tensor in tensors.items():
            if not tensor.is_floating_point():
                raise TypeError(f"tensors[{name!r}]: expected floats, got {tensor.dtype}")
            flat = tensor.detach().reshape(-1)
            if flat.numel() and flat.data_ptr() != tensor.data_ptr():
                copies.append((tensor.detach(), flat))
            if exact or flat.numel() < max(self.min_numel, 1):
                small.append(flat)
            else:
                pieces.append(Piece(name, flat, self.codec, self.second, key))
        if any(flat.numel() for flat in small):
            joined = torch.cat([flat.float() for flat in small])
            pieces.append(Piece("small tensors", joined, lb.Float32(), lb.Float32(), key))
            # First these: a small tensor may itself be a copy.
            copies = [*zip(small, joined.split([flat.numel() for flat in small]), strict=True), *copies]
        return pieces, copies

    def _all_gather(self, pieces: list[Piece]) -> Steps[None]:
        """All messages to all ranks, each of which decodes their mean."""
        if not pieces:
            return
        device = self.exchange.device(pieces[0].place)
        messages = [self._encode(p, "first", p.codec, _array(p.place), self.rank) for p in pieces]
        slots = [slot_of(p.codec, p.place.numel()) for p in pieces]
        rows = yield from self.exchange.to_all([slots] * self.size, messages, device)
        for at, piece in enumerate(pieces):
            self._mean(piece, "first", dict(enumerate(row[at] for row in rows)), piece.place)

    def _two_phase(self, pieces: list[Piece]) -> Steps[None]:
        """Every piece to the rank that averages it, whose message of the mean goes to all."""
        if not pieces:
            return
        parts, owners = self._parts(pieces)
        averaged = yield from self.to_owners(parts, owners)
        # The part is its sender, so that what it gets is the same whoever owns it.
        means = [b"" if x is None else self._encode(p, "second", p.second, x, p.part) for p, x in averaged]
        owned = [[p for p, owner in zip(parts, owners, strict=True) if owner == rank] for rank in range(self.size)]
        device = self.exchange.device(pieces[0].place)
        second: list[list[Slot]] = [[slot_of(p.second, p.place.numel()) for p in row] for row in owned]
        rows = yield from self.exchange.to_all(second, means, device)
        for rank, (row, theirs) in enumerate(zip(rows, owned, strict=True)):
            for piece, message in zip(theirs, row, strict=True):
                self._mean(piece, "second", {rank: message}, piece.place)

    def to_owners(self, parts: list[Piece], owners: list[int]) -> Steps[list[tuple[Piece, NDArray[np.float32] | None]]]:
        """Every part to the rank that averages it; give those of this rank with their means, None where that failed."""
        messages = [self._encode(p, "first", p.codec, _array(p.place), self.rank) for p in parts]
        slots = [slot_of(p.codec, p.place.numel()) for p in parts]
        rows = yield from self.exchange.to_each(slots, owners, messages, self.exchange.device(parts[0].place))
        mine = [p for p, owner in zip(parts, owners, strict=True) if owner == self.rank]
        return [(p, self._mean(p, "first", dict(enumerate(row[at] for row in rows)))) for at, p in enumerate(mine)]

    def _parts(self, pieces: list[Piece]) -> tuple[list[Piece], list[int]]:
        """Cut pieces into one part for each rank, or fewer, and say whose each is: by its name, not by its bucket."""
        parts, owners = [], []
        for p in pieces:
            width = max(-(-p.place.numel() // (self.size * _CUT)), 1) * _CUT
            first = zlib.crc32(p.name.encode())
            for j, place in enumerate(p.place.split(width)):
                parts.append(Piece(p.name, place, p.codec, p.second, p.key, j))
                owners.append((first + j) % self.size)
        return parts, owners

    def _encode(self, piece: Piece, stage: str, codec: lb.Codec, x: NDArray[Any], sender: int) -> bytes:
        """Write a message; where that fails, none."""
        try:
            key = piece.key_of(stage)
            if codec is self.memories.stages.get(stage):
                # NumPy cannot add to bfloat16.
                floats = x if x.dtype.kind == "f" else _bridge.tensor(x).float().numpy()
                # Zeros may be those of a parameter that was not used, for which DDP drops the mean: memory waits.
                if floats[:64].any() or floats.any():
                    memory = self.memories.of(stage, piece.memory, floats.size)
                    return memory.encode(floats, codec, key=key, sender=sender)
            return lb.encode(x, codec, key=key, sender=sender)
        except Exception as error:
            self.note(error, f"{piece.name!r} could not be encoded")
            return b""

    def _mean(
        self, piece: Piece, stage: str, messages: Mapping[int, memoryview], place: Tensor | None = None
    ) -> NDArray[np.float32] | None:
        """Decode the mean of ranks' messages, into a place if there is one; where that fails, note it."""
        key, d = piece.key_of(stage), piece.place.numel()
        senders = {rank: piece.part if stage == "second" else rank for rank in messages}
        try:
            self.see(finite=not any(len(m) > _FLAGS and m[_FLAGS] & _NOT_FINITE for m in messages.values()))
            if any(_sender_of(messages[at]) != sender for at, sender in senders.items()):
                raise lb.DecodeError("a message is of another sender")
            if place is not None and place.dtype == torch.float32 and place.device.type == "cpu":
                return lb.decode_mean(messages.values(), key=key, out=_array(place), max_elements=d)
            out = np.empty(d, np.float32)
            lb.decode_mean(messages.values(), key=key, out=out, max_elements=d)
            if place is not None:
                self.put(place, out)
        except Exception as error:
            codec = piece.second if stage == "second" else piece.codec
            rank, reason = _culprit(messages, senders, codec, key, d, error)
            of = "" if rank is None else f" of rank {rank}"
            self.note(reason, f"the message{of} of {piece.name!r} could not be decoded")
            return None
        return out

    def put(self, place: Tensor, mean: NDArray[np.float32]) -> None:
        """Write a mean to its place, which may hold less than float32."""
        place.copy_(torch.from_numpy(mean))
        if place.dtype == torch.float16:
            # Noise may take it beyond 65504, and then GradScaler skips the step.
            self.see(finite=bool(place.isfinite().all()))

    def see(self, *, finite: bool) -> None:
        """Remember whether all was finite, for `settle`."""
        self._finite = self._finite and finite

    def note(self, error: Exception, what: str) -> None:
        """Keep the first failure for `settle`."""
        if self._failure is None:
            kind = type(error) if isinstance(error, lb.Error) else lb.Error
            reason = str(error) if isinstance(error, lb.Error) else f"{type(error).__name__}: {error}"
            self._failure = kind(f"{what}: {reason}")
            self._failure.__cause__ = error

    def settle(self, digest: int = 0) -> bool:
        """End the round on all ranks alike: all know whether all went well, and error feedback moves or does not.

        Parameters
        ----------
        digest : int, optional
            Of whatever must be the same on all ranks.

        Returns
        -------
        bool
            As of `average`.

        Raises
        ------
        lowbit.Error
            As by `average`; or the digests differ.
        """
        failure, finite = self._failure, self._finite
        text = b"" if failure is None else str(failure).encode()[:_WORDS]
        own = [len(text), isinstance(failure, lb.DecodeError), not finite, digest]
        rows = self.exchange.gathered(own)
        if any(row[0] for row in rows):
            self.reset()
            self._tell(rows, text)
        other = [rank for rank, row in enumerate(rows) if row[3] != rows[0][3]]
        if other:
            self.reset()
            raise lb.Error(f"replicas differ: ranks {other} have other parameters or gradients than rank 0")
        everywhere = not any(row[2] for row in rows)
        self.memories.close(commit=everywhere)
        self.reset()
        return everywhere

    def _tell(self, rows: list[list[int]], text: bytes) -> None:
        """Raise what some rank could not do, on all."""
        # As long as may be, and bytes whatever comes: what a rank says of itself is not to be relied on.
        texts = self.exchange.gathered(list(text.ljust(_WORDS, b"\0")))
        said = [
            f"on rank {rank}: {bytes(c & 255 for c in each).rstrip(bytes(1)).decode(errors='replace')}"
            for rank, (row, each) in enumerate(zip(rows, texts, strict=True))
            if row[0]
        ]
        kind = lb.DecodeError if any(row[1] for row in rows) else lb.Error
        raise kind(f"the round failed {'; '.join(said)}") from self._failure

    def reset(self) -> None:
        """Forget a round that was not settled."""
        self.memories.close(commit=False)
        self._finite, self._failure = True, None


def _strategy(wanted: str, codec: lb.Codec, size: int) -> str:
    summable = isinstance(codec, lb.Summable)
    if wanted == "sum" and not summable:
        raise lb.Error(f'strategy: the integers of {codec} do not add; "sum" needs lowbit.Summable(bits)')
    if wanted != "auto":
        return wanted
    if summable:
        return "sum"
    few = size <= 2 or size * codec.bits_per_element(1 << 20) < 32 * _SHARE
    return "all_gather" if few else "two_phase"


def _check_group(group: object) -> None:
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        raise lb.Error("group: this process is no member of it; only members average")
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"group: expected a ProcessGroup or None, got {type(group).__name__}")


def _array(place: Tensor) -> NDArray[Any]:
    return _bridge.array(place.cpu())


def _sender_of(message: memoryview) -> int:
    return int.from_bytes(message[_SENDER], "little")


def _culprit(
    messages: Mapping[int, memoryview],
    senders: Mapping[int, int],
    codec: lb.Codec,
    key: lb.Key,
    d: int,
    error: Exception,
) -> tuple[int | None, Exception]:
    """Find whose message cannot be decoded, if it is one alone."""
    for rank, message in messages.items():
        if not any(message[:8]):
            return rank, lb.DecodeError("it sent no message, or one that is too long")
        try:
            lb.decode(message, key=key, out=np.empty(d, np.float32), max_elements=d)
            about = lb.describe(message)
        except lb.Error as found:
            return rank, found
        if about.sender != senders[rank]:
            return rank, lb.DecodeError(f"it is of sender {about.sender}, not {senders[rank]}")
        if about.codec != codec:
            return rank, lb.DecodeError(f"it is made by {about.codec}, not {codec}")
    return None, error


def shared_seed(seed: SupportsIndex, group: dist.ProcessGroup | None = None) -> int:
    """Give the seed of the group's first rank to all.

    Raises
    ------
    TypeError
        `seed` is no int.
    lowbit.Error
        `seed` is not from 0 to 2**64 - 1.
    """
    own = _arguments.within(seed, "seed", 0, (1 << 64) - 1)
    halves = Exchange(group).gathered([own >> 32, own & 0xFFFFFFFF])[0]
    return halves[0] << 32 | halves[1]
