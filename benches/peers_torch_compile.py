"""The torch.compile recipes: the plain expression, fused by inductor, written into a given tensor.

Codes are packed in planes (the first half of the array, or of each block, in the low nibbles), the layout that
inductor vectorizes best and that lowbit does not have. Random numbers are ``torch.rand_like``, as anyone writes it; the
numba contender shows what a hash of the index costs instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peers_torch import tensor
from problems import KEY, pack_planar

if TYPE_CHECKING:
    from collections.abc import Callable

    from problems import Problem
    from torch import Tensor

torch._dynamo.config.recompile_limit = 64  # one compilation for each size and block
compiled = torch.compile(fullgraph=True, dynamic=False)


@compiled
def _fake_int4(x: Tensor, scale: Tensor, out: Tensor) -> None:
    out.copy_((x * scale.reciprocal()).round().clamp(-8, 7) * scale)


@compiled
def _fake_int4_stochastic(x: Tensor, scale: Tensor, out: Tensor) -> None:
    out.copy_(((x * scale.reciprocal()).clamp(-8, 7) + torch.rand_like(x)).floor() * scale)


def _floor4(a: Tensor) -> Tensor:
    """Find the power of 4 at or below `a`, at most 64, and 0 below 1/64, by the bits of the exponent."""
    bits = (((a.view(torch.int32) & 0x7F800000) - 0x00800000) | 0x00800000).clamp(max=0x42800000)
    return torch.where(a >= 1 / 64, bits, 0).view(torch.float32)


@compiled
def _fake_radix4(x: Tensor, scale: Tensor, out: Tensor) -> None:
    t = x * scale.reciprocal()
    out.copy_((_floor4(t.abs() * 1.6) * scale).copysign(t))


@compiled
def _fake_radix4_stochastic(x: Tensor, scale: Tensor, out: Tensor) -> None:
    t = x * scale.reciprocal()
    a = t.abs().clamp(max=64)
    gap = (_floor4(a) * 3).clamp(min=1 / 64)
    out.copy_((_floor4(a + gap * torch.rand_like(x)) * scale).copysign(t))


def _pack(t: Tensor, out: Tensor) -> None:
    codes = t.round().clamp(-8, 7).to(torch.int32) & 15
    half = codes.shape[1] // 2
    out.copy_((codes[:, :half] | (codes[:, half:] << 4)).to(torch.uint8))


@compiled
def _quantize(x: Tensor, scale: Tensor, out: Tensor) -> None:
    _pack(x * scale.reciprocal(), out)


@compiled
def _quantize_amax(x: Tensor, scale: Tensor, out: Tensor) -> None:
    found = x.abs().amax(dim=1, keepdim=True) / 7
    scale.copy_(found)
    _pack(x * found.reciprocal(), out)


@compiled
def _dequantize(packed: Tensor, scale: Tensor) -> Tensor:
    codes = packed.to(torch.int32)
    # A fresh tensor: written into halves of a given one, this takes six times as long.
    return torch.cat([(((codes & 15) ^ 8) - 8) * scale, (((codes >> 4) ^ 8) - 8) * scale], dim=1)


@compiled
def _encode(x: Tensor, out: Tensor) -> None:
    ones = (x + torch.rand_like(x) >= 1).view(8, -1).to(torch.uint8)
    packed = ones[0]
    for bit in range(1, 8):
        packed = packed | (ones[bit] << bit)
    out.copy_(packed)


@compiled
def _decode(bits: Tensor, out: Tensor) -> None:
    ones = torch.stack([(bits >> bit) & 1 for bit in range(8)]).view(-1)
    out.copy_(ones - torch.rand_like(out) + 0.5)


@compiled
def _random(out: Tensor) -> None:
    out.copy_(torch.randint_like(out, -(2**31), 2**31))


def _into(kernel: Any, *tensors: Tensor) -> Callable[[], Any]:
    def call() -> Tensor:
        kernel(*tensors)
        return tensors[-1]

    return call


def _fake(kernel: Any, problem: Problem, scale: np.float32) -> Callable[[], Any]:
    return _into(kernel, tensor(problem.x), torch.tensor(float(scale)), tensor(problem.empty()))


def fake_quantize_int4(problem: Problem) -> Callable[[], Any]:
    return _fake(_fake_int4, problem, problem.scale)


def fake_quantize_int4_stochastic(problem: Problem) -> Callable[[], Any]:
    return _fake(_fake_int4_stochastic, problem, problem.scale)


def fake_quantize_radix4(problem: Problem) -> Callable[[], Any]:
    return _fake(_fake_radix4, problem, problem.radix_scale)


def fake_quantize_radix4_stochastic(problem: Problem) -> Callable[[], Any]:
    return _fake(_fake_radix4_stochastic, problem, problem.radix_scale)


def _packed(kernel: Any, problem: Problem, block: int, scale: float = 1.0) -> Callable[[], Any]:
    rows, scales = tensor(problem.x).view(-1, block), torch.full((problem.n // block, 1), scale)
    quantize = _into(kernel, rows, scales, tensor(problem.empty("u1", bits=4)).view(-1, block // 2))
    return lambda: (quantize(), scales, "planar")


def quantize_int4(problem: Problem) -> Callable[[], Any]:
    return _packed(_quantize, problem, problem.n, float(problem.scale))


def quantize_int4_amax(problem: Problem) -> Callable[[], Any]:
    return _packed(_quantize_amax, problem, problem.n)


def quantize_int4_block32(problem: Problem) -> Callable[[], Any]:
    return _packed(_quantize_amax, problem, 32)


def quantize_int4_block128(problem: Problem) -> Callable[[], Any]:
    return _packed(_quantize_amax, problem, 128)


def _unpacked(problem: Problem, scales: Tensor, block: int) -> Callable[[], Any]:
    packed = tensor(pack_planar(problem.codes, block)).view(-1, block // 2)
    return lambda: _dequantize(packed, scales)


def dequantize_int4(problem: Problem) -> Callable[[], Any]:
    return _unpacked(problem, torch.tensor(float(problem.scale)), problem.n)


def dequantize_int4_block128(problem: Problem) -> Callable[[], Any]:
    return _unpacked(problem, tensor(problem.block_scales)[:, None], 128)


def _seeded(call: Callable[[], Any]) -> Callable[[], Any]:
    """Let a compiled ``rand_like`` draw from the shared seed: it reads torch's generator once a call."""

    def seeded() -> Any:
        torch.manual_seed(KEY)
        return call()

    return seeded


def onebit_encode(problem: Problem) -> Callable[[], Any]:
    return _seeded(_into(_encode, tensor(problem.unit), tensor(problem.empty("u1", bits=1))))


def onebit_decode(problem: Problem) -> Callable[[], Any]:
    return _seeded(_into(_decode, onebit_encode(problem)(), tensor(problem.empty())))


def random_bits(problem: Problem) -> Callable[[], Any]:
    return _into(_random, torch.empty(problem.n, dtype=torch.int32))
