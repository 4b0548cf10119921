"""Messages: tensors as bytes, in a tensor of bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from lowbit import _arguments, _core, _messages
from lowbit._describe import _CODECS
from lowbit.torch import _bridge, _keys
from lowbit.torch._options import check_floats

if TYPE_CHECKING:
    from lowbit._codec import Codec
    from lowbit.torch._keys import KeyLike


def encode(x: Tensor, codec: Codec, *, key: KeyLike | None = None, sender: SupportsIndex = 0) -> Tensor:
    """Write a tensor as one message.

    Parameters
    ----------
    x : torch.Tensor
        Any shape and layout; float32, bfloat16, float16 or float64 (rounded to float32).
    codec : Codec
        How: ``lb.Eden(1)``, ``lb.QuicFl(2)``, ``lb.Sign()``, ...
    key : Key, int, torch.Tensor or torch.Generator, optional
        This round's key, the same for all senders and for the receiver. Where the receiver needs none (`TernGrad`,
        `Qsgd`, stochastic `Packed`, ``OneBit("randomized")``) a generator will do, and torch's own is the default.
    sender : int, optional
        Who sends, 0 to 2**64 - 1: senders who share a key need different numbers.

    Returns
    -------
    torch.Tensor
        uint8, one dimension, on x's device: the bytes that `lowbit.encode` gives.

    Raises
    ------
    TypeError
        `codec` is no codec, `x` has no float dtype, `key` is not a key.
    lowbit.Error
        A key is missing, or a number does not fit the codec's interval.

    Notes
    -----
    A tensor that is not on a CPU is copied to one. In graphs the length of the message is known unless it depends on
    the numbers (`QuicFl`, and `Eden` entropy-coded).

    Examples
    --------
    >>> import lowbit as lb, torch
    >>> from lowbit.torch import ops
    >>> x = torch.linspace(-1, 1, 10_000)
    >>> message = ops.encode(x, lb.Eden(1), key=lb.Key(1234).fold("round", 7))
    >>> message.dtype, len(message)
    (torch.uint8, 1392)
    >>> ops.decode(message, key=lb.Key(1234).fold("round", 7)).shape
    torch.Size([10000])
    """
    check_floats(x)
    _messages.check_codec(codec)
    known = None
    if codec._noise != "nothing":
        private = codec._noise == "private"
        known = _keys.draw() if private and key is None else _keys.of(key, private=private)
        if known is None:
            _messages._words(None, codec)
    kind, parameters = _wire(codec)
    message: Tensor = _encode(x.detach(), kind, parameters, known, _keys.signed(_arguments.sender(sender)))
    return message


def decode(message: Tensor, *, key: KeyLike | None = None, shape: Sequence[int] | None = None) -> Tensor:
    """Read a message of one tensor (or array).

    Parameters
    ----------
    message : torch.Tensor
        uint8, one dimension: what `encode` returned.
    key : Key, int or torch.Tensor, optional
        The key it was encoded with. Codecs whose receiver needs none ignore it.
    shape : sequence of int, optional
        The shape that the message must have; a graph (``torch.compile``) needs it. Without it a message of more than
        2**30 numbers is refused.

    Returns
    -------
    torch.Tensor
        float32, the shape of what was encoded, on the message's device.

    Raises
    ------
    TypeError
        `message` is not a tensor of bytes, or `key` is not a key.
    lowbit.DecodeError
        The bytes are damaged, truncated, made with another key, of another shape, or hold a mapping of arrays.
    lowbit.Error
        The message needs a key and there is none.

    Examples
    --------
    >>> import lowbit as lb, torch
    >>> from lowbit.torch import ops
    >>> ops.decode(ops.encode(torch.tensor([[1.0, -3.0]]), lb.Sign()))
    tensor([[ 2., -2.]])
    """
    if not isinstance(message, Tensor):
        raise TypeError(f"message: expected a torch.Tensor, got {type(message).__name__}")
    if message.dtype is not torch.uint8 or message.ndim != 1:
        raise TypeError(f"message: expected one dimension of uint8, got {message.ndim} of {message.dtype}")
    y: Tensor = _decode(message, _keys.of(key, private=False), None if shape is None else list(shape))
    return y


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _wire(codec: Codec) -> tuple[int, list[int]]:
    """Give a codec as an operator takes it."""
    kind, parameters = codec._wire()
    return kind, list(parameters)


@torch.library.custom_op("lowbit::encode", mutates_args=())
def _encode(x: Tensor, kind: int, parameters: Sequence[int], key: Tensor | None, sender: int) -> Tensor:
    words = None if key is None else _keys.words(key)
    array = [(None, _bridge.array(x.cpu()), False)]
    message = _core.message_encode((kind, bytes(parameters)), array, False, words, sender % (1 << 64))
    return torch.frombuffer(bytearray(message), dtype=torch.uint8).to(x.device)


@_encode.register_fake
def _(x: Tensor, kind: int, parameters: Sequence[int], key: Tensor | None, sender: int) -> Tensor:
    codec, n = _CODECS[kind]._read(bytes(parameters)), x.numel()
    if isinstance(n, int) and isinstance(codec._payload(max(n, 1)), int):
        # As long as that of any other numbers: of one that lies in the codec's interval, everywhere.
        zeros = np.broadcast_to(np.float32(getattr(codec, "low", None) or 0.0), tuple(x.shape))
        words = None if key is None else (0, 0)
        message = _core.message_encode(codec._wire(), [(None, zeros, False)], False, words, 0)
        return x.new_empty(len(message), dtype=torch.uint8)
    return x.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.uint8)


@torch.library.custom_op("lowbit::decode", mutates_args=())
def _decode(message: Tensor, key: Tensor | None, shape: Sequence[int] | None) -> Tensor:
    words = None if key is None else _keys.words(key)
    most = _messages._MAX_ELEMENTS if shape is None else math.prod(shape)
    mapping, arrays = _core.message_decode(_bridge.array(message.cpu()).tobytes(), words, most, None)
    if mapping:
        raise _core.DecodeError("cannot decode: it is a mapping of arrays; lowbit.decode(message.numpy()) reads it")
    y = _bridge.tensor(arrays[0][1])
    if shape is not None and tuple(shape) != tuple(y.shape):
        raise _core.DecodeError(f"cannot decode: its shape is {tuple(y.shape)}, not {tuple(shape)}")
    return y.to(message.device)


@_decode.register_fake
def _(message: Tensor, key: Tensor | None, shape: Sequence[int] | None) -> Tensor:
    if shape is None:
        raise _core.Error("shape: a graph needs it before there is a message; give decode(..., shape=...)")
    return message.new_empty(shape, dtype=torch.float32)
