"""Layouts of other tools: bytes by hand, round trips, and what cannot be said. tests/peers has the real packages."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import lowbit as lb
from lowbit import interop
from support import KEY, assert_same, normal
from test_errors import refused

X = normal(6 * 128).reshape(2, 3, 128)
LAYOUTS: list[dict[str, Any]] = [
    {},
    {"axis": 0},
    {"axis": 2},
    {"block_size": 32},
    {"block_size": 50},
    {"axis": 1, "block_size": 2},
]


def same_parts(got: Any, want: Any) -> None:
    """Equal field by field, arrays to the bit."""
    assert got._fields == want._fields
    for field, a, b in zip(got._fields, got, want, strict=True):
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype, field
            np.testing.assert_array_equal(a, b, err_msg=field, strict=True)
        else:
            assert a == b, field


# ONNX


@pytest.mark.parametrize("options", LAYOUTS, ids=str)
@pytest.mark.parametrize("small", ["int4", "uint4", "int8", "uint8", "int2", "uint2"])
def test_onnx_round_trip(small: str, options: dict[str, Any]) -> None:
    q = lb.quantize(X, small, **options)
    parts = interop.to_onnx(q)
    assert interop.from_onnx(*parts) == q
    same_parts(interop.to_onnx(interop.from_onnx(*parts)), parts)


@pytest.mark.parametrize("options", LAYOUTS, ids=str)
@pytest.mark.parametrize("small", ["int4", "uint4"])
def test_onnx_zero_points(small: str, options: dict[str, Any]) -> None:
    scale = lb.quantize(X, small, **options).scale
    steps = np.random.default_rng(1).integers(0, 16, scale.shape)
    q = lb.quantize(X, small, **{**options, "scale": scale, "offset": (-steps * scale).astype(np.float32)})
    parts = interop.to_onnx(q)
    lowest = -8 if small == "int4" else 0
    assert parts.zero_point is not None
    assert parts.zero_point.dtype == (np.int8 if small == "int4" else np.uint8)
    np.testing.assert_array_equal(parts.zero_point.reshape(scale.shape), steps + lowest)
    assert interop.from_onnx(*parts) == q


def test_onnx_bytes() -> None:
    q = lb.quantize(np.float32([1, -2, 7, -8, 3]), "int4", scale=1.0)
    parts = interop.to_onnx(q)
    assert list(parts.packed) == [0xE1, 0x87, 0x03]
    same_parts(parts, interop.OnnxTensor(q.packed, np.float32(1).reshape(()), None, "int4", (5,), None, None))


def test_onnx_symmetric_formats_are_the_full_ones() -> None:
    q = lb.quantize(X, "int4_symmetric", axis=1)
    back = interop.from_onnx(*interop.to_onnx(q))
    assert back.format.name == "int4"
    assert_same(np.asarray(back), np.asarray(q))


def test_onnx_takes_the_dtypes_it_has() -> None:
    packed = np.uint8([0x21, 0x43])
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32):
        q = interop.from_onnx(packed, np.asarray([0.5, 2], dtype), None, "uint4", (2, 2), 0)
        assert_same(np.asarray(q), np.float32([[0.5, 1], [6, 8]]))
    for zero in (np.int8(1), np.asarray(1, ml_dtypes.uint4), 1):
        q = interop.from_onnx(packed, 0.5, zero, "uint4", (4,), block_size=0)
        assert_same(np.asarray(q), np.float32([0, 0.5, 1, 1.5]))


def test_onnx_scales_of_one_number() -> None:
    """Along an axis of length 1, or said with an axis that means nothing."""
    q = lb.quantize(normal(5).reshape(1, 5), "int4", axis=0)
    assert interop.from_onnx(*interop.to_onnx(q)) == q
    assert interop.to_onnx(q).scale.shape == (1,)
    packed = np.uint8([0x21])
    for scale, axis in [(0.5, 1), ([0.5], None), ([0.5], 0)]:
        assert_same(np.asarray(interop.from_onnx(packed, scale, None, "int4", (2,), axis)), np.float32([0.5, 1]))


def test_onnx_errors() -> None:
    to = interop.to_onnx
    refused(TypeError, "q", to, X)
    assert "int4" in refused(lb.Error, "radix4", to, lb.quantize(X, "radix4"))
    refused(lb.Error, "dither", to, lb.quantize(X, "int4", rounding="dither", key=KEY))
    refused(lb.Error, "offset", to, lb.quantize(X, "uint4", scale="minmax"))
    refused(lb.Error, "zero", to, lb.quantize(X, "uint4", scale=1.0, offset=1.0))
    refused(lb.Error, "several", to, lb.quantize(X, "int4", scale=np.ones((2, 3, 1))))
    packed = np.zeros(3, np.uint8)
    read = interop.from_onnx
    refused(lb.Error, "dtype", read, packed, 1.0, None, "int3", (6,))
    refused(TypeError, "shape", read, packed, 1.0, None, "int4", None)
    refused(TypeError, "shape", read, packed, 1.0, None, "int4", (2.5,))
    refused(TypeError, "packed", read, packed.astype(np.int8), 1.0, None, "int4", (6,))
    refused(lb.Error, "packed", read, packed, 1.0, None, "int4", (8,))
    refused(lb.Error, "axis", read, packed, [1.0, 2.0], None, "int4", (2, 3))
    refused(lb.Error, "axis", read, packed, [1.0, 2.0], None, "int4", (2, 3), 2)
    refused(lb.Error, "scale", read, packed, [1.0, 2.0], None, "int4", (2, 3), 1)
    refused(lb.Error, "scale", read, packed, 0.0, None, "int4", (6,))
    refused(lb.Error, "zero_point", read, packed, 1.0, 8, "int4", (6,))
    refused(lb.Error, "zero_point", read, packed, 1.0, [1, 2], "int4", (6,))
    refused(
        lb.Error,
        "zero_point",
        read,
        packed,
        np.ones((2, 3)),
        np.zeros((3, 2), int),
        "int4",
        (2, 3),
        axis=1,
        block_size=1,
    )
    refused(TypeError, "zero_point", read, packed, 1.0, 0.5, "int4", (6,))


# GGUF


KINDS: tuple[interop.GgufType, ...] = ("Q4_0", "Q4_1", "MXFP4")


def test_gguf_bytes() -> None:
    """One block each, by hand: the extreme is element 17, which is the high half of byte 1."""
    x = np.zeros((1, 32), np.float32)
    x[0, 1], x[0, 17] = 1, -4
    # d = -4 / -8 = 0.5: codes 8 for 0, 10 for 1, 0 for -4.
    assert interop.to_gguf(x, "Q4_0").tobytes() == b"\x00\x38" + b"\x88\x0a" + b"\x88" * 14
    # d = 5 / 15, m = -4: (0 + 4) * 3 = 12, (1 + 4) * 3 = 15, 0.
    third = np.float16(np.float32(5) / np.float32(15)).tobytes()
    assert interop.to_gguf(x, "Q4_1").tobytes() == third + np.float16(-4).tobytes() + b"\xcc\x0f" + b"\xcc" * 14
    # 2**(2 - 2) is code 127; 1 is E2M1's code 2 and -4 its code 14.
    assert interop.to_gguf(x, "MXFP4").tobytes() == b"\x7f" + b"\x00\xe2" + b"\x00" * 14


def test_gguf_blocks_of_zeros() -> None:
    x = np.zeros((2, 32), np.float32)
    x[1] = -0.0
    for kind, head in (("Q4_0", b"\x00\x80"), ("MXFP4", b"\x00")):
        blocks = interop.to_gguf(x, kind)
        assert blocks[0].tobytes() == head + (b"\x88" if kind == "Q4_0" else b"\x00") * 16
        np.testing.assert_array_equal(blocks[0], blocks[1])
        q = interop.from_gguf(blocks, kind)
        assert not np.asarray(q).any()
        np.testing.assert_array_equal(interop.to_gguf(q, kind), blocks)
    constant = interop.to_gguf(np.full(32, 0.5, np.float32), "Q4_1")
    assert constant.tobytes() == b"\x00\x00\x00\x38" + b"\x00" * 16
    q = interop.from_gguf(constant, "Q4_1")
    assert (q.scale[0], q.offset) == (1, np.float32([0.5]))
    np.testing.assert_array_equal(interop.to_gguf(q, "Q4_1"), constant)


@pytest.mark.parametrize("kind", KINDS)
def test_gguf_round_trip(kind: interop.GgufType) -> None:
    """Every dtype; shapes; bytes from numbers from bytes."""
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
        for shape in [(32,), (0,), (2, 64), (3, 0, 32), (2, 3, 128)]:
            x = normal(int(np.prod(shape))).reshape(shape).astype(dtype)
            blocks = interop.to_gguf(x, kind)
            q = interop.from_gguf(blocks, kind)
            assert (q.shape, q.block_size, q.axis) == (shape, 32, len(shape) - 1)
            np.testing.assert_array_equal(interop.to_gguf(q, kind), blocks, strict=True)


def test_gguf_negative_scales() -> None:
    """The sign of d is that of no scale of lowbit: codes are turned round, and turned back."""
    x = normal(64 * 32).reshape(64, 32)
    blocks = interop.to_gguf(x, "Q4_0")
    d = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    assert (d < 0).any()
    assert (d > 0).any()
    q = interop.from_gguf(blocks, "Q4_0")
    codes = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
    assert_same(np.asarray(q) + np.float32(0), (codes - np.float32(8)) * d + np.float32(0))


def test_gguf_of_lowbits_own_codes() -> None:
    """What lowbit quantized with float16 scales has the same numbers there."""
    scale = np.exp2(np.random.default_rng(0).integers(-9, 9, (2, 3, 4))).astype(np.float32)
    for name, offset, kind in itertools.product(["int4", "int4_symmetric", "uint4"], [None, -2.0], ["Q4_0", "Q4_1"]):
        given = {} if offset is None else {"offset": offset * scale}
        q = lb.quantize(X * 9, name, scale=scale, block_size=32, **given)
        if kind == "Q4_0" and (offset is not None or name == "uint4"):
            refused(lb.Error, "Q4_1", interop.to_gguf, q, kind)
            continue
        assert_same(np.asarray(interop.from_gguf(interop.to_gguf(q, kind), kind)), np.asarray(q), f"{name} {offset}")


def test_gguf_mxfp4_of_lowbits_own() -> None:
    q = lb.quantize(X, "mxfp4", scale="rceil")
    blocks = interop.to_gguf(q, "MXFP4")
    assert blocks.shape == (2, 3, 68)
    assert interop.from_gguf(blocks, "MXFP4") == q


def test_gguf_errors() -> None:
    to, read = interop.to_gguf, interop.from_gguf
    assert "Q4_1" in refused(lb.Error, "type", to, X, "Q5_0")
    refused(TypeError, "x", to, np.arange(32), "Q4_0")
    refused(lb.Error, "x", to, np.zeros((2, 33), np.float32), "Q4_0")
    refused(lb.Error, "x", to, np.float32(1), "Q4_0")
    x = np.zeros(32, np.float32)
    for bad in (np.nan, np.inf):
        x[7] = bad
        refused(lb.Error, "7", to, x, "MXFP4")
    for kind in ("Q4_0", "Q4_1"):
        refused(lb.Error, "float16", to, np.linspace(-3e38, 3e38, 32, dtype=np.float32), kind)
    refused(lb.Error, "float16", to, lb.quantize(X, "int4", block_size=32), "Q4_0")
    refused(lb.Error, "blocks", to, lb.quantize(X, "int4", block_size=16), "Q4_0")
    refused(lb.Error, "blocks", to, lb.quantize(X, "int4", axis=1, block_size=32), "Q4_0")
    refused(lb.Error, "blocks", to, lb.quantize(X[..., :40], "int4", block_size=32), "Q4_0")
    refused(lb.Error, "mxfp4", to, lb.quantize(X, "int4", block_size=32), "MXFP4")
    refused(lb.Error, "uint4", to, lb.quantize(X, "mxfp4"), "Q4_1")
    refused(TypeError, "blocks", read, np.zeros(18), "Q4_0")
    refused(lb.Error, "blocks", read, np.zeros(17, np.uint8), "Q4_0")
    refused(lb.Error, "blocks", read, np.uint8(0), "MXFP4")
    refused(lb.Error, "finite", read, np.uint8([0, 0x7C] + [0] * 16), "Q4_0")
    refused(lb.Error, "negative", read, np.uint8([0, 0xBC] + [0] * 18), "Q4_1")
    refused(lb.Error, "255", read, np.uint8([255] + [0] * 16), "MXFP4")


# bitsandbytes


def test_bitsandbytes_bytes() -> None:
    """The first number is in the high half; the padding is the code of zero."""
    q = lb.quantize(np.float32([-2, 0, 2]), "nf4")
    parts = interop.to_bitsandbytes(q)
    same_parts(parts, interop.BitsAndBytesTensor(np.uint8([[0x07], [0xF7]]), np.float32([2]), (3,), 64))
    assert interop.from_bitsandbytes(*parts) == q


@pytest.mark.parametrize(
    ("shape", "size"),
    [((128,), 64), ((2, 3, 128), 64), ((100,), 32), ((99,), 64), ((1, 99), 64), ((0,), 64), ((0, 64), 64)],
)
def test_bitsandbytes_round_trip(shape: tuple[int, ...], size: int) -> None:
    x = normal(int(np.prod(shape))).reshape(shape)
    x.reshape(-1)[:64] = 0
    q = lb.quantize(x, "nf4", block_size=size)
    parts = interop.to_bitsandbytes(q)
    assert interop.from_bitsandbytes(*parts) == q
    same_parts(interop.to_bitsandbytes(interop.from_bitsandbytes(*parts)), parts)
    if x.size >= 64:
        assert parts.absmax[0] == 0


def test_bitsandbytes_errors() -> None:
    to, read = interop.to_bitsandbytes, interop.from_bitsandbytes
    refused(lb.Error, "nf4", to, lb.quantize(X, "int4", block_size=64))
    refused(lb.Error, "axis", to, lb.quantize(X, "nf4", axis=0))
    assert "flatten" in refused(lb.Error, "q", to, lb.quantize(X[..., :100], "nf4"))
    packed = np.zeros((32, 1), np.uint8)
    refused(lb.Error, "shape", read, packed, [1.0], (2, 32))
    refused(lb.Error, "shape", read, packed, [1.0], ())
    refused(lb.Error, "packed", read, packed, [1.0], (63 + 64,))
    refused(lb.Error, "absmax", read, packed, [1.0, 2.0], (64,))
    refused(lb.Error, "absmax", read, packed, [-1.0], (64,))
    refused(lb.Error, "absmax", read, packed, [np.nan], (64,))
    refused(lb.Error, "blocksize", read, packed, [1.0], (64,), 0)
    refused(TypeError, "packed", read, packed.astype(np.int8), [1.0], (64,))


# ml_dtypes


ARRAYS = {
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "int2": ml_dtypes.int2,
    "uint2": ml_dtypes.uint2,
    "int4": ml_dtypes.int4,
    "int4_symmetric": ml_dtypes.int4,
    "uint4": ml_dtypes.uint4,
    "int8": np.int8,
    "uint8": np.uint8,
}


@pytest.mark.parametrize("small", ARRAYS)
def test_ml_dtypes_round_trip(small: str) -> None:
    for layout in LAYOUTS:
        options = {"scale": "amax", **layout} if layout else {}
        q = lb.quantize(X, small, **options)
        parts = interop.to_ml_dtypes(q)
        assert parts.array.dtype == ARRAYS[small]
        back = interop.from_ml_dtypes(*parts)
        if small == "int4_symmetric":
            np.testing.assert_array_equal(back.codes, q.codes)
            np.testing.assert_array_equal(np.asarray(back), np.asarray(q))
        else:
            assert back == q
        if not options:
            assert_same(parts.array.astype(np.float32) * parts.scale, np.asarray(q))


@pytest.mark.parametrize(
    "small", ["mxfp4", "mxfp6", "mxfp6_e3m2", "mxfp8", "mxfp8_e5m2", "block(int4_symmetric,e8m0,32)"]
)
def test_ml_dtypes_of_blocks(small: str) -> None:
    q = lb.quantize(X, small)
    parts = interop.to_ml_dtypes(q)
    assert parts.scale.dtype == ml_dtypes.float8_e8m0fnu
    numbers = parts.array.astype(np.float32) * np.repeat(parts.scale.astype(np.float32), 32, axis=-1)
    np.testing.assert_array_equal(numbers, np.asarray(q))
    back = interop.from_ml_dtypes(*parts)
    if "symmetric" in small:
        np.testing.assert_array_equal(np.asarray(back), np.asarray(q))
    else:
        assert back == q


def test_ml_dtypes_of_nvfp4() -> None:
    q = lb.quantize(X, "nvfp4")
    parts = interop.to_ml_dtypes(q)
    assert parts.scale.dtype == ml_dtypes.float8_e4m3fn
    assert parts.tensor_scale == q.tensor_scale
    assert interop.from_ml_dtypes(*parts) == q


@pytest.mark.parametrize("small", [name for name in ARRAYS if name != "int4_symmetric"])
def test_every_array_is_read(small: str) -> None:
    """Every code, NaN too, in any layout; float16 in any byte order."""
    dtype, bits = np.dtype(ARRAYS[small]), lb.get_format(small).bits
    codes = np.arange(1 << bits, dtype=np.uint16 if bits > 8 else np.uint8)
    if "int" in small:
        values = np.arange(1 << bits) - ((1 << (bits - 1)) if small[0] == "i" else 0)
        array = values.astype(dtype)
    else:
        array = codes.view(dtype)
    with np.errstate(invalid="ignore"):
        want = array.astype(np.float32)
    swapped = [array.astype(dtype.newbyteorder())] if dtype == np.float16 else []
    for given in (array, array[::-1], np.stack([array, array])[:, ::2], *swapped):
        got = np.asarray(interop.from_ml_dtypes(given))
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(got, given.astype(np.float32))
    assert_same(np.nan_to_num(np.asarray(interop.from_ml_dtypes(array))), np.nan_to_num(want))


def test_ml_dtypes_errors() -> None:
    to, read = interop.to_ml_dtypes, interop.from_ml_dtypes
    assert "fp4_e2m1" in refused(lb.Error, "nf4", to, lb.quantize(X, "nf4"))
    refused(lb.Error, "dtype", to, lb.quantize(X, "mxint8"))
    refused(TypeError, "q", to, X)
    assert "float4_e2m1fn" in refused(TypeError, "array", read, X)
    array = np.zeros((2, 32), ml_dtypes.float4_e2m1fn)
    refused(lb.Error, "scale", read, array, 0.0)
    refused(lb.Error, "axis", read, array, 1.0, axis=2)
    refused(lb.Error, "tensor_scale", read, array, 1.0, tensor_scale=1.0)
    nan = np.full((2, 1), np.nan, ml_dtypes.float8_e8m0fnu)
    refused(lb.Error, "scale", read, array, nan, block_size=32)


def test_ml_dtypes_is_asked_for_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    half, small = lb.quantize(X, "float16"), lb.quantize(X, "fp4_e2m1")
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert interop.to_ml_dtypes(half).array.dtype == np.float16
    refused(lb.Error, "ml_dtypes", interop.to_ml_dtypes, small)


def test_public_functions_have_examples() -> None:
    for name in interop.__all__:
        thing = getattr(interop, name)
        if name.startswith(("to_", "from_")):
            assert ">>>" in (thing.__doc__ or ""), name
