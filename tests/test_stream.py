"""The shared random stream, version 1: against plain Python integers, the reference, SplitMix64 and golden words."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lowbit as lb
from lowbit import _core, reference
from support import GOLDEN, assert_same, on_flushing_thread, runs

MASK = 2**64 - 1
GOLDEN_RATIO = 0x9E3779B97F4A7C15
WORD = st.integers(0, MASK)


def mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def element(k0: int, k1: int, i: int) -> int:
    """Element i of the stream, in Python integers, from DESIGN section 3."""
    gamma = k1 | 1
    if (gamma ^ (gamma >> 1)).bit_count() < 24:
        gamma ^= 0xAAAAAAAAAAAAAAAA
    word = mix((k0 + (i // 2 + 1) * gamma) & MASK)
    return word >> 32 if i % 2 else word & 0xFFFFFFFF


def test_the_stream_is_splitmix64_when_k1_is_the_golden_ratio() -> None:
    """The first outputs of SplitMix64 from seed 1234567, as its author's C program prints them."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    words = lb.random_bits(lb.Key.from_words(1234567, GOLDEN_RATIO), 10).astype(object)
    assert [int(words[2 * j]) + (int(words[2 * j + 1]) << 32) for j in range(5)] == published


@given(k0=WORD, k1=WORD | st.integers(0, 63).map(lambda n: MASK >> n), start=WORD)
def test_elements_by_the_definition(k0: int, k1: int, start: int) -> None:
    start = min(start, MASK - 40)
    key = lb.Key.from_words(k0, k1)
    want = np.array([element(k0, k1, start + i) for i in range(37)], np.uint32)
    assert_same(lb.random_bits(key, 37, start=start), want)
    assert_same(reference.random_bits((k0, k1), 37, start), want)


@pytest.mark.parametrize("n", [0, 1, 2, 31, 32, 33, 63, 64, 65, 1023, 1024, 1025, 16385, 100003, 2**20 + 1])
def test_any_block_alone_on_every_level(n: int) -> None:
    key = lb.Key(5)
    for start in (0, 1, 2, 63, 2**32 - 5, 2**40 + 1):
        want = reference.random_bits(key.words, n, start)
        for run in runs(n):
            assert_same(lb.random_bits(key, n, start=start), want, f"start {start}, {run}")
    assert on_flushing_thread(lambda: lb.random_bits(key, n).tolist()) in (
        None,
        reference.random_bits(key.words, n).tolist(),
    )


@given(seed=WORD, parts=st.lists(WORD | st.text(max_size=8), max_size=4))
def test_keys_by_the_definition(seed: int, parts: list[int | str]) -> None:
    k0, k1 = mix((seed + GOLDEN_RATIO) & MASK), mix((seed + 2 * GOLDEN_RATIO) & MASK)
    assert lb.Key(seed).words == (k0, k1)
    for part in parts:
        digest = (
            hashlib.blake2b(part.encode(), digest_size=16, person=b"lowbit.label.v1").digest()
            if isinstance(part, str)
            else b""
        )
        words = [int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")] if digest else [part]
        for word in words:
            k0 = mix((k0 + GOLDEN_RATIO * (int(word) + 1)) & MASK)
            k1 = mix(k1 ^ k0)
    assert lb.Key(seed).fold(*parts).words == (k0, k1)
    assert reference.fold(reference.key_words(seed), *parts) == (k0, k1)


def test_keys_of_bytes() -> None:
    digest = hashlib.blake2b(b"secret", digest_size=16, person=b"lowbit.key.v1").digest()
    words = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
    assert lb.Key(b"secret").words == lb.Key(bytearray(b"secret")).words == words


def test_keys_are_values() -> None:
    key = lb.Key(1).fold("a", 2)
    assert key == lb.Key(1).fold("a").fold(2) == lb.Key.from_words(*key.words)
    assert key != lb.Key(1).fold(2, "a")
    assert len({key, lb.Key(1).fold("a", 2), lb.Key(1)}) == 2
    for twin in (pickle.loads(pickle.dumps(key)), copy.copy(key), copy.deepcopy(key), eval(repr(key), {"Key": lb.Key})):
        assert twin == key
    with pytest.raises(AttributeError):
        key.words = (1, 2)
    assert key.fold() == key


def test_bad_keys() -> None:
    for bad in (True, np.True_, 1.5, "seed", None):
        with pytest.raises(TypeError):
            lb.Key(bad)
        if not isinstance(bad, str):
            with pytest.raises(TypeError):
                lb.Key(1).fold(bad)
    for bad in (-1, 2**64):
        with pytest.raises(lb.Error):
            lb.Key(bad)
        with pytest.raises(lb.Error):
            lb.Key(1).fold(bad)
    for bad in (-1, 2**64):
        with pytest.raises(lb.Error, match="start"):
            lb.random_bits(1, 1, start=bad)
    with pytest.raises(lb.Error, match="n"):
        lb.random_bits(1, -1)


def test_labels_that_utf8_cannot_hold() -> None:
    with pytest.raises(lb.Error, match=r"^fold: .*'\\ud800'"):
        lb.Key(1).fold("step", "\ud800")


def test_more_words_than_there_is_memory() -> None:
    with pytest.raises(MemoryError, match=str(2**50)):
        lb.random_bits(1, 2**50)
    for n in (2**61, 2**62, 2**63, 2**64 - 1):
        with pytest.raises(lb.Error, match=f"^n: {n} words"):
            lb.random_bits(1, n)


def test_the_stream_ends_at_two_to_the_64() -> None:
    key = lb.Key(3)
    want = np.array([element(*key.words, MASK - 6 + i) for i in range(7)], np.uint32)
    assert_same(lb.random_bits(key, 7, start=MASK - 6), want)
    assert lb.random_bits(key, 0, start=MASK).size == 0
    for n, start in ((8, MASK - 6), (2, MASK), (100_000, MASK - 50_000)):
        with pytest.raises(lb.Error, match=f"^start: .* give at most {MASK + 1 - n}$"):
            lb.random_bits(key, n, start=start)


def test_words_look_uniform_and_keys_unrelated() -> None:
    n = 1 << 18
    streams = [lb.random_bits(key, n) for key in (lb.Key(1), lb.Key(2), lb.Key(1).fold(0), lb.Key(1).fold("rounding"))]
    for i, words in enumerate(streams):
        ones = np.unpackbits(words.view(np.uint8)).mean()
        assert abs(ones - 0.5) < 5 * 0.5 / math.sqrt(32 * n)
        for other in streams[:i]:
            same = (words >> np.uint32(31) == other >> np.uint32(31)).mean()
            assert abs(same - 0.5) < 5 * 0.5 / math.sqrt(n)


def test_golden_words() -> None:
    golden = json.loads((GOLDEN / "stream-v1.json").read_text())
    assert _core.STREAM_VERSION == golden["version"] == 1
    for case in golden["cases"]:
        key = lb.Key(bytes.fromhex(case["seed"]) if isinstance(case["seed"], str) else case["seed"]).fold(*case["fold"])
        assert [f"{word:016x}" for word in key.words] == case["words"]
        for start, words in case["elements"].items():
            assert [f"{word:08x}" for word in lb.random_bits(key, len(words), start=int(start))] == words
