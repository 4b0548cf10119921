"""Products of whole numbers read off their packed codes: integers to the end, then one rounding to float32.

The result is that of `_contract`, bit for bit; which of the two is used is a matter of time alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

import lowbit as lb
from lowbit import _core
from lowbit.torch import _contract
from lowbit.torch._contract import Convolution
from lowbit.torch._operands import Codes, Operand
from lowbit.torch._options import on_core
from lowbit.torch._spec import Spec

#: Kernels that beat float32 products of decoded numbers. Measured with AVX2 on Zen 3: INT4 forward passes 1.1 to 3
#: times at any size from 1 x 256 x 256 on, as nothing is decoded; whole steps with radix-4 gradients 0.9 to 1.1 times
#: up to 256^3, 1.26 at 256 x 1024 x 1024. The others do more multiplications an instruction, and are not measured yet.
_FASTER = ("avx2", "avx-vnni", "avx512-vnni", "amx", "neon")
#: Multiply-accumulates from which formats wider than a byte (radix-4) are.
_WIDE = 1 << 24
#: Rows and terms from which a convolution's are: each number that is gathered is multiplied by so many. Measured as
#: above, products alone, against torch's float32; kernels of 3 x 3 if not said. Forward 1.0 to 1.9 times from 64
#: channels on (1 x 1: 1.7 to 2.7), 0.9 with 16 and 32. Towards the input INT4 1.0 to 2.0 (stride 2: 0.5), radix-4 0.7
#: to 1.2 (1 x 1: 1.2 to 2.6). Towards the weight INT4 1.4 to 5 on maps 16 and 32 wide, 0.6 to 1.3 on narrower ones,
#: whose runs are short, radix-4 0.4 to 1.0 (1 x 1: 0.8 and 2.3 on wide maps, where both gradients together take 0.6
#: and 0.8 of the layer's time on floats).
_CHANNELS = 64
_WIDTH = 16


def matmul(compute: str, a: Operand, b: Operand, *, turn_a: bool = False, turn_b: bool = False) -> Tensor:
    """Multiply two matrices, either one transposed first, to float32."""
    if a.codes is not None and b.codes is not None and on_core(a.codes.packed):
        (m, k), (terms, n) = _turned(a.codes, turn_a), _turned(b.codes, turn_b)
        if k == terms and _chosen(compute, a.codes.format, b.codes.format, m, k, n):
            y = torch.empty(m, n, dtype=torch.float32, device="cpu")
            of_a, of_b = (a.codes.packed.numpy(), a.codes.format), (b.codes.packed.numpy(), b.codes.format)
            (rows_a, columns_a), (rows_b, columns_b) = a.codes.shape, b.codes.shape
            _core.code_product(*of_a, rows_a, columns_a, turn_a, *of_b, rows_b, columns_b, turn_b, y.numpy())
            return y
    x, y = (operand.values.t() if turn else operand.values for operand, turn in ((a, turn_a), (b, turn_b)))
    return _contract.matmul(x, y, a.steps, b.steps)


def forward(compute: str, geometry: Convolution, x: Operand, w: Operand, layout: torch.memory_format) -> Tensor:
    """Compute y of x and w, in a layout."""
    if x.codes is not None and w.codes is not None:
        shape = geometry.result_shape(x.codes.shape, w.codes.shape)
        # What does not fit is left to torch, which says so.
        if min(shape[2:]) > 0 and x.codes.shape[1] == w.codes.shape[1] * geometry.groups:
            y = _convolved("forward", compute, geometry, (x.codes.shape, w.codes.shape, shape), x.codes, w.codes)
            if y is not None:
                return y.contiguous(memory_format=layout)
    values = x.values.contiguous(memory_format=layout)
    return geometry.forward(values, w.values, x.steps, w.steps).contiguous(memory_format=layout)


def grad_input(compute: str, geometry: Convolution, shape: torch.Size, g: Operand, w: Operand) -> Tensor:
    """Compute dL/dx of g = dL/dy and w."""
    if g.codes is not None and w.codes is not None:
        dx = _convolved("grad_input", compute, geometry, (shape, w.codes.shape, g.codes.shape), g.codes, w.codes)
        if dx is not None:
            return dx
    return geometry.grad_input(shape, g.values, w.values, g.steps, w.steps)


def grad_weight(compute: str, geometry: Convolution, shape: torch.Size, g: Operand, x: Operand) -> Tensor:
    """Compute dL/dW of g = dL/dy and x."""
    if g.codes is not None and x.codes is not None and len(x.codes.shape) == len(shape):
        dw = _convolved("grad_weight", compute, geometry, (x.codes.shape, shape, g.codes.shape), g.codes, x.codes)
        if dw is not None:
            return dw
    return geometry.grad_weight(shape, g.values, x.values, g.steps, x.steps)


#: Shapes of an input, a weight and their product.
Shapes = tuple[Sequence[int], Sequence[int], Sequence[int]]
#: In the order of what comes out of them.
_PRODUCTS = ("grad_input", "grad_weight", "forward")
Which = Literal["grad_input", "grad_weight", "forward"]


def _convolved(which: Which, compute: str, geometry: Convolution, shapes: Shapes, a: Codes, b: Codes) -> Tensor | None:
    """Compute a product of a convolution on codes, if integers are chosen."""
    if not on_core(a.packed) or not _asked(compute, a.format, b.format, which, geometry, shapes):
        return None
    out = torch.empty(tuple(shapes[_PRODUCTS.index(which)]), dtype=torch.float32, device="cpu")
    # One dimension is the second of two.
    one = (1,) * (4 - out.dim())
    _core.code_convolution(
        which,
        *(a.packed.numpy(), a.format, (*a.shape[:2], *one, *a.shape[2:])),
        *(b.packed.numpy(), b.format, (*b.shape[:2], *one, *b.shape[2:])),
        (*one, *geometry.stride),
        (*(0 for _ in one), *geometry.padding),
        (*one, *geometry.dilation),
        geometry.groups,
        out.view(*out.shape[:2], *one, *out.shape[2:]).numpy(),
    )
    return out


def expected(
    compute: str, spec: Spec | None, b: Operand, which: Which, geometry: Convolution | None, shapes: Shapes
) -> bool:
    """Say whether numbers of a spec will be multiplied with b as integers: then they had better be codes."""
    if spec is None or spec.samples > 1 or spec.per != "tensor" or spec.in_blocks or b.codes is None:
        return False
    return on_core(b.codes.packed) and _asked(compute, spec.format, b.codes.format, which, geometry, shapes)


def _asked(compute: str, a: str, b: str, which: Which, geometry: Convolution | None, shapes: Shapes) -> bool:
    """Decide for integers by the shapes of x, w and y."""
    _, w, y = shapes
    if geometry is None:
        m, k, n = (y[0], w[0], w[1]) if which == "grad_input" else (w[0], y[0], w[1])
        return _chosen(compute, a, b, m, k, n)
    # Rows and terms of each group's product.
    channels = w[0] // geometry.groups
    sizes = {
        "forward": (channels, math.prod(w[1:])),
        "grad_input": (w[1], channels * math.prod(w[2:])),
        "grad_weight": (channels, y[0] * math.prod(y[2:])),
    }
    chosen = _chosen(compute, a, b, *sizes[which], _WIDE)
    if not chosen or compute == "integer":
        return chosen
    if min(sizes[which]) < _CHANNELS or (_wide(a, b) and max(w[2:]) > 1):
        return False
    return which == "forward" or (max(geometry.stride) == 1 if which == "grad_input" else y[-1] >= _WIDTH)


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
    return _core.matmul_kernel() in _FASTER and (not _wide(a, b) or m * k * n >= _WIDE)


def _wide(a: str, b: str) -> bool:
    """Say whether numbers of either format take more than a byte."""
    return any(steps is not None and steps.most > 128 for steps in (_contract.steps(a), _contract.steps(b)))
