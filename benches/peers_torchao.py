"""The torchao recipes: its affine primitives, compiled by torch.compile; they store one INT4 value a byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peers_torch import tensor
from torchao.quantization.quant_primitives import (
    MappingType,
    _fake_quantize_affine,
    choose_qparams_affine,
    dequantize_affine,
    quantize_affine,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from problems import Problem
    from torch import Tensor

torch._dynamo.config.recompile_limit = 64  # one compilation for each size and block
compiled = torch.compile(fullgraph=True, dynamic=False)
INT4 = {"quant_min": -8, "quant_max": 7}


@compiled
def _fake(rows: Tensor, block: int, scale: Tensor, zero: Tensor) -> Tensor:
    return _fake_quantize_affine(rows, (1, block), scale, zero, torch.int8, **INT4)


@compiled
def _quantize(rows: Tensor, block: int, scale: Tensor, zero: Tensor) -> Tensor:
    return quantize_affine(rows, (1, block), scale, zero, torch.int8, **INT4)


@compiled
def _choose_and_quantize(rows: Tensor, block: int) -> tuple[Tensor, Tensor]:
    scale, zero = choose_qparams_affine(rows, MappingType.SYMMETRIC, (1, block), torch.int8, **INT4)
    return quantize_affine(rows, (1, block), scale, zero, torch.int8, **INT4), scale


@compiled
def _dequantize(rows: Tensor, block: int, scale: Tensor, zero: Tensor) -> Tensor:
    return dequantize_affine(rows, (1, block), scale, zero, torch.int8, **INT4)


def _rows(array: Any, block: int, scales: Any) -> tuple[Tensor, int, Tensor, Tensor]:
    scale = torch.as_tensor(scales).view(-1)
    return tensor(array).view(-1, block), block, scale, torch.zeros_like(scale, dtype=torch.int32)


def fake_quantize_int4(problem: Problem) -> Callable[[], Any]:
    arguments = _rows(problem.x, problem.n, float(problem.scale))
    return lambda: _fake(*arguments)


def quantize_int4(problem: Problem) -> Callable[[], Any]:
    arguments = _rows(problem.x, problem.n, float(problem.scale))
    return lambda: (_quantize(*arguments), problem.scale, "bytes")


def _blocks(problem: Problem, block: int) -> Callable[[], Any]:
    rows = tensor(problem.x).view(-1, block)
    return lambda: (*_choose_and_quantize(rows, block), "bytes")


def quantize_int4_amax(problem: Problem) -> Callable[[], Any]:
    return _blocks(problem, problem.n)


def quantize_int4_block32(problem: Problem) -> Callable[[], Any]:
    return _blocks(problem, 32)


def quantize_int4_block128(problem: Problem) -> Callable[[], Any]:
    return _blocks(problem, 128)


def dequantize_int4(problem: Problem) -> Callable[[], Any]:
    arguments = _rows(problem.codes, problem.n, float(problem.scale))
    return lambda: _dequantize(*arguments)


def dequantize_int4_block128(problem: Problem) -> Callable[[], Any]:
    arguments = _rows(problem.codes, 128, problem.block_scales)
    return lambda: _dequantize(*arguments)
