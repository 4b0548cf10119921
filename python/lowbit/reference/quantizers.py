"""Quantization and packing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, Unpack

import numpy as np

from lowbit.reference.blocks import BlockFormat
from lowbit.reference.formats import Grid, Integer, f32, ignore
from lowbit.reference.names import get_format
from lowbit.reference.scales import Scales, scales, spread
from lowbit.reference.stream import HasWords, fold, key_words, random_bits

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray


class Quantized(NamedTuple):
    """What `quantize` returns and `dequantize` takes."""

    codes: NDArray[np.unsignedinteger]
    """One per element, in the shape of the array."""
    scale: NDArray[np.float32]
    """Of block formats: what `scale_codes` stand for."""
    offset: NDArray[np.float32] | None
    format: str
    axis: int | None
    block_size: int | None
    scale_codes: NDArray[np.uint8] | None = None
    tensor_scale: np.float32 | None = None
    """A factor of every scale."""


class _Plan(NamedTuple):
    """Where every element of an array goes."""

    steps: NDArray[np.float32]
    """Grid values; with an offset, steps above the lowest."""
    dither: NDArray[np.float32] | None
    scales: Scales


def dither(words: tuple[int, int], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Give the subtractive dither of every element under the key with these words: odd / 2^25 in (-1/2, 1/2), exact."""
    high = random_bits(fold(words, "dither"), math.prod(shape)) >> np.uint32(8)
    return f32((high + 0.5) * 2.0**-24 - 0.5).reshape(shape)


def _given(a: ArrayLike, ndim: int) -> NDArray[np.float32]:
    a = np.asarray(a).astype(np.float32)
    return a.reshape((1,) * (ndim - a.ndim) + a.shape)


class Options(TypedDict, total=False):
    """The options of `quantize` and `fake_quantize`, as ``lowbit.quantize`` tells them."""

    scale: str | ArrayLike | None
    offset: ArrayLike | None
    axis: int | None
    block_size: int | None
    rounding: str
    key: HasWords | int | np.random.Generator | None


def grouping(ndim: int, grid: Grid, options: Options) -> tuple[int | None, int | None]:
    """Axis and block size: block formats have theirs, other formats' default is for who asks for nothing."""
    axis, block_size = options.get("axis"), options.get("block_size")
    if ndim and block_size is None and (axis is None or grid.scale_format):
        block_size = grid.default_block
    return axis, block_size


def _scales(x: NDArray[np.float32], grid: Grid, options: Options) -> Scales:
    """Take the scales that were given, or those of a rule."""
    given, offset = options.get("scale"), options.get("offset")
    if given is None or isinstance(given, str):
        return scales(x, grid, given or grid.default_scale, *grouping(x.ndim, grid, options))
    scale = _given(given, x.ndim)
    if offset is None:
        return Scales(scale, tensor=np.float32(1) if grid.scale_format == "e4m3" else None)
    scale, shift = (np.array(a) for a in np.broadcast_arrays(scale, _given(offset, x.ndim)))
    return Scales(scale, shift)


@ignore
def _plan(x: NDArray[np.float32], grid: Grid, options: Options) -> _Plan:
    """Find the scales, then round t = (x - offset) * (1 / scale)."""
    groups = grouping(x.ndim, grid, options)
    found = _scales(x, grid, options)
    t = x if found.offset is None else x - spread(found.offset, x.shape, *groups)
    encode = found.scale if found.encode is None else found.encode
    t = f32(t * spread(f32(np.float32(1) / encode), x.shape, *groups))
    if found.offset is not None:
        if not isinstance(grid, Integer):
            raise ValueError(f"offset: {grid.name} is not uniform")
        grid = Integer(name="steps", bits=grid.bits, lowest=0, highest=grid.highest - grid.lowest)

    rounding, key = options.get("rounding", "nearest"), options.get("key")
    if rounding == "nearest":
        return _Plan(grid.nearest(t), None, found)
    if key is None:
        raise ValueError(f"key: rounding {rounding!r} needs one")
    if rounding == "stochastic":
        words = random_bits(fold(key_words(key), "rounding"), x.size).reshape(x.shape)
        return _Plan(grid.stochastic(t, words), None, found)
    u = dither(key_words(key), x.shape)
    return _Plan(grid.nearest(f32(t + u)), u, found)


@ignore
def _reconstruct(plan: _Plan, axis: int | None, block_size: int | None, dtype: DTypeLike) -> NDArray[Any]:
    """Compute value * scale (+ offset) in float32, then round it to `dtype`; every NaN is the canonical quiet one."""
    scale, offset, _, tensor = plan.scales
    value = plan.steps if plan.dither is None else plan.steps - plan.dither
    y = value * spread(scale if tensor is None else scale * tensor, value.shape, axis, block_size)
    if offset is not None:
        y = y + spread(offset, value.shape, axis, block_size)
    y = np.asarray(y).astype(dtype)
    return np.where(np.isnan(y), np.array(np.nan, y.dtype), y).astype(y.dtype)


@ignore
def fake_quantize(x: NDArray[Any], format: str, **options: Unpack[Options]) -> NDArray[Any]:
    """Round an array to a format and back, as ``lowbit.fake_quantize`` does.

    Parameters
    ----------
    x : numpy.ndarray
        float16, bfloat16, float32 or float64, of any shape.
    format : str
        A name that `get_format` takes.
    **options
        See `Options`.

    Returns
    -------
    numpy.ndarray
        Of the shape and dtype of `x`. NaN where `x` is NaN, and in every group with a non-finite element whose scale
        comes from the data (where the array has a scale of its own: everywhere).
    """
    grid = get_format(format)
    plan = _plan(x.astype(np.float32), grid, options)
    return _reconstruct(plan, *grouping(x.ndim, grid, options), x.dtype.newbyteorder("="))


@ignore
def quantize(x: NDArray[Any], format: str, **options: Unpack[Options]) -> Quantized:
    """Round an array to the codes of a format, as ``lowbit.quantize`` does.

    Parameters
    ----------
    x, format, **options
        See `fake_quantize`.

    Returns
    -------
    Quantized

    Raises
    ------
    ValueError
        An element is NaN or, where the scale comes from the data, infinite; the message has its index in C order. Or
        ``"minmax"`` finds numbers too far apart. Or the format has no codes.
    """
    x32, grid, scale = x.astype(np.float32), get_format(format), options.get("scale")
    if not grid.coded:
        raise ValueError(f"format: {format} has no codes")
    rule = (scale or grid.default_scale) if scale is None or isinstance(scale, str) else "one"
    refused = np.isnan(x32) if rule == "one" else ~np.isfinite(x32)
    if refused.any():
        raise ValueError(f"x: element {int(np.argmax(refused))} is {x32.flat[int(np.argmax(refused))]}")
    steps, _, (scales_, offset, _, tensor) = _plan(x32, grid, options)
    if np.isnan(scales_).any():
        raise ValueError("x: a group spans more than float32 holds")
    codes = grid.encode(steps if offset is None else steps + grid.values[0])
    scale_codes = grid.scale_codes(scales_) if isinstance(grid, BlockFormat) else None
    return Quantized(codes, scales_, offset, format, *grouping(x.ndim, grid, options), scale_codes, tensor)


def dequantize(q: Quantized, *, dtype: DTypeLike = np.float32, key: HasWords | int | None = None) -> NDArray[Any]:
    """Turn codes into numbers; what was quantized with ``rounding="dither"`` needs its `key` here too."""
    grid = get_format(q.format)
    steps = grid.decode(q.codes)
    if q.offset is not None:
        steps = steps - grid.values[0]
    u = None if key is None else dither(key_words(key), steps.shape)
    found = Scales(q.scale, q.offset, tensor=q.tensor_scale)
    return _reconstruct(_Plan(steps, u, found), q.axis, q.block_size, dtype)


# --- Packing ----------------------------------------------------------------------------------------------------------


def pack(codes: NDArray[Any], bits: float) -> NDArray[np.uint8]:
    """Put codes of `bits` bits, in C order, into one bit string, least significant bit first, zeros at its end.

    With 1.6 bits, five codes of 0 to 2 are the digits of a byte in base 3, the first one the lowest.
    """
    if bits == 1.6:
        five = np.zeros(-(-codes.size // 5) * 5, np.int64)
        five[: codes.size] = codes.ravel()
        return (five.reshape(-1, 5) @ 3 ** np.arange(5)).astype(np.uint8)
    each = (codes.reshape(codes.size, 1).astype(np.uint16) >> np.arange(bits, dtype=np.uint16)) & 1
    return np.packbits(each.astype(np.uint8), bitorder="little")


def unpack(packed: NDArray[np.uint8], bits: float, n: int) -> NDArray[Any]:
    """Take `n` codes of `bits` bits out again: uint8, or uint16 above 8 bits.

    Raises
    ------
    ValueError
        1.6 bits: a byte is no five digits, or a digit after the last code is not zero.
    """
    if bits == 1.6:
        digits = packed.astype(np.int64)[:, np.newaxis] // 3 ** np.arange(5)
        if (packed > 242).any() or (digits % 3).ravel()[n:].any():
            raise ValueError("packed: no five digits, or digits after the last one that are not zero")
        return (digits % 3).ravel()[:n].astype(np.uint8)
    each = np.unpackbits(packed, count=n * int(bits), bitorder="little").reshape(n, int(bits)).astype(np.uint32)
    return np.asarray((each << np.arange(bits, dtype=np.uint32)).sum(axis=1), np.uint8 if bits <= 8 else np.uint16)
