"""The eager PyTorch recipes: the built-in operation where there is one, else in-place steps on preallocated tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from problems import KEY, pack_nibbles

if TYPE_CHECKING:
    from collections.abc import Callable

    from problems import Problem
    from torch import Tensor


def tensor(array: Any) -> Tensor:
    """Share the array's memory, which NumPy has asked huge pages for."""
    return torch.from_numpy(array)


def fake_quantize_int4(problem: Problem) -> Callable[[], Any]:
    x, out, scale = tensor(problem.x), tensor(problem.empty()), float(problem.scale)
    # Four passes, and yet several times faster than torch.fake_quantize_per_tensor_affine, which makes a mask too.
    return lambda: torch.mul(x, 1 / scale, out=out).round_().clamp_(-8, 7).mul_(scale)


def fake_quantize_int4_stochastic(problem: Problem) -> Callable[[], Any]:
    x, out, scale = tensor(problem.x), tensor(problem.empty()), float(problem.scale)
    draws = tensor(problem.empty())
    return lambda: torch.mul(x, 1 / scale, out=out).clamp_(-8, 7).add_(draws.uniform_()).floor_().mul_(scale)


def _floor4(a: Tensor, out: Tensor) -> Tensor:
    """Write the power of 4 at or below `a`, at most 64, and 0 below 1/64, by the bits of the exponent."""
    bits = out.view(torch.int32)
    torch.bitwise_and(a.view(torch.int32), 0x7F800000, out=bits)
    bits.sub_(0x00800000).bitwise_or_(0x00800000).clamp_(max=0x42800000)
    return torch.threshold_(out, 1 / 65, 0.0)  # what is over 1/65 is at least 1/64


def fake_quantize_radix4(problem: Problem) -> Callable[[], Any]:
    x, t, out = tensor(problem.x), tensor(problem.empty()), tensor(problem.empty())
    scale = float(problem.radix_scale)

    def call() -> Tensor:
        torch.mul(x, 1.6 / scale, out=t).abs_()
        return _floor4(t, out).mul_(scale).copysign_(x)

    return call


def fake_quantize_radix4_stochastic(problem: Problem) -> Callable[[], Any]:
    x, t, gap, out = (tensor(array) for array in (problem.x, problem.empty(), problem.empty(), problem.empty()))
    scale = float(problem.radix_scale)

    def call() -> Tensor:
        torch.mul(x, 1 / scale, out=t).abs_().clamp_(max=64)
        _floor4(t, gap).mul_(3).clamp_(min=1 / 64).mul_(out.uniform_())
        return _floor4(t.add_(gap), out).mul_(scale).copysign_(x)

    return call


def _quantize(problem: Problem, block: int | None, scale: float | None = None) -> Callable[[], Any]:
    rows = tensor(problem.x).view(-1, block or problem.n)
    t, codes = torch.empty_like(rows), torch.empty(problem.n, dtype=torch.int8)
    out = tensor(problem.empty("u1", bits=4))

    def observe() -> Tensor:
        return torch.abs(rows, out=t).amax(dim=1, keepdim=True).div_(7)  # torch.aminmax is ten times slower

    def call() -> tuple[Any, Any, str]:
        scales = observe() if scale is None else torch.tensor([[scale]])
        torch.mul(rows, scales.reciprocal(), out=t).round_().clamp_(-8, 7)
        pairs = codes.copy_(t.view(-1)).bitwise_and_(15).view(torch.int16)
        out.copy_(pairs.bitwise_or_(pairs >> 4))  # the low byte: one value in each half
        return out, scales, "adjacent"

    return call


def quantize_int4(problem: Problem) -> Callable[[], Any]:
    return _quantize(problem, None, float(problem.scale))


def quantize_int4_amax(problem: Problem) -> Callable[[], Any]:
    return _quantize(problem, None)


def quantize_int4_block32(problem: Problem) -> Callable[[], Any]:
    return _quantize(problem, 32)


def quantize_int4_block128(problem: Problem) -> Callable[[], Any]:
    return _quantize(problem, 128)


def _dequantize(problem: Problem, block: int, scales: Tensor) -> Callable[[], Any]:
    packed, codes = tensor(pack_nibbles(problem.codes)), torch.empty(problem.n, dtype=torch.int8)
    out = tensor(problem.empty()).view(-1, block)

    def call() -> Tensor:
        pairs = codes.view(torch.int16).copy_(packed)
        pairs.bitwise_or_(pairs << 4).bitwise_and_(0x0F0F)
        return torch.mul(codes.bitwise_xor_(8).sub_(8).view(-1, block), scales, out=out)

    return call


def dequantize_int4(problem: Problem) -> Callable[[], Any]:
    return _dequantize(problem, problem.n, torch.tensor(float(problem.scale)))


def dequantize_int4_block128(problem: Problem) -> Callable[[], Any]:
    return _dequantize(problem, 128, tensor(problem.block_scales)[:, None])


def onebit_encode(problem: Problem) -> Callable[[], Any]:
    x, draws, ones = tensor(problem.unit), tensor(problem.empty()), torch.empty(problem.n, dtype=torch.bool)
    rng, out = torch.Generator(), torch.empty(problem.n // 8, dtype=torch.uint8)

    def call() -> Tensor:
        draws.uniform_(generator=rng.manual_seed(KEY)).add_(x)
        torch.ge(draws, 1, out=ones)
        # Eight bytes that are 0 or 1, multiplied by sum 2^(7 k): byte i becomes bit i of the highest byte.
        return out.copy_(ones.view(torch.int64).mul_(0x0102040810204080).bitwise_right_shift_(56))

    return call


def onebit_decode(problem: Problem) -> Callable[[], Any]:
    bits, out, rng = onebit_encode(problem)(), tensor(problem.empty()), torch.Generator()
    table = (torch.arange(256)[:, None] >> torch.arange(8) & 1).float() + 0.5

    def call() -> Tensor:
        out.uniform_(generator=rng.manual_seed(KEY)).neg_()
        return out.add_(torch.nn.functional.embedding(bits.to(torch.int32), table).view(-1))

    return call


def random_bits(problem: Problem) -> Callable[[], Any]:
    out = torch.empty(problem.n // 2, dtype=torch.int64)
    return lambda: out.random_(-(2**63), None)
