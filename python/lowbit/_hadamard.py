"""The Hadamard transform, and the random rotation that is made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from lowbit import _arguments, _core

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from lowbit._keys import Key


def hadamard_transform(x: ArrayLike, *, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Multiply along the last axis by Sylvester's Hadamard matrix, scaled to be orthonormal.

    Parameters
    ----------
    x : array_like
        At least one dimension, any layout, float16, bfloat16, float32 or float64 (which is first rounded to
        float32). The length of the last axis is a power of two.
    out : numpy.ndarray, optional
        Where to write: x's shape, float32. It may be exactly `x`.

    Returns
    -------
    numpy.ndarray
        x's shape, float32 (or `out`).

    Raises
    ------
    TypeError
        `x` or `out` has the wrong type or dtype.
    lowbit.Error
        The last axis has a length that is no power of two, or there is none; `out` has the wrong shape, is
        read-only or partly overlaps `x`.

    See Also
    --------
    randomized_hadamard_transform : Any length, and random.

    Notes
    -----
    With d = 2**k numbers the result is ``scipy.linalg.hadamard(d) @ x / sqrt(d)``, and applying it twice gives `x`
    back, but for rounding. It takes d k additions in float32: the stages (a, b) -> (a + b, a - b) of numbers 1, 2,
    4, ... apart, then one product with ``fl32(2**(-k / 2))``. This order is a promise: the bits are the same on
    every CPU and on any number of threads. A NaN makes its row NaN; every NaN written is the quiet one, 0x7fc00000.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> lb.hadamard_transform(np.float32([1, 0, 0, 0]))
    array([0.5, 0.5, 0.5, 0.5], dtype=float32)
    >>> lb.hadamard_transform(np.float32([[3, 1], [0, 2]])).round(3)
    array([[ 2.828,  1.414],
           [ 1.414, -1.414]], dtype=float32)
    """
    result = _core.hadamard_transform(_arguments.array(x, "x"), _arguments.out(out))
    return result if out is None else out


def randomized_hadamard_transform(
    x: ArrayLike,
    key: Key | int,
    *,
    rounds: SupportsIndex = 2,
    inverse: bool = False,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Rotate along the last axis at random: flip signs, transform, and again.

    Whatever `x` was, every number of the result is close to normal with variance ``sum(x**2) / d``; that is what
    codes of a bit or less are good for. The rotation is a function of the key and the length alone, the same for
    every row.

    Parameters
    ----------
    x : array_like
        At least one dimension, any layout, float16, bfloat16, float32 or float64 (which is first rounded to
        float32). Any length of the last axis.
    key : Key or int
        Which rotation; an int stands for ``Key(int)``.
    rounds : int, optional
        How often, 1 to 8. One leaves some vectors far from normal, (3, 1, 1, 0, 0, ...) for one; after two there is
        no such vector (Ben-Basat et al., arXiv:2605.06014).
    inverse : bool, optional
        Undo the rotation.
    out : numpy.ndarray, optional
        Where to write: x's shape, float32. It may be exactly `x`.

    Returns
    -------
    numpy.ndarray
        x's shape, float32 (or `out`).

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype.
    lowbit.Error
        `rounds` is out of range; `x` has no dimension; `out` has the wrong shape, is read-only or partly overlaps
        `x`.

    Notes
    -----
    A row of d numbers is cut, without padding, into blocks of 65536 and then descending powers of two down to 128
    (in rows under 128: the largest power of two). What is left at the end is rotated together with as many numbers
    before it as make one more such block, after the others. So nothing of at least 128 numbers is rotated in blocks
    under 128, where a rotation is far from uniform, and the numbers mix within blocks of 65536, not between them.

    Round r flips the sign of position p where bit p % 32 of word p // 32 of the stream of ``key.fold("rotation",
    r)`` is 1, then transforms as :func:`hadamard_transform` does, without its factor; after all rounds the block is
    multiplied by ``fl32(1 / B**(rounds / 2))``, with B its length. The positions of the last, overlapping block
    follow those of the others. The bits are the same on every CPU and on any number of threads.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> x = np.zeros(1000, np.float32)
    >>> x[7] = 10
    >>> y = lb.randomized_hadamard_transform(x, key=1234)
    >>> float(np.linalg.norm(y)), float(abs(y).max()) < 2
    (10.0, True)
    >>> back = lb.randomized_hadamard_transform(y, key=1234, inverse=True)
    >>> bool(abs(back - x).max() < 1e-5)
    True
    """
    words = _arguments.words(key, private=False)
    if words is None:
        raise TypeError("key: expected a Key or an int, got None; whoever has the same key rotates alike")
    values, target = _arguments.array(x, "x"), _arguments.out(out)
    number = _arguments.within(rounds, "rounds", 1, 8)
    if not isinstance(inverse, (bool, np.bool_)):
        raise TypeError(f"inverse: expected a bool, got {type(inverse).__name__}")
    result: NDArray[Any] = _core.randomized_hadamard_transform(values, words, number, bool(inverse), target)
    return result if out is None else out
