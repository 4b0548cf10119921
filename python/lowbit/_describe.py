"""What a message's header says, without the key."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from lowbit import _codecs, _core, _packed, _rotating, _summable
from lowbit._codec import Codec
from lowbit._messages import Message, data_of

_CODECS: dict[int, type[Codec]] = {
    codec._id: codec
    for codec in (
        _codecs.Float32,
        _packed.Packed,
        _codecs.Dither,
        _codecs.OneBit,
        _codecs.Sign,
        _codecs.TernGrad,
        _codecs.Qsgd,
        _rotating.Eden,
        _rotating.DrivePlus,
        _rotating.QuicFl,
        _summable.Summable,
    )
}
_QUANTIZED, _MESSAGE = 1, 2
#: Flags of kind 1 and of kind 2 (docs/wire.md).
_DITHERED = 2
_NOT_FINITE, _MAPPING = 1, 2


class ArrayInfo(NamedTuple):
    """One array of a mapping."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    exact: bool


@dataclass(frozen=True, slots=True)
class Description:
    """What a message's header says; printed, a small table.

    Attributes
    ----------
    kind : str
        ``"message"``, or ``"quantized"`` for what `Quantized.to_bytes` wrote.
    version : tuple of int
        Major and minor version of the container.
    codec : Codec or Format
        How the numbers are written.
    shape : tuple of int
        Of the array; of a mapping, the number of elements of all arrays together.
    arrays : tuple of ArrayInfo or None
        Of a mapping: name, shape, dtype and whether it travels exactly, for each array.
    finite : bool
        Whether all numbers that were encoded were finite.
    key_id : bytes or None
        Eight bytes that tell the key from others; None where decoding needs no key.
    sender : int
        Who sent it.
    nbytes : int
        The length of the message.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> lb.describe(lb.encode(np.ones(1000), lb.Dither(2), key=7)).bits_per_element
    2.944
    """

    kind: str
    version: tuple[int, int]
    codec: Codec | _core.Format
    shape: tuple[int, ...]
    arrays: tuple[ArrayInfo, ...] | None
    finite: bool
    key_id: bytes | None
    sender: int
    nbytes: int

    @property
    def bits_per_element(self) -> float:
        """Bits of the whole message for each number; infinite if there is none."""
        size = math.prod(self.shape)
        return 8 * self.nbytes / size if size else math.inf

    def __str__(self) -> str:
        codec = self.codec if isinstance(self.codec, Codec) else self.codec.name
        rows = {
            "kind": f"{self.kind}, container version {self.version[0]}.{self.version[1]}",
            "codec": str(codec),
            "shape": str(self.shape),
            "finite": "yes" if self.finite else "no",
            "key id": "none needed" if self.key_id is None else self.key_id.hex(),
            "sender": str(self.sender),
            "size": f"{self.nbytes} bytes, {self.bits_per_element:.4g} bits per element",
        }
        lines = [f"{name:7} {value}" for name, value in rows.items()]
        if self.arrays is not None:
            # Names are a stranger's: what is not plain text is shown escaped.
            names = [array.name if array.name.isprintable() else repr(array.name) for array in self.arrays]
            width = max(map(len, names), default=0)
            lines += [
                f"  {name:{width}}  {array.dtype} {array.shape}, {'exact' if array.exact else 'coded'}"
                for name, array in zip(names, self.arrays, strict=True)
            ]
        return "\n".join(lines)


def describe(message: Message) -> Description:
    """Tell what a message's header says; no key is needed and nothing is decoded.

    Parameters
    ----------
    message : bytes
        What `encode` or `Quantized.to_bytes` returned.

    Returns
    -------
    Description

    Raises
    ------
    TypeError
        `message` is not bytes.
    lowbit.DecodeError
        The bytes are damaged, truncated or of an unknown version.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> update = {"w": np.zeros((64, 64), np.float32), "b": np.zeros(64, np.float32)}
    >>> print(lb.describe(lb.encode(update, lb.Eden(1), key=lb.Key(7), sender=3)))
    kind    message, container version 1.0
    codec   Eden(bits=1.0, scale='unbiased', rounds=2, entropy_coded=False)
    shape   (4160,)
    finite  yes
    key id  46c76b559c846b73
    sender  3
    size    944 bytes, 1.815 bits per element
      w  float32 (64, 64), coded
      b  float32 (64,), exact
    """
    data = data_of(message, "message")
    kind, version, codec_id, parameters, flags, shape, key_id, sender, arrays = _core.message_describe(data)
    codec: Codec | _core.Format
    if kind == _QUANTIZED:
        codec = _core.get_format(parameters.decode())
        keyed, finite, mapping = bool(flags & _DITHERED), True, False
    else:
        codec = _CODECS[codec_id]._read(parameters)
        keyed, finite, mapping = codec._noise == "shared", not flags & _NOT_FINITE, bool(flags & _MAPPING)
    return Description(
        kind="quantized" if kind == _QUANTIZED else "message",
        version=version,
        codec=codec,
        shape=tuple(shape),
        arrays=tuple(ArrayInfo(name, tuple(dims), dtype, exact) for name, dims, dtype, exact in arrays)
        if mapping
        else None,
        finite=finite,
        key_id=key_id.to_bytes(8, "little") if keyed else None,
        sender=sender,
        nbytes=len(data),
    )
