"""Against the package gguf: the blocks it writes and the numbers it reads."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest

import lowbit as lb
from lowbit.interop import from_gguf, to_gguf
from support import assert_same, bits, normal

TYPES = {each: gguf.GGMLQuantizationType[each] for each in ("Q4_0", "Q4_1", "MXFP4")}


def theirs(x: np.ndarray, kind: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.quantize(x, TYPES[kind])


def data(kind: str) -> np.ndarray:
    """Blocks of all magnitudes whose scale is a float16, and numbers half way between codes."""
    rng = np.random.default_rng(5)
    low, high = (-125, 100) if kind == "MXFP4" else (-10, 12)
    scale = np.exp2(rng.integers(low, high, (4096, 1)))
    bell = (normal(4096 * 32).reshape(4096, 32) * scale).astype(np.float32)
    even = (rng.integers(-64, 65, (4096, 32)) / 8 * scale).astype(np.float32)
    # The halves of MXFP4's blocks have their largest number just above a power of two: in it ggml's logarithm is exact.
    halves = (rng.integers(-48, 49, (4096, 32)) / 8 * scale).astype(np.float32)
    return np.concatenate([bell, even, halves]).reshape(3, 1024, 128)


@pytest.mark.parametrize("kind", TYPES)
def test_quantizing(kind: str) -> None:
    x = data(kind)
    got, want = to_gguf(x, kind), theirs(x, kind)
    assert got.shape == want.shape
    if kind == "Q4_0":
        # In a block of zeros gguf takes the first, ggml's C +0: the sign of d may differ, and nothing else.
        blocks = x.reshape(-1, 32)
        zeros = ~blocks.any(axis=1)
        got, want = got.reshape(-1, 18), want.reshape(-1, 18)
        assert np.all(got[zeros, :2] == [0, 0x80])
        got, want = got[~zeros], want[~zeros]
    if kind == "MXFP4":
        amax = np.abs(x.reshape(-1, 32)).max(axis=1)
        with np.errstate(divide="ignore"):
            rounded_up = np.floor(np.log2(amax)) != np.frexp(amax)[1] - 1
        rounded_up &= amax > 0
        got, want = got.reshape(-1, 17)[~rounded_up], want.reshape(-1, 17)[~rounded_up]
        assert rounded_up.sum() < 10
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", TYPES)
def test_reading(kind: str) -> None:
    """Their blocks read by lowbit are their numbers, and are written back byte for byte."""
    blocks = theirs(data(kind), kind)
    q = from_gguf(blocks, kind)
    want = gguf.dequantize(blocks, TYPES[kind])
    # -0, which lowbit's offsets turn into +0, is no other number.
    assert_same(np.asarray(q) + np.float32(0), want + np.float32(0), kind)
    np.testing.assert_array_equal(to_gguf(q, kind), blocks)


def any_blocks(kind: str) -> np.ndarray:
    """Blocks of any bytes but scales that no number is."""
    head = {"Q4_0": 2, "Q4_1": 4, "MXFP4": 1}[kind]
    blocks = np.random.default_rng(6).integers(0, 256, (20000, head + 16), np.uint8)
    if kind == "MXFP4":
        return blocks[blocks[:, 0] != 255]
    halves = np.ascontiguousarray(blocks[:, :head]).view(np.float16)
    keep = np.isfinite(halves).all(axis=1) & (halves[:, 0] != 0)
    if kind == "Q4_1":
        keep &= halves[:, 0] > 0
    return blocks[keep]


@pytest.mark.parametrize("kind", TYPES)
def test_reading_any_bytes(kind: str) -> None:
    blocks = any_blocks(kind)
    q = from_gguf(blocks, kind)
    with np.errstate(over="ignore"):
        want = gguf.dequantize(blocks, TYPES[kind])
    got = np.asarray(q)
    np.testing.assert_array_equal(got, want)
    # Only zeros may have another sign: ggml's E2M1 has no -0, its Q4_0 has one where d is negative.
    np.testing.assert_array_equal(bits(got)[want != 0], bits(want)[want != 0])
    np.testing.assert_array_equal(to_gguf(q, kind), blocks)


def test_subnormal_scales_of_mxfp4() -> None:
    """Below 2**-125 gguf's exponent wraps to 255; lowbit takes the smallest scale, as the format's definition says."""
    x = np.full((1, 32), 2.0**-126, np.float32)
    assert theirs(x, "MXFP4")[0, 0] == 255
    assert to_gguf(x, "MXFP4")[0, 0] == 0
    np.testing.assert_array_equal(np.asarray(from_gguf(to_gguf(x, "MXFP4"), "MXFP4")), x)


def test_mxfp4_rounds_as_ggml_does_and_lowbits_own_differs_at_ties() -> None:
    x = np.float32([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.25, -0.75, -0.1, 6, 0] + [4] * 20).reshape(1, 32)
    got = np.asarray(from_gguf(to_gguf(x, "MXFP4"), "MXFP4"))[0, :11]
    np.testing.assert_array_equal(got, [0, 0.5, 1, 1.5, 2, 3, 4, 0, -0.5, 0, 6])
    own = lb.fake_quantize(x, "mxfp4")[0, :11]
    np.testing.assert_array_equal(own, [0, 1, 1, 2, 2, 4, 4, 0, -1, 0, 6])
    assert np.signbit(own[9])
    assert not np.signbit(got[9])


def test_a_file(tmp_path: Any) -> None:
    """A GGUF file written with lowbit's blocks and read by their reader."""
    x = normal(4 * 64).reshape(4, 64)
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "test")
    writer.add_tensor("w", to_gguf(x, "Q4_0"), raw_dtype=TYPES["Q4_0"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = gguf.GGUFReader(path).tensors[0]
    assert list(tensor.shape) == [64, 4]
    q = from_gguf(np.asarray(tensor.data), "Q4_0")
    assert q.shape == x.shape
    assert float(np.abs(np.asarray(q) - x).max()) < 0.3
