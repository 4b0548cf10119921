"""Messages are the reference's, byte for byte, and so is what they decode to, in every run of the library."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import lowbit as lb
from lowbit import reference
from message_support import CODECS, KEY, LENGTHS, ROTATING, SMALL, fits, header_length, same_floats, twin, vectors
from support import DTYPES, assert_same, cast, normal, on_flushing_thread, runs

each = pytest.mark.parametrize("codec", CODECS, ids=str)
small = pytest.mark.parametrize("codec", SMALL, ids=str)


def hold(x: np.ndarray, codec: Any, *, key: Any = KEY, sender: int = 0, what: str = "") -> bytes:
    """Hold `encode` and `decode` against the reference in every run."""
    want = reference.encode_message(x, twin(codec), key=key, sender=sender)
    decoded = reference.decode_message(want, key)
    assert decoded.shape == x.shape
    for run in runs(x.size):
        got = lb.encode(x, codec, key=key, sender=sender)
        assert isinstance(got, bytes)
        at = next((i for i, (a, b) in enumerate(zip(got, want, strict=False)) if a != b), len(got))
        assert got == want, f"{codec} {x.dtype} {x.shape} {what} {run}: {len(got)}, {len(want)} bytes, differ at {at}"
        assert_same(lb.decode(got, key=key), decoded, f"{codec} {x.dtype} {x.shape} {what} {run}")
    return want


@each
def test_every_length(codec: Any) -> None:
    for n in LENGTHS:
        hold(fits(codec, normal(n)), codec)
    hold(fits(codec, normal(65537)), codec)


@small
def test_longer_than_two_blocks(codec: Any) -> None:
    hold(fits(codec, normal(3 * 65536 + 4096 + 77)), codec)


@each
def test_hard_vectors(codec: Any) -> None:
    for n in (1, 100, 1000):
        for name, x in vectors(n).items():
            hold(fits(codec, x), codec, sender=2, what=name)


@each
@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != np.float32], ids=str)
def test_every_dtype(codec: Any, dtype: np.dtype) -> None:
    for n in (0, 1, 7, 129, 1000):
        hold(cast(fits(codec, normal(n)), dtype), codec)


@each
def test_layouts(codec: Any) -> None:
    x = fits(codec, normal(7 * 60 * 5).reshape(7, 60, 5))
    key, frozen = 3, x.copy()
    frozen.flags.writeable = False
    shifted = np.zeros(4 * x.size + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    shifted[...] = x
    want = hold(x, codec, key=key)
    flipped = x[::-1, :, ::-1].copy()[::-1, :, ::-1]
    for same in (np.asfortranarray(x), np.repeat(x, 2, 1)[:, ::2], flipped, frozen, shifted, x.astype(">f4")):
        assert lb.encode(same, codec, key=key) == want
    if isinstance(codec, lb.Packed) and codec.block_size is not None:
        with pytest.raises(lb.Error, match="block_size"):
            lb.encode(x[0, 0, 0], codec, key=key)
    else:
        hold(np.asarray(x[0, 0, 0]), codec)
    hold(x[:0], codec)


@each
def test_senders_and_keys(codec: Any) -> None:
    x = fits(codec, normal(300))
    messages = [
        hold(x, codec, key=key, sender=sender)
        for key in (0, lb.Key(b"bytes"), lb.Key.from_words(0, 0), 2**64 - 1)
        for sender in (0, 1, 2**64 - 1)
    ]
    payloads = {message[header_length(message) :] for message in messages}
    assert len(payloads) in {1, 12}, "either nothing is drawn, or every key and every sender draws something else"


@each
def test_numbers_that_are_not_finite(codec: Any) -> None:
    for value in (np.nan, np.inf, -np.inf, np.float32(-np.nan)):
        x = fits(codec, normal(1600))
        x[1200] = value
        message = lb.encode(x, codec, key=KEY)
        assert message == reference.encode_message(x, twin(codec), key=KEY), codec
        assert not lb.describe(message).finite
        y = lb.decode(message, key=KEY)
        assert same_floats(y, reference.decode_message(message, KEY))
        if codec == lb.Float32():
            assert_same(y, x)
            continue
        if isinstance(codec, ROTATING) and getattr(codec, "bits", 1) >= 1:
            # Blocks of 1024, 512 and 128.
            assert_same(np.isnan(y), np.arange(1600) // 512 == 2)
        else:
            assert np.isnan(y[1200])
            assert np.isnan(y).all() or isinstance(codec, ROTATING)


@each
def test_zeros_decode_to_zeros(codec: Any) -> None:
    for zero in (0.0, -0.0):
        x = np.full(700, zero, np.float32)
        y = lb.decode(lb.encode(x, codec, key=KEY), key=KEY)
        if codec == lb.Float32():
            assert_same(y, x)
        elif isinstance(codec, lb.OneBit) or (isinstance(codec, lb.Dither) and codec.low is not None):
            assert np.isfinite(y).all()  # zero is a number in the interval, like any other
        elif isinstance(codec, lb.Packed):
            assert not y.any()  # some formats have a negative zero
        else:
            assert_same(y, np.zeros(700, np.float32), codec)


def test_norms_of_any_size() -> None:
    """What is small or large beyond float32's squares is still sent to its own precision."""
    x = normal(1000)
    for codec, allowed in ((lb.Eden(4), 0.012), (lb.QuicFl(4), 0.012), (lb.Summable(8), 0.003), (lb.DrivePlus(), 0.65)):
        for scale in (2.0**-120, 2.0**-60, 1.0, 2.0**60, 2.0**115):
            y = lb.decode(lb.encode((x * scale).astype(np.float32), codec, key=KEY), key=KEY) / scale
            assert np.sum((y - x) ** 2) / np.sum(x**2) < allowed, f"{codec} at {scale}"


def test_norms_beyond_float32_count_as_not_finite() -> None:
    x = (np.clip(normal(1600), -3, 3) * np.float32(1.1e38)).astype(np.float32)
    for codec in (lb.Summable(4), lb.Qsgd(1)):
        message = hold(x, codec)
        assert not lb.describe(message).finite
        assert np.isnan(lb.decode(message, key=KEY)).all()
        assert lb.describe(hold(x[:1], codec)).finite


@small
def test_a_caller_that_flushes_subnormals_never_shows(codec: Any) -> None:
    x = fits(codec, vectors(500)["subnormal"])
    message = lb.encode(x, codec, key=KEY)
    decoded = lb.decode(message, key=KEY)
    got = on_flushing_thread(lambda: (lb.encode(x, codec, key=KEY), lb.decode(message, key=KEY)))
    if got is None:
        pytest.skip("this platform offers no way to flush subnormals")
    assert got[0] == message
    assert_same(got[1], decoded)


def test_out_is_written_and_returned() -> None:
    x = normal(60).reshape(5, 12)
    for codec in SMALL:
        message = lb.encode(x, codec, key=KEY)
        want = lb.decode(message, key=KEY)
        wide = np.full((5, 24), 7, np.float32)
        for out in (np.empty((5, 12), np.float32), np.empty((12, 5), np.float32).T, wide[:, ::2]):
            assert lb.decode(message, key=KEY, out=out) is out
            assert_same(out, want)
        assert (wide[:, 1::2] == 7).all()


def test_a_generator_where_the_receiver_needs_no_key() -> None:
    x = normal(400)
    for codec in (
        lb.TernGrad(),
        lb.Qsgd(3),
        lb.Packed("int4", rounding="stochastic"),
        lb.OneBit("randomized", -8.0, 8.0),
    ):
        message = lb.encode(x, codec, key=np.random.default_rng(5))
        assert message == reference.encode_message(x, twin(codec), key=np.random.default_rng(5))
        assert_same(lb.decode(message), reference.decode_message(message))
    with pytest.raises(TypeError, match="key"):
        lb.encode(x, lb.Eden(1), key=np.random.default_rng(5))


def test_bytes_of_any_kind_decode() -> None:
    x = normal(50)
    message = lb.encode(x, lb.Drive(), key=KEY)
    want = lb.decode(message, key=KEY)
    for same in (bytearray(message), memoryview(message), memoryview(b"\0" + message)[1:]):
        assert_same(lb.decode(same, key=KEY), want)


ENCODER = """
import sys, numpy as np, lowbit as lb
sys.path.insert(0, sys.argv[1])
from message_support import CODECS, KEY, fits
from support import normal
for codec in CODECS:
    message = lb.encode(fits(codec, normal(777)), codec, key=KEY, sender=9)
    sys.stdout.buffer.write(len(message).to_bytes(4, "little") + message)
"""


def test_an_encoder_in_another_process_and_the_reference_agree() -> None:
    tests = __file__.rsplit("test_message_bytes", 1)[0]
    sent = subprocess.run([sys.executable, "-c", ENCODER, tests], capture_output=True, check=True).stdout
    for codec in CODECS:
        length = int.from_bytes(sent[:4], "little")
        message, sent = sent[4 : 4 + length], sent[4 + length :]
        assert_same(reference.decode_message(message, KEY), lb.decode(message, key=KEY), codec)
        assert message == reference.encode_message(fits(codec, normal(777)), twin(codec), key=KEY, sender=9)
    assert not sent
