"""The container of messages (``docs/wire.md``): header, parameters, checksums."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lowbit.reference.payload import Reader

if TYPE_CHECKING:
    from collections.abc import Sequence

MAGIC = b"\x89LOWBIT\n"
KIND = 2
NOT_FINITE, MAPPING = 1, 2
FIXED = struct.Struct("<8s4BIQQQQIIII")
DTYPES = (
    "float16", "bfloat16", "float32", "float64", "bool",
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
)  # fmt: skip
"""Code 1 is the first."""


class Entry(NamedTuple):
    """What the header says of one array."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    exact: bool


@dataclass(frozen=True)
class Message:
    """A message, read but not decoded."""

    codec: int
    parameters: bytes
    """The codec's."""
    arrays: tuple[Entry, ...]
    is_mapping: bool
    finite: bool
    key_id: int
    sender: int
    payload: bytes
    """Without padding and checksum, if it was written here; read, with its padding."""


def _crc_table() -> list[int]:
    table = list(range(256))
    for _ in range(8):
        table = [crc >> 1 ^ (0x82F63B78 if crc & 1 else 0) for crc in table]
    return table


_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """Castagnoli's CRC-32 (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def sealed(data: bytes) -> bytes:
    """Fill up with zeros to a multiple of 16 bytes that ends with the checksum."""
    data += bytes(-(len(data) + 4) % 16)
    return data + crc32c(data).to_bytes(4, "little")


def opened(data: bytes, what: str) -> bytes:
    """Check and drop the checksum."""
    if len(data) < 4 or len(data) % 16 or crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise ValueError(f"{what}: the checksum is wrong")
    return data[:-4]


def _entries(message: Message) -> bytes:
    if not message.is_mapping:
        return struct.pack("<B", DTYPES.index(message.arrays[0].dtype) + 1)
    parts = [struct.pack("<I", len(message.arrays))]
    for name, shape, dtype, exact in message.arrays:
        text = name.encode()
        head = struct.pack("<4BH", exact, DTYPES.index(dtype) + 1, len(shape), 0, len(text))
        parts.append(head + struct.pack(f"<{len(shape)}Q", *shape) + text)
    return b"".join(parts)


def write(message: Message) -> bytes:
    """Give the message's bytes."""
    elements = sum(math.prod(entry.shape) for entry in message.arrays)
    shape: Sequence[int] = (elements,) if message.is_mapping else message.arrays[0].shape
    parameters = struct.pack("<H", len(message.parameters)) + message.parameters + _entries(message)
    payload = sealed(message.payload)
    length = -(-(FIXED.size + 8 * len(shape) + len(parameters) + 4) // 16) * 16
    flags = NOT_FINITE * (not message.finite) | MAPPING * message.is_mapping
    head = FIXED.pack(
        MAGIC, 1, 0, KIND, message.codec, flags, elements, len(payload), message.key_id, message.sender,
        len(shape), len(parameters), length, 0,
    )  # fmt: skip
    return sealed(head + struct.pack(f"<{len(shape)}Q", *shape) + parameters) + payload


def _read_entries(data: Reader, shape: tuple[int, ...], is_mapping: bool) -> tuple[Entry, ...]:
    if not is_mapping:
        return (Entry("", shape, DTYPES[data.unpack("B")[0] - 1], exact=False),)
    found = []
    for _ in range(data.unpack("I")[0]):
        how, dtype, dims, zero, length = data.unpack("4BH")
        if how > 1 or zero or not 1 <= dtype <= len(DTYPES):
            raise ValueError("an array's entry is none")
        lengths = data.unpack(f"{dims}Q")
        found.append(Entry(data.take(length).decode(), lengths, DTYPES[dtype - 1], bool(how)))
    if len({entry.name for entry in found}) < len(found):
        raise ValueError("two arrays of one name")
    return tuple(found)


def read(data: bytes) -> Message:
    """Check a message of kind 2 and take it apart.

    Raises
    ------
    ValueError
        What is wrong.
    """
    if len(data) < FIXED.size:
        raise ValueError("shorter than a header")
    magic, major, _, kind, codec, flags, elements, rest, key_id, sender, dims, size, length, zero = FIXED.unpack(
        data[: FIXED.size]
    )
    if (magic, major, kind, zero) != (MAGIC, 1, KIND, 0) or flags > (NOT_FINITE | MAPPING):
        raise ValueError("not a message of version 1")
    if length < FIXED.size or length + rest != len(data):
        raise ValueError("the lengths are not those of the bytes")
    head = Reader(opened(data[:length], "header"))
    head.take(FIXED.size)
    shape = head.unpack(f"{dims}Q")
    if math.prod(shape) != elements:
        raise ValueError("the number of elements is not that of the shape")
    fields = Reader(head.take(size))
    if any(head.data[head.at :]):
        raise ValueError("the header's padding is not zero")
    parameters = fields.take(fields.unpack("H")[0])
    is_mapping = bool(flags & MAPPING)
    arrays = _read_entries(fields, shape, is_mapping)
    if fields.at != size or sum(math.prod(entry.shape) for entry in arrays) != elements:
        raise ValueError("the arrays are not what the header says")
    payload = opened(data[length:], "payload")
    return Message(codec, parameters, arrays, is_mapping, not flags & NOT_FINITE, key_id, sender, payload)
