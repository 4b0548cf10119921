"""Against bitsandbytes: NF4 on the CPU."""

from __future__ import annotations

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch

import lowbit as lb
from lowbit.interop import BitsAndBytesTensor, from_bitsandbytes, to_bitsandbytes
from support import assert_same, normal


def theirs(x: np.ndarray, blocksize: int) -> tuple[np.ndarray, bnb.QuantState]:
    packed, state = bnb.quantize_4bit(torch.from_numpy(x), blocksize=blocksize, quant_type="nf4")
    return packed.numpy(), state


def dequantized(parts: BitsAndBytesTensor) -> np.ndarray:
    state = bnb.QuantState(
        absmax=torch.from_numpy(parts.absmax),
        shape=torch.Size(parts.shape),
        blocksize=parts.blocksize,
        quant_type="nf4",
        dtype=torch.float32,
        code=bnb.get_4bit_type("nf4", device="cpu"),
    )
    return bnb.dequantize_4bit(torch.from_numpy(parts.packed), state, quant_type="nf4").numpy()


CASES = [((64,), 64), ((3, 128), 64), ((2, 3, 256), 128), ((1000,), 64), ((999,), 64), ((1, 130), 64)]


@pytest.mark.parametrize(("shape", "blocksize"), CASES)
def test_lowbit_reads_theirs_and_writes_it_back(shape: tuple[int, ...], blocksize: int) -> None:
    x = normal(int(np.prod(shape))).reshape(shape)
    packed, state = theirs(x, blocksize)
    q = from_bitsandbytes(packed, state.absmax.numpy(), tuple(state.shape), state.blocksize)
    got = bnb.dequantize_4bit(torch.from_numpy(packed), state).numpy()
    assert_same(np.asarray(q), got.reshape(shape))
    parts = to_bitsandbytes(q)
    assert_same(parts.packed, packed)
    assert_same(parts.absmax, state.absmax.numpy())
    assert (parts.shape, parts.blocksize) == (tuple(state.shape), state.blocksize)


@pytest.mark.parametrize(("shape", "blocksize"), CASES)
def test_they_read_lowbits(shape: tuple[int, ...], blocksize: int) -> None:
    q = lb.quantize(normal(int(np.prod(shape)), 1).reshape(shape), "nf4", block_size=blocksize)
    assert_same(dequantized(to_bitsandbytes(q)).reshape(shape), np.asarray(q))


def test_zeros() -> None:
    x = np.zeros((2, 64), np.float32)
    x[1] = normal(64)
    packed, state = theirs(x, 64)
    assert state.absmax[0] == 0
    q = from_bitsandbytes(packed, state.absmax.numpy(), (2, 64))
    assert q.scale[0, 0] == 1
    parts = to_bitsandbytes(q)
    assert_same(parts.packed, packed)
    assert_same(parts.absmax, state.absmax.numpy())


def test_the_table_and_the_codes() -> None:
    """Equal codes, but where a number lies on their float32 midpoint and the exact one is elsewhere."""
    fmt = lb.get_format("nf4")
    assert_same(fmt.decode_table, bnb.get_4bit_type("nf4", device="cpu").numpy())
    x = normal(1 << 16, 2)
    x[: 15 * 64] = np.repeat((fmt.values[1:] + fmt.values[:-1]) / np.float32(2), 64)
    x[: 15 * 64 : 64] = 1
    packed, state = theirs(x, 64)
    q = lb.quantize(x, "nf4")
    assert_same(q.scale, state.absmax.numpy())
    codes = from_bitsandbytes(packed, q.scale, x.shape).codes
    differ = codes != q.codes
    exact = (fmt.values[1:].astype(np.float64) + fmt.values[:-1]) / 2
    rounded = exact.astype(np.float32)
    moved = rounded[rounded != exact]
    t = x.reshape(-1, 64) * (np.float32(1) / q.scale[:, None])
    assert np.all(np.isin(t.reshape(-1)[differ], moved))
    assert np.all(np.abs(codes[differ].astype(int) - q.codes[differ]) == 1)
