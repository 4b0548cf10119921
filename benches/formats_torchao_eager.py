"""The torchao recipes for number formats, run as torchao runs them: eagerly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from formats import BLOCK, stored
from peers_torch import tensor
from torchao.optim.quant_utils import _fp32_to_bf16_sr
from torchao.prototype.mx_formats.kernels import f4_unpacked_to_f32, unpack_uint4
from torchao.prototype.mx_formats.mx_tensor import to_dtype, to_mx
from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize, per_tensor_amax_to_scale

if TYPE_CHECKING:
    from collections.abc import Callable

    from problems import Problem
    from torch import Tensor

E2M1 = torch.float4_e2m1fn_x2


def exactly(function: Any) -> Any:
    """Run eagerly."""
    return function


def quantize_bfloat16(problem: Problem, run: Any = exactly) -> Callable[[], Any]:
    x, rounded = tensor(problem.x), run(_fp32_to_bf16_sr)
    return lambda: rounded(x).view(torch.int16).numpy()


def _mxfp4(rows: Tensor) -> tuple[Tensor, Tensor]:
    scales, packed = to_mx(rows, E2M1, BLOCK["mxfp4"])
    return packed, scales


def _nvfp4(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    tensor_scale = per_tensor_amax_to_scale(rows.abs().amax())
    scales, packed = nvfp4_quantize(rows, BLOCK["nvfp4"], tensor_scale)
    return packed, scales, tensor_scale


def _from_mxfp4(packed: Tensor, scales: Tensor) -> Tensor:
    return to_dtype(packed, scales, E2M1, BLOCK["mxfp4"], torch.float32)


def _from_nvfp4(packed: Tensor, scales: Tensor, tensor_scale: Tensor) -> Tensor:
    values = f4_unpacked_to_f32(unpack_uint4(packed)).view(-1, BLOCK["nvfp4"])
    return values * (scales.float().view(-1, 1) * tensor_scale)


FORWARD, BACKWARD = {"mxfp4": _mxfp4, "nvfp4": _nvfp4}, {"mxfp4": _from_mxfp4, "nvfp4": _from_nvfp4}


def fake_quantize_blocks(problem: Problem, name: str, run: Any = exactly) -> Callable[[], Any]:
    rows = tensor(problem.x).view(-1, 128)
    fake = run(lambda rows: BACKWARD[name](*FORWARD[name](rows)))
    return lambda: fake(rows)


def quantize_blocks(problem: Problem, name: str, run: Any = exactly) -> Callable[[], Any]:
    rows, forward = tensor(problem.x).view(-1, 128), run(FORWARD[name])

    def call() -> Any:
        packed, scales, *tensor_scale = forward(rows)
        return packed.view(torch.uint8), scales.view(torch.uint8), *(tensor_scale or (1,))

    return call


def dequantize(problem: Problem, name: str, run: Any = exactly) -> Callable[[], Any] | None:
    if name not in BACKWARD:
        return None
    given = stored(problem, name)
    packed, codes = tensor(given.packed).view(-1, 64), tensor(given.scale_codes)
    scales = codes.view(torch.float8_e8m0fnu if name == "mxfp4" else torch.float8_e4m3fn).view(len(packed), -1)
    backward, tensor_scales = run(BACKWARD[name]), [torch.tensor(1.0)] * (name == "nvfp4")
    return lambda: backward(packed, scales, *tensor_scales)
