"""Operations on tensors: NumPy's numbers, whatever the layout; torch's manners."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

import lowbit as lb
import support
from lowbit.torch import _bridge, _clip, _library, _plain, ops
from lowbit.torch._options import Options
from torch_layer.torch_support import assert_same, numbers, plain, to_numpy

DTYPES = list(_bridge.FLOATS)


def expected(x: torch.Tensor, format: str, **options: Any) -> torch.Tensor:
    """What NumPy's function gives, in C order."""
    return _bridge.tensor(lb.fake_quantize(to_numpy(x), format, **options))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_are_numpys(name: str, dtype: torch.dtype) -> None:
    x = torch.from_numpy(support.wild(500).reshape(5, 100)).to(dtype)
    for options in [*support.roundings(name), support.fit(name, axis=0), support.fit(name, block_size=7)]:
        assert_same(ops.fake_quantize(x, name, **options), expected(x, name, **options), f"{name} {options}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_codes_are_numpys_and_go_there_and_back(coded: str, dtype: torch.dtype) -> None:
    x = numbers((6, 40)).to(dtype)
    for options in [*support.roundings(coded), support.fit(coded, axis=0)]:
        got, want = ops.quantize(x, coded, **options), lb.quantize(to_numpy(x), coded, **options)
        assert got.to_numpy() == want
        assert ops.QuantizedTensor.from_numpy(want).to_numpy() == want
        assert got.nbytes == want.nbytes
        key = {"key": options["key"]} if options.get("rounding") == "dither" else {}
        assert_same(got.dequantize(dtype, **key), ops.fake_quantize(x, coded, **options))


def layouts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same numbers (4 dimensions) laid out in memory in every way torch has."""
    return {
        "contiguous": x,
        "channels last": x.to(memory_format=torch.channels_last),
        "transposed": x.transpose(1, 3).contiguous().transpose(1, 3),
        "strided": torch.stack([x, -x], -1)[..., 0],
        "offset": torch.cat([x, x])[2:][: x.shape[0]] if x.shape[0] == 2 else x,
        "pending negation": torch._neg_view(-x),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", layouts(numbers((2, 3, 4, 5))))
def test_layouts(dtype: torch.dtype, layout: str) -> None:
    x = numbers((2, 3, 4, 5)).to(dtype)
    for name_, options in [("int4", {"rounding": "stochastic", "key": 3}), ("nvfp4", {}), ("ternary", {"axis": 1})]:
        want = expected(x, name_, **options)
        given = layouts(x)[layout]
        got = ops.fake_quantize(given, name_, **options)
        assert_same(got, want, f"{name_} {layout}")
        assert got.stride() == torch.empty_like(given).stride()
        with plain():
            other = ops.fake_quantize(given, name_, **options)
        assert_same(other, want)
        assert other.stride() == got.stride()
        assert_same(ops.quantize(given, name_, **options).dequantize(dtype), want)


def test_expanded_zero_dimensional_and_empty() -> None:
    row = numbers((1, 6))
    assert_same(ops.fake_quantize(row.expand(4, 6), "int4"), expected(row.expand(4, 6), "int4"))
    for shape in [(), (0,), (3, 0, 2)]:
        x = torch.ones(shape)
        assert ops.fake_quantize(x, "int4").shape == shape
        q = ops.quantize(x, "nvfp4")
        assert q.shape == shape
        assert q.dequantize().shape == shape


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_arrays_and_tensors_share_memory(dtype: torch.dtype) -> None:
    x = numbers((4, 6)).to(dtype).t()[1:]
    a = _bridge.array(x)
    assert a.ctypes.data == x.data_ptr()
    assert a.shape == tuple(x.shape)
    assert a.strides == tuple(n * x.element_size() for n in x.stride())
    back = _bridge.tensor(a)
    assert back.dtype is dtype
    assert back.data_ptr() == x.data_ptr()
    x[0, 0] = 7
    assert back[0, 0] == 7


def test_the_core_reads_and_writes_tensors_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(x: np.ndarray, *options: Any, out: np.ndarray | None) -> np.ndarray:
        y = core(x, *options, out=out)
        seen.extend((x.ctypes.data, y.ctypes.data))
        return y

    core = _library._core.fake_quantize
    monkeypatch.setattr(_library, "_core", SimpleNamespace(fake_quantize=spy))
    for x in (numbers((3, 5)), numbers((3, 5)).bfloat16().t(), numbers((3, 5), requires_grad=True)):
        y = ops.fake_quantize(x, "int4")
        assert seen[-2:] == [x.data_ptr(), y.data_ptr()]


def test_bfloat16_needs_no_ml_dtypes() -> None:
    x = numbers((50,)).bfloat16()
    assert _bridge.array(x).dtype.type is not ml_dtypes.bfloat16
    assert_same(_bridge.tensor(to_numpy(x)), x)
    assert ops.quantize(x, "int4").dequantize(torch.bfloat16).dtype is torch.bfloat16


def test_scales_of_any_kind() -> None:
    x = numbers((3, 8))
    for scale in (0.1, 1, torch.tensor(0.1), np.float32(0.1), [[0.1], [0.2], [0.3]], torch.tensor([[1], [2], [3]])):
        assert_same(ops.fake_quantize(x, "int4", scale=scale), expected(x, "int4", scale=np.asarray(scale)))
    per_row = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    want = expected(x, "uint4", scale=per_row.numpy(), offset=-1.5, axis=0)
    assert_same(ops.fake_quantize(x, "uint4", scale=per_row, offset=torch.tensor(-1.5), axis=0), want)
    half = torch.tensor(0.1, dtype=torch.bfloat16)
    assert_same(ops.fake_quantize(x, "int4", scale=half), expected(x, "int4", scale=float(half)))


def test_a_made_format_and_one_by_name() -> None:
    x, made = numbers((64,)), lb.float_format(3, 4, bias=5)
    assert_same(ops.fake_quantize(x, made), expected(x, made.name))
    assert ops.quantize(x, made).format == made.name


# --- Randomness -------------------------------------------------------------------------------------------------------


def test_manual_seed_gives_the_same_and_draws_two_words() -> None:
    x = torch.full((1000,), 0.3)
    outcomes = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outcomes.append(ops.fake_quantize(x, "int4", scale=1.0, rounding="stochastic"))
        rest = torch.rand(3)
    assert torch.equal(outcomes[0], outcomes[1])
    assert not torch.equal(outcomes[0], outcomes[2])
    torch.manual_seed(1)
    k0, k1 = (word % 2**64 for word in torch.randint(-(2**63), 2**63 - 1, (2,)).tolist())
    assert_same(outcomes[2], expected(x, "int4", scale=1.0, rounding="stochastic", key=lb.Key.from_words(k0, k1)))
    assert torch.equal(torch.rand(3), rest)


def test_rounding_to_nearest_and_a_given_key_draw_nothing() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    ops.fake_quantize(torch.ones(9), "int4")
    ops.fake_quantize(torch.ones(9), "int4", rounding="stochastic", key=1)
    ops.quantize(torch.ones(9), "int4", rounding="dither", key=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_keys_of_any_kind_are_one_key() -> None:
    x, key = numbers((500,)), lb.Key(7)
    want = expected(x, "int4", rounding="stochastic", key=key)
    words = torch.tensor([word - 2**64 if word >= 2**63 else word for word in key.words])
    for same in (key, 7, words):
        assert_same(ops.fake_quantize(x, "int4", rounding="stochastic", key=same), want)
    drawn = [ops.fake_quantize(x, "int4", rounding="stochastic", key=torch.Generator().manual_seed(s)) for s in (5, 5)]
    assert torch.equal(*drawn)


def test_dither_needs_its_key_again() -> None:
    x = numbers((300,))
    q = ops.quantize(x, "int8", rounding="dither", key=3)
    assert_same(q.dequantize(key=3), expected(x, "int8", rounding="dither", key=3))
    for key, says in [(None, "give dequantize"), (4, "not the key")]:
        with pytest.raises(lb.Error, match=says):
            q.dequantize(key=key)
    with pytest.raises(lb.Error, match="only codes made with"):
        ops.quantize(x, "int8").dequantize(key=3)
    with pytest.raises(lb.Error, match=r'key: rounding="dither" needs one'):
        ops.quantize(x, "int8", rounding="dither")


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_draws_the_same_again(reentrant: bool) -> None:
    seen = []

    def layer(x: torch.Tensor) -> torch.Tensor:
        y = ops.fake_quantize(x, "radix4", rounding="stochastic")
        seen.append(y.detach())
        return y * y

    x = numbers((200,), requires_grad=True)
    checkpoint(layer, x, use_reentrant=reentrant).sum().backward()
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(x.grad, 2 * seen[0])


# --- Gradients --------------------------------------------------------------------------------------------------------


def gradient(x: torch.Tensor, grad: torch.Tensor, format: str, **options: Any) -> torch.Tensor:
    x = x.clone().requires_grad_()
    ops.fake_quantize(x, format, **options).backward(grad)
    return x.grad


def test_the_gradient_passes(name: str) -> None:
    x, grad = torch.from_numpy(support.wild(200)), torch.from_numpy(support.wild(200, 1))
    for rounding in support.roundings(name):
        assert torch.equal(gradient(x, grad, name, **rounding).view(torch.int32), grad.view(torch.int32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.25, 1.0])
def test_the_gradient_is_clipped_beyond_the_ends(name: str, dtype: torch.dtype, scale: float) -> None:
    record = lb.get_format(name)
    low, high = (record.values[0], record.values[-1]) if record.coded else (-record.max, record.max)
    ends = np.array([low, high], np.float64) * scale
    x = torch.from_numpy(np.concatenate([ends, ends * 0.99, ends * 1.02, np.linspace(-2, 2, 50)])).to(dtype)
    grad = numbers((len(x),)).to(dtype)
    t = x.to(torch.float32).to(torch.float64) / scale
    want = torch.where((t < float(low)) | (t > float(high)), 0, grad)
    got = gradient(x, grad, name, scale=scale, gradient="clip")
    assert torch.equal(got, want.to(dtype))


@pytest.mark.parametrize(
    ("name_", "options"),
    [
        ("int4", {"scale": "sawb"}),
        ("int8", {"scale": "minmax", "axis": 0}),
        ("radix4_odd", {}),
        ("ternary", {"scale": "mean", "axis": 1}),
        ("mxfp4", {}),
        ("nf4", {"block_size": 16}),
    ],
)
def test_the_clip_of_a_rule_is_that_of_its_scales(name_: str, options: dict[str, Any]) -> None:
    x, grad = numbers((6, 64)) * 3, numbers((6, 64), 1)
    q = lb.quantize(x.numpy(), name_, **options)
    values, scale = lb.get_format(name_).values, q.scale
    low, high = values[0] * scale, values[-1] * scale
    if q.offset is not None:
        low, high = q.offset, q.offset + (values[-1] - values[0]) * scale
    if q.block_size:
        low, high = (np.repeat(end, q.block_size, -1) for end in (low, high))
    # The last bit of x * fl(1 / scale) is not that of the product here: what is at an end by a hair may go either way.
    near = (np.abs(x.numpy() - low) < 1e-5) | (np.abs(x.numpy() - high) < 1e-5)
    outside = (x.numpy() < low) | (x.numpy() > high)
    got = gradient(x, grad, name_, gradient="clip", **options).numpy()
    assert np.array_equal(got[~near], np.where(outside, 0, grad.numpy())[~near])
    assert (outside & ~near).any() == (name_ not in ("int8", "nf4"))


def scales_near(name: str) -> list[float | str]:
    """The rules of a format, and scales of all sizes that it takes."""
    given = [0.37, 2.0**-9, 448.0] if lb.get_format(name).scale_format == "e4m3" else [0.37, 2.0**-120, 2.0**120]
    return [*lb.get_format(name).scale_rules, *(float(support.allowed(name, scale)) for scale in given)]


def test_the_core_tells_what_is_clipped_as_torch_operations_do(name: str) -> None:
    edges = support.critical(name)
    edges = torch.from_numpy(edges[:: len(edges) // 600 + 1])
    for scale in scales_near(name):
        rule, given = (scale, None) if isinstance(scale, str) else (None, torch.tensor(scale, dtype=torch.float64))
        near = (edges.double() * (1.0 if given is None else given)).float()
        for x in (torch.cat([near, near.nextafter(near * 2), near.nextafter(0 * near)]), numbers((1200,)) * 50):
            options = Options(name, rule, given, block_size=support.fit(name, block_size=24)["block_size"])
            got, want = _clip.inside(x, options), _plain.inside(x, options)
            assert got is None or torch.equal(got, want), f"{name} {scale}"


def test_the_core_is_asked_about_the_common_formats() -> None:
    for name in ("int4", "int4_symmetric", "uint4", "int8", "ternary", "radix4_odd", "nf4", "mxfp4", "nvfp4"):
        for dtype in DTYPES:
            x = numbers((4, 64)).to(dtype)
            assert _clip.inside(x, Options(name)) is not None
            torch.set_flush_denormal(True)
            try:
                tiny = x * 2.0**-125
                scale = float(support.allowed(name, 2.0**-126 if "nv" not in name else 2.0**-9))
                options = Options(name, None, torch.tensor(scale, dtype=torch.float64))
                assert torch.equal(_clip.inside(tiny, options), _plain.inside(tiny, options))
            finally:
                torch.set_flush_denormal(False)


def test_nan_passes_the_clip() -> None:
    x = torch.tensor([1.0, torch.nan, 2.0, 100.0])
    grad = torch.tensor([torch.nan, 1.0, torch.inf, torch.nan])
    got = gradient(x, grad, "int4", scale=1.0, gradient="clip")
    assert torch.equal(got.nan_to_num(-1), torch.tensor([torch.nan, 1, torch.inf, 0]).nan_to_num(-1))
    assert torch.equal(gradient(x, torch.ones(4), "int4", gradient="clip"), torch.ones(4))


def test_a_scale_gets_no_gradient_and_codes_have_none() -> None:
    x = numbers((5,), requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    y = ops.fake_quantize(x, "int4", scale=scale)
    y.sum().backward()
    assert scale.grad is None
    assert torch.equal(x.grad, torch.ones(5))
    assert not ops.quantize(x, "int4").dequantize().requires_grad
    with torch.no_grad():
        assert not ops.fake_quantize(x, "int4").requires_grad
    assert not ops.fake_quantize(scale.detach(), "int4", scale=scale).requires_grad


def test_gradients_of_gradients() -> None:
    x = torch.tensor([0.5, 3.0], requires_grad=True)
    (first,) = torch.autograd.grad((ops.fake_quantize(x, "int4", scale=1.0) ** 3).sum(), x, create_graph=True)
    assert torch.equal(first, torch.tensor([0.0, 27.0]))
    first.sum().backward()
    assert torch.equal(x.grad, torch.tensor([0.0, 18.0]))


def test_autocast_keeps_the_dtype_that_is_given() -> None:
    x, w = numbers((4, 8)), numbers((3, 8), 1, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantized = ops.fake_quantize(w, "int4")
        assert quantized.dtype is torch.float32
        assert_same(quantized.detach(), expected(w.detach(), "int4"))
        y = torch.nn.functional.linear(ops.fake_quantize(x.bfloat16(), "int4"), quantized)
    assert y.dtype is torch.bfloat16
    y.sum().backward()
    assert w.grad.dtype is torch.float32


# --- Without numbers, and wrong arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("int4", {"scale": "minmax", "axis": 0}),
        ("int4", {"scale": 0.5}),
        ("int4", {"scale": [[0.5], [1.0], [0.25]], "offset": 0.5}),
        ("uint4", {"scale": [0.5, 1.0, 0.25], "axis": 0}),
        ("nf4", {}),
        ("fp4_e2m1", {"axis": 0}),
        ("mxfp4", {"axis": 0}),
        ("nvfp4", {}),
        ("ternary", {"block_size": 5, "axis": 1}),
        ("int8", {"rounding": "dither", "key": 3}),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_meta_tensors_have_the_shapes(format: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    x = numbers((3, 37)).to(dtype)
    want, got = ops.quantize(x, format, **options), ops.quantize(x.to("meta"), format, **options)
    for field in dataclasses.fields(ops.QuantizedTensor):
        mine, theirs = getattr(got, field.name), getattr(want, field.name)
        if isinstance(theirs, torch.Tensor):
            assert mine.device.type == "meta"
            assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype), field.name
        else:
            assert mine == theirs, field.name
    assert ops.fake_quantize(x.to("meta"), format, **options).dtype is dtype
    assert got.to("meta").dequantize(dtype, **({"key": 3} if "key" in options else {})).shape == x.shape


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"format": "int44"}, "is not known"),
    ({"format": "uint4", "scale": "sawb"}, "scale: "),
    ({"format": "radix4", "scale": 1.0, "offset": 0.5}, "offset: "),
    ({"offset": 0.5}, "offset: "),
    ({"axis": 2}, "axis: 2 is out of range"),
    ({"block_size": 0}, "block_size: 0 is out of range"),
    ({"format": "mxfp4", "block_size": 16}, "has blocks of 32, not 16"),
    ({"tensor_scale": 1.0}, "tensor_scale: int4 has none"),
    ({"rounding": "up"}, "rounding: 'up' is not known"),
    ({"key": 3}, 'key: rounding="nearest" draws nothing'),
    ({"format": "radix4", "rounding": "dither", "key": 1}, "rounding: "),
    ({"scale": np.ones(7)}, "scale: "),
    ({"scale": np.ones((3, 1)), "offset": np.ones((2, 1))}, "offset: "),
]
WRONG_NUMBERS: list[tuple[dict[str, Any], str]] = [
    ({"scale": 0.0}, "scale: element 0 is 0"),
    ({"scale": [[1.0], [math.nan]]}, "scale: element 1 is NaN"),
    ({"format": "mxfp4", "scale": 3.0}, "scale: element 0 is 3"),
    ({"format": "nvfp4", "tensor_scale": 0.0}, "tensor_scale: 0 is out of range"),
]
WRONG_TYPES: list[tuple[dict[str, Any], str]] = [
    ({"format": 4}, "format"),
    ({"scale": torch.tensor(1j)}, "scale: expected real numbers, got dtype complex64"),
    ({"scale": torch.tensor(True)}, "scale: expected real numbers, got dtype bool"),
    ({"axis": True}, "axis: expected an int, got a bool"),
    ({"block_size": 1.5}, "block_size: expected an int, got float"),
    ({"rounding": 1}, "rounding: expected a str"),
    ({"rounding": "stochastic", "key": "a"}, "key: expected a lowbit.Key or an int, got str"),
    ({"format": "nvfp4", "tensor_scale": np.ones(2)}, "tensor_scale: "),
]


def ask(x: torch.Tensor, options: dict[str, Any]) -> None:
    ops.fake_quantize(x, **({"format": "int4"} | options))


@pytest.mark.parametrize(("options", "says"), WRONG + WRONG_NUMBERS + WRONG_TYPES, ids=str)
def test_wrong_arguments_are_numpys_errors(options: dict[str, Any], says: str) -> None:
    x = numbers((2, 6))
    given = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in ({"format": "int4"} | options).items()}
    with pytest.raises((lb.Error, TypeError)) as theirs:
        lb.fake_quantize(x.numpy(), **given)
    assert says in str(theirs.value)
    with pytest.raises(type(theirs.value)) as caught:
        ask(x, options)
    assert str(caught.value) == str(theirs.value)
    with plain(), pytest.raises(type(theirs.value)) as caught:
        ask(x, options)
    assert str(caught.value) == str(theirs.value)
    if says not in [says for _, says in WRONG_NUMBERS]:
        with pytest.raises(type(theirs.value)) as caught:
            ask(x.to("meta"), options)
        assert str(caught.value) == str(theirs.value)


def test_what_is_no_tensor_of_floats() -> None:
    for x, says in [
        ([1.0], "x: expected a torch.Tensor, got list"),
        (np.ones(3), "x: expected a torch.Tensor, got ndarray"),
        (torch.ones(3, dtype=torch.int64), r"x: dtype torch.int64 is not a float that rounds; use torch.float32"),
        (torch.ones(3, dtype=torch.complex64), "x: dtype torch.complex64"),
        (torch.ones(3, dtype=torch.float8_e4m3fn), "x: dtype torch.float8_e4m3fn"),
        (torch.ones(3).to_sparse(), "x: layout torch.sparse_coo"),
    ]:
        for call in (ops.fake_quantize, ops.quantize):
            with pytest.raises(TypeError, match=says):
                call(x, "int4")
    with pytest.raises(lb.Error, match="gradient: 'stop' is not known; known are: pass, clip"):
        ops.fake_quantize(torch.ones(3), "int4", gradient="stop")


@pytest.mark.parametrize("compute", [True, False], ids=["core", "plain"])
def test_numbers_without_codes_are_named(compute: bool) -> None:
    ops.use_plain(not compute)
    try:
        with pytest.raises(lb.Error, match=r"x: element 4 \(C order\) is NaN"):
            ops.quantize(torch.tensor([[1.0, 2, 3], [4, torch.nan, 6]]), "int4", scale=1.0)
        with pytest.raises(lb.Error, match=r"x: element 1 \(C order\) is inf"):
            ops.quantize(torch.tensor([1.0, torch.inf]), "nvfp4")
        with pytest.raises(lb.Error, match=r"float\(8,14,ieee\) .*codes"):
            ops.quantize(torch.ones(3), "float(8,14,ieee)")
    finally:
        ops.use_plain(False)


def test_what_is_no_quantized_tensor() -> None:
    q = ops.quantize(numbers((4, 4)), "int4")
    with pytest.raises(TypeError, match=r"q: expected a lowbit.torch.QuantizedTensor, got Tensor"):
        ops.dequantize(torch.ones(3))
    with pytest.raises(TypeError, match=r"dtype: torch.int8 is not torch.float16"):
        q.dequantize(torch.int8)
    with pytest.raises(TypeError, match=r"q: expected a lowbit.Quantized"):
        ops.QuantizedTensor.from_numpy(q)
    for change in ({"packed": q.packed[1:]}, {"shape": (4, 5)}, {"scale": torch.ones(3)}):
        with pytest.raises(lb.Error):
            dataclasses.replace(q, **change).dequantize()
