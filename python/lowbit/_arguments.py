"""Arguments checked in one place: what is wrong is told with the argument's name."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from lowbit import _core
from lowbit._keys import Key

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from lowbit._formats import KeyLike

Words = tuple[int, int]

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def array(x: ArrayLike, argument: str) -> NDArray[Any]:
    """Any array; a masked one is refused, since its holes have no codes."""
    if type(x) is np.ndarray:
        return x
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{argument}: a masked array has no codes for its holes; give {argument}.filled(...)")
    try:
        return np.asarray(x)
    except (ValueError, TypeError) as error:
        raise TypeError(f"{argument}: not an array of numbers ({error})") from None


def numbers(x: ArrayLike, argument: str) -> NDArray[np.float32]:
    """Real numbers as C-contiguous float32."""
    value: Any = x
    if type(value) is float and -_FLOAT32_MAX <= value <= _FLOAT32_MAX:
        return np.array(value, np.float32)
    values = array(x, argument)
    if values.dtype.kind not in "fiu" and values.dtype.name != "bfloat16":
        raise TypeError(f"{argument}: expected real numbers, got dtype {values.dtype}")
    if values.dtype == np.float32 and values.flags.c_contiguous and values.flags.aligned:
        return values
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, np.float32).reshape(values.shape)


def scaling(
    scale: str | ArrayLike | None, offset: ArrayLike | None
) -> tuple[str | NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """Scale and offset for the core: a rule's name or None, or arrays of one shape."""
    if scale is None or isinstance(scale, str):
        return scale, None if offset is None else numbers(offset, "offset")
    scales = numbers(scale, "scale")
    if offset is None:
        return scales, None
    offsets = numbers(offset, "offset")
    try:
        both = np.broadcast_arrays(scales, offsets)
    except ValueError:
        raise _core.Error(f"offset: shape {offsets.shape} does not broadcast with scale's {scales.shape}") from None
    return np.ascontiguousarray(both[0]).reshape(both[0].shape), np.ascontiguousarray(both[1]).reshape(both[1].shape)


def words(key: KeyLike | None, *, private: bool) -> Words | None:
    """Two words of a key, or drawn from a Generator where the noise is the caller's own."""
    if isinstance(key, Key):
        return key.words
    if key is None:
        return None
    if isinstance(key, np.random.Generator):
        if not private:
            raise TypeError(
                "key: a Generator serves only noise that nobody else must know; give a lowbit.Key or an int"
            )
        k0, k1 = key.integers(0, 1 << 64, size=2, dtype=np.uint64).tolist()
        return k0, k1
    return Key(within(key, "key", 0, (1 << 64) - 1)).words


def key_id(key: Words) -> bytes:
    """Eight bytes that tell a key from others."""
    return Key.from_words(*key).fold("key id").words[0].to_bytes(8, "little")


def integer(value: SupportsIndex, argument: str) -> int:
    """Any int but a bool."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{argument}: expected an int, got a bool")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{argument}: expected an int, got {type(value).__name__}") from None


def within(value: SupportsIndex, argument: str, low: int, high: int) -> int:
    """Check that an int is from `low` to `high`."""
    number = integer(value, argument)
    if not low <= number <= high:
        raise _core.Error(f"{argument}: {number} is out of range; give {low} to {high}")
    return number


def axis(value: SupportsIndex | None) -> int | None:
    """Any axis an array may have; the core knows how many this one has."""
    return None if value is None else within(value, "axis", -64, 63)


def block_size(value: SupportsIndex | None) -> int | None:
    """Check a positive size."""
    return None if value is None else within(value, "block_size", 1, (1 << 62) - 1)


def rounding(name: str) -> str:
    """Check a str; the core knows which."""
    if not isinstance(name, str):
        raise TypeError(f"rounding: expected nearest, stochastic or dither, got {type(name).__name__}")
    return name


def dtype(value: DTypeLike) -> np.dtype[Any]:
    """Any dtype; the core knows which it writes."""
    if value is None:
        raise TypeError("dtype: expected float32, float16, bfloat16 or float64, got None")
    try:
        return np.dtype(value)
    except TypeError as error:
        raise TypeError(f"dtype: {error}") from None


def out(value: NDArray[Any] | None) -> NDArray[Any] | None:
    """Exactly a numpy.ndarray."""
    if value is not None and type(value) is not np.ndarray:
        raise TypeError(f"out: expected a numpy.ndarray, got {type(value).__name__}")
    return value
