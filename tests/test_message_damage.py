"""Messages that were cut, flipped, or made up: a DecodeError or a value, nothing else, and no memory for nothing."""

from __future__ import annotations

import contextlib
import itertools
import struct
import subprocess
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lowbit as lb
from message_support import KEY, SMALL, header_length, sealed
from support import normal

small = pytest.mark.parametrize("codec", SMALL, ids=str)


def message_of(codec: Any, n: int = 15) -> bytes:
    return lb.encode(normal(n).reshape(3, -1), codec, key=KEY, sender=3)


def mapping_of(codec: Any) -> bytes:
    return lb.encode({"a": normal(6), "step": np.arange(3)}, codec, key=KEY, min_elements=5)


def refused(data: bytes) -> None:
    """Every reader must say DecodeError."""
    for read in (lb.decode, lambda m, key: lb.decode_mean([m], key=key), lambda m, key: lb.Mean(key).add(m)):
        with pytest.raises(lb.DecodeError):
            read(data, key=KEY)


def survive(data: bytes) -> bool:
    """Demand a DecodeError, or arrays as large as the bytes can pay for; tell whether there were arrays."""
    with contextlib.suppress(lb.DecodeError):
        lb.describe(data)
    try:
        y = lb.decode(data, key=KEY)
    except lb.DecodeError:
        with pytest.raises(lb.DecodeError):
            lb.decode_mean([data], key=KEY)
        return False
    arrays = y.values() if isinstance(y, dict) else [y]
    # An entropy-coded block of 65536 can have as few as 24 bytes; whatever else has a bit for every number.
    assert sum(array.size for array in arrays) <= len(data) * 65536 // 24
    with np.errstate(all="ignore"):
        lb.decode_mean([data], key=KEY)
    return True


@small
def test_truncation_at_every_byte(codec: Any) -> None:
    for data in (message_of(codec), mapping_of(codec)):
        for end in range(len(data)):
            refused(data[:end])


@small
def test_every_bit_flip(codec: Any) -> None:
    for data in (message_of(codec), mapping_of(codec)):
        for bit in range(8 * len(data)):
            spoilt = bytearray(data)
            spoilt[bit // 8] ^= 1 << bit % 8
            refused(bytes(spoilt))


@small
def test_more_than_the_message(codec: Any) -> None:
    for data in (message_of(codec), mapping_of(codec)):
        for spoilt in (data + b"\0", data + b"\0" * 16, data + data, b"\0" + data):
            refused(spoilt)


@small
def test_every_byte_replaced_and_the_checksums_repaired(codec: Any) -> None:
    survived = 0
    for data in (message_of(codec), mapping_of(codec)):
        assert sealed(data) == data
        for at in range(len(data)):
            if 56 <= at < 60:  # the length of the header, where `sealed` looks
                continue
            for value in {0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF, data[at] ^ 0x10, data[at] + 1 & 255} - {data[at]}:
                spoilt = bytearray(data)
                spoilt[at] = value
                survived += survive(sealed(spoilt))
    assert survived > 20, "other scales and codes are messages too"


@small
def test_every_number_of_the_header_replaced_and_the_checksums_repaired(codec: Any) -> None:
    numbers = [0, 1, 2**31, 2**32 - 1, 2**32, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
    for data in (message_of(codec), mapping_of(codec)):
        header = header_length(data)
        for at, number in itertools.product(range(0, header - 8, 2), numbers):
            if at + 8 > 56 and at < 60:
                continue
            spoilt = bytearray(data)
            spoilt[at : at + 8] = number.to_bytes(8, "little")
            survive(sealed(spoilt))


SIDES = st.sampled_from([0, 1, 2, 128, 2**16, 2**20, 2**31, 2**32, 2**60, 2**62, 2**63, 2**64 - 1])


@pytest.mark.parametrize("codec", SMALL, ids=str)
@given(shape=st.lists(SIDES, min_size=2, max_size=2))
@settings(max_examples=60)
def test_shapes_and_counts_that_agree(codec: Any, shape: list[int]) -> None:
    """Products must not wrap around to the few bytes that there are."""
    for data in (message_of(codec, 0), message_of(codec)):
        spoilt = bytearray(data)
        struct.pack_into("<Q", spoilt, 16, shape[0] * shape[1] % 2**64)
        struct.pack_into("<2Q", spoilt, 64, *shape)
        survive(sealed(spoilt))


@given(data=st.data())
@settings(max_examples=300)
def test_bytes_replaced_at_random_and_the_checksums_repaired(data: st.DataObject) -> None:
    good = message_of(data.draw(st.sampled_from(SMALL)), 300)
    spoilt = bytearray(good)
    places = st.integers(0, len(good) - 1).filter(lambda at: not 56 <= at < 60)
    for _ in range(data.draw(st.integers(1, 6))):
        spoilt[data.draw(places)] = data.draw(st.integers(0, 255))
    survive(sealed(spoilt))


@given(st.binary(max_size=300))
def test_noise(data: bytes) -> None:
    refused(data)
    with pytest.raises(lb.DecodeError):
        lb.describe(data)


@pytest.mark.parametrize(
    ("codec", "n", "at", "keep", "put"),
    [
        (lb.Packed("int4"), 3, 5, 0x0F, 0x10),
        (lb.Dither(3), 5, 9, 0x7F, 0x80),
        (lb.Dither(3, -8.0, 8.0), 5, 2, 0x7F, 0x80),
        (lb.OneBit("dither", -8.0, 8.0), 3, 1, 0x07, 0x08),
        (lb.OneBit("dither", -8.0, 8.0), 3, 0, 0x00, 0x02),
        (lb.Sign(), 3, 4, 0x07, 0x08),
        (lb.Sign(), 3, 5, 0x00, 0x01),
        (lb.TernGrad(), 3, 4, 0x00, 27),  # a fourth trit
        (lb.TernGrad(), 5, 4, 0x00, 243),  # no five trits
        (lb.Qsgd(5), 3, 5, 0x0F, 0x10),
        (lb.Qsgd(5), 3, 4, 0xF0, 0x0B),  # 11 of 0 to 10
        (lb.Eden(1.1), 100, 7, 0x03, 0x04),  # 13 numbers of 2 bits
        (lb.Eden(1.1), 100, 22, 0x07, 0x08),  # 115 of 1
    ],
    ids=str,
)
def test_what_no_encoder_writes(codec: Any, n: int, at: int, keep: int, put: int) -> None:
    """Bits that no code uses, codes that stand for nothing."""
    data = bytearray(lb.encode(normal(n), codec, key=KEY))
    at += header_length(data)
    data[at] = data[at] & keep | put
    refused(sealed(data))


def test_payloads_of_noise() -> None:
    """Codes, counts, positions, frequencies and coded bytes that nobody wrote."""
    rng = np.random.default_rng(5)
    for codec in SMALL:
        data = message_of(codec, 300)
        header = header_length(data)
        for _ in range(300):
            spoilt = bytearray(data)
            start = int(rng.integers(header, len(data)))
            spoilt[start:] = rng.bytes(len(data) - start)
            survive(sealed(spoilt))


LIMITED = """
import resource, sys, struct
sys.path.insert(0, sys.argv[1])
import numpy as np, lowbit as lb
from message_support import KEY, SMALL, sealed
lb.set_num_threads(2)
made = []
for codec in SMALL:
    for data in (lb.encode(np.zeros((1, 0), np.float32), codec, key=KEY), lb.encode(np.ones((3, 50)), codec, key=KEY)):
        for shape in ((2**20, 2**9), (2**30, 1), (2**40, 1), (2**62, 1), (2**32, 2**32), (2**10, 2**19)):
            spoilt = bytearray(data)
            struct.pack_into("<Q", spoilt, 16, shape[0] * shape[1] % 2**64)
            struct.pack_into("<2Q", spoilt, 64, *shape)
            made.append(sealed(spoilt))
lb.decode(lb.encode(np.ones(100000, np.float32), SMALL[8], key=KEY), key=KEY)
with open("/proc/self/statm") as statm:
    size = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (128 << 20),) * 2)
for data in made:
    for read in (lb.decode, lambda m, key: lb.decode_mean([m], key=key), lambda m, key: lb.Mean(key).add(m)):
        try:
            read(data, key=KEY)
        except lb.DecodeError:
            continue
        sys.exit("absurd sizes were read")
print(len(made))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells how much memory there is")
def test_absurd_sizes_take_no_memory() -> None:
    tests = __file__.rsplit("test_message_damage", 1)[0]
    done = subprocess.run([sys.executable, "-c", LIMITED, tests], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 12 * len(SMALL)


def test_max_elements() -> None:
    arrays = {"a": normal(600), "b": np.zeros(400, np.int8)}
    for message in (lb.encode(normal(1000), lb.Drive(), key=KEY), lb.encode(arrays, lb.Drive(), key=KEY)):
        lb.decode(message, key=KEY, max_elements=1000)
        lb.decode_mean([message], key=KEY, max_elements=1000)
        lb.Mean(KEY, max_elements=1000).add(message)
        for read in (
            lambda m: lb.decode(m, key=KEY, max_elements=999),
            lambda m: lb.decode_mean([m], key=KEY, max_elements=999),
            lambda m: lb.Mean(KEY, max_elements=999).add(m),
        ):
            with pytest.raises(lb.DecodeError, match="max_elements"):
                read(message)


def test_describing_takes_no_memory() -> None:
    message = lb.encode(normal(1 << 18), lb.Drive(), key=KEY)
    tracemalloc.start()
    try:
        lb.describe(message)
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()
