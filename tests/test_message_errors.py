"""What is wrong is told by its name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lowbit as lb
from message_support import KEY, SMALL, fits, sealed
from support import assert_same, normal

OTHER = lb.Key(99)
NEEDS_KEY = [lb.Dither(3), lb.OneBit("dither", -8.0, 8.0), lb.Drive(), lb.DrivePlus(), lb.QuicFl(2), lb.Summable(2)]
NEEDS_NONE = [codec for codec in SMALL if type(codec) not in {type(other) for other in [*NEEDS_KEY, lb.Eden(1)]}]


def readers(key: Any) -> list[Any]:
    return [
        lambda message: lb.decode(message, key=key),
        lambda message: lb.decode_mean([message], key=key),
        lambda message: lb.Mean(key).add(message),
    ]


@pytest.mark.parametrize("codec", NEEDS_KEY, ids=str)
def test_the_key(codec: Any) -> None:
    with pytest.raises(lb.Error, match="key"):
        lb.encode(normal(10), codec)
    for x in (normal(10), np.zeros(0, np.float32), {"a": np.arange(3)}):
        message = lb.encode(x, codec, key=KEY)
        assert lb.describe(message).key_id == KEY.fold("key id").words[1].to_bytes(8, "little")
        for read in readers(OTHER):
            with pytest.raises(lb.DecodeError, match="key"):
                read(message)
        for read in readers(None):
            with pytest.raises(lb.Error, match="key"):
                read(message)
        for word in KEY.words:
            assert word.to_bytes(8, "little") not in message, "the key does not travel"


@pytest.mark.parametrize("codec", NEEDS_NONE, ids=str)
def test_no_key_is_needed(codec: Any) -> None:
    x = fits(codec, normal(10))
    message = lb.encode(x, codec, key=KEY)
    assert lb.describe(message).key_id is None
    want = lb.decode(message)
    assert_same(lb.decode(message, key=OTHER), want)
    assert_same(lb.decode_mean([message]), want)


def test_a_codec_that_draws_nothing_ignores_the_key() -> None:
    for codec in (lb.Float32(), lb.Packed("int4"), lb.Sign(), lb.OneBit("deterministic", -8.0, 8.0)):
        assert lb.encode(normal(9), codec) == lb.encode(normal(9), codec, key=KEY)
    for codec in (lb.TernGrad(), lb.Qsgd(3), lb.Packed("int4", rounding="stochastic"), lb.OneBit("randomized", -8, 8)):
        with pytest.raises(lb.Error, match="key"):
            lb.encode(normal(9), codec)


def test_another_version_or_kind() -> None:
    message = lb.encode(normal(20), lb.Drive(), key=KEY)
    for at, what in ((8, "version"), (10, "kind")):
        spoilt = bytearray(message)
        spoilt[at] = 77
        for read in [*readers(KEY), lb.describe]:
            with pytest.raises(lb.DecodeError, match=f"{what}.*77|77.*{what}"):
                read(sealed(spoilt))
    q = lb.quantize(normal(20), "int4")
    for read in readers(KEY):
        with pytest.raises(lb.DecodeError, match=r"kind|Quantized"):
            read(q.to_bytes())
    with pytest.raises(lb.DecodeError, match=r"kind|message"):
        lb.Quantized.from_bytes(message)


def means(messages: list[bytes]) -> list[Any]:
    """Both ways to average, as calls."""

    def streamed() -> Any:
        mean = lb.Mean(KEY)
        for message in messages:
            mean.add(message)
        return mean.result()

    return [lambda: lb.decode_mean(messages, key=KEY), streamed]


def send(x: Any, codec: Any, sender: int, key: lb.Key = KEY) -> bytes:
    return lb.encode(x, codec, key=key, sender=sender, min_elements=10)


@pytest.mark.parametrize(
    ("second", "what"),
    [
        (lambda: send(normal(100), lb.Sign(), 1), "codec"),
        (lambda: send(normal(100), lb.Eden(2), 1), "codec|parameters"),
        (lambda: send(normal(100), lb.Eden(1, "min_error"), 1), "codec|parameters"),
        (lambda: send(normal(100), lb.Eden(1, rounds=3), 1), "codec|parameters"),
        (lambda: send(normal(101), lb.Drive(), 1), "shape"),
        (lambda: send(normal(100).reshape(10, 10), lb.Drive(), 1), "shape"),
        (lambda: send({"a": normal(100)}, lb.Drive(), 1), "mapping|arrays"),
        (lambda: send(normal(100), lb.Drive(), 0), "sender.*0"),
        (lambda: send(normal(100), lb.Drive(), 1, OTHER), "key"),
    ],
)
def test_messages_that_do_not_belong_together(second: Any, what: str) -> None:
    for call in means([send(normal(100), lb.Drive(), 0), second()]):
        with pytest.raises(lb.DecodeError, match=what):
            call()


@pytest.mark.parametrize(
    ("second", "what"),
    [
        ({"a": normal(100)}, "array"),
        ({"a": normal(100), "c": np.arange(3)}, "name|array"),
        ({"b": np.arange(3), "a": normal(100)}, "name|array|order"),
        ({"a": normal(100), "b": np.arange(4)}, "shape|array"),
        ({"a": normal(9), "b": np.arange(3)}, "shape|exact"),
        ({"a": normal(100), "b": normal(100)}, "shape|exact"),
        ({}, "array"),
    ],
)
def test_mappings_that_do_not_belong_together(second: dict[str, Any], what: str) -> None:
    first = {"a": normal(100), "b": np.arange(3)}
    for call in means([send(first, lb.Drive(), 0), send(second, lb.Drive(), 1)]):
        with pytest.raises(lb.DecodeError, match=what):
            call()


def test_a_refused_message_leaves_the_mean_as_it_was() -> None:
    x = normal(500)
    good = [send(x, lb.QuicFl(2), s) for s in range(3)]
    mean = lb.Mean(KEY)
    for message in good:
        mean.add(message)
        for bad in (message, send(x, lb.QuicFl(1), 9), message[:-1], send(x[1:], lb.QuicFl(2), 9)):
            with pytest.raises(lb.DecodeError):
                mean.add(bad)
    assert mean.count == 3
    assert_same(mean.result(), lb.decode_mean(good, key=KEY))


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf, -np.inf])
def test_weights_that_are_none(bad: float) -> None:
    messages = [send(normal(100), lb.Drive(), s) for s in range(2)]
    with pytest.raises(lb.Error, match="weight"):
        lb.decode_mean(messages, key=KEY, weights=[1.0, bad])
    with pytest.raises(lb.Error, match="weight"):
        lb.Mean(KEY).add(messages[0], bad)


def test_weights_that_do_not_fit() -> None:
    messages = [send(normal(100), lb.Drive(), s) for s in range(2)]
    for weights in ([1.0], [1.0, 2.0, 3.0], [0.0, 0.0], []):
        with pytest.raises(lb.Error, match="weights"):
            lb.decode_mean(messages, key=KEY, weights=weights)
    for weights in (["1", "2"], [1j, 1j], 5):
        with pytest.raises((TypeError, lb.Error), match="weight"):
            lb.decode_mean(messages, key=KEY, weights=weights)


def test_no_messages() -> None:
    with pytest.raises(lb.Error, match="message"):
        lb.decode_mean([], key=KEY)
    with pytest.raises(lb.Error, match="message"):
        lb.Mean(KEY).result()


@pytest.mark.parametrize(
    ("x", "error", "what"),
    [
        (np.arange(5), TypeError, "x: .*int64"),
        (np.array([True]), TypeError, "x: .*bool"),
        (np.array([1j]), TypeError, "x: .*complex"),
        (np.array(["a"]), TypeError, "x: "),
        (np.ma.masked_array([0.5]), TypeError, "x: "),
        ({"a": np.array([1j])}, TypeError, "x.*a.*complex"),
        ({"a": np.array(["x"])}, TypeError, "x.*a"),
        ({1: normal(5)}, TypeError, "name"),
        ({"\ud800": normal(5)}, lb.Error, "name"),
        ({"a" * 65536: normal(5)}, lb.Error, "name"),
        (None, TypeError, "x"),
    ],
)
def test_what_cannot_be_sent(x: Any, error: type[Exception], what: str) -> None:
    with pytest.raises(error, match=what):
        lb.encode(x, lb.Drive(), key=KEY)


@pytest.mark.parametrize(
    ("codec", "x", "what"),
    [
        (lb.Dither(3, -1.0, 1.0), [0.0, 0.5, 1.5], "element 2"),
        (lb.OneBit("dither"), [0.5, -0.25], "element 1"),
        (lb.Dither(1), [-3e38, 3e38], "spans"),
        (lb.Dither(2), [-3e38, 3e38], "spans"),
    ],
)
def test_numbers_that_a_codec_cannot_send(codec: Any, x: list[float], what: str) -> None:
    with pytest.raises(lb.Error, match=f"x: .*{what}"):
        lb.encode(np.array(x), codec, key=KEY)


@pytest.mark.parametrize(
    ("make", "error", "what"),
    [
        (lambda: lb.Eden(0.04), lb.Error, "bits"),
        (lambda: lb.Eden(8.01), lb.Error, "bits"),
        (lambda: lb.Eden(float("nan")), lb.Error, "bits"),
        (lambda: lb.Eden("1"), TypeError, "bits"),
        (lambda: lb.Eden(1, "best"), lb.Error, "scale.*min_error"),
        (lambda: lb.Eden(1, rounds=0), lb.Error, "rounds"),
        (lambda: lb.Eden(1, rounds=9), lb.Error, "rounds"),
        (lambda: lb.Eden(1, rounds=1.5), TypeError, "rounds"),
        (lambda: lb.DrivePlus(rounds=9), lb.Error, "rounds"),
        (lambda: lb.QuicFl(5), lb.Error, "bits"),
        (lambda: lb.QuicFl(0), lb.Error, "bits"),
        (lambda: lb.QuicFl(1.5), TypeError, "bits"),
        (lambda: lb.Summable(9), lb.Error, "bits"),
        (lambda: lb.Dither(0), lb.Error, "bits"),
        (lambda: lb.Dither(9), lb.Error, "bits"),
        (lambda: lb.Dither(2, 0.0), lb.Error, "high"),
        (lambda: lb.Dither(2, high=0.0), lb.Error, "low"),
        (lambda: lb.Dither(2, 1.0, 1.0), lb.Error, "low"),
        (lambda: lb.Dither(2, 0.0, float("inf")), lb.Error, "high|low"),
        (lambda: lb.Dither(2, 0.0, 1e-40), lb.Error, "high|low"),
        (lambda: lb.OneBit("magic"), lb.Error, "scheme.*magic"),
        (lambda: lb.OneBit("randomized", shared_bits=1), lb.Error, "shared_bits"),
        (lambda: lb.OneBit("dither", 1.0, 0.0), lb.Error, "low"),
        (lambda: lb.Sign("l3"), lb.Error, "scale.*l2"),
        (lambda: lb.Qsgd(0), lb.Error, "levels"),
        (lambda: lb.Qsgd(32768), lb.Error, "levels"),
        (lambda: lb.Packed("nf5"), lb.Error, "format.*nf5"),
        (lambda: lb.Packed("int4", block_size=0), lb.Error, "block_size"),
        (lambda: lb.Packed("int4", rounding="up"), lb.Error, "rounding.*stochastic"),
    ],
)
def test_codecs_that_are_none(make: Any, error: type[Exception], what: str) -> None:
    with pytest.raises(error, match=what):
        make()


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({"sender": -1}, lb.Error, "sender"),
        ({"sender": 2**64}, lb.Error, "sender"),
        ({"sender": True}, TypeError, "sender"),
        ({"sender": 1.0}, TypeError, "sender"),
        ({"key": "secret"}, TypeError, "key"),
        ({"key": -1}, lb.Error, "seed|key"),
        ({"min_elements": -1}, lb.Error, "min_elements"),
        ({"min_elements": 1.5}, TypeError, "min_elements"),
    ],
)
def test_bad_options_of_encode(options: dict[str, Any], error: type[Exception], what: str) -> None:
    with pytest.raises(error, match=what):
        lb.encode({"a": normal(5)}, lb.Drive(), **({"key": KEY} | options))


def test_what_is_no_codec_or_no_message() -> None:
    for bad in ("eden", lb.Eden, None, 1):
        with pytest.raises(TypeError, match="codec"):
            lb.encode(normal(5), bad, key=KEY)
    for bad in ("text", 5, None, [1, 2]):
        with pytest.raises(TypeError, match="message"):
            lb.decode(bad, key=KEY)
        with pytest.raises(TypeError, match="message"):
            lb.describe(bad)
        with pytest.raises(TypeError, match="message"):
            lb.Mean(KEY).add(bad)
    with pytest.raises(TypeError, match="message"):
        lb.decode_mean(lb.encode(normal(5), lb.Sign()))


def test_bad_out() -> None:
    message = lb.encode(normal(10), lb.Drive(), key=KEY)
    mapping = lb.encode({"a": normal(10)}, lb.Drive(), key=KEY, min_elements=0)
    frozen = np.zeros(10, np.float32)
    frozen.flags.writeable = False
    for data, out in (
        (message, np.zeros(11, np.float32)),
        (message, np.zeros((2, 5), np.float32)),
        (message, np.zeros(10, np.float64)),
        (message, frozen),
        (message, {"a": np.zeros(10, np.float32)}),
        (message, [0.0] * 10),
        (mapping, np.zeros(10, np.float32)),
        (mapping, {}),
        (mapping, {"b": np.zeros(10, np.float32)}),
        (mapping, {"a": np.zeros(9, np.float32)}),
    ):
        with pytest.raises((lb.Error, TypeError), match="out"):
            lb.decode(data, key=KEY, out=out)
        with pytest.raises((lb.Error, TypeError), match="out"):
            lb.decode_mean([data], key=KEY, out=out)
