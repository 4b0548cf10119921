"""ml_dtypes: codes as NumPy arrays of small floats and integers, their scales beside them."""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex

import numpy as np

from lowbit import _arguments, _core
from lowbit._quantized import Quantized
from lowbit.interop import _parts

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

#: The dtype of every format that is one. NumPy itself has the last ones.
_DTYPES = {
    "fp4_e2m1": "float4_e2m1fn",
    "fp6_e2m3": "float6_e2m3fn",
    "fp6_e3m2": "float6_e3m2fn",
    "fp8_e3m4": "float8_e3m4",
    "fp8_e4m3": "float8_e4m3",
    "fp8_e4m3fn": "float8_e4m3fn",
    "fp8_e4m3fnuz": "float8_e4m3fnuz",
    "fp8_e4m3b11fnuz": "float8_e4m3b11fnuz",
    "fp8_e5m2": "float8_e5m2",
    "fp8_e5m2fnuz": "float8_e5m2fnuz",
    "bfloat16": "bfloat16",
    "int2": "int2",
    "uint2": "uint2",
    "int4": "int4",
    "uint4": "uint4",
    "float16": "float16",
    "int8": "int8",
    "uint8": "uint8",
}
_FORMATS = {dtype: name for name, dtype in _DTYPES.items()}
#: What the registered block formats are made of.
_ELEMENTS = {
    "mxfp4": "fp4_e2m1",
    "mxfp6": "fp6_e2m3",
    "mxfp6_e3m2": "fp6_e3m2",
    "mxfp8": "fp8_e4m3fn",
    "mxfp8_e5m2": "fp8_e5m2",
    "nvfp4": "fp4_e2m1",
}
_SCALES = {"e8m0": "float8_e8m0fnu", "e4m3": "float8_e4m3fn"}


class MlDtypesArray(NamedTuple):
    """Codes as an array of their dtype and what they are scaled by, in the order of `from_ml_dtypes`."""

    array: NDArray[Any]
    scale: NDArray[Any]
    offset: NDArray[np.float32] | None
    tensor_scale: np.float32 | None
    axis: int | None
    block_size: int | None


def to_ml_dtypes(q: Quantized) -> MlDtypesArray:
    """Give the codes as an array of the dtype that they are codes of.

    Parameters
    ----------
    q : Quantized
        Of a small float or integer that ml_dtypes or NumPy has, or of a block format of such elements (``"mxfp4"``,
        ``"nvfp4"``, ...).

    Returns
    -------
    MlDtypesArray
        A named tuple of `from_ml_dtypes`'s arguments. ``array`` has q's shape and ml_dtypes' dtype, one number a byte
        (two of 16 bits); ``scale`` is float32, or the scale codes of a block format as float8_e8m0fnu or float8_e4m3fn.

    Raises
    ------
    TypeError
        `q` is not a Quantized.
    lowbit.Error
        No dtype has such codes, or ml_dtypes is not installed.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> q = lb.quantize(np.float32([0.3, -5, 100]), "fp4_e2m1")
    >>> parts = lb.interop.to_ml_dtypes(q)
    >>> parts.array.dtype.name, parts.array.astype(float)
    ('float4_e2m1fn', array([ 0.5, -4. ,  6. ]))
    >>> lb.interop.from_ml_dtypes(*parts) == q
    True
    """
    q = _parts.quantized(q, "ml_dtypes")
    name = q.format.name.removesuffix("_symmetric")
    name = _ELEMENTS.get(name) or re.sub(r"block\((\w+?)(_symmetric)?,.*", r"\1", name)
    if name not in _DTYPES:
        known = ", ".join([*_DTYPES, *_ELEMENTS])
        raise _core.Error(f"q: no dtype has the codes of {q.format.name}; there are those of {known}")
    codes, dtype = q.codes, _dtype(_DTYPES[name])
    if "int" in dtype.name:
        # Their bytes hold the number, with its sign.
        unused = 8 - int(_core.get_format(name).bits)
        signed = (codes << unused).view(np.int8 if name[0] == "i" else np.uint8) >> unused
        array = signed.astype(dtype)
    else:
        array = codes.view(dtype)
    scale: NDArray[Any] = q.scale
    if q.format.scale_format is not None:
        assert q.scale_codes is not None
        scale = q.scale_codes.view(_dtype(_SCALES[q.format.scale_format]))
    return MlDtypesArray(array, scale, q.offset, q.tensor_scale, q.axis, q.block_size)


def from_ml_dtypes(
    array: ArrayLike,
    scale: ArrayLike = 1.0,
    offset: ArrayLike | None = None,
    tensor_scale: float | np.float32 | None = None,
    axis: SupportsIndex | None = None,
    block_size: SupportsIndex | None = None,
) -> Quantized:
    """Read an array of ml_dtypes' small floats and integers (or NumPy's float16, int8, uint8) as codes.

    Parameters
    ----------
    array : array_like
        Of a dtype of ml_dtypes with at most 16 bits.
    scale : array_like
        Real numbers as for `quantize`; or float8_e8m0fnu, the scales of an MX format's blocks; or, with `tensor_scale`,
        float8_e4m3fn, those of NVFP4's.
    offset : array_like, optional
        For integers: the number that the lowest code stands for.
    tensor_scale : float, optional
        The second scale, of all of an NVFP4 array.
    axis, block_size : int, optional
        As for `quantize`.

    Returns
    -------
    Quantized

    Raises
    ------
    TypeError
        `array` has another dtype, or an argument the wrong type.
    lowbit.Error
        A scale is out of range, or arguments do not fit one another; the message names them.

    Examples
    --------
    >>> import ml_dtypes, numpy as np, lowbit as lb
    >>> x = np.array([1.5, -6, 0.5, 2], ml_dtypes.float4_e2m1fn)
    >>> np.asarray(lb.interop.from_ml_dtypes(x, 0.25))
    array([ 0.375, -1.5  ,  0.125,  0.5  ], dtype=float32)
    """
    values = np.asarray(array)
    if values.dtype.name not in _FORMATS:
        raise TypeError(f"array: expected a dtype among {', '.join(_FORMATS)}, got {values.dtype}")
    name = _FORMATS[values.dtype.name]
    values = np.asarray(values, values.dtype.newbyteorder("="), order="C")
    bits = int(_core.get_format(name).bits)
    if "int" in values.dtype.name:
        codes = values.astype(np.int8 if name[0] == "i" else np.uint8).view(np.uint8) & ((1 << bits) - 1)
    else:
        codes = values.view(np.uint16 if bits > 8 else np.uint8)
    where, size = _arguments.axis(axis), _arguments.block_size(block_size)
    if size is not None and where is None:
        where = -1
    if where is not None:
        where = _arguments.within(where, "axis", -values.ndim, values.ndim - 1) % values.ndim
    scales = _arguments.array(scale, "scale")
    if tensor_scale is not None and scales.dtype.name != _SCALES["e4m3"]:
        raise _core.Error(f"tensor_scale: goes with scales of {_SCALES['e4m3']}, not of {scales.dtype}")
    packed = _core.pack(codes.reshape(-1), bits)
    if tensor_scale is None and scales.dtype.name != _SCALES["e8m0"]:
        given, shifts = _arguments.scaling(scales, offset, values.ndim, where, size)
        assert isinstance(given, np.ndarray)
        return Quantized(packed, given, shifts, None, name, values.shape, where, size, None)
    fmt = _core.block_format(name, "e8m0" if tensor_scale is None else "e4m3", size)
    given = np.asarray(scales, order="C").view(np.uint8)
    return Quantized(packed, given, offset, tensor_scale, fmt, values.shape, where, size, None)


def _dtype(name: str) -> np.dtype[Any]:
    """Look in NumPy, then in ml_dtypes."""
    if hasattr(np, name):
        return np.dtype(name)
    try:
        found: np.dtype[Any] = np.dtype(getattr(importlib.import_module("ml_dtypes"), name))
        return found
    except ImportError:
        raise _core.Error(f"q: NumPy has no {name}; pip install ml_dtypes") from None
