"""``matmul``: products of packed codes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lowbit import _arguments, _core
from lowbit._quant import quantize
from lowbit._quantized import Quantized

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def matmul(
    a: Quantized | ArrayLike,
    b: Quantized,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Multiply matrices of packed codes: whole numbers are multiplied and added, exactly, and then scaled.

    Parameters
    ----------
    a : Quantized or array_like
        Shape (..., m, k). Floats (float16, bfloat16, float32 or float64) are first quantized to ``int8``, every row by
        its largest magnitude (for inference).
    b : Quantized
        Shape (..., k, n); leading dimensions broadcast as `numpy.matmul`'s do.
    transpose_a, transpose_b : bool, optional
        Multiply by the transpose instead: the operand then has shape (..., k, m), or (..., n, k).
    out : numpy.ndarray, optional
        Where to write: float32, of the result's shape, in memory of its own.

    Returns
    -------
    numpy.ndarray
        float32, shape (..., m, n) (or `out`); zeros where k is 0.

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype.
    lowbit.Error
        Shapes do not match, or codes, scales or offsets are of a kind that cannot be multiplied; the message names the
        argument and says what can.

    Notes
    -----
    Formats: of at most 8 bits, all of whose values are whole multiples of a power of two, up to 32639 of them (``int4``
    and all other integers, ``ternary``, ``sign``, ``radix4``, ``fp4_e2m1``, and ``mxfp4``, ``nvfp4`` and others that
    are made of these). Scales: of the array, of a row of `a` or column of `b`, or of blocks along the axis that is
    summed (of one size, or one a multiple of the other). Sums of any length are exact: the result is the same, bit for
    bit, on every CPU and any number of threads.

    With ``s = fl32(sum of products)``, in units of what formats call ``smallest``, the result is
    ``fl32(s * fl32(scale_a * scale_b))`` where both operands have one scale (``fl32(fl32(s * scale_a) * scale_b)``
    where that product is below 2**-126 or beyond float32), ``fl32(fl32(s * scale_a) * scale_b)`` where a row or column
    has its own, and with blocks the float32 sum, block after block from zero, of ``fl32(s * fl32(scale_a * scale_b))``.

    The method is that of Jacob et al., arXiv:1712.05877, section 2.2, without zero points.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> x = lb.quantize(np.float32([[7, -3], [2, 1]]), "int4")
    >>> w = lb.quantize(np.float32([[0.5, 3.5], [-1, 1.5]]), "int4")
    >>> lb.matmul(x, w)
    array([[ 6.5, 20. ],
           [ 0. ,  8.5]], dtype=float32)
    >>> lb.matmul(np.float32([[127, 1]]), w, transpose_b=True)
    array([[  67. , -125.5]], dtype=float32)
    """
    if not isinstance(b, Quantized):
        raise TypeError(f"b: expected a lowbit.Quantized, got {type(b).__name__}; lowbit.quantize(b, 'int4') makes one")
    transposed = _flag(transpose_a, "transpose_a"), _flag(transpose_b, "transpose_b")
    target = _arguments.out(out)
    if not isinstance(a, Quantized):
        a, transposed = _rows(a, transposed[0]), (False, transposed[1])
    left, right = _operand(a, "a", transposed[0]), _operand(b, "b", transposed[1])
    (m, k), (inner, n) = left.shape, right.shape
    if k != inner:
        raise _core.Error(f"b: its matrices have {inner} rows, but those of a have {k} columns")
    try:
        leading = np.broadcast_shapes(left.leading, right.leading)
    except ValueError:
        raise _core.Error(f"b: leading dimensions {right.leading} do not broadcast with a's {left.leading}") from None
    size, scales = _blocks(left, right, k)
    operands = [
        (q.packed, q.format, q.shape[-2:], operand.transposed, operand.matrices(leading), _apart(scale, target))
        for q, operand, scale in zip((a, b), (left, right), scales, strict=True)
    ]
    result = _core.matmul(operands[0], operands[1], size, (*leading, m, n), target)
    return result if out is None else out


class _Operand(NamedTuple):
    """A Quantized as it is multiplied."""

    leading: tuple[int, ...]
    shape: tuple[int, int]
    transposed: bool
    #: Shape (matrices, rows of a or columns of b, blocks), each but the first possibly 1.
    scale: NDArray[np.float32]
    #: Of blocks along the axis that is summed.
    block_size: int | None

    def matrices(self, leading: tuple[int, ...]) -> list[int]:
        """List the matrix that each of the result is made of."""
        own = np.arange(math.prod(self.leading)).reshape(self.leading)
        numbers: list[int] = np.broadcast_to(own, leading).ravel().tolist()
        return numbers


def _flag(value: bool, argument: str) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{argument}: expected a bool, got {type(value).__name__}")
    return bool(value)


def _rows(x: ArrayLike, transposed: bool) -> Quantized:
    """Quantize floats, every row by its largest magnitude."""
    values = _arguments.array(x, "a")
    if not _arguments.is_float(values.dtype):
        raise TypeError(f"a: expected a lowbit.Quantized or an array of floats, got dtype {values.dtype}")
    if values.ndim < 2:
        raise _core.Error(f"a: has {values.ndim} dimensions; give matrices (one row is x[np.newaxis])")
    rows = values.swapaxes(-1, -2) if transposed else values
    try:
        return quantize(rows, "int8", axis=-1, block_size=max(1, rows.shape[-1]))
    except _core.Error as error:
        raise _core.Error(str(error).replace("x:", "a:", 1)) from None


def _operand(q: Quantized, argument: str, transposed: bool) -> _Operand:
    if q.ndim < 2:
        raise _core.Error(f"{argument}: has {q.ndim} dimensions; give matrices, of two or more")
    for part, made in ((q.offset, "an offset"), (q.key_id, 'rounding="dither"')):
        if part is not None:
            raise _core.Error(
                f"{argument}: was made with {made}; only numbers that are a code's value times a scale can be "
                'multiplied: quantize with a rule such as "amax", and rounding="nearest" or "stochastic"'
            )
    leading, shape = q.shape[:-2], q.shape[-2:]
    rows, columns = shape[::-1] if transposed else shape
    scale = q.scale if q.tensor_scale is None else q.scale * q.tensor_scale
    if 0 in q.shape:
        scale = np.ones((1,) * q.ndim, np.float32)
    inner = q.ndim - 1 if (argument == "a") != transposed else q.ndim - 2
    size = None
    if q.block_size is not None and q.axis is not None and scale.shape[q.axis] > 1:
        if q.axis == inner:
            size = q.block_size
        else:
            scale = np.repeat(scale, q.block_size, q.axis)[(slice(None),) * q.axis + (slice(q.shape[q.axis]),)]
    if size is None and scale.shape[inner] > 1:
        raise _core.Error(
            f"{argument}: its scales change along axis {inner}, which is summed; quantize with one scale, with one "
            f"for each index of axis {2 * q.ndim - 3 - inner} (axis=), or in blocks along axis {inner} (axis= and "
            "block_size=)"
        )
    if inner == q.ndim - 2:
        scale = scale.swapaxes(-1, -2)
    scale = np.broadcast_to(scale, (*leading, *scale.shape[-2:])).reshape(math.prod(leading), *scale.shape[-2:])
    return _Operand(leading, (rows, columns), transposed, scale, size)


def _blocks(a: _Operand, b: _Operand, k: int) -> tuple[int | None, list[NDArray[np.float32]]]:
    """Find blocks in which the scales of neither operand change."""
    sizes = [size for size in (a.block_size, b.block_size) if size is not None]
    if not sizes:
        return None, [a.scale, b.scale]
    size = min(sizes)
    if max(sizes) % size:
        raise _core.Error(
            f"b: its blocks of {b.block_size} and a's of {a.block_size} do not fit; make one a multiple of the other"
        )
    scales = []
    for operand in (a, b):
        scale = operand.scale
        if operand.block_size is not None and operand.block_size > size:
            scale = np.repeat(scale, operand.block_size // size, 2)[:, :, : -(-k // size)]
        scales.append(scale)
    return size, scales


def _apart(scale: NDArray[np.float32], out: NDArray[Any] | None) -> NDArray[np.float32]:
    """Give scales that writing to `out` does not change."""
    return np.array(scale, order="C") if out is not None else np.require(scale, None, ["C", "A"])
