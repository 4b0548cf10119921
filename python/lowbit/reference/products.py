"""Products of matrices of codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lowbit.reference.formats import f32, ignore
from lowbit.reference.names import get_format
from lowbit.reference.quantizers import Quantized, quantize
from lowbit.reference.scales import spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The largest number of float32.
_MOST = float(np.finfo(np.float32).max)


def _steps(q: Quantized) -> tuple[NDArray[np.int64], np.float32]:
    """Count how many of the format's smallest value every code stands for."""
    grid = get_format(q.format)
    unit = grid.values[grid.values > 0].min()
    return (grid.decode(q.codes) / unit).astype(np.int64), unit


def _scale(q: Quantized) -> NDArray[np.float32]:
    return q.scale if q.tensor_scale is None else q.scale * q.tensor_scale


def _block(q: Quantized, axis: int) -> int | None:
    """Say after how many numbers along the axis the scale may change."""
    if q.block_size is None or (-1 if q.axis is None else q.axis) % 2 != axis or q.scale.shape[axis] == 1:
        return None
    return q.block_size


@ignore
def matmul(
    a: Quantized | NDArray[np.floating],
    b: Quantized,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
) -> NDArray[np.float32]:
    """Multiply two matrices as ``lowbit.matmul`` does, one result at a time.

    Parameters
    ----------
    a : Quantized or numpy.ndarray
        Shape (m, k); floats become int8, every row by its largest magnitude.
    b : Quantized
        Shape (k, n).
    transpose_a, transpose_b : bool
        Whether to multiply by the transpose.
    """
    if not isinstance(a, Quantized):
        a, transpose_a = a.T if transpose_a else a, False
        a = quantize(a, "int8", axis=1, block_size=max(1, a.shape[1]))
    block_a, block_b = _block(a, 0 if transpose_a else 1), _block(b, 1 if transpose_b else 0)
    (x, unit_x), (y, unit_y) = _steps(a), _steps(b)
    scale_x, scale_y = _scale(a), _scale(b)
    one = scale_x.size == scale_y.size == 1
    scale_x = spread(scale_x, x.shape, a.axis, a.block_size)
    scale_y = spread(scale_y, y.shape, b.axis, b.block_size)
    x, scale_x = (x.T, scale_x.T) if transpose_a else (x, scale_x)
    y, scale_y = (y.T, scale_y.T) if transpose_b else (y, scale_y)
    (m, k), n = x.shape, y.shape[1]
    result = np.zeros((m, n), np.float32)
    if result.size == 0:
        return result
    sizes = [size for size in (block_a, block_b) if size is not None]
    size = min(sizes, default=max(1, k))
    for first in range(0, k, size):
        # int64 holds the sum of any array in memory; it is rounded to float32 once.
        value = f32(x[:, first : first + size] @ y[first : first + size]) * unit_x * unit_y
        of_row, of_column = scale_x[:, first : first + 1], scale_y[first : first + 1]
        if sizes:
            result = result + value * f32(of_row * of_column)
        elif one and 2.0**-126 <= (both := float(of_row.flat[0]) * float(of_column.flat[0])) <= _MOST:
            result = value * np.float32(both)
        else:
            result = value * of_row * of_column
    return f32(result)
