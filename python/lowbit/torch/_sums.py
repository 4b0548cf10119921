"""Rounds whose integers add: what `Summable` sends, summed by an all_reduce that knows nothing of codecs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist

import lowbit as lb
from lowbit.torch import _bridge

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowbit.torch._exchange import Steps
    from lowbit.torch._rounds import Piece, Rounds

#: Integers are padded to a multiple of this (docs/wire.md).
_PLACES = 128


def width_of(codec: lb.Summable, size: int) -> int:
    """Give the bits that each integer gets, so that sums of so many do not run into their neighbours.

    A power of two up to 8: fields that do not straddle bytes, so that bytes can be added. Else 32.
    """
    bits = (size * ((1 << codec.bits) - 1)).bit_length()
    return next((width for width in (1, 2, 4, 8) if bits <= width), 32)


def add_up(rounds: Rounds, pieces: Sequence[Piece], codec: lb.Summable) -> Steps[None]:
    """Average pieces: agree on norms, then add integers. Pieces that travel exactly are added as float32."""
    if not pieces:
        return
    exchange, width = rounds.exchange, width_of(codec, rounds.size)
    device = exchange.device(pieces[0].place)
    coded = [p for p in pieces if isinstance(p.codec, lb.Summable)]
    arrays = [_bridge.array(p.place.cpu()) for p in coded]
    # Whatever is not finite makes a norm NaN, which a maximum may lose; it does not lose an infinity.
    norms = [np.nan_to_num(codec.norms(x), nan=np.inf) for x in arrays]
    agreed = torch.from_numpy(np.concatenate([*norms, np.zeros(0, np.float32)])).to(device)
    exact = [(p.place, p.place.div(exchange.size).to(device)) for p in pieces if p.codec is not codec]
    works = [exchange.reduce(part) for _, part in exact]
    works.append(exchange.reduce(agreed, dist.ReduceOp.MAX))
    yield
    for work in works:
        work.wait()
    for place, mean in exact:
        place.copy_(mean)
        rounds.see(finite=bool(mean.isfinite().all()))
    if not coded:
        return
    shared = np.split(agreed.cpu().numpy(), np.cumsum([len(norm) for norm in norms])[:-1])
    sent = [
        _integers(codec, x, norm, p.key_of("first"), rounds) for p, x, norm in zip(coded, arrays, shared, strict=True)
    ]
    joined = np.concatenate(sent)
    fields = lb.pack(joined, width) if width < 8 else joined.astype(np.uint8 if width == 8 else np.int32)
    total = torch.from_numpy(fields).to(device)
    work = exchange.reduce(total)
    yield
    work.wait()
    sums = total.cpu().numpy()
    unpacked = lb.unpack(sums, width, joined.size) if width < 8 else sums
    for p, norm, summed in zip(coded, shared, np.split(unpacked, np.cumsum([x.size for x in sent])[:-1]), strict=True):
        _finish(codec, p, norm, summed, rounds)


def _integers(codec: lb.Summable, x: NDArray[Any], norms: NDArray[Any], key: lb.Key, rounds: Rounds) -> NDArray[Any]:
    """Round one piece; zeros where some rank has a number that is not finite."""
    if np.isfinite(norms).all():
        return codec.integers(x, norms, key=key, sender=rounds.rank, senders=1, dtype=np.uint8)
    return np.zeros(-(-x.size // _PLACES) * _PLACES, np.uint8)


def _finish(codec: lb.Summable, piece: Piece, norms: NDArray[Any], total: NDArray[Any], rounds: Rounds) -> None:
    """Turn the sum of integers into the mean."""
    if not np.isfinite(norms).all():
        rounds.see(finite=False)
        piece.place.fill_(torch.nan)
        return
    try:
        key, d = piece.key_of("first"), piece.place.numel()
        mean = codec.decode_sum(total, norms, d, key=key, senders=range(rounds.size))
        mean *= np.float32(1 / rounds.size)
        rounds.put(piece.place, mean)
    except lb.Error as error:
        rounds.note(error, f"the sum of {piece.name!r} could not be decoded")
