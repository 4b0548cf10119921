"""Messages: arrays as bytes, read again, and averaged (``docs/wire.md``)."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit.reference import container
from lowbit.reference.codecs import SCHEMES, Dither, Float32, OneBit, Packed, Qsgd, Sign, TernGrad
from lowbit.reference.container import DTYPES, Entry, Message
from lowbit.reference.eden import SCALES, Eden
from lowbit.reference.payload import Codec, Reader
from lowbit.reference.rotated import DrivePlus, QuicFl, Summable
from lowbit.reference.rotation import Words
from lowbit.reference.stream import HasWords, fold, key_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

F = np.float32
FLOATS = DTYPES[:4]


def _packed(data: bytes) -> Packed:
    rounding, block = struct.unpack("<BI", data[:5])
    return Packed(data[5:].decode("ascii"), block or None, ("nearest", "stochastic")[rounding])


def _dither(data: bytes) -> Dither:
    bits, given, low, high = struct.unpack("<BBff", data)
    return Dither(bits, low, high) if given else Dither(bits)


def _one_bit(data: bytes) -> OneBit:
    scheme, bits, low, high = struct.unpack("<BBff", data)
    return OneBit(SCHEMES[scheme], low, high, None if bits == 255 else bits)


def _eden(data: bytes) -> Eden:
    bits, scale, rounds, coded, step = struct.unpack("<dBBBf", data)
    return Eden(bits, SCALES[scale], rounds, bool(coded), step if coded else None)


CODECS: dict[int, Callable[[bytes], Codec]] = {
    1: lambda _: Float32(),
    2: _packed,
    3: _dither,
    4: _one_bit,
    5: lambda data: Sign(("l1", "l2")[data[0]]),
    6: lambda _: TernGrad(),
    7: lambda data: Qsgd(*struct.unpack("<H", data)),
    8: _eden,
    9: lambda data: DrivePlus(*data),
    10: lambda data: QuicFl(*data),
    11: lambda data: Summable(*data),
}
"""Every codec by its number: from its parameters to the record."""


def encode_message(
    x: NDArray[Any] | Mapping[str, NDArray[Any]],
    codec: Codec,
    *,
    key: HasWords | int | np.random.Generator | None = None,
    sender: int = 0,
    min_elements: int = 1024,
) -> bytes:
    """Turn an array or a mapping of arrays into a message, as ``lowbit.encode`` does.

    Parameters
    ----------
    x : numpy.ndarray or mapping
        Any shape; float16, bfloat16, float32, float64; in a mapping integers and bool too.
    codec : Codec
        One of the records of this package.
    key : Key or int or Generator or None
        None for a codec that draws nothing.
    sender : int
        Who sends.
    min_elements : int
        In a mapping smaller arrays travel exactly.

    Returns
    -------
    bytes
    """
    is_mapping = isinstance(x, Mapping)
    arrays = {str(name): np.asarray(a) for name, a in x.items()} if isinstance(x, Mapping) else {"": np.asarray(x)}
    words = (0, 0) if key is None else key_words(key)
    entries, payload, finite = [], b"", True
    for k, (name, a) in enumerate(arrays.items()):
        real = a.dtype.name in FLOATS
        exact = is_mapping and (not real or a.size < min_elements)
        entries.append(Entry(name, a.shape, a.dtype.name, exact))
        payload += bytes(-len(payload) % 16)
        with np.errstate(all="ignore"):
            x32 = a.astype(F) if real else np.zeros(0, F)
            finite &= bool(np.isfinite(a.astype(np.float64)).all()) if exact and real else codec.sends(x32)
            if exact:
                payload += a.astype(a.dtype.newbyteorder("<")).tobytes()
            elif a.size:
                payload += codec.encode(x32, fold(words, "array", k) if is_mapping else words, sender)
    key_id = fold(words, "key id")[1] if codec.needs_key else 0
    message = Message(codec.id, codec.parameters(), tuple(entries), is_mapping, finite, key_id, sender, payload)
    return container.write(message)


def _parts(message: Message, words: Words) -> list[tuple[Entry, Codec, Words, NDArray[Any]]]:
    """Every array with its key: itself where it is exact, else what the codec reads, a shared rotation not undone."""
    codec, data, found = CODECS[message.codec](message.parameters), Reader(message.payload), []
    for k, entry in enumerate(message.arrays):
        if any(data.take(-data.at % 16)):
            raise ValueError("padding between arrays is not zero")
        own = fold(words, "array", k) if message.is_mapping else words
        n = math.prod(entry.shape)
        z: NDArray[Any]
        if entry.exact:
            z = _exact(data, entry.dtype, n)
        elif n == 0:
            z = np.zeros(0, F)
        else:
            with np.errstate(all="ignore"):
                z = codec.decode(data, entry.shape, own, message.sender)
        found.append((entry, codec, own, z))
    if any(data.data[data.at :]) or len(data.data) - data.at >= 16:
        raise ValueError("more payload than the arrays take")
    return found


def _exact(data: Reader, dtype: str, n: int) -> NDArray[Any]:
    if dtype != "bfloat16":
        return data.array(np.dtype(dtype).newbyteorder("<").str, n)
    # NumPy has none: as float32, of which it is the upper half.
    return (data.array("<u2", n).astype(np.uint32) << np.uint32(16)).view(F)


def _checked(data: bytes, words: Words | None) -> tuple[Message, Words]:
    message = container.read(data)
    if CODECS[message.codec](message.parameters).needs_key:
        if words is None:
            raise ValueError("key: this codec needs one")
        if fold(words, "key id")[1] != message.key_id:
            raise ValueError("key: another one than the message's")
    elif message.key_id:
        raise ValueError("a key id where no key is needed")
    return message, words or (0, 0)


def _given(arrays: list[NDArray[Any]], message: Message) -> NDArray[Any] | dict[str, NDArray[Any]]:
    shaped = {entry.name: a.reshape(entry.shape) for entry, a in zip(message.arrays, arrays, strict=True)}
    return shaped if message.is_mapping else shaped[""]


def decode_message(data: bytes, key: HasWords | int | None = None) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """Read a message, as ``lowbit.decode`` does.

    Parameters
    ----------
    data : bytes
        What `encode_message` gave.
    key : Key or int or None
        The sender's; None for a codec that needs none to read.

    Returns
    -------
    numpy.ndarray or dict
        float32; what travelled exactly keeps its dtype (bfloat16 becomes float32 here).

    Raises
    ------
    ValueError
        The bytes are no message, or not of this key.
    """
    message, words = _checked(data, None if key is None else key_words(key))
    with np.errstate(all="ignore"):
        arrays = [
            z if entry.exact else codec.finish(z, math.prod(entry.shape), own)
            for entry, codec, own, z in _parts(message, words)
        ]
    return _given(arrays, message)


@np.errstate(all="ignore")
def decode_mean(
    messages: Sequence[bytes], key: HasWords | int | None = None, weights: Sequence[float] | None = None
) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """Average messages in the order of their senders, as ``lowbit.decode_mean`` does.

    Parameters
    ----------
    messages : sequence of bytes
        At least one; of one codec, of the same arrays, of different senders.
    key : Key or int or None
        As for `decode_message`.
    weights : sequence of float or None
        Not negative, not all zero; None: all 1.

    Returns
    -------
    numpy.ndarray or dict
        float32; of exact arrays float64 where they are neither float16, bfloat16 nor float32.

    Raises
    ------
    ValueError
        The messages do not belong together.
    """
    words = None if key is None else key_words(key)
    each = [1.0] * len(messages) if weights is None else [float(weight) for weight in weights]
    read = [_checked(data, words) for data in messages]
    order = sorted(range(len(read)), key=lambda i: read[i][0].sender)
    first, words = read[order[0]]
    whole, counted = 0.0, 0
    sums: list[NDArray[Any]] = []
    before: list[NDArray[Any]] = []  # of lots of 4096 messages that are full
    for i in order:
        message, _ = read[i]
        if (message.codec, message.parameters) != (first.codec, first.parameters):
            raise ValueError("codec: the messages have different ones")
        if [entry._replace(dtype="") for entry in message.arrays] != [e._replace(dtype="") for e in first.arrays]:
            raise ValueError("arrays: the messages have different ones")
        parts = _parts(message, words)
        # -0.0 is the zero of addition: -0.0 + z is z, of either sign.
        sums = sums or [np.full(z.size, -0.0, np.float64 if e.exact else F) for e, _, _, z in parts]
        if each[i] == 0:
            continue  # of no weight is not even what is not finite
        if counted > 0 and counted % 4096 == 0:
            before = [b + s for b, s in zip(before, sums, strict=True)] if before else sums
            sums = [s if e.exact else np.full_like(s, -0.0) for (e, _, _, _), s in zip(parts, sums, strict=True)]
        counted += 1
        for j, (entry, _, _, z) in enumerate(parts):
            if entry.exact:
                sums[j] = sums[j] + each[i] * z.astype(np.float64)
            else:
                sums[j] = sums[j] + z * F(each[i])
        whole += each[i]
    if len({message.sender for message, _ in read}) < len(read):
        raise ValueError("sender: one sent twice")
    means: list[NDArray[Any]] = []
    for j, (entry, codec, own, _) in enumerate(_parts(first, words)):
        total = before[j] + sums[j] if before and not entry.exact else sums[j]
        if entry.exact:
            means.append((total * (1 / whole)).astype(F if entry.dtype in FLOATS[:3] else np.float64))
        else:
            means.append(codec.finish(total * F(1 / whole), math.prod(entry.shape), own))
    return _given(means, first)
