"""Arguments checked in one place: what is wrong is told with the argument's name."""

from __future__ import annotations

import contextlib
import importlib
import operator
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from lowbit import _core
from lowbit._keys import Key

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from lowbit._formats import KeyLike

Words = tuple[int, int]

_ROUNDINGS = ("nearest", "stochastic", "dither")


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


def numbers(x: ArrayLike, argument: str) -> NDArray[Any]:
    """Real numbers of any float dtype; the core rounds them to float32."""
    value: Any = x
    if type(value) is float:
        return np.array(value)
    if type(value) is int:
        try:
            return np.array(float(value))
        except OverflowError:
            raise _core.Error(f"{argument}: {value} is beyond float32") from None
    values = array(x, argument)
    if values.dtype.kind in "iu":
        return values.astype(np.float64)
    if values.dtype.kind != "f" and values.dtype.name != "bfloat16":
        raise TypeError(f"{argument}: expected real numbers, got dtype {values.dtype}")
    return values


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether numbers of this dtype can be coded; NumPy takes microseconds to spell a name, so few are."""
    return (dtype.kind == "f" and dtype.itemsize <= 8) or (dtype.kind == "V" and dtype.name == "bfloat16")


def floats(x: ArrayLike, argument: str) -> NDArray[Any]:
    """Floats of any layout, to be coded."""
    values = array(x, argument)
    if not is_float(values.dtype):
        exactly = ", or send it exactly, in a mapping of arrays" if values.dtype.kind in "iub" else ""
        raise TypeError(
            f"{argument}: expected float16, bfloat16, float32 or float64, got {values.dtype}; "
            f"convert it to one of them, such as by astype(np.float32){exactly}"
        )
    return values


def float32(x: ArrayLike, argument: str) -> NDArray[np.float32]:
    """Real numbers as C-contiguous, aligned float32."""
    values = numbers(x, argument)
    with np.errstate(over="ignore"):
        return np.require(values, np.float32, ["C", "A"])


def scaling(
    scale: str | ArrayLike | None, offset: ArrayLike | None, ndim: int, axis: int | None, block_size: int | None
) -> tuple[str | NDArray[Any] | None, NDArray[Any] | None]:
    """Scale and offset for the core: a rule's name or None, or arrays of one shape.

    With `axis` alone a list of numbers is one for each index along it.
    """
    if scale is None or isinstance(scale, str):
        return scale, None if offset is None else numbers(offset, "offset")

    def placed(values: NDArray[Any]) -> NDArray[Any]:
        if axis is None or block_size is not None or values.ndim != 1 or not -ndim <= axis < ndim:
            return values
        return values.reshape(tuple(-1 if d == axis % ndim else 1 for d in range(ndim)))

    scales = placed(numbers(scale, "scale"))
    if offset is None:
        return scales, None
    offsets = placed(numbers(offset, "offset"))
    if scales.shape != offsets.shape:
        try:
            scales, offsets = np.broadcast_arrays(scales, offsets)
        except (ValueError, RuntimeError):
            reason = f"shape {offsets.shape} does not broadcast with scale's {scales.shape}"
            raise _core.Error(f"offset: {reason}") from None
    return scales, offsets


def words(key: KeyLike | None, *, private: bool) -> Words | None:
    """Two words of a key, or drawn from a Generator where the noise is the caller's own."""
    if isinstance(key, Key):
        return key.words
    if key is None:
        return None
    if isinstance(key, np.random.Generator):
        if not private:
            raise TypeError("key: a Generator serves only noise that nobody else must know; give a Key or an int")
        k0, k1 = key.integers(0, 1 << 64, size=2, dtype=np.uint64).tolist()
        return k0, k1
    given: Any = key
    if isinstance(given, (str, bytes)):
        raise TypeError(f"key: expected a lowbit.Key or an int, got {type(key).__name__}; lowbit.Key(b'...') makes one")
    return Key(within(key, "key", 0, (1 << 64) - 1)).words


def noise(rounding: str, key: KeyLike | None) -> tuple[str, Words | None]:
    """Check a rounding's name and find the words it draws from; a key that nothing draws from is a mistake."""
    choice(rounding, "rounding", _ROUNDINGS)
    if rounding == "nearest" and key is not None:
        raise _core.Error('key: rounding="nearest" draws nothing from it; leave it out, or say rounding="stochastic"')
    return rounding, words(key, private=rounding == "stochastic")


def key_id(key: Words) -> bytes:
    """Eight bytes that tell a key from others."""
    return Key.from_words(*key).fold("key id").words[1].to_bytes(8, "little")


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


def real(value: Any, argument: str) -> float:
    """Any real number that float64 holds, unrounded: the core rounds it, whatever the caller's rounding mode."""
    if isinstance(value, float):
        return value
    if isinstance(value, (Fraction, Decimal)):
        value = float(value)
    number = array(value, argument)
    if number.ndim or (number.dtype.kind not in "fiu" and number.dtype.name != "bfloat16"):
        raise TypeError(f"{argument}: expected one real number that float64 holds, got {type(value).__name__}")
    return float(number)


def shown(name: str) -> str:
    """Shorten a name of many values for a line that people read."""
    return name if len(name) <= 60 else f"{name[:40]}...{name[-17:]}"


def tensor_scale(value: Any) -> float | None:
    """Round the scale of a whole array to float32, as everything is that is stored."""
    return None if value is None else _core.float32(real(value, "tensor_scale"))


def choice(value: Any, argument: str, known: Iterable[str]) -> str:
    """One of a few names."""
    if not isinstance(value, str):
        raise TypeError(f"{argument}: expected a str, got {type(value).__name__}")
    if value not in known:
        raise _core.Error(f"{argument}: {value!r} is not known; known are: {', '.join(known)}")
    return value


def shape(value: SupportsIndex | tuple[SupportsIndex, ...]) -> list[int]:
    """Dimensions, or the only one."""
    return [within(n, "shape", 0, (1 << 64) - 1) for n in (value if isinstance(value, (tuple, list)) else (value,))]


def shared_bits(value: SupportsIndex | None) -> int | None:
    """Any number of bits, or None for a scheme's own; the core knows which it serves."""
    # Whatever is too large for the core is too large for every scheme.
    return None if value is None else min(within(value, "shared_bits", 0, (1 << 64) - 1), 0xFFFF_FFFF)


def sender(value: SupportsIndex) -> int:
    """Who sends."""
    return within(value, "sender", 0, (1 << 64) - 1)


def axis(value: SupportsIndex | None) -> int | None:
    """Any axis an array may have; the core knows how many this one has."""
    return None if value is None else within(value, "axis", -64, 63)


def block_size(value: SupportsIndex | None) -> int | None:
    """Check a positive size."""
    return None if value is None else within(value, "block_size", 1, (1 << 62) - 1)


def dtype(value: DTypeLike) -> np.dtype[Any]:
    """Any dtype; the core knows which it writes."""
    if value is None:
        raise TypeError("dtype: expected float32, float16, bfloat16 or float64, got None")
    if isinstance(value, str) and value == "bfloat16":
        # The name is NumPy's only once ml_dtypes has registered it.
        with contextlib.suppress(ImportError):
            importlib.import_module("ml_dtypes")
    try:
        return np.dtype(value)
    except TypeError as error:
        raise TypeError(f"dtype: {error}") from None


def out(value: NDArray[Any] | None) -> NDArray[Any] | None:
    """Any writeable memory that is an array: subclasses (memmap) are seen as plain ones."""
    if value is None or type(value) is np.ndarray:
        return value
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"out: expected a numpy.ndarray, got {type(value).__name__}")
    return value.view(np.ndarray)
