"""Containers with right checksums and wrong contents: what an enemy, not an accident, would send."""

from __future__ import annotations

import itertools
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lowbit as lb
from support import KEY, assert_same, normal

HEADER_LENGTH = struct.Struct("<I"), 56  # where the header tells how long it is, its checksum included


def crc32c(data: bytes) -> int:
    """Castagnoli's CRC-32, bit by bit (RFC 3720, appendix B.4 has the vectors)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_crc32c_vectors() -> None:
    assert crc32c(b"\0" * 32) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


def sealed(data: bytearray, header: int) -> bytes:
    """The same bytes with the checksums of header and payload put right."""
    for start, end in ((0, header), (header, len(data))):
        data[end - 4 : end] = crc32c(bytes(data[start : end - 4])).to_bytes(4, "little")
    return bytes(data)


def messages() -> list[bytes]:
    x = normal(15).reshape(3, 5)
    return [
        lb.quantize(x, "int4").to_bytes(),
        lb.quantize(x, "radix4", axis=0, block_size=2).to_bytes(),
        lb.quantize(x, "uint4", scale=0.5, offset=-1.0, axis=1).to_bytes(),
        lb.quantize(x, "int4_symmetric", rounding="dither", key=KEY, block_size=2).to_bytes(),
        lb.quantize(x, "nvfp4", axis=0).to_bytes(),
        lb.quantize(x, "float(4,3,bias=11)").to_bytes(),
        lb.quantize(x, "table(-1,-0.25,0,0.25,1)", scale="amax").to_bytes(),
        lb.quantize(x, "block(int4_symmetric,e8m0,32)").to_bytes(),
    ]


def survive(data: bytes) -> None:
    """Demand a DecodeError, or an array that is as whole as any other."""
    try:
        q = lb.Quantized.from_bytes(data)
    except lb.DecodeError:
        return
    assert q.size <= 2 * len(data), f"{len(data)} bytes cannot hold {q.size} codes"
    assert q.scale.size <= len(data)
    assert q.codes.shape == q.shape
    assert not np.isnan(lb.dequantize(lb.Quantized(**dict(fields(q), key_id=None)))).any()
    assert_same(lb.Quantized.from_bytes(q.to_bytes()).packed, q.packed)


def fields(q: lb.Quantized) -> dict[str, object]:
    names = ("packed", "scale", "offset", "tensor_scale", "format", "shape", "axis", "block_size", "key_id")
    return {name: getattr(q, name) for name in names}


def test_the_checksums_are_where_this_file_thinks() -> None:
    for data in messages():
        header = HEADER_LENGTH[0].unpack_from(data, HEADER_LENGTH[1])[0]
        assert sealed(bytearray(data), header) == data


@pytest.mark.parametrize("message", range(8))
def test_every_byte_replaced(message: int) -> None:
    data = messages()[message]
    header = HEADER_LENGTH[0].unpack_from(data, HEADER_LENGTH[1])[0]
    for at in range(len(data)):
        for value in {0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF, data[at] ^ 0x10, data[at] + 1 & 255} - {data[at]}:
            spoilt = bytearray(data)
            spoilt[at] = value
            survive(sealed(spoilt, header))


@pytest.mark.parametrize("message", range(8))
def test_every_number_replaced(message: int) -> None:
    data = messages()[message]
    header = HEADER_LENGTH[0].unpack_from(data, HEADER_LENGTH[1])[0]
    numbers = [0, 1, 2**31, 2**32 - 1, 2**32, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
    for at, number in itertools.product(range(0, header - 8, 4), numbers):
        spoilt = bytearray(data)
        spoilt[at : at + 8] = number.to_bytes(8, "little")
        survive(sealed(spoilt, header))


SIDES = st.sampled_from([0, 1, 2, 2**20, 2**31, 2**32, 2**60, 2**62, 2**63, 2**64 - 1])


@given(shape=st.lists(SIDES, min_size=2, max_size=2))
def test_shapes_and_counts_that_agree(shape: list[int]) -> None:
    """Counts times bits must not wrap around to the few bytes that there are."""
    data = bytearray(lb.quantize(np.zeros((1, 0), np.float32), "int4").to_bytes())
    header = HEADER_LENGTH[0].unpack_from(data, HEADER_LENGTH[1])[0]
    struct.pack_into("<Q", data, 16, shape[0] * shape[1] % 2**64)
    struct.pack_into("<2Q", data, 64, *shape)
    survive(sealed(data, header))


def test_a_message_allocates_no_more_than_it_brings() -> None:
    data = bytearray(lb.quantize(np.zeros((1, 0), np.float32), "int4").to_bytes())
    header = HEADER_LENGTH[0].unpack_from(data, HEADER_LENGTH[1])[0]
    tracemalloc.start()
    try:
        for shape in ((2**20, 2**8), (2**40, 0), (2**28, 1)):
            struct.pack_into("<Q", data, 16, shape[0] * shape[1])
            struct.pack_into("<2Q", data, 64, *shape)
            survive(sealed(data, header))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_scales_of_a_layout_that_is_none() -> None:
    """A reader's checks are the constructor's, so what it refuses is told by the field's name."""
    q = lb.quantize(normal(12).reshape(3, 4), "int4", axis=0)
    good = fields(q)
    assert lb.Quantized(**good) == q
    for field, bad in (("shape", (2**40, 2**40)), ("shape", (1,) * 65), ("scale", np.ones((4, 1))), ("axis", 2)):
        with pytest.raises(lb.Error, match=field):
            lb.Quantized(**dict(good, **{field: bad}))
