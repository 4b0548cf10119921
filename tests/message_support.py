"""What the tests of messages share: codecs, their twins in the reference, and vectors that each can send."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

import numpy as np

import lowbit as lb
from lowbit import reference
from lowbit.reference import container
from support import normal

KEY = lb.Key(1234).fold("messages")

CODECS: list[Any] = [
    lb.Float32(),
    lb.Packed("int4"),
    lb.Packed("radix4", block_size=5),
    lb.Packed("int4", block_size=64, rounding="stochastic"),
    lb.Packed("radix4_odd", rounding="stochastic"),
    lb.Packed("ternary"),
    lb.Packed("nf4", rounding="stochastic"),
    lb.Packed("fp8_e4m3fn"),
    lb.Packed("fixed(12,6,symmetric)", rounding="stochastic"),
    lb.Packed("bfp(8)", block_size=16),
    lb.Packed("mxfp4"),
    lb.Packed("nvfp4", rounding="stochastic"),
    lb.Dither(1),
    lb.Dither(3),
    lb.Dither(8),
    lb.Dither(4, -8.0, 8.5),
    lb.OneBit("deterministic", -8.0, 8.0),
    lb.OneBit("randomized", -8.0, 8.0),
    lb.OneBit("dither", -8.0, 8.0),
    lb.OneBit("optimal_biased", -8.0, 8.0, shared_bits=3),
    lb.OneBit("optimal_unbiased", -8.0, 8.0, shared_bits=0),
    lb.OneBit("optimal_unbiased", -8.0, 8.0),
    lb.Sign(),
    lb.Sign("l2"),
    lb.TernGrad(),
    lb.Qsgd(1),
    lb.Qsgd(2),
    lb.Qsgd(7),
    lb.Qsgd(32767),
    lb.Drive(),
    lb.Eden(1, "min_error", rounds=1),
    lb.Eden(0.05),
    lb.Eden(0.5, "min_error"),
    lb.Eden(0.9, "norm", rounds=3),
    lb.Eden(1.5),
    lb.Eden(2, "norm"),
    lb.Eden(2.718),
    lb.Eden(4),
    lb.Eden(7.25, "min_error", rounds=8),
    lb.Eden(8),
    lb.Eden(0.05, entropy_coded=True),
    lb.Eden(0.5, "min_error", entropy_coded=True),
    lb.Eden(1, entropy_coded=True),
    lb.Eden(3.3, "norm", entropy_coded=True, rounds=1),
    lb.Eden(8, entropy_coded=True),
    lb.DrivePlus(),
    lb.DrivePlus(rounds=1),
    lb.QuicFl(1),
    lb.QuicFl(2, rounds=3),
    lb.QuicFl(3),
    lb.QuicFl(4),
    lb.Summable(1),
    lb.Summable(4),
    lb.Summable(8, rounds=1),
]
"""Every codec, most with several parameters."""

SMALL = [
    lb.Float32(),
    lb.Packed("int4", block_size=4, rounding="stochastic"),
    lb.Packed("nvfp4"),
    lb.Dither(3),
    lb.Dither(2, -8.0, 8.0),
    lb.OneBit("dither", -8.0, 8.0),
    lb.Sign(),
    lb.TernGrad(),
    lb.Qsgd(5),
    lb.Drive(),
    lb.Eden(1.5),
    lb.Eden(2, entropy_coded=True),
    lb.DrivePlus(),
    lb.QuicFl(2),
    lb.Summable(2),
]
"""Every codec once, with what makes its payload interesting."""

FOR_NUMBERS_IN_A_RANGE = {
    lb.Dither(4, -8.0, 8.5),
    lb.Dither(2, -8.0, 8.0),
    *(codec for codec in CODECS if isinstance(codec, lb.OneBit)),
}
ROTATING = (lb.Eden, lb.DrivePlus, lb.QuicFl, lb.Summable)
SHARED_ROTATION = (lb.QuicFl, lb.Summable)
LENGTHS = [0, 1, 2, 3, 7, 127, 128, 129, 1000, 4097]


def twin(codec: Any) -> Any:
    """The reference's record of the same name and fields."""
    fields = {field.name: getattr(codec, field.name) for field in dataclasses.fields(codec)}
    if isinstance(codec, lb.Packed):
        fields["format"] = getattr(codec.format, "name", codec.format)
    return getattr(reference, type(codec).__name__)(**fields)


def fits(codec: Any, x: np.ndarray) -> np.ndarray:
    """`x`, clipped where the codec sends numbers of an interval only; what is not finite stays."""
    return np.clip(x, -8.0, 8.0).astype(x.dtype) if codec in FOR_NUMBERS_IN_A_RANGE else x


def vectors(n: int) -> dict[str, np.ndarray]:
    """Vectors of n numbers that are hard in different ways, all finite."""
    x = normal(n)
    spike = np.zeros(n, np.float32)
    spike[n // 3 :][:1] = -2.5
    return {
        "normal": x,
        "zeros": np.zeros(n, np.float32),
        "negative zeros": np.full(n, -0.0, np.float32),
        "constant": np.full(n, 0.3, np.float32),
        "one spike": spike,
        "heavy tails": np.exp(2 * x).astype(np.float32),
        "ties": np.resize(np.array([1, 1, 0, 0, -1, 0], np.float32), n),
        "subnormal": (x * np.float32(2.0**-140)).astype(np.float32),
        "smallest": np.where(np.arange(n) == n // 2, np.float32(2.0**-149), np.float32(0)),
        "tiny": (x * np.float32(2.0**-120)).astype(np.float32),
        "large": (x * np.float32(2.0**110)).astype(np.float32),
        "mixed": np.ldexp(x, np.arange(n) * 37 % 200 - 120).astype(np.float32),
    }


def same_floats(got: Any, want: Any) -> bool:
    """Same bits, but any NaN for any NaN."""
    got, want = np.asarray(got), np.asarray(want)
    nan = np.isnan(want)
    unsigned = f"u{want.dtype.itemsize}"
    return (
        got.dtype == want.dtype
        and got.shape == want.shape
        and bool((np.isnan(got) == nan).all())
        and bool((np.where(nan, 0, got).view(unsigned) == np.where(nan, 0, want).view(unsigned)).all())
    )


def header_length(message: bytes) -> int:
    """Where the payload begins (``docs/wire.md``)."""
    return int(struct.unpack_from("<I", message, 56)[0])


def sealed(message: bytes | bytearray) -> bytes:
    """The same bytes with both checksums put right."""
    data, header = bytearray(message), header_length(bytes(message))
    for start, end in ((0, header), (header, len(data))):
        data[end - 4 : end] = container.crc32c(bytes(data[start : end - 4])).to_bytes(4, "little")
    return bytes(data)
