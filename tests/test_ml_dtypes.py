"""ml_dtypes' casts are an independent opinion on every small float it has, nearest and decoded."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import lowbit as lb
from support import assert_same, cast, float32, wild

#: Every float of ml_dtypes (NumPy's own for float16) but float8_e8m0fnu, which is no number format but a scale.
DTYPES: dict[str, Any] = {
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp8_e3m4": ml_dtypes.float8_e3m4,
    "fp8_e4m3": ml_dtypes.float8_e4m3,
    "fp8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "fp8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "fp8_e4m3b11fnuz": ml_dtypes.float8_e4m3b11fnuz,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
}


def inputs() -> dict[str, np.ndarray]:
    """All 16-bit floats, and wild 32-bit ones."""
    patterns = np.arange(1 << 16, dtype=np.uint16)
    return {
        "every bfloat16": float32(patterns.astype(np.uint32) << 16),
        "every float16": patterns.view(np.float16).astype(np.float32),
        "wild float32": wild(1 << 22),
    }


INPUTS = inputs()


def test_the_list_is_whole() -> None:
    known = {dtype.__name__ for dtype in DTYPES.values()}
    theirs = {name for name in dir(ml_dtypes) if name.startswith(("float", "bfloat")) and name != "float8_e8m0fnu"}
    assert theirs <= known


@pytest.mark.parametrize("which", INPUTS)
@pytest.mark.parametrize("small", DTYPES)
def test_nearest(small: str, which: str) -> None:
    """Equal to the bit, values and codes; beyond the largest number theirs may overflow and ours saturates."""
    x = INPUTS[which]
    x = x[~np.isnan(x)]
    fmt = lb.get_format(small)
    codes = cast(x, DTYPES[small])
    want = cast(codes, np.float32)
    overflow = ~np.isfinite(want)
    assert np.all(np.abs(x[overflow]) > fmt.max)
    want[overflow] = np.copysign(np.float32(fmt.max), x[overflow])
    assert_same(lb.fake_quantize(x, small), want, small)
    got = lb.quantize(x, small).codes
    codes = codes.view(got.dtype)
    assert_same(got[~overflow], codes[~overflow], f"codes of {small}")
    assert_same(fmt.decode_table[got[overflow]], want[overflow], f"codes of {small} beyond its range")


@pytest.mark.parametrize("small", DTYPES)
def test_nan_stays_nan(small: str) -> None:
    x = float32([0x7FC00000, 0xFFC00000, 0x7F800001, 0x3F800000])
    np.testing.assert_array_equal(np.isnan(lb.fake_quantize(x, small)), [True, True, True, False])


@pytest.mark.parametrize("small", DTYPES)
def test_every_code(small: str) -> None:
    fmt = lb.get_format(small)
    codes = np.arange(1 << fmt.bits, dtype=np.uint16 if fmt.bits > 8 else np.uint8)
    want = cast(codes.view(DTYPES[small]), np.float32)
    nan = np.isnan(want)
    np.testing.assert_array_equal(np.isnan(fmt.decode_table), nan)
    assert_same(fmt.decode_table[~nan], want[~nan], small)
