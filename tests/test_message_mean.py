"""The mean of many messages: one order, one result, whichever way it is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lowbit as lb
from lowbit import reference
from message_support import CODECS, KEY, SHARED_ROTATION, SMALL, fits, same_floats, vectors
from support import assert_same, normal, runs

each = pytest.mark.parametrize("codec", CODECS, ids=str)
small = pytest.mark.parametrize("codec", SMALL, ids=str)
SENDERS = [5, 0, 2**64 - 1, 17]
WEIGHTS = [0.5, 3.0, 1e-3, 0.0]


def sent(codec: Any, n: int) -> list[bytes]:
    return [lb.encode(fits(codec, normal(n, s % 1000)), codec, key=KEY, sender=s) for s in SENDERS]


def streamed(messages: list[bytes], weights: list[float] | None = None) -> Any:
    mean = lb.Mean(KEY)
    for i, message in enumerate(messages):
        assert mean.count == i
        mean.add(message, *([] if weights is None else [weights[i]]))
    return mean.result()


@each
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_the_mean_is_the_references(codec: Any, weights: list[float] | None) -> None:
    for n in (0, 1, 129, 1000, 4097):
        messages = sent(codec, n)
        want = reference.decode_mean(messages, KEY, weights)
        for run in runs(n):
            got = lb.decode_mean(messages, key=KEY, weights=weights)
            assert_same(got, want, f"{codec}, {n}, {run}")


@small
def test_long_vectors(codec: Any) -> None:
    messages = sent(codec, 65536 + 5000)
    want = reference.decode_mean(messages, KEY)
    for run in runs(70000):
        assert_same(lb.decode_mean(messages, key=KEY), want, f"{codec}, {run}")


@small
def test_any_order_of_the_list_and_any_way_to_stream_is_the_same(codec: Any) -> None:
    messages = sent(codec, 300)
    want = lb.decode_mean(messages, key=KEY, weights=WEIGHTS)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]):
        shuffled, weights = [messages[i] for i in order], [WEIGHTS[i] for i in order]
        assert_same(lb.decode_mean(shuffled, key=KEY, weights=weights), want)
        assert_same(lb.decode_mean(iter(shuffled), key=KEY, weights=np.array(weights)), want)
    # Mean adds as they come: in the order of senders that is the same sum.
    order = sorted(range(4), key=lambda i: SENDERS[i])
    assert_same(streamed([messages[i] for i in order], [WEIGHTS[i] for i in order]), want)
    assert_same(streamed([messages[i] for i in order]), lb.decode_mean(messages, key=KEY))


@each
def test_one_message_is_what_it_decodes_to(codec: Any) -> None:
    for name, x in vectors(700).items():
        message = lb.encode(fits(codec, x), codec, key=KEY, sender=3)
        want = lb.decode(message, key=KEY)
        assert_same(lb.decode_mean([message], key=KEY), want, f"{codec}, {name}")
        assert_same(streamed([message]), want, f"{codec}, {name}")


@small
def test_what_is_not_finite_shows(codec: Any) -> None:
    messages = sent(codec, 400)
    x = fits(codec, normal(400))
    x[10] = np.inf
    messages.append(lb.encode(x, codec, key=KEY, sender=77))
    got = lb.decode_mean(messages, key=KEY)
    assert same_floats(got, reference.decode_mean(messages, KEY))
    assert same_floats(got, streamed(sorted(messages, key=lambda m: lb.describe(m).sender)))
    assert not np.isfinite(got[10])


def test_results_can_be_read_between() -> None:
    for codec in SMALL:
        messages = sorted(sent(codec, 200), key=lambda m: lb.describe(m).sender)
        mean = lb.Mean(KEY)
        for i, message in enumerate(messages):
            mean.add(message)
            assert_same(mean.result(), lb.decode_mean(messages[: i + 1], key=KEY), codec)


def test_out() -> None:
    for codec in SMALL:
        messages = sent(codec, 300)
        want = lb.decode_mean(messages, key=KEY)
        for out in (np.empty(300, np.float32), np.empty(600, np.float32)[::2]):
            assert lb.decode_mean(messages, key=KEY, out=out) is out
            assert_same(out, want)


def test_means_of_mappings() -> None:
    for codec in SMALL:
        made = [
            {
                "w": fits(codec, normal(2000, s)),
                "count": np.array([s, 2**40 + s]),
                "half": normal(5, s).astype(np.float16),
                "double": normal(5, s).astype(np.float64),
                "flag": np.array(s % 2 == 0),
            }
            for s in range(3)
        ]
        messages = [lb.encode(arrays, codec, key=KEY, sender=s) for s, arrays in enumerate(made)]
        for weights in (None, [1.0, 2.0, 0.25]):
            got = lb.decode_mean(messages, key=KEY, weights=weights)
            want = reference.decode_mean(messages, KEY, weights)
            assert list(got) == list(made[0])
            for name, array in got.items():
                assert_same(array, want[name], f"{codec}, {name}, {weights}")
        assert got["half"].dtype == np.float32
        assert got["count"].dtype == got["double"].dtype == got["flag"].dtype == np.float64
        assert_same(lb.decode_mean(messages, key=KEY)["count"], np.array([1.0, 2.0**40 + 1]))


def test_a_shared_rotation_is_undone_once() -> None:
    """The mean of the rotated numbers, rotated back, is the mean of the decoded ones but for rounding."""
    for codec in SMALL:
        messages = sent(codec, 3000)
        decoded = np.mean([lb.decode(m, key=KEY).astype(np.float64) for m in messages], axis=0)
        got = lb.decode_mean(messages, key=KEY)
        np.testing.assert_allclose(got, decoded, rtol=0, atol=2e-6 * np.abs(decoded).max())
        if not isinstance(codec, SHARED_ROTATION):
            plain = np.full(3000, -0.0, np.float32)
            for message in sorted(messages, key=lambda m: lb.describe(m).sender):
                plain += lb.decode(message, key=KEY)
            assert_same(got, plain * np.float32(1 / 4), codec)


def test_many_messages_are_added_in_lots() -> None:
    """Of 4,096 messages that count: a mean of thousands loses no digits to the length of its sum."""
    codec, count = lb.Dither(low=0.0, high=1.0, bits=8), 2 * 4096 + 3
    x = {"coded": np.array([0.1, 0.7, 0.3], np.float32), "exact": np.array([7], np.int64)}
    messages = [lb.encode(x, codec, key=KEY, sender=s, min_elements=1) for s in range(count)]
    weights = [float(s % 7) for s in range(count)]
    for chosen, given in ((messages, None), (messages, weights), (messages[:4096], None), (messages[:4097], None)):
        want = reference.decode_mean(chosen, KEY, given)
        mean = lb.Mean(KEY)
        for i, message in enumerate(chosen):
            mean.add(message, 1.0 if given is None else given[i])
        for got in (lb.decode_mean(chosen, key=KEY, weights=given), mean.result(), mean.result()):
            for name in x:
                assert_same(got[name], want[name])


def test_a_long_mean_is_as_exact_as_float32() -> None:
    """The sum of 40,960 equal numbers, one by one in float32, would be off by some 1e-5 of itself."""
    message = lb.encode(np.full(3, 0.1, np.float32), lb.Packed("float16"), key=KEY, sender=0)
    one, count = lb.decode(message, key=KEY), 40_960
    alone = np.float32(0)
    for _ in range(count):
        alone += one[0]
    assert abs(float(alone) / count / float(one[0]) - 1) > 1e-5
    mean = lb.Mean(KEY)
    for sender in range(count):
        mean.add(lb.encode(np.full(3, 0.1, np.float32), lb.Packed("float16"), key=KEY, sender=sender))
    assert np.abs(mean.result() / one - 1).max() < 3e-6
