"""Keys as tensors: the words, folds and streams of `lowbit.Key`."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

import lowbit as lb
from lowbit.torch import _keys

KEYS = [lb.Key(0), lb.Key(1234).fold("step", 7), lb.Key.from_words(0, 0), lb.Key.from_words(2**64 - 1, 2**63)]
#: Steps whose bits change in 23 and in 24 places: the last that is turned, and the first that is not.
EDGES = [lb.Key.from_words(5, int("10" * bits, 2) << 1 | 1) for bits in (11, 12, 13)]


@pytest.mark.parametrize("key", KEYS + EDGES)
def test_words_folds_and_streams_are_those_of_a_key(key: lb.Key) -> None:
    tensor = _keys.of(key, private=False)
    assert tensor.dtype is torch.int64
    assert _keys.words(tensor) == key.words
    for parts in [(0,), (2**64 - 1,), ("rounding",), ("a", 3, "b")]:
        assert _keys.words(_keys.fold(tensor, *parts)) == key.fold(*parts).words
        assert _keys.words(_keys.folded(tensor, *parts)) == key.fold(*parts).words
    for n in (0, 1, 2, 7, 1000):
        assert np.array_equal(_keys.random_bits(tensor, n).numpy(), lb.random_bits(key, n))
    q = lb.quantize(np.ones(3, np.float32), "int4", rounding="dither", key=key)
    assert int(_keys.identity(tensor)).to_bytes(8, "little", signed=True) == q.key_id


def test_an_int_is_a_seed_and_a_tensor_is_its_words() -> None:
    assert _keys.words(_keys.of(7, private=False)) == lb.Key(7).words
    words = torch.tensor([1, -1])
    assert _keys.of(words, private=False) is words
    assert _keys.words(words) == (1, 2**64 - 1)


def test_generators_are_drawn_from() -> None:
    torch.manual_seed(3)
    want = torch.randint(-(2**63), 2**63 - 1, (2,))
    torch.manual_seed(3)
    assert torch.equal(_keys.draw(), want)
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(_keys.of(generator, private=True), want)
    assert not torch.equal(_keys.of(generator, private=True), want)


def test_folds_are_operations_where_tensors_have_no_numbers() -> None:
    with FakeTensorMode():
        assert _keys.fold(torch.zeros(2, dtype=torch.int64), "rounding").shape == (2,)
    assert _keys.fold(torch.zeros(2, dtype=torch.int64, device="meta"), 1).shape == (2,)


@pytest.mark.parametrize(
    ("key", "private", "error", "says"),
    [
        ("seed", True, TypeError, "key: expected a lowbit.Key or an int, got str"),
        (True, True, TypeError, "key: expected an int, got a bool"),
        (1.5, True, TypeError, "key: expected an int, got float"),
        (-1, True, lb.Error, "key: -1 is out of range"),
        (torch.zeros(3, dtype=torch.int64), True, TypeError, "key: expected an int64 tensor of shape (2,)"),
        (torch.zeros(2), True, TypeError, "its words, got torch.float32"),
        (torch.Generator(), False, TypeError, "a Generator serves only noise that nobody else must know"),
    ],
)
def test_what_is_no_key_is_named(key: object, private: bool, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=re.escape(says)):
        _keys.of(key, private=private)
