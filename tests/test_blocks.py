"""Block formats: the scales' bits by hand and by other recipes, OCP MX and NVFP4 errors on Gaussian data."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import lowbit as lb
from support import FORMATS, KEY, assert_same, bits, float32, normal, runs, wild

BLOCKS = [name for name in FORMATS if lb.get_format(name).scale_format]
E8M0 = [name for name in BLOCKS if lb.get_format(name).scale_format == "e8m0"]


def scale_of(amax: float, name: str, rule: str) -> float:
    """The scale of one block with this largest magnitude."""
    x = np.zeros(lb.get_format(name).default_block or 16, np.float32)
    x[3] = -amax
    return float(lb.quantize(x, name, scale=rule).scale[0])


# --- E8M0 -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "amax", "floor", "ceil", "rceil", "even"),
    [
        # E2M1: the largest is 6 = 1.5 * 2^2; "even" rounds amax to one bit after the point, 1.75 up.
        ("mxfp4", 4.0, 1, 1, 1, 1),
        ("mxfp4", 6.0, 1, 2, 1, 1),
        ("mxfp4", 6.0000005, 1, 2, 2, 1),
        ("mxfp4", 6.9999995, 1, 2, 2, 1),
        ("mxfp4", 7.0, 1, 2, 2, 2),
        ("mxfp4", 8.0, 2, 2, 2, 2),
        ("mxfp4", 3.0, 0.5, 1, 0.5, 0.5),
        ("mxfp4", 3.5, 0.5, 1, 1, 1),
        ("mxfp4", 1.0, 0.25, 0.25, 0.25, 0.25),
        # E2M3: 7.5 = 1.875 * 2^2; three bits: from 1.9375 on.
        ("mxfp6", 7.5, 1, 2, 1, 1),
        ("mxfp6", 7.75, 1, 2, 2, 2),
        ("mxfp6", 7.6, 1, 2, 2, 1),
        # E3M2: 28 = 1.75 * 2^4; two bits: from 1.875 on.
        ("mxfp6_e3m2", 28.0, 1, 2, 1, 1),
        ("mxfp6_e3m2", 29.9, 1, 2, 2, 1),
        ("mxfp6_e3m2", 30.0, 1, 2, 2, 2),
        # E4M3: 448 = 1.75 * 2^8; three bits.
        ("mxfp8", 448.0, 1, 2, 1, 1),
        ("mxfp8", 449.0, 1, 2, 2, 1),
        ("mxfp8", 496.0, 1, 2, 2, 2),
        ("mxfp8", 256.0, 1, 1, 1, 1),
        # E5M2: 57344 = 1.75 * 2^15; two bits.
        ("mxfp8_e5m2", 57344.0, 1, 2, 1, 1),
        ("mxfp8_e5m2", 61440.0, 1, 2, 2, 2),
        # INT8 as 1.984375 = 127 / 64; six bits: from 1 + 127 / 128 on.
        ("mxint8", 127 / 64, 1, 2, 1, 1),
        ("mxint8", 1.9921, 1, 2, 2, 1),
        ("mxint8", 1.9921875, 1, 2, 2, 2),
        ("mxint8", 1.0, 1, 1, 1, 1),
        # Integers: 7 = 1.75 * 2^2 and 127 = 1.984375 * 2^6.
        ("block(int4_symmetric,e8m0,32)", 7.0, 1, 2, 1, 1),
        ("block(int4_symmetric,e8m0,32)", 7.4, 1, 2, 2, 1),
        ("block(int4_symmetric,e8m0,32)", 7.5, 1, 2, 2, 2),
        ("bfp(8)", 127.0, 1, 2, 1, 1),
        ("bfp(8)", 127.25, 1, 2, 2, 1),
        ("bfp(8)", 127.5, 1, 2, 2, 2),
    ],
)
def test_e8m0_by_hand(block: str, amax: float, floor: float, ceil: float, rceil: float, even: float) -> None:
    for rule, want in (("floor", floor), ("ceil", ceil), ("rceil", rceil), ("even", even)):
        for shift in (0, 7, -20, 40):
            assert scale_of(amax * 2.0**shift, block, rule) == want * 2.0**shift, rule
    assert lb.get_format(block).default_scale == "floor"


@pytest.mark.parametrize("block", E8M0)
def test_e8m0_at_the_ends_of_float32(block: str) -> None:
    """Exponents are clamped to -127, where the scale is a subnormal number, and 127; a block of zeros gets 1."""
    emax = math.frexp(lb.get_format(block).max)[1] - 1
    for rule in lb.get_format(block).scale_rules:
        for amax in (2.0**-149, 2.0**-140, 2.0**-127):
            # "ceil" takes a subnormal amax for a number just below 2^-126.
            least = -126 if rule == "ceil" and emax == 0 else -127
            assert scale_of(amax, block, rule) == 2.0**least, (rule, amax)
        top = 127 - emax if rule == "floor" else min(128 - emax, 127)
        assert scale_of(3.4028235e38, block, rule) == 2.0**top, rule
        assert scale_of(0.0, block, rule) == 1


@pytest.mark.parametrize("block", E8M0)
def test_rceil_never_clips_and_is_the_least(block: str) -> None:
    record, rng = lb.get_format(block), np.random.default_rng(0)
    amax = np.ldexp(rng.uniform(1, 2, 4000), rng.integers(-90, 90, 4000)).astype(np.float32)
    size = record.default_block or 8
    x = np.zeros((4000, size), np.float32)
    x[:, 1] = amax
    scale = lb.quantize(x, block, scale="rceil", block_size=size).scale[:, 0].astype(np.float64)
    assert (amax / scale <= np.float64(record.max)).all()
    assert (amax / (scale / 2) > np.float64(record.max)).all()


@pytest.mark.parametrize("block", E8M0)
def test_rceil_at_its_least_scale(block: str) -> None:
    """2^-127 is a subnormal number: a largest value that it holds exactly takes it, one a step above does not."""
    largest = lb.get_format(block).max
    assert scale_of(largest * 2.0**-127, block, "rceil") == 2.0**-127
    assert scale_of(largest * (2.0**-127 - 2.0**-149), block, "rceil") == 2.0**-127
    assert scale_of(largest * (2.0**-127 + 2.0**-149), block, "rceil") == 2.0**-126


@pytest.mark.parametrize("block", BLOCKS)
def test_scale_codes_are_those_of_the_scale_format(block: str) -> None:
    q = lb.quantize(np.ldexp(normal(4096), (np.arange(4096) // 64).astype(np.int32) - 30).astype(np.float32), block)
    dtype = ml_dtypes.float8_e8m0fnu if q.format.scale_format == "e8m0" else ml_dtypes.float8_e4m3fn
    assert_same(q.scale_codes.view(dtype).astype(np.float32), q.scale)
    assert len(np.unique(q.scale_codes)) > 3 or q.scale.size == 1


def test_every_e8m0_code_can_be_given() -> None:
    scale = np.arange(255, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float32)[:, None]
    x = np.ones((255, 32), np.float32) * scale
    for run in runs(x.size):
        q = lb.quantize(x, "mxfp4", scale=scale)
        assert q.scale_codes.ravel().tolist() == list(range(255))
        assert (q.codes == 2).all()
        assert_same(lb.dequantize(q), x, run)


@pytest.mark.parametrize(
    ("block", "element"),
    [
        ("mxfp4", "float4_e2m1fn"),
        ("mxfp6", "float6_e2m3fn"),
        ("mxfp6_e3m2", "float6_e3m2fn"),
        ("mxfp8", "float8_e4m3fn"),
        ("mxfp8_e5m2", "float8_e5m2"),
    ],
)
def test_mx_by_section_6_3(block: str, element: str) -> None:
    """X = 2^(floor(log2 max|V|) - emax), P_i = round(V_i / X) with saturation, by ml_dtypes' casts."""
    record, x = lb.get_format(block), wild(32 * 400)
    x = np.where(np.isfinite(x), x, np.float32(1)).reshape(400, 32)
    x = np.where((np.abs(x) < 2.0**-90) | (np.abs(x) > 2.0**100), normal(12800).reshape(400, 32), x)
    exponent = np.frexp(np.abs(x).max(axis=1, keepdims=True))[1] - 1 - (math.frexp(record.max)[1] - 1)
    t = np.ldexp(x, -exponent)
    p = np.clip(t, -record.max, record.max).astype(getattr(ml_dtypes, element))
    q = lb.quantize(x, block)
    assert_same(q.codes, p.view(np.uint8))
    assert (q.scale_codes == exponent + 127).all()
    assert_same(lb.dequantize(q), np.ldexp(p.astype(np.float32), exponent))
    assert q.nbytes == q.packed.nbytes + 400


def test_low_nibble_first_as_ocp_tools_have_it() -> None:
    q = lb.quantize(np.float32([0.5, 6, -1, 0]), "mxfp4", scale=1.0)
    assert q.packed.tolist() == [0x71, 0x0A]


# --- Block floating point ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wl", [2, 3, 4, 8])
def test_block_floating_point_by_qpytorchs_formula(wl: int) -> None:
    """E = floor(log2 max|x|), step 2^(E + 2 - wl), integers clipped to +-(2^(wl - 1) - 1); ties to even."""
    x = (normal(999).reshape(27, 37) * np.float32(3.7)).astype(np.float32)
    for axis in (None, 0, 1):
        keep = None if axis is None else tuple(i for i in range(2) if i != axis)
        amax = np.abs(x).max(axis=keep, keepdims=True).astype(np.float64)
        step = np.exp2(np.frexp(amax)[1] - 1.0 + 2 - wl)
        top = 2 ** (wl - 1) - 1
        want = (np.clip(np.rint(x / step), -top, top) * step).astype(np.float32) + np.float32(0)
        for run in runs(x.size):
            assert_same(lb.fake_quantize(x, lb.block_float(wl), axis=axis), want, run)
    assert lb.block_float(wl) == lb.block_format(f"int{wl}_symmetric", block_size=None)


def test_fixed_point_where_the_exponent_is_zero() -> None:
    """QPyTorch's own relation: with max|x| in [1/2, 1), blocks of wl bits are fixed(wl, wl - 1, symmetric)."""
    x = np.clip(normal(500) * np.float32(0.3), -0.99, 0.99).astype(np.float32)
    x[7] = 0.75
    for wl in (4, 6, 8):
        fixed = lb.fixed_point(wl, wl - 1, symmetric=True)
        assert_same(lb.fake_quantize(x, lb.block_float(wl)), lb.fake_quantize(x, fixed))


# --- NVFP4 ------------------------------------------------------------------------------------------------------------


def nvfp4_scales(x: np.ndarray, top: float, to: float) -> tuple[np.float32, np.ndarray]:
    """The recipe of arXiv:2509.25149: a float32 scale of all, E4M3 scales of blocks of 16, by ml_dtypes' cast."""
    tensor = np.float32(np.abs(x).max()) / np.float32(6 * top)
    share = np.abs(x).reshape(-1, 16).max(axis=1) / np.float32(to) * (np.float32(1) / tensor)
    scale = np.minimum(share, np.float32(448)).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return tensor, np.clip(scale, np.float32(2.0**-9), np.float32(448))


def nvfp4_round(x: np.ndarray, tensor: np.float32, scale: np.ndarray) -> np.ndarray:
    effective = (scale * tensor)[:, None]
    t = x.reshape(-1, 16) * (np.float32(1) / effective)
    return np.asarray(t.astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * effective, np.float32).reshape(x.shape)


@pytest.mark.parametrize("power", [0, -60, 60, -100])
def test_nvfp4_by_its_recipe(power: int) -> None:
    spread = np.ldexp(normal(16 * 5000), (np.arange(80_000) // 1600 % 12 + power).astype(np.int32)).astype(np.float32)
    for x in (spread, np.ldexp(normal(1600), power).astype(np.float32)):
        tensor, scale = nvfp4_scales(x, 448, 6)
        for run in runs(x.size):
            q = lb.quantize(x, "nvfp4")
            assert q.tensor_scale.dtype == np.float32
            assert q.tensor_scale == tensor, run
            assert_same(q.scale, scale, run)
            assert_same(lb.dequantize(q), nvfp4_round(x, tensor, scale), run)
            assert q.nbytes == q.packed.nbytes + x.size // 16 + 4


@pytest.mark.parametrize("rounding", [{}, {"rounding": "stochastic", "key": KEY}])
def test_four_over_six_takes_the_better_of_two(rounding: dict[str, Any]) -> None:
    x = normal(16 * 4000)
    tensor, six = nvfp4_scales(x, 256, 6)
    _, four = nvfp4_scales(x, 256, 4)
    error = [((nvfp4_round(x, tensor, s) - x).astype(np.float64) ** 2).reshape(-1, 16).sum(axis=1) for s in (six, four)]
    assert (np.abs(error[1] - error[0]) > 1e-9 * error[0])[six != four].all(), (
        "no sum is so close that its order counts"
    )
    for run in runs(x.size):
        q = lb.quantize(x, "nvfp4", scale="four_over_six", **rounding)
        assert q.tensor_scale == tensor
        assert_same(q.scale, np.where(error[1] < error[0], four, six), run)
    chosen = np.mean(q.scale == four)
    assert 0.2 < chosen < 0.8


def test_nvfp4_of_zeros_and_of_one_bad_number() -> None:
    q = lb.quantize(np.zeros((2, 40)), "nvfp4")
    assert (q.tensor_scale, q.scale.shape) == (1, (2, 3))
    assert (q.scale == 1).all()
    x = normal(64)
    x[:16] = 0
    q = lb.quantize(x, "nvfp4")
    assert q.scale[0] == 1
    assert not lb.dequantize(q)[:16].any()
    x[50] = np.inf
    for rule in ("amax", "four_over_six"):
        assert np.isnan(lb.fake_quantize(x, "nvfp4", scale=rule)).all()
        with pytest.raises(lb.Error, match=r"\b50\b"):
            lb.quantize(x, "nvfp4", scale=rule)


def test_a_block_far_below_the_largest_keeps_the_least_scale() -> None:
    x = np.zeros(32, np.float32)
    x[0], x[16:] = 2688.0, 1e-6
    q = lb.quantize(x, "nvfp4")
    assert q.tensor_scale == 1
    assert q.scale.tolist() == [448, 2.0**-9]
    assert q.scale_codes.tolist() == [0x7E, 1]
    assert lb.dequantize(q)[0] == 2688


@pytest.mark.parametrize("block", BLOCKS)
def test_given_scales_leave_the_array_without_its_own(block: str) -> None:
    x = normal(100)
    q = lb.quantize(x, block, scale=0.5)
    assert q.tensor_scale == (1 if q.format.scale_format == "e4m3" else None)
    assert (q.scale == 0.5).all()
    element = {"nvfp4": "fp4_e2m1", "mxfp4": "fp4_e2m1", "bfp(8)": "int8_symmetric"}.get(block)
    if element:
        assert_same(lb.dequantize(q), lb.fake_quantize(x, element, scale=0.5))


# --- Shapes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_along_another_axis_are_those_of_the_transpose(block: str) -> None:
    x = normal(70 * 50).reshape(70, 50)
    for rule in lb.get_format(block).scale_rules:
        q, other = lb.quantize(x, block, scale=rule, axis=0), lb.quantize(x.T, block, scale=rule, axis=1)
        assert_same(q.codes, other.codes.T)
        assert_same(q.scale, other.scale.T)
        assert q.axis == 0
    size = lb.get_format(block).default_block
    if size:
        assert q.scale.shape == (-(-70 // size), 50)
        assert_same(lb.fake_quantize(x, block), lb.fake_quantize(x, block, axis=-1, block_size=size))
    assert lb.quantize(np.float32(1.5), block).scale.shape == ()


# --- Errors on N(0, 1): facts that others published or we derived -----------------------------------------------------


def relative(x: np.ndarray, name: str, **options: Any) -> float:
    """The mean square of the error over that of the numbers."""
    y = lb.fake_quantize(x, name, **options).astype(np.float64)
    return float(np.mean((y - x) ** 2) / np.mean(x.astype(np.float64) ** 2))


def test_relative_errors_of_gaussian_blocks_of_32() -> None:
    x = normal(1 << 20)
    amax = np.abs(x).reshape(-1, 32).max(axis=1)
    for want, got in [
        (9.40e-3, relative(x, "int4_symmetric", block_size=32)),
        (8.98e-3, relative(x, "int4", block_size=32, scale=(amax / 7.5).astype(np.float32))),
        (1.32e-2, relative(x, "mxfp4")),
        (1.33e-2, relative(x, "mxfp4", scale="rceil")),
        (2.72e-2, relative(x, "mxfp4", scale="rceil", rounding="stochastic", key=KEY)),
        (9.0e-3, relative(x, "nvfp4")),
    ]:
        assert got == pytest.approx(want, rel=0.01)


def test_nvfp4_and_four_over_six_on_bfloat16() -> None:
    """-0.5 log2 of the relative error: above 3.38 and 3.52 (Quartet II, arXiv:2601.22813)."""
    x = normal(1 << 20).astype(ml_dtypes.bfloat16).astype(np.float32)
    assert -0.5 * math.log2(relative(x, "nvfp4")) > 3.38
    assert -0.5 * math.log2(relative(x, "nvfp4", scale="four_over_six")) > 3.52


# --- Making them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "called"),
    [
        (lambda: lb.block_format("fp4_e2m1"), "mxfp4"),
        (lambda: lb.block_format("fp6_e2m3", "e8m0", block_size=32), "mxfp6"),
        (lambda: lb.block_format("fp6_e3m2"), "mxfp6_e3m2"),
        (lambda: lb.block_format("fp8_e4m3fn"), "mxfp8"),
        (lambda: lb.block_format("fp8_e5m2"), "mxfp8_e5m2"),
        (lambda: lb.block_format(lb.fixed_point(8, 6, symmetric=True)), "mxint8"),
        (lambda: lb.block_format("fp4_e2m1", "e4m3", block_size=16), "nvfp4"),
        (lambda: lb.block_format("int4_symmetric"), "block(int4_symmetric,e8m0,32)"),
        (lambda: lb.block_format("fp8_e4m3fn", block_size=None), "block(fp8_e4m3fn,e8m0)"),
        (lambda: lb.block_format(lb.float_format(4, 3, bias=9), block_size=8), "block(float(4,3,bias=9),e8m0,8)"),
        (lambda: lb.block_format("int8_symmetric", block_size=None), "bfp(8)"),
        (lambda: lb.block_float(4), "bfp(4)"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_names_of_blocks(made: Any, called: str) -> None:
    assert made().name == called
    assert lb.get_format(called) == made()
    x = normal(100)
    assert_same(lb.Quantized.from_bytes(lb.quantize(x, made()).to_bytes()).codes, lb.quantize(x, called).codes)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: lb.block_format("nf4"), "element"),
        (lambda: lb.block_format("mxfp4"), "element"),
        (lambda: lb.block_format("radix4"), "element"),
        (lambda: lb.block_format("float(8,14,ieee)"), "element"),
        (lambda: lb.block_format("cfloat8(4,31)"), "element"),
        (lambda: lb.block_format("fixed(8,4,unbounded)"), "element"),
        (lambda: lb.block_format("fp4_e2m1", "e5m2"), "scale_format"),
        (lambda: lb.block_format("fp4_e2m1", block_size=0), "block_size"),
        (lambda: lb.block_format("fp4_e2m1", block_size=-32), "block_size"),
        (lambda: lb.block_float(1), "bits"),
        (lambda: lb.block_float(9), "bits"),
    ],
)
def test_blocks_that_cannot_be(call: Any, argument: str) -> None:
    with pytest.raises(lb.Error, match=rf"\b{argument}\b"):
        call()


def test_four_over_six_is_for_elements_up_to_six() -> None:
    x = normal(64)
    lb.fake_quantize(x, lb.block_format("fp4_e2m1", "e4m3", block_size=32), scale="four_over_six")
    for element in ("fp6_e2m3", "int4_symmetric"):
        with pytest.raises(lb.Error, match="scale"):
            lb.fake_quantize(x, lb.block_format(element, "e4m3", block_size=16), scale="four_over_six")


def test_nan_scales_stay_in_their_block() -> None:
    x = float32(bits(normal(96))).copy()
    x[40] = np.nan
    y = lb.fake_quantize(x, "mxfp4")
    assert np.isnan(y).reshape(3, 32).all(axis=1).tolist() == [False, True, False]
    assert not np.isnan(y).reshape(3, 32)[[0, 2]].any()


def test_a_tensor_scale_that_is_given(level: str) -> None:
    x = normal(1000) * np.float32(37)
    q = lb.quantize(x, "nvfp4")
    again = lb.quantize(x, "nvfp4", scale=q.scale, tensor_scale=q.tensor_scale)
    assert again == q
    assert_same(lb.fake_quantize(x, "nvfp4", scale=q.scale, tensor_scale=q.tensor_scale), np.asarray(q))
    # With a rule it takes the place of what the array gives: that of a larger array, say.
    longer = np.concatenate([x, [np.float32(5000)]]).astype(np.float32)
    whole = lb.quantize(longer, "nvfp4")
    part = lb.quantize(x, "nvfp4", tensor_scale=whole.tensor_scale)
    assert part.tensor_scale == whole.tensor_scale
    assert_same(np.asarray(part)[:992], np.asarray(whole)[:992])
    assert_same(lb.fake_quantize(x, "nvfp4", tensor_scale=1.0), np.asarray(lb.quantize(x, "nvfp4", tensor_scale=1.0)))


def test_bad_tensor_scales() -> None:
    x = normal(32)
    for name in ("mxfp4", "int4", "bfp(8)"):
        with pytest.raises(lb.Error, match="tensor_scale"):
            lb.quantize(x, name, tensor_scale=1.0)
    for bad in (0.0, -1.0, np.inf, np.nan, 2.0**118):
        with pytest.raises(lb.Error, match="tensor_scale"):
            lb.fake_quantize(x, "nvfp4", tensor_scale=bad)
    with pytest.raises(TypeError, match="tensor_scale"):
        lb.fake_quantize(x, "nvfp4", tensor_scale="amax")  # type: ignore[arg-type]
