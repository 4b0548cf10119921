"""Against torchao's MX and NVFP4 tensors: scale bytes and element codes.

torchao picks a power of two by the same four rules; what it does otherwise is stated where it is asserted.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from torchao.prototype.mx_formats.constants import DTYPE_FP6_E2M3, DTYPE_FP6_E3M2
from torchao.prototype.mx_formats.mx_tensor import ScaleCalculationMode, to_dtype, to_mx
from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize, per_tensor_amax_to_scale

import lowbit as lb
from lowbit.interop import from_ml_dtypes
from support import assert_same, normal

ELEMENTS = {
    "mxfp4": (torch.float4_e2m1fn_x2, ml_dtypes.float4_e2m1fn),
    "mxfp6": (DTYPE_FP6_E2M3, ml_dtypes.float6_e2m3fn),
    "mxfp6_e3m2": (DTYPE_FP6_E3M2, ml_dtypes.float6_e3m2fn),
    "mxfp8": (torch.float8_e4m3fn, ml_dtypes.float8_e4m3fn),
    "mxfp8_e5m2": (torch.float8_e5m2, ml_dtypes.float8_e5m2),
}
MODES = {mode.value: mode for mode in ScaleCalculationMode}


def blocks(n: int, size: int) -> np.ndarray:
    """Blocks of magnitudes from 2**-80 to 2**80; half of them end where a rule may change its mind, or beside that."""
    x = normal(n * size).reshape(n, size)
    x[: n // 2] /= np.abs(x[: n // 2]).max(axis=1, keepdims=True)
    edges = np.float32([1, 1.5, 1.75, 1.9375, 1.96875, 0.75, 0.875, 0.9375, 6, 7.5, 28, 448])
    edges = np.concatenate([edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(999))])
    x[: n // 2] *= np.resize(edges, (n // 2, 1))
    return x * np.exp2(np.random.default_rng(8).integers(-80, 80, (n, 1))).astype(np.float32)


def their_mx(x: np.ndarray, name: str, rule: str) -> tuple[np.ndarray, np.ndarray]:
    scale, data = to_mx(torch.from_numpy(x), ELEMENTS[name][0], 32, MODES[rule])
    codes = data.view(torch.uint8).numpy()
    if name == "mxfp4":
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(x.shape)
    return scale.view(torch.uint8).numpy(), codes


def test_they_have_no_other_modes() -> None:
    assert set(MODES) == {"floor", "ceil", "rceil", "even"}


@pytest.mark.parametrize("rule", MODES)
@pytest.mark.parametrize("small", ELEMENTS)
def test_mx(small: str, rule: str) -> None:
    """Byte for byte; but "rceil" takes a rounded float32 logarithm, which misses numbers just above a power of two."""
    x = blocks(4096, 32)
    scale, codes = their_mx(x, small, rule)
    q = lb.quantize(x, small, scale=rule)
    assert q.scale_codes is not None
    ours = q.scale_codes.reshape(-1)
    scale = scale.reshape(-1)
    missed = np.zeros(len(x), bool)
    if rule == "rceil":
        ratio = np.abs(x).max(axis=1) / np.float32(q.format.max)
        above = np.frexp(ratio)[0] - 0.5
        missed = (above > 0) & (above < 2.0**-16) & (np.log2(ratio) == np.rint(np.log2(ratio)))
        assert missed.any()
        np.testing.assert_array_equal(scale[missed], ours[missed] - 1)
    np.testing.assert_array_equal(scale[~missed], ours[~missed])
    np.testing.assert_array_equal(codes[~missed], q.codes[~missed])
    if small == "mxfp4":
        np.testing.assert_array_equal(lb.pack(codes, 4)[np.repeat(~missed, 16)], q.packed[np.repeat(~missed, 16)])


@pytest.mark.parametrize("small", ELEMENTS)
def test_lowbit_reads_theirs(small: str) -> None:
    x = blocks(256, 32)
    scale, codes = their_mx(x, small, "floor")
    theirs, dtype = ELEMENTS[small]
    q = from_ml_dtypes(codes.view(dtype), scale.view(ml_dtypes.float8_e8m0fnu), block_size=32)
    assert q.format.name == small
    s, data = to_mx(torch.from_numpy(x), theirs, 32)
    assert_same(np.asarray(q), to_dtype(data, s, theirs, 32, torch.float32).numpy())


def test_zero_blocks() -> None:
    """Theirs has the smallest scale (byte 0), lowbit's is 1; the codes and the numbers are zero."""
    x = np.zeros((1, 32), np.float32)
    scale, codes = their_mx(x, "mxfp4", "floor")
    assert (scale, codes.any()) == (0, False)
    q = lb.quantize(x, "mxfp4")
    assert q.scale_codes is not None
    assert (q.scale_codes, q.codes.any()) == (127, False)


def test_nvfp4() -> None:
    """One ulp: they divide by the tensor scale and multiply by (1 / T) / s, lowbit by 1 / T and by 1 / (s T).

    So the scale bytes differ only where the share is within 2 ulp of a midpoint of E4M3, the codes only where x / (s T)
    is so near to a midpoint of E2M1. Their scales stop at 2**-6, E4M3's smallest normal number; lowbit's go to 2**-9.
    """
    x = normal(8192 * 16).reshape(8192, 16) * np.exp2(np.random.default_rng(9).integers(-14, 3, (8192, 1)))
    x = x.astype(np.float32)
    tensor = per_tensor_amax_to_scale(torch.from_numpy(x).abs().max())
    their_scale, data = nvfp4_quantize(torch.from_numpy(x), 16, tensor)
    scale = their_scale.view(torch.uint8).numpy().reshape(-1)
    packed = data.view(torch.uint8).numpy().reshape(x.shape[0], 8)
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(x.shape)
    q = lb.quantize(x, "nvfp4")
    assert q.scale_codes is not None
    assert q.tensor_scale == tensor.numpy()
    ours = q.scale_codes.reshape(-1)
    table = lb.get_format("fp8_e4m3fn").decode_table
    share = np.abs(x).max(axis=1).astype(np.float64) / 6 / float(tensor)
    small = share < 2.0**-6
    assert small.sum() > 1000
    assert np.all(scale[small] == 8)
    assert table[8] == 2.0**-6
    differ = (scale != ours) & ~small
    assert np.all(np.abs(scale[differ].astype(int) - ours[differ]) == 1)
    middle = (table[scale[differ]].astype(np.float64) + table[ours[differ]]) / 2
    assert np.all(np.abs(share[differ] / middle - 1) < 2.0**-22)
    assert differ.sum() < 10
    same = scale == ours
    t = np.abs(x.astype(np.float64)) / (table[ours].astype(np.float64) * float(tensor))[:, None]
    ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    near = np.abs(t[..., None] / ties - 1).min(axis=-1) < 2.0**-21
    assert np.all((codes == q.codes) | near | ~same[:, None])
    assert (codes != q.codes)[same].sum() < 10
    # What they made, lowbit reads.
    made = from_ml_dtypes(
        codes.view(ml_dtypes.float4_e2m1fn),
        scale.reshape(-1, 1).view(ml_dtypes.float8_e4m3fn),
        tensor_scale=tensor.numpy(),
        block_size=16,
    )
    assert made.format.name == "nvfp4"
    np.testing.assert_array_equal(made.codes, codes)
    exact = lb.get_format("fp4_e2m1").decode_table[codes] * table[scale].astype(np.float64)[:, None] * float(tensor)
    np.testing.assert_allclose(np.asarray(made), exact, rtol=2.0**-22)
