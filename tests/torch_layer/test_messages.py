"""Messages of tensors are NumPy's messages."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

import lowbit as lb
from lowbit.torch import _bridge, ops
from message_support import CODECS, KEY
from torch_layer.torch_support import assert_same, numbers, to_numpy


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_the_bytes_are_numpys(codec: Any) -> None:
    x = numbers((7, 30)).clamp(-4, 4)
    for dtype in _bridge.FLOATS:
        message = ops.encode(x.to(dtype), codec, key=KEY, sender=2**64 - 1)
        want = lb.encode(to_numpy(x.to(dtype)), codec, key=KEY, sender=2**64 - 1)
        assert message.numpy().tobytes() == want
        decoded = torch.from_numpy(lb.decode(want, key=KEY))
        assert_same(ops.decode(message, key=KEY), decoded)
        assert_same(ops.decode(message, key=KEY, shape=(7, 30)), decoded)


def test_layouts_and_gradients() -> None:
    x = numbers((2, 3, 4, 5), requires_grad=True)
    want = ops.encode(x, lb.Eden(2), key=1)
    assert torch.equal(ops.encode(x.to(memory_format=torch.channels_last), lb.Eden(2), key=1), want)
    assert not want.requires_grad
    assert not ops.decode(want, key=1).requires_grad
    assert ops.decode(ops.encode(torch.ones(()), lb.Sign())).shape == ()
    assert ops.decode(ops.encode(torch.ones(0, 3), lb.Eden(1), key=1), key=1).shape == (0, 3)


def test_a_coin_of_ones_own_is_drawn_from_torch() -> None:
    x = numbers((500,))
    messages = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        messages.append(ops.encode(x, lb.TernGrad()))
    assert torch.equal(messages[0], messages[1])
    assert not torch.equal(messages[0], messages[2])
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(ops.encode(x, lb.TernGrad(), key=generator), messages[0])
    before = torch.get_rng_state()
    ops.encode(x, lb.Sign())
    ops.encode(x, lb.Eden(1), key=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_wrong_arguments() -> None:
    x = numbers((20,))
    wrong: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
        ((x, lb.Eden(1)), {}, lb.Error, "draws random words and needs a key"),
        ((x, lb.Eden), {"key": 1}, TypeError, "codec: expected a codec such as lowbit.Eden(1), got the class Eden"),
        ((x, lb.Eden(1)), {"key": torch.Generator()}, TypeError, "key: a Generator serves only noise"),
        ((x, lb.Sign()), {"sender": -1}, lb.Error, "sender: -1 is out of range"),
        ((x.long(), lb.Sign()), {}, TypeError, "x: dtype torch.int64"),
        (({"w": x}, lb.Sign()), {}, TypeError, "x: expected a torch.Tensor, got dict"),
        ((x, lb.OneBit("randomized", 0.0, 0.1)), {}, lb.Error, "outside [low, high]"),
    ]
    for arguments, options, error, says in wrong:
        with pytest.raises(error, match=re.escape(says)):
            ops.encode(*arguments, **options)
    message = ops.encode(x, lb.Eden(1), key=1)
    mapping = lb.encode({"w": np.ones(2000, np.float32)}, lb.Sign())
    broken = message.clone()
    broken[40] ^= 1
    for given, options, error, says in [
        (message, {}, lb.Error, "key"),
        (message, {"key": 2}, lb.DecodeError, "key"),
        (message, {"key": 1, "shape": (4, 5)}, lb.DecodeError, "its shape is (20,), not (4, 5)"),
        (message, {"key": 1, "shape": (19,)}, lb.DecodeError, "cannot decode"),
        (message[:-1], {"key": 1}, lb.DecodeError, "cannot decode"),
        (broken, {"key": 1}, lb.DecodeError, "cannot decode"),
        (torch.frombuffer(bytearray(mapping), dtype=torch.uint8), {}, lb.DecodeError, "mapping of arrays"),
        (message.float(), {"key": 1}, TypeError, "message: expected one dimension of uint8, got 1 of torch.float32"),
        (b"abc", {}, TypeError, "message: expected a torch.Tensor, got bytes"),
    ]:
        with pytest.raises(error, match=re.escape(says)):
            ops.decode(given, **options)
