"""Against ONNX's reference evaluator: QuantizeLinear and DequantizeLinear of 4-bit integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import lowbit as lb
from lowbit.interop import OnnxTensor, from_onnx, to_onnx
from support import assert_same, normal


def tensor(name: str, values: np.ndarray, dtype: str) -> TensorProto:
    """Integers as a tensor of their type, raw data packed by lowbit."""
    width = int(dtype.removeprefix("u").removeprefix("int"))
    codes = values.astype(np.int64).astype(np.uint8) & ((1 << width) - 1)
    return helper.make_tensor(
        name, TensorProto.DataType.Value(dtype.upper()), values.shape, raw(codes, width), raw=True
    )


def raw(codes: np.ndarray, width: int) -> bytes:
    return lb.pack(codes, width).tobytes()


def run(node: Any, feeds: dict[str, np.ndarray], initializers: list[Any], output: Any, opset: int = 21) -> np.ndarray:
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape) for name, x in feeds.items()]
    outputs = [helper.make_tensor_value_info("y", *output)]
    graph = helper.make_graph([node], "g", inputs, outputs, initializer=initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    onnx.checker.check_model(model)
    return np.asarray(ReferenceEvaluator(model).run(None, feeds)[0])


def attributes(parts: OnnxTensor) -> dict[str, int]:
    named = {"axis": parts.axis, "block_size": parts.block_size}
    return {name: value for name, value in named.items() if value is not None}


def dequantized(parts: OnnxTensor) -> np.ndarray:
    kind = TensorProto.DataType.Value(parts.dtype.upper())
    initializers = [
        helper.make_tensor("q", kind, parts.shape, parts.packed.tobytes(), raw=True),
        helper.make_tensor("scale", TensorProto.FLOAT, parts.scale.shape, parts.scale.ravel()),
    ]
    if parts.zero_point is not None:
        initializers.append(tensor("zero", parts.zero_point, parts.dtype))
    names = [each.name for each in initializers]
    node = helper.make_node("DequantizeLinear", names, ["y"], **attributes(parts))
    return run(node, {}, initializers, (TensorProto.FLOAT, parts.shape), 25 if parts.dtype.endswith("2") else 21)


X = normal(6 * 40).reshape(6, 40)
LAYOUTS: list[dict[str, Any]] = [
    {},
    {"axis": 0},
    {"axis": 1},
    {"block_size": 8},
    {"block_size": 16},
    {"axis": 0, "block_size": 4},
    {"scale": np.float32([[0.5]])},
]


@pytest.mark.parametrize("options", LAYOUTS, ids=str)
@pytest.mark.parametrize("small", ["int4", "int4_symmetric", "uint4", "int8", "uint8", "int2"])
def test_they_read_what_lowbit_quantized(small: str, options: dict[str, Any]) -> None:
    q = lb.quantize(X, small, **options)
    assert_same(dequantized(to_onnx(q)), np.asarray(q))


@pytest.mark.parametrize("options", LAYOUTS, ids=str)
@pytest.mark.parametrize("small", ["int4", "uint4"])
def test_offsets_of_whole_steps(small: str, options: dict[str, Any]) -> None:
    """With scales of few bits the numbers are the same; with any, within the rounding of two products."""
    q = lb.quantize(X, small, **options)
    for scale, exact in [(q.scale.astype(np.float16).astype(np.float32), True), (q.scale, False)]:
        steps = np.random.default_rng(1).integers(0, 16, scale.shape)
        affine = {**options, "scale": scale, "offset": (-steps * scale).astype(np.float32)}
        shifted = lb.quantize(X, small, **affine)
        parts = to_onnx(shifted)
        assert parts.zero_point is not None
        assert from_onnx(*parts).to_bytes() == shifted.to_bytes() or options.get("scale") is not None
        got, want = np.asarray(shifted), dequantized(parts)
        if exact:
            np.testing.assert_array_equal(got, want)
        else:
            np.testing.assert_allclose(got, want, rtol=2.0**-23, atol=float(32 * scale.max()) * 2.0**-24)


def quantized_by_onnx(
    x: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, dtype: str, **named: Any
) -> np.ndarray:
    initializers = [helper.make_tensor("scale", TensorProto.FLOAT, scale.shape, scale.ravel())]
    kind = TensorProto.DataType.Value(dtype.upper())
    if zero is None:
        named["output_dtype"] = kind
    else:
        initializers.append(tensor("zero", zero, dtype))
    names = ["x", *(each.name for each in initializers)]
    node = helper.make_node("QuantizeLinear", names, ["y"], **named)
    return run(node, {"x": x}, initializers, (kind, x.shape))


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("dtype", ["int4", "uint4"])
@pytest.mark.parametrize("layout", ["tensor", "axis", "blocks"])
def test_lowbit_reads_what_they_quantized(layout: str, dtype: str, zero: bool) -> None:
    named: dict[str, Any] = {"tensor": {}, "axis": {"axis": 0}, "blocks": {"axis": 1, "block_size": 16}}[layout]
    shape = {"tensor": (), "axis": (6,), "blocks": (6, 3)}[layout]
    rng = np.random.default_rng(2)
    scale = np.asarray(rng.integers(1, 2**11, shape) / 2**12, np.float32)
    low, high = (-8, 7) if dtype == "int4" else (0, 15)
    points = np.asarray(rng.integers(low, high + 1, shape)) if zero else None
    got = quantized_by_onnx(X, scale, points, dtype, **named)
    codes = got.astype(np.int8).view(np.uint8) & 15
    parts = OnnxTensor(lb.pack(codes, 4), scale, points, dtype, X.shape, named.get("axis"), named.get("block_size"))
    q = from_onnx(*parts)
    np.testing.assert_array_equal(q.codes, codes)
    np.testing.assert_array_equal(np.asarray(q), dequantized(parts))
    for part, again in zip(parts, to_onnx(q), strict=True):
        np.testing.assert_array_equal(part, again)


def test_their_division_is_not_our_reciprocal() -> None:
    """QuantizeLinear divides, lowbit multiplies by the reciprocal: codes differ only where x / scale is near a tie."""
    x = normal(1 << 16, 3)
    scale = np.float32(0.3)
    theirs = quantized_by_onnx(x, scale, None, "int4").astype(np.int8)
    ours = (lb.quantize(x, "int4", scale=scale).codes.astype(np.int8) ^ 8) - 8
    differ = theirs != ours
    exact = np.abs(x.astype(np.float64) / np.float64(scale))
    assert np.all(np.abs(exact[differ] % 1 - 0.5) < 8 * 2.0**-23)
    assert differ.sum() < 10
