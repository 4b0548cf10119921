"""Operators in graphs: opcheck, torch.compile without a break, export, modes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import lowbit as lb
from lowbit.torch import _keys, ops
from torch_layer.torch_support import assert_same, numbers, plain

# torch.compile warns of its own use of deprecated names.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

LOWBIT = torch.ops.lowbit
WORDS = _keys.of(5, private=True)
KEY = lb.Key(7)
EDEN, QUICFL = lb.Eden(1), lb.QuicFl(1)


def rounding(
    scale: Any = None, *, offset: Any = None, key: Any = None, mode: str = "nearest", **more: Any
) -> list[Any]:
    """The arguments of an operator that say how."""
    rule, numbers = (scale, None) if scale is None or isinstance(scale, str) else (None, torch.tensor(scale))
    offset = None if offset is None else torch.tensor(offset)
    return [rule, numbers, offset, more.get("tensor"), more.get("axis"), more.get("block"), mode, key]


@pytest.mark.parametrize(
    ("clip", "format", "how"),
    [
        (False, "int4", rounding("sawb", mode="stochastic", key=WORDS)),
        (True, "int4", rounding(0.3)),
        (True, "uint4", rounding([[0.1], [0.2], [0.3]], offset=-1.0, mode="dither", key=WORDS)),
        (False, "nvfp4", rounding(tensor=torch.tensor(0.5), axis=0)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fake_quantize_is_an_operator(clip: bool, format: str, how: list[Any], dtype: torch.dtype) -> None:
    x = numbers((3, 20)).to(dtype).requires_grad_()
    torch.library.opcheck(LOWBIT.fake_quantize, (x, clip, format, *how))


@pytest.mark.parametrize(
    ("format", "how"),
    [
        ("int4", rounding("minmax", axis=0, mode="dither", key=WORDS)),
        ("nvfp4", rounding()),
        ("fp8_e4m3fn", rounding(axis=1)),
        ("int3", rounding([[0.1], [0.2], [0.3]])),
    ],
)
def test_quantize_and_dequantize_are_operators(format: str, how: list[Any]) -> None:
    x = numbers((3, 21))
    torch.library.opcheck(LOWBIT.quantize, (x, format, *how))
    packed, scale, *rest = LOWBIT.quantize(x, format, *how)
    offset, tensor, identity = (None if part.dtype is torch.bool else part for part in rest)
    shared = ops.sharing(format, 2, how[4], how[5])
    key = (how[-1], identity) if identity is not None else (None, None)
    parts = (packed, scale, offset, tensor, format, [3, 21], *shared, *key, torch.bfloat16)
    torch.library.opcheck(LOWBIT.dequantize, parts)


@pytest.mark.parametrize("codec", [EDEN, QUICFL, lb.Packed("nvfp4"), lb.OneBit("dither", 4.0, 5.0), lb.Sign()], ids=str)
def test_encode_and_decode_are_operators(codec: Any) -> None:
    x = numbers((3, 20)).clamp(-0.5, 0.5) + 4.5
    kind, parameters = codec._wire()
    arguments = (x, kind, list(parameters), WORDS, -1)
    torch.library.opcheck(LOWBIT.encode, arguments)
    torch.library.opcheck(LOWBIT.decode, (LOWBIT.encode(*arguments), WORDS, [3, 20]))


def everything(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ops.QuantizedTensor]:
    """All operations, with all kinds of arguments that a graph can hold."""
    y = ops.fake_quantize(x, "radix4", rounding="stochastic")
    y = y + ops.fake_quantize(x, "uint4", scale=0.1, gradient="clip")
    y = y + ops.fake_quantize(x, "int4", rounding="stochastic", key=KEY)
    y = y + ops.fake_quantize(x, "nvfp4", tensor_scale=0.5, axis=0, rounding="stochastic", key=3)
    y = y @ ops.fake_quantize(w, "int4", scale=w.detach().abs().amax(1, keepdim=True) / 7, axis=0)
    q = ops.quantize(y, "int8", scale="minmax", axis=0, rounding="dither", key=KEY)
    z = ops.dequantize(q, key=KEY)
    for codec in (EDEN, QUICFL):
        z = z + ops.decode(ops.encode(y, codec, key=KEY, sender=2), key=KEY, shape=y.shape)
    return y + z, q


def outcome(call: Callable[..., Any], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    torch.manual_seed(0)
    x, w = numbers((6, 8)).to(dtype).requires_grad_(), numbers((8, 8), 1).to(dtype).requires_grad_()
    y, q = call(x, w)
    y.square().sum().backward()
    return [y.detach(), q.packed, q.scale, q.offset, x.grad, w.grad]


def test_a_graph_without_a_break_computes_the_same() -> None:
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    for got, want in zip(outcome(compiled), outcome(everything), strict=True):
        assert_same(got, want)


def test_a_graph_of_any_length() -> None:
    def layer(x: torch.Tensor) -> torch.Tensor:
        q = ops.quantize(ops.fake_quantize(x, "int4", rounding="stochastic", key=KEY), "mxfp4")
        return ops.dequantize(q)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (33, 64, 95):
        assert_same(compiled(numbers((n, 3))), layer(numbers((n, 3))))


def test_inductor_fuses_nothing_of_it() -> None:
    """The random words of torch are the compiler's own; all else is the same to the bit."""

    def layer(x: torch.Tensor) -> torch.Tensor:
        y = ops.fake_quantize(x * 1.5 + 0.25, "int4", scale="sawb", gradient="clip")
        return ops.fake_quantize(y * 3.0, "radix4", rounding="stochastic", key=KEY) * 0.1

    compiled = torch.compile(layer, fullgraph=True, backend="inductor")
    grads, values = [], []
    for call in (compiled, layer):
        x = numbers((64, 32), requires_grad=True)
        y = call(x)
        y.sum().backward()
        values.append(y.detach())
        grads.append(x.grad)
    assert_same(values[0], values[1])
    assert_same(grads[0], grads[1])
    assert (grads[0] == 0).any()

    drawn = torch.compile(lambda x: ops.fake_quantize(x, "int4", scale=1.0, rounding="stochastic"), fullgraph=True)
    torch.manual_seed(0)
    y = drawn(torch.full((10_000,), 0.3))
    assert abs(float(y.mean()) - 0.3) < 0.02
    assert not torch.equal(drawn(torch.full((10_000,), 0.3)), y)
    torch.manual_seed(0)
    assert torch.equal(drawn(torch.full((10_000,), 0.3)), y)


def test_an_exported_program_calls_the_operator() -> None:
    class Layer(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return ops.fake_quantize(x, "nvfp4")

    x = numbers((4, 32))
    program = torch.export.export(Layer(), (x,))
    assert "lowbit.fake_quantize" in str(program.graph)
    assert_same(program.module()(x), ops.fake_quantize(x, "nvfp4"))


def test_who_traces_operations_sees_the_operator() -> None:
    x = numbers((40,))
    graph = make_fx(lambda x: ops.fake_quantize(x, "int4"))(x)
    assert "lowbit.fake_quantize" in graph.code
    assert_same(graph(2 * x), ops.fake_quantize(2 * x, "int4"))


def test_fake_tensors_have_shapes_and_layouts() -> None:
    length = len(lb.encode(numbers((2, 3, 4, 5)).numpy(), EDEN, key=3))
    with FakeTensorMode() as mode:
        x = mode.from_tensor(numbers((2, 3, 4, 5)).to(memory_format=torch.channels_last))
        y = ops.fake_quantize(x, "mxfp4", rounding="stochastic")
        assert (y.shape, y.stride()) == (x.shape, x.stride())
        q = ops.quantize(x, "int4", axis=1)
        assert q.scale.shape == (1, 3, 1, 1)
        assert ops.dequantize(q, dtype=torch.float16).dtype is torch.float16
        message = ops.encode(x, EDEN, key=3)
        assert len(message) == length
        assert ops.decode(message, key=3, shape=(2, 3, 4, 5)).shape == (2, 3, 4, 5)
        with pytest.raises(lb.Error, match="shape: a graph needs it"):
            ops.decode(message, key=3)


def test_transforms() -> None:
    x = numbers((3, 40))
    for call in (lambda x: ops.fake_quantize(x, "int4"), lambda x: ops.quantize(x, "int4").dequantize()):
        assert_same(torch.func.vmap(call)(x), ops.fake_quantize(x, "int4", axis=0))
    # torch has no such gradient of any custom operator.
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(lambda x: ops.fake_quantize(x, "int4").sum())(x)


def test_plain_computes_inside_of_graphs_too() -> None:
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    want = outcome(everything)
    with plain():
        for got, wanted in zip(outcome(compiled), want, strict=True):
            assert_same(got, wanted)
