"""Formats, scale rules, quantization and packing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, Unpack

import numpy as np

from lowbit.reference.stream import HasWords, fold, key_words, random_bits

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

_WORDS = 2.0**32  # the number of different random words
_ignore = np.errstate(all="ignore")  # infinities and NaN follow IEEE 754 and are part of the contract


# --- Formats: a grid of values, how to round to it, and its codes -----------------------------------------------------


def _f32(a: ArrayLike) -> NDArray[np.float32]:
    return np.asarray(a, np.float32)


def _away(t: NDArray[np.float32], q: NDArray[np.float32], words: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Whether stochastic rounding takes the neighbour away from zero, `q` being the way there that `t` has gone.

    Toward plus infinity iff word < floor(p 2^32), with p = q for positive t and p = 1 - q for negative t; the second
    is written with 2^32 - floor((1 - q) 2^32) = ceil(q 2^32), because 1 - q may not fit a float.
    """
    chance = q.astype(np.float64) * _WORDS
    word = words.astype(np.float64)
    return np.where(t < 0, _WORDS - 1.0 - word < np.ceil(chance), word < np.floor(chance))


@dataclass(frozen=True)
class Integer:
    """The integers `lowest`, ..., `highest`, coded as the low `bits` bits of their two's complement."""

    name: str
    bits: int
    lowest: int
    highest: int
    scale_rules: tuple[str, ...]
    uniform = True

    @property
    def reference(self) -> float:
        """What the rule ``"amax"`` puts the largest magnitude on."""
        return float(self.highest)

    @property
    def values(self) -> NDArray[np.float32]:
        """The grid, ascending."""
        return np.arange(self.lowest, self.highest + 1, dtype=np.float32)

    @_ignore
    def nearest(self, t: NDArray[np.float32]) -> NDArray[np.float32]:
        """Round to the nearest integer in range, ties to even; never to -0.0."""
        clamped = np.clip(t, np.float32(self.lowest), np.float32(self.highest))
        return _f32(np.rint(clamped) + np.float32(0))

    @_ignore
    def stochastic(self, t: NDArray[np.float32], words: NDArray[np.uint32]) -> NDArray[np.float32]:
        """Round to a neighbour, up with probability t - floor(t), by one random word for each element."""
        t = np.clip(t, np.float32(self.lowest), np.float32(self.highest))
        near = np.floor(np.abs(t))
        magnitude = near + _away(t, np.abs(t) - near, words)
        return _f32(np.copysign(magnitude, t) + np.float32(0))

    def encode(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Give the codes of grid values."""
        return np.asarray(values.astype(np.int64) & (2**self.bits - 1), np.uint8)

    def decode(self, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Give the values of codes; every code has one, written or not."""
        values = codes.astype(np.int64)
        return _f32(np.where((values > self.highest) & (self.lowest < 0), values - 2**self.bits, values))


@dataclass(frozen=True)
class Radix4:
    """Zero and +-4^n, n = -3..3, or (odd phase) the halves of all these: Sun et al., NeurIPS 2020, figure 2c.

    Code: the sign, then three bits e; e = 0 is zero (of either sign), e = 1..7 is 4^(e - 4).
    """

    name: str
    odd: bool
    bits = 4
    reference = 64.0  # of both phases: the odd one clips, so that both round at one shared scale
    scale_rules = ("amax",)
    uniform = False

    @property
    def values(self) -> NDArray[np.float32]:
        """The grid, ascending; zero once."""
        return np.unique(self.decode(np.arange(16, dtype=np.uint8)) + np.float32(0))

    @_ignore
    def nearest(self, t: NDArray[np.float32]) -> NDArray[np.float32]:
        """Round to the nearest value, ties (0.625 * 4^n) away from zero; what becomes zero keeps its sign."""
        if self.odd:
            return _f32(Radix4("radix4", odd=False).nearest(np.float32(2) * t) / np.float32(2))
        y = np.float32(1.6) * np.abs(t)
        k = (np.frexp(y)[1] - 1) // 2  # floor(log4(y)), from the exponent
        power = np.ldexp(np.float32(1), 2 * np.clip(k, -3, 3))
        magnitude = np.where(y >= 64, np.float32(64), np.where(y < 1 / 64, np.float32(0), power))
        return _f32(np.where(np.isnan(t), np.nan, np.copysign(magnitude, t)))

    @_ignore
    def stochastic(self, t: NDArray[np.float32], words: NDArray[np.uint32]) -> NDArray[np.float32]:
        """Round to a neighbour, up with probability (t - lo) / (hi - lo) in float32, by one word for each element."""
        if self.odd:
            return _f32(Radix4("radix4", odd=False).stochastic(np.float32(2) * t, words) / np.float32(2))
        a = np.minimum(np.abs(t), np.float32(64))
        n = np.clip((np.frexp(a)[1] - 1) // 2, -3, 3)
        power = np.ldexp(np.float32(1), 2 * n)
        below = a < 1 / 64
        near = np.where(below, np.float32(0), power)
        far = np.where(below, np.float32(1 / 64), power * np.float32(4))
        third = np.float32(1) / np.float32(3)
        q = np.where(below, a * np.float32(64), (a / power - np.float32(1)) * third)
        value = np.copysign(np.where(_away(t, q, words), far, near), t)
        return _f32(np.where(np.isnan(t), np.nan, value))

    def encode(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Give the codes of grid values."""
        even = np.abs(values) * np.float32(2 if self.odd else 1)
        exponent = np.where(even == 0, 0, (np.frexp(even)[1] - 1) // 2 + 4)
        return np.asarray(np.signbit(values) * 8 + exponent, np.uint8)

    def decode(self, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Give the values of codes."""
        exponent = (codes & 7).astype(np.int64)
        magnitude = np.where(exponent == 0, np.float32(0), np.ldexp(np.float32(1), 2 * (exponent - 4)))
        return _f32(np.where(codes < 8, magnitude, -magnitude) / np.float32(2 if self.odd else 1))


Format = Integer | Radix4

FORMATS: dict[str, Format] = {
    "int4": Integer("int4", 4, -8, 7, ("amax", "minmax", "sawb")),
    "int4_symmetric": Integer("int4_symmetric", 4, -7, 7, ("amax", "minmax", "sawb")),
    "uint4": Integer("uint4", 4, 0, 15, ("amax", "minmax")),
    "radix4": Radix4("radix4", odd=False),
    "radix4_odd": Radix4("radix4_odd", odd=True),
}


# --- Scale rules: rows of elements that share a scale -> one scale (and offset) for each row, in float64 --------------


def ordered_sum(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum each row in the one order of the contract.

    Pieces of 4096; in a piece element j is added to lane j % 8; the lanes are joined pairwise, the pieces in order.
    """
    total = np.zeros(len(rows))
    for start in range(0, rows.shape[1], 4096):
        piece = rows[:, start : start + 4096]
        lanes = np.zeros((len(rows), 8))
        for first in range(0, piece.shape[1], 8):
            eight = piece[:, first : first + 8]
            lanes[:, : eight.shape[1]] += eight
        a, b, c, d, e, f, g, h = lanes.T
        total += ((a + b) + (c + d)) + ((e + f) + (g + h))
    return total


@_ignore
def rule_amax(rows: NDArray[np.float32], grid: Format) -> tuple[NDArray[np.float64], None]:
    """``"amax"``: the largest magnitude goes to the format's reference."""
    return np.max(np.abs(rows), axis=1).astype(np.float64) / grid.reference, None


@_ignore
def rule_minmax(rows: NDArray[np.float32], grid: Format) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """``"minmax"``: the smallest goes to the lowest code, the largest to the highest one."""
    low, high = np.min(rows, axis=1) + np.float32(0), np.max(rows, axis=1)  # + 0: an offset is never -0.0
    low = np.where(np.isfinite(high - low), low, np.float32(np.nan))  # too far apart for x - offset
    return (high.astype(np.float64) - low.astype(np.float64)) / (len(grid.values) - 1), low


@_ignore
def rule_sawb(rows: NDArray[np.float32], _grid: Format) -> tuple[NDArray[np.float64], None]:
    """``"sawb"``: Choi et al. 2018 (arXiv:1807.06964), for 15 levels, in float64.

    The clip 12.035 sqrt(E[x^2]) - 12.03 E[|x|] goes to 7; where it is not positive the largest magnitude does.
    """
    n, wide = rows.shape[1], rows.astype(np.float64)
    alpha = 12.035 * np.sqrt(ordered_sum(wide * wide) / n) - 12.03 * (ordered_sum(np.abs(wide)) / n)
    alpha = np.where(alpha > 0, alpha, np.max(np.abs(wide), axis=1))
    return alpha / 7.0, None


_RULES = {"amax": rule_amax, "minmax": rule_minmax, "sawb": rule_sawb}


def _observe(
    groups: NDArray[np.float32], grid: Format, rule: str
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Scale and offset of each group (the last axis), clamped, NaN where an element is not finite."""
    kept, n = groups.shape[:-1], groups.shape[-1]
    rows = groups.reshape(math.prod(kept), n)
    if n == 0:
        one, zero = np.ones(kept, np.float32), np.zeros(kept, np.float32)
        return one, zero if rule == "minmax" else None
    scale, offset = _RULES[rule](rows, grid)
    # Two roundings of a quotient of float32 numbers, to float64 and then to float32, give what one to float32 gives.
    scale = np.where(scale == 0, 1.0, np.clip(scale, 2.0**-126, 2.0**126))
    scale = np.where(np.isfinite(rows).all(axis=1), scale, np.nan)
    return _f32(scale).reshape(kept), None if offset is None else offset.reshape(kept)


def _blocks(x: NDArray[np.float32], axis: int, size: int) -> NDArray[np.float32]:
    """Cut an axis into blocks of `size`, which divides it; the elements of a block become the last axis."""
    shape = (*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])
    return np.moveaxis(x.reshape(shape), axis + 1, -1)


def scales(
    x: NDArray[np.float32], grid: Format, rule: str, axis: int | None = None, block_size: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Compute the scales of an array by a rule.

    Parameters
    ----------
    x : numpy.ndarray
        Any shape, float32.
    grid : Format
        One of `FORMATS`.
    rule : str
        One of ``grid.scale_rules``.
    axis, block_size : int or None
        One scale for the array (both None), for each index along `axis`, or for each `block_size` elements along
        `axis` (the last by default; the last block may be short).

    Returns
    -------
    scale : numpy.ndarray
        float32; shape (1, ..., 1), or 1 everywhere but at `axis`, or the shape of `x` with blocks for elements there.
        NaN for a group with an element that is not finite; 1 for an empty one, for zeros and, in ``"minmax"``, for
        equal elements.
    offset : numpy.ndarray or None
        Of the same shape, for ``"minmax"``.
    """
    if axis is None and block_size is None:
        return _observe(x.reshape((1,) * x.ndim + (x.size,)), grid, rule)
    axis = range(x.ndim)[-1 if axis is None else axis]
    length = x.shape[axis]
    if block_size is None:
        kept = tuple(n if i == axis else 1 for i, n in enumerate(x.shape))
        return _observe(np.moveaxis(x, axis, 0).reshape(*kept, x.size // max(length, 1)), grid, rule)
    short = length % block_size
    head, tail = np.split(x, [length - short], axis)
    parts = [_observe(_blocks(head, axis, block_size), grid, rule)]
    if short:
        parts.append(_observe(_blocks(tail, axis, short), grid, rule))
    scale = np.concatenate([scale for scale, _ in parts], axis)
    offsets = [offset for _, offset in parts if offset is not None]
    return scale, np.concatenate(offsets, axis) if offsets else None


def _spread(
    a: NDArray[np.float32], shape: tuple[int, ...], axis: int | None, block_size: int | None
) -> NDArray[np.float32]:
    """Give every element of an array of this shape its group's number."""
    if block_size is None:
        return np.broadcast_to(a, shape)
    axis = range(len(shape))[-1 if axis is None else axis]
    blocked = tuple(-(-n // block_size) if i == axis else n for i, n in enumerate(shape))
    return np.repeat(np.broadcast_to(a, blocked), block_size, axis).take(np.arange(shape[axis]), axis)


# --- Quantization -----------------------------------------------------------------------------------------------------


class Quantized(NamedTuple):
    """What `quantize` returns and `dequantize` takes."""

    codes: NDArray[np.uint8]
    """One per element, in the shape of the array."""
    scale: NDArray[np.float32]
    offset: NDArray[np.float32] | None
    format: str
    axis: int | None
    block_size: int | None


class _Plan(NamedTuple):
    """Where every element of an array goes."""

    steps: NDArray[np.float32]
    """Grid values; with an offset, steps above the lowest."""
    dither: NDArray[np.float32] | None
    scale: NDArray[np.float32]
    offset: NDArray[np.float32] | None


def dither(words: tuple[int, int], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Give the subtractive dither of every element under the key with these words: odd / 2^25 in (-1/2, 1/2), exact."""
    high = random_bits(fold(words, "dither"), math.prod(shape)) >> np.uint32(8)
    return _f32((high + 0.5) * 2.0**-24 - 0.5).reshape(shape)


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


@_ignore
def _plan(x: NDArray[np.float32], grid: Format, options: Options) -> _Plan:
    """Find the scales, then round t = (x - offset) * (1 / scale)."""
    axis, block_size = options.get("axis"), options.get("block_size")
    given, offset, key = options.get("scale"), options.get("offset"), options.get("key")
    if given is None or isinstance(given, str):
        scale, found = scales(x, grid, given or "amax", axis, block_size)
    else:
        scale, found = _given(given, x.ndim), None if offset is None else _given(offset, x.ndim)
    t = x
    if found is not None:
        scale, found = (np.array(a) for a in np.broadcast_arrays(scale, found))
        t = x - _spread(found, x.shape, axis, block_size)
    t = t * _spread(_f32(np.float32(1) / scale), x.shape, axis, block_size)
    if found is not None:
        if not isinstance(grid, Integer):
            raise ValueError(f"offset: {grid.name} is not uniform")
        grid = Integer("steps", grid.bits, 0, grid.highest - grid.lowest, ())

    rounding = options.get("rounding", "nearest")
    if rounding == "nearest":
        return _Plan(grid.nearest(t), None, scale, found)
    if key is None:
        raise ValueError(f"key: rounding {rounding!r} needs one")
    if rounding == "stochastic":
        words = random_bits(fold(key_words(key), "rounding"), x.size).reshape(x.shape)
        return _Plan(grid.stochastic(t, words), None, scale, found)
    u = dither(key_words(key), x.shape)
    return _Plan(grid.nearest(_f32(t + u)), u, scale, found)


@_ignore
def _reconstruct(plan: _Plan, axis: int | None, block_size: int | None, dtype: DTypeLike) -> NDArray[Any]:
    """Compute value * scale (+ offset) in float32, then round it to `dtype`; every NaN is the canonical quiet one."""
    value = plan.steps if plan.dither is None else plan.steps - plan.dither
    y = value * _spread(plan.scale, value.shape, axis, block_size)
    if plan.offset is not None:
        y = y + _spread(plan.offset, value.shape, axis, block_size)
    y = np.asarray(y).astype(dtype)
    return np.where(np.isnan(y), np.array(np.nan, y.dtype), y).astype(y.dtype)


@_ignore
def fake_quantize(x: NDArray[Any], format: str, **options: Unpack[Options]) -> NDArray[Any]:
    """Round an array to a format and back, as ``lowbit.fake_quantize`` does.

    Parameters
    ----------
    x : numpy.ndarray
        float16, bfloat16, float32 or float64, of any shape.
    format : str
        A name of `FORMATS`.
    **options
        See `Options`.

    Returns
    -------
    numpy.ndarray
        Of the shape and dtype of `x`. NaN where `x` is NaN, and in every group with a non-finite element whose scale
        comes from a rule.
    """
    plan = _plan(x.astype(np.float32), FORMATS[format], options)
    return _reconstruct(plan, options.get("axis"), options.get("block_size"), x.dtype.newbyteorder("="))


@_ignore
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
        An element is NaN or, where the scale comes from a rule, infinite; the message has its index in C order. Or
        ``"minmax"`` finds numbers too far apart.
    """
    x32, grid, scale = x.astype(np.float32), FORMATS[format], options.get("scale")
    refused = ~np.isfinite(x32) if scale is None or isinstance(scale, str) else np.isnan(x32)
    if refused.any():
        raise ValueError(f"x: element {int(np.argmax(refused))} is {x32.flat[int(np.argmax(refused))]}")
    plan = _plan(x32, grid, options)
    if np.isnan(plan.scale).any():
        raise ValueError("x: a group spans more than float32 holds")
    values = plan.steps if plan.offset is None else plan.steps + grid.values[0]
    codes = grid.encode(values)
    return Quantized(codes, plan.scale, plan.offset, format, options.get("axis"), options.get("block_size"))


def dequantize(q: Quantized, *, dtype: DTypeLike = np.float32, key: HasWords | int | None = None) -> NDArray[Any]:
    """Turn codes into numbers; what was quantized with ``rounding="dither"`` needs its `key` here too."""
    grid = FORMATS[q.format]
    steps = grid.decode(q.codes)
    if q.offset is not None:
        steps = steps - grid.values[0]
    u = None if key is None else dither(key_words(key), steps.shape)
    return _reconstruct(_Plan(steps, u, q.scale, q.offset), q.axis, q.block_size, dtype)


# --- Packing ----------------------------------------------------------------------------------------------------------


def pack(codes: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Put codes of `bits` bits, in C order, into one bit string, least significant bit first, zeros at its end."""
    each = (codes.reshape(codes.size, 1).astype(np.uint16) >> np.arange(bits, dtype=np.uint16)) & 1
    return np.packbits(each.astype(np.uint8), bitorder="little")


def unpack(packed: NDArray[np.uint8], bits: int, n: int) -> NDArray[Any]:
    """Take `n` codes of `bits` bits out again: uint8, or uint16 above 8 bits."""
    each = np.unpackbits(packed, count=n * bits, bitorder="little").reshape(n, bits).astype(np.uint32)
    return np.asarray((each << np.arange(bits, dtype=np.uint32)).sum(axis=1), np.uint8 if bits <= 8 else np.uint16)
