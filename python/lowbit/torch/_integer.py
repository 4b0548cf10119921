"""Products of whole numbers read off their packed codes: integers to the end, then one rounding to float32.

The result is that of `_contract`, bit for bit; which of the two is used is a matter of time alone.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

import lowbit as lb
from lowbit import _core
from lowbit.torch import _contract
from lowbit.torch._operands import Codes, Operand
from lowbit.torch._options import on_core
from lowbit.torch._spec import Spec

#: Kernels that beat float32 products of decoded numbers. Measured with AVX2 on Zen 3: INT4 forward passes 1.1 to 3
#: times at any size from 1 x 256 x 256 on, as nothing is decoded; whole steps with radix-4 gradients 0.9 to 1.1 times
#: up to 256^3, 1.26 at 256 x 1024 x 1024. The others do more multiplications an instruction, and are not measured yet.
_FASTER = ("avx2", "avx-vnni", "avx512-vnni", "amx", "neon")
#: Multiply-accumulates from which formats wider than a byte (radix-4) are.
_WIDE = 1 << 24


def matmul(compute: str, a: Operand, b: Operand, *, turn_a: bool = False, turn_b: bool = False) -> Tensor:
    """Multiply two matrices, either one transposed first, to float32."""
    if a.codes is not None and b.codes is not None and on_core(a.codes.packed):
        (m, k), (terms, n) = _turned(a.codes, turn_a), _turned(b.codes, turn_b)
        if k == terms and _chosen(compute, a.codes.format, b.codes.format, m, k, n):
            y = torch.empty(m, n)
            _core.code_product(
                *(a.codes.packed.numpy(), a.codes.format, *a.codes.shape, turn_a),
                *(b.codes.packed.numpy(), b.codes.format, *b.codes.shape, turn_b),
                y.numpy(),
            )
            return y
    x, y = (operand.values.t() if turn else operand.values for operand, turn in ((a, turn_a), (b, turn_b)))
    return _contract.matmul(x, y, a.steps, b.steps)


def expected(compute: str, spec: Spec | None, b: Operand, rows: int) -> bool:
    """Say whether numbers of a spec will be multiplied with b as integers: then they had better be codes."""
    if spec is None or spec.samples > 1 or spec.per != "tensor" or spec.in_blocks or b.codes is None:
        return False
    if not on_core(b.codes.packed):
        return False
    return _chosen(compute, spec.format, b.codes.format, rows, *b.codes.shape)


def _turned(codes: Codes, turn: bool) -> tuple[int, int]:
    rows, columns = codes.shape
    return (columns, rows) if turn else (rows, columns)


@lru_cache(maxsize=256)
def multiplies(format: str) -> bool:
    """Say whether a format's codes can be multiplied as integers: all whole numbers of steps of a power of two."""
    fmt = lb.get_format(format)
    if fmt.bits > 8 or not fmt.coded or not np.isfinite(fmt.decode_table).all():
        return False
    return _contract.steps(format) is not None and math.frexp(fmt.smallest)[0] == 0.5


@lru_cache(maxsize=4096)
def _chosen(compute: str, a: str, b: str, m: int, k: int, n: int) -> bool:
    """Decide for integers: where they can be had, and where that is asked for or faster."""
    if compute == "float" or not (multiplies(a) and multiplies(b)):
        return False
    if compute == "integer":
        return True
    wide = any(steps is not None and steps.most > 128 for steps in (_contract.steps(a), _contract.steps(b)))
    return _core.matmul_kernel() in _FASTER and (not wide or m * k * n >= _WIDE)
