"""The arithmetic in torch operations equals the core's, bit for bit, for everything there is to ask."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, product
from typing import Any

import numpy as np
import pytest
import torch

import lowbit as lb
import support
from lowbit.torch import _bridge, _keys, _library, _options, _plain, ops
from lowbit.torch._options import Options
from lowbit.torch._plain import floats
from lowbit.torch._plain.quantizers import pack, unpack
from torch_layer.torch_support import assert_same, plain

DTYPES = list(_bridge.FLOATS)
GROUPS: list[dict[str, Any]] = [{}, {"axis": 0}, {"axis": 1}, {"block_size": 24}, {"axis": 0, "block_size": 2}]


def data() -> list[torch.Tensor]:
    """Any 32 bits; magnitudes of all sizes; normal numbers."""
    shape = (5, 60)
    arrays = support.datasets(300)
    return [torch.from_numpy(arrays[name].reshape(shape)) for name in ("wild", "blocks of all magnitudes", "normal")]


def asked(name: str) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
    """All rules, roundings and groupings of a format, each on data and dtypes in turn."""
    some = cycle(product(DTYPES, data()))
    for scaling, rounding, group in product(support.scalings(name), support.roundings(name), GROUPS):
        if group and not isinstance(scaling.get("scale", ""), str):
            continue  # one number for all of them
        dtype, x = next(some)
        yield x.to(dtype), support.fit(name, **scaling, **rounding, **group)


def outcome(x: torch.Tensor, name: str, options: dict[str, Any]) -> Any:
    try:
        return ops.quantize(x, name, **options)
    except lb.Error as error:
        return str(error)


def test_fake_quantize(name: str) -> None:
    for x, options in asked(name):
        want = ops.fake_quantize(x, name, **options)
        with plain():
            assert_same(ops.fake_quantize(x, name, **options), want, f"{name} {options} {x.dtype}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(name: str, dtype: torch.dtype) -> None:
    for x in data()[:2]:
        for rounding in support.roundings(name):
            want = ops.fake_quantize(x.to(dtype), name, **rounding)
            with plain():
                assert_same(ops.fake_quantize(x.to(dtype), name, **rounding), want, f"{name} {rounding}")


def test_values_midpoints_and_their_neighbours(name: str) -> None:
    x = torch.from_numpy(support.critical(name))
    x = x[:: x.numel() // 4000 + 1]
    for rounding in support.roundings(name):
        want = ops.fake_quantize(x, name, scale=1.0, **rounding)
        with plain():
            assert_same(ops.fake_quantize(x, name, scale=1.0, **rounding), want, f"{name} {rounding}")


def test_quantize_and_dequantize(coded: str) -> None:
    refused = 0
    for x, options in list(asked(coded))[::3]:
        what = f"{coded} {options}"
        want = outcome(x, coded, options)
        with plain():
            got = outcome(x, coded, options)
        if isinstance(want, str):
            assert got == want
            refused += 1
            continue
        for field in ("packed", "scale", "offset", "tensor_scale", "key_id"):
            mine, theirs = getattr(got, field), getattr(want, field)
            assert (mine is None) == (theirs is None), f"{field} of {what}"
            if mine is not None:
                assert_same(mine, theirs, f"{field} of {what}")
        key = {"key": options["key"]} if options.get("rounding") == "dither" else {}
        y = want.dequantize(x.dtype, **key)
        with plain():
            assert_same(want.dequantize(x.dtype, **key), y, what)
    assert refused, "wild numbers are among those that were asked for"


@pytest.mark.parametrize("rule", ["sawb", "mean", "twn"])
@pytest.mark.parametrize("n", [1, 8, 4095, 4096, 4097, 20_003])
def test_sums_have_one_order(rule: str, n: int) -> None:
    x = torch.from_numpy(support.datasets(n)["blocks of all magnitudes"])
    want = ops.quantize(x, "ternary", scale=rule)
    with plain():
        assert_same(ops.quantize(x, "ternary", scale=rule).scale, want.scale)


@pytest.mark.parametrize("given", [None, 0.37, 2.0**-117, 2.0**117])
@pytest.mark.parametrize("scale", ["amax", "four_over_six", 0.5])
def test_tensor_scales(given: float | None, scale: str | float) -> None:
    x = data()[2]
    for spoiled in (False, True):
        x[1, 3] = torch.inf if spoiled else 1
        want = ops.fake_quantize(x, "nvfp4", scale=scale, tensor_scale=given)
        with plain():
            assert_same(ops.fake_quantize(x, "nvfp4", scale=scale, tensor_scale=given), want)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0), (0, 3), (2, 3, 5), (1, 1, 33)])
def test_shapes(shape: tuple[int, ...]) -> None:
    x = torch.from_numpy(support.normal(int(np.prod(shape))).reshape(shape))
    for name, options in [
        ("int4", {}),
        ("int4", {"scale": "minmax"}),
        ("ternary", {"scale": "twn"}),
        ("nf4", {}),
        ("nvfp4", {}),
        ("mxfp4", {}),
        *([("int4", {"axis": 0}), ("int4", {"axis": -1, "block_size": 2, "scale": "minmax"})] if shape else []),
    ]:
        want = ops.quantize(x, name, **options)
        with plain():
            got = ops.quantize(x, name, **options)
            assert_same(got.packed, want.packed)
            assert_same(got.scale, want.scale, f"{name} {options}")
            y = got.dequantize()
            assert_same(ops.fake_quantize(x, name, **options), y)
        assert_same(want.dequantize(), y)


def test_flushed_subnormals_and_threads_change_no_bit(name: str) -> None:
    arrays = support.datasets(300)
    x = torch.from_numpy(np.stack([arrays[kind] for kind in ("tiny", "subnormal", "wild")]))
    cases = [(dtype, rounding) for dtype in DTYPES for rounding in support.roundings(name)]
    want = [ops.fake_quantize(x.to(dtype), name, axis=0, **rounding) for dtype, rounding in cases]
    inputs = [x.to(dtype) for dtype, _ in cases]
    if not torch.set_flush_denormal(True):
        support.not_tested["torch's flushed subnormals"] = "this CPU cannot"
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        rust = [ops.fake_quantize(t, name, axis=0, **case[1]) for t, case in zip(inputs, cases, strict=True)]
        with plain():
            torch_ops = [ops.fake_quantize(t, name, axis=0, **case[1]) for t, case in zip(inputs, cases, strict=True)]
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)
    for case, wanted, one, other in zip(cases, want, rust, torch_ops, strict=True):
        assert_same(one, wanted, f"{name} {case}")
        assert_same(other, wanted, f"{name} {case}")


def test_many_threads_sum_in_the_same_order() -> None:
    x = torch.from_numpy(support.normal(300_007))
    want = ops.fake_quantize(x, "int4", scale="sawb")
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            with plain():
                assert_same(ops.fake_quantize(x, "int4", scale="sawb"), want)
    finally:
        torch.set_num_threads(threads)


def test_float32_arithmetic_in_float64() -> None:
    x = torch.from_numpy(support.wild(20_000))
    wide, some = floats.widen(x), floats.widen(x).flip(0)
    assert_same(floats.narrow(wide, torch.float32), torch.where(torch.isnan(x), torch.nan, x))
    for wanted, got in [
        (x * x.flip(0), wide * some),
        (x + x.flip(0), wide + some),
        (x / x.flip(0), wide / some),
    ]:
        canonical = torch.where(torch.isnan(wanted), torch.nan, wanted)
        assert_same(floats.narrow(floats.f32(got), torch.float32), canonical)
    for dtype in (torch.bfloat16, torch.float16):
        wanted = x.to(dtype)
        assert_same(floats.narrow(wide, dtype), torch.where(torch.isnan(wanted), torch.nan, wanted))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 7, 8, 11, 16])
def test_packing(bits: int) -> None:
    for n in (0, 1, 5, 64, 1001):
        codes = np.random.default_rng(n).integers(0, 2**bits, n, np.uint16)
        packed = pack(torch.from_numpy(codes.astype(np.int64)), bits)
        assert np.array_equal(packed.numpy(), lb.pack(codes, bits))
        assert np.array_equal(unpack(packed, bits, n).numpy(), codes)


def test_the_core_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the checks of arguments, on an array with nothing in it."""
    x = torch.from_numpy(support.normal(300))
    want, codes = ops.fake_quantize(x, "nvfp4"), ops.quantize(x, "int4", scale="minmax")
    monkeypatch.setattr(_library._core, "fake_quantize", empty_only(_library._core.fake_quantize))
    for name in ("quantize", "dequantize"):
        monkeypatch.delattr(_library._core, name)
    with plain():
        assert_same(ops.fake_quantize(x, "nvfp4"), want)
        got = ops.quantize(x, "int4", scale="minmax")
        assert_same(got.packed, codes.packed)
        assert got.dequantize().shape == x.shape
    with pytest.raises(AssertionError):
        ops.fake_quantize(x, "nvfp4")


def empty_only(core: Any) -> Any:
    def call(x: np.ndarray, *arguments: Any, **more: Any) -> Any:
        assert not x.size
        return core(x, *arguments, **more)

    return call


#: A format of each family.
FAMILIES = ["int4", "ternary", "sign", "nf4", "radix4_odd", "luq4", "radix(4,3,nozero)", "fp8_e4m3fnuz"]
FAMILIES += ["float(5,4,fn,ftz)", "cfloat8(4,31)", "fixed(8,4)", "mxfp4", "nvfp4"]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_of_it_happens_on_the_tensors_device(family: str) -> None:
    """Meta tensors refuse to meet tensors of a CPU, as those of a GPU do."""
    x, ways = torch.empty(5, 60, device="meta"), cycle(product(support.roundings(family), GROUPS[2:4]))
    for scaling in support.scalings(family):
        rounding, group = next(ways)
        options = support.fit(family, **scaling, **rounding, **group)
        key = _keys.of(options.pop("key", None), private=True)
        numbers = {k: torch.as_tensor(options.pop(k)) for k in ("scale", "offset") if not_a_rule(options.get(k))}
        rule = options.pop("scale", None)
        y = _plain.fake_quantize(x, Options(family, rule, key=key, **numbers, **options))
        assert y.device.type == "meta"
        assert y.shape == x.shape
    q = ops.quantize(torch.ones(5, 60), family)
    codes = (None if part is None else part.to("meta") for part in (q.packed, q.scale, q.offset, q.tensor_scale))
    y = _plain.dequantize(_plain.Codes(*codes), family, (5, 60), q.axis, q.block_size, None, torch.bfloat16)
    assert y.device.type == "meta"


def not_a_rule(value: Any) -> bool:
    return value is not None and not isinstance(value, str)


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, wanted in [("core", False), ("plain", True)]:
        monkeypatch.setenv("LOWBIT_TORCH", value)
        assert _options._wanted() is wanted
    monkeypatch.setenv("LOWBIT_TORCH", "gpu")
    with pytest.raises(lb.Error, match="LOWBIT_TORCH: 'gpu' is not known; known are: core, plain"):
        _options._wanted()
