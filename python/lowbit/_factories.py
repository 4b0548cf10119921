"""Formats made to measure: a factory gives a `Format` whose name makes it again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, SupportsIndex

import numpy as np

from lowbit import _arguments, _core

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from lowbit._core import Format
    from lowbit._formats import FormatLike


def _flag(value: bool, argument: str) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{argument}: expected True or False, got {type(value).__name__}")
    return bool(value)


def _small(value: SupportsIndex, argument: str) -> int:
    """Check an int; the core knows which suit, and names none that is far out."""
    return max(-(1 << 30), min(_arguments.integer(value, argument), 1 << 30))


def _count(value: SupportsIndex, argument: str) -> int:
    """Check an int of which none below zero suits."""
    number = _small(value, argument)
    if number < 0:
        raise _core.Error(f"{argument}: {number} is out of range; give a positive number")
    return number


def int_format(bits: SupportsIndex, *, symmetric: bool = False, signed: bool = True) -> Format:
    """Make integers of 2 to 8 bits.

    Parameters
    ----------
    bits : int
        2 to 8.
    symmetric : bool
        Without the lowest value, so that there are as many below zero as above.
    signed : bool
        Two's complement; if False from 0 to ``2**bits - 1``.

    Returns
    -------
    Format
        Named ``"int5"``, ``"int5_symmetric"`` or ``"uint5"``; scaled by "amax" unless asked otherwise.

    Raises
    ------
    TypeError
        An argument has the wrong type.
    lowbit.Error
        `bits` is out of range, or the integers are to be both symmetric and unsigned.

    Examples
    --------
    >>> import lowbit as lb
    >>> lb.int_format(3).values
    array([-4., -3., -2., -1.,  0.,  1.,  2.,  3.], dtype=float32)
    """
    return _core.int_format(_count(bits, "bits"), _flag(symmetric, "symmetric"), _flag(signed, "signed"))


def radix_format(radix: SupportsIndex, exponent_bits: SupportsIndex, *, zero: bool = True) -> Format:
    """Make signed powers of 2, 4 or 8: for the question which base is best.

    Parameters
    ----------
    radix : int
        2, 4 or 8.
    exponent_bits : int
        There are ``2**exponent_bits`` magnitudes of either sign, from ``radix ** -(2 ** (exponent_bits - 1))`` up.
    zero : bool
        Whether zero takes the place of the smallest. Without it every number becomes a power, zero too.

    Returns
    -------
    Format
        Of ``exponent_bits + 1`` bits, scaled by "amax" to the largest power; ``radix_format(4, 3)`` is ``radix4``.
        Ties, at the arithmetic middle of two powers, go away from zero; the smallest power begins where a tie with the
        next one down would be, as Sun et al. (NeurIPS 2020, equation 1) have it for radix 4.

    Raises
    ------
    TypeError
        An argument has the wrong type.
    lowbit.Error
        A radix or a number of bits for which there are no such powers in float32.

    Examples
    --------
    >>> import lowbit as lb
    >>> lb.radix_format(8, 2).values
    array([-8.   , -1.   , -0.125,  0.   ,  0.125,  1.   ,  8.   ],
          dtype=float32)
    """
    return _core.radix_format(_count(radix, "radix"), _count(exponent_bits, "exponent_bits"), _flag(zero, "zero"))


def float_format(
    exponent_bits: SupportsIndex,
    mantissa_bits: SupportsIndex,
    *,
    bias: SupportsIndex | None = None,
    inf_nan: Literal["none", "ieee", "fn", "fnuz"] = "none",
    subnormals: bool = True,
) -> Format:
    """Make small floats of any exponent, mantissa and bias.

    Parameters
    ----------
    exponent_bits : int
        1 to 8; 8 only with ``inf_nan="ieee"`` and the bias 127, which is all that float32 holds.
    mantissa_bits : int
        0 to 23. With more than 16 bits in all the format has no codes and only `fake_quantize` takes it.
    bias : int, optional
        A code of exponent E and mantissa M is ``2**(E - bias) * (1 + M / 2**mantissa_bits)``. Default
        ``2**(exponent_bits - 1) - 1``, with "fnuz" one more.
    inf_nan : {"none", "ieee", "fn", "fnuz"}
        Which codes are no finite numbers: none; all of the highest exponent; the one of all ones; the one that would
        be negative zero (as ml_dtypes names them).
    subnormals : bool
        Whether codes of exponent 0 make equal steps down to zero; if False all of them are zero.

    Returns
    -------
    Format
        A registered one if there is one alike; its scale is 1 unless asked otherwise. Ties go to the even code;
        what is beyond the largest finite number becomes that.

    Raises
    ------
    TypeError
        An argument has the wrong type.
    lowbit.Error
        A width or bias that is impossible, or reaches beyond float32.

    Examples
    --------
    >>> import lowbit as lb
    >>> lb.float_format(2, 1).values[-4:]
    array([2., 3., 4., 6.], dtype=float32)
    >>> lb.float_format(4, 3, inf_nan="fn")
    lowbit.get_format("fp8_e4m3fn")
    """
    return _core.float_format(
        _count(exponent_bits, "exponent_bits"),
        _count(mantissa_bits, "mantissa_bits"),
        None if bias is None else _small(bias, "bias"),
        _arguments.choice(inf_nan, "inf_nan", ("none", "ieee", "fn", "fnuz")),
        _flag(subnormals, "subnormals"),
    )


def cfloat8(exponent_bits: SupportsIndex, bias: SupportsIndex) -> Format:
    """Make Tesla's configurable 8-bit floats.

    Parameters
    ----------
    exponent_bits : int
        4 (CFloat8_1_4_3) or 5 (CFloat8_1_5_2).
    bias : int
        0 to 63: the six bits that a tensor's numbers share. The scale rule "bias" chooses it for a tensor, as a scale
        that is a power of two.

    Returns
    -------
    Format
        Every code is a finite number; ties go to the even code, what is too large becomes the largest. Source: Tesla,
        "A Guide to Tesla's Configurable Floating Point Formats & Arithmetic", 2021; subnormal numbers as in IEEE 754,
        since those of its text would leave a gap.

    Raises
    ------
    TypeError
        An argument has the wrong type.
    lowbit.Error
        An argument is out of range.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> lb.cfloat8(4, 7).max
    480.0
    >>> q = lb.quantize(np.float32([3e-6, -1e-6]), lb.cfloat8(4, 7), scale="bias")
    >>> bool(q.scale == 2.0**-27), np.asarray(q).round(8)
    (True, array([ 3.1e-06, -9.5e-07], dtype=float32))
    """
    return _core.cfloat8(_count(exponent_bits, "exponent_bits"), _small(bias, "bias"))


def cfloat16(
    kind: Literal["shp", "uhp"], *, bias: SupportsIndex | None = None, top: Literal["finite", "reserved"] = "finite"
) -> Format:
    """Make Tesla's configurable 16-bit floats.

    Parameters
    ----------
    kind : {"shp", "uhp"}
        Signed half precision: sign, 5 exponent and 10 mantissa bits. Unsigned half precision: no sign, 6 exponent and
        10 mantissa bits, nothing between zero and the smallest normal number; negative numbers become 0.
    bias : int, optional
        Of "shp": 0 to 63, by default 15. That of "uhp" is 31.
    top : {"finite", "reserved"}
        Of "uhp": whether codes of the highest exponent are numbers; the white paper does not say.

    Returns
    -------
    Format

    Raises
    ------
    TypeError
        An argument has the wrong type.
    lowbit.Error
        An argument is out of range, or belongs to the other kind.

    Examples
    --------
    >>> import lowbit as lb
    >>> lb.cfloat16("shp").max, lb.cfloat16("uhp").max
    (131008.0, 8585740288.0)
    """
    _arguments.choice(kind, "kind", ("shp", "uhp"))
    _arguments.choice(top, "top", ("finite", "reserved"))
    if kind == "uhp":
        if bias is not None and _small(bias, "bias") != 31:
            raise _core.Error("bias: that of uhp is 31; leave it out")
        return _core.cfloat16_uhp(top == "reserved")
    if top == "reserved":
        raise _core.Error('top: every code of shp is a finite number; leave it out, or give kind="uhp"')
    return _core.cfloat16_shp(15 if bias is None else _small(bias, "bias"))


def fixed_point(
    bits: SupportsIndex, fraction_bits: SupportsIndex, *, symmetric: bool = False, clamp: bool = True
) -> Format:
    """Make fixed point: ``k * 2**-fraction_bits`` for integers k of so many bits.

    Parameters
    ----------
    bits : int
        2 to 24, the sign counted; codes have at most 16.
    fraction_bits : int
        Bits after the point; ``bits - 127`` to 126.
    symmetric : bool
        Without the lowest value.
    clamp : bool
        If False only the step counts: there are no bounds, hence no codes, and only `fake_quantize` takes the format.

    Returns
    -------
    Format
        Its scale is 1 unless asked otherwise; ties go to even k. For offsets and dither take integers with the scale
        ``2.0**-fraction_bits``.

    Raises
    ------
    TypeError
        An argument has the wrong type.
    lowbit.Error
        An argument is out of range.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> lb.fake_quantize(np.float32([0.3, 7.99, -9]), lb.fixed_point(8, 4))
    array([ 0.3125,  7.9375, -8.    ], dtype=float32)
    """
    return _core.fixed_point(
        _count(bits, "bits"),
        _small(fraction_bits, "fraction_bits"),
        _flag(symmetric, "symmetric"),
        _flag(clamp, "clamp"),
    )


def log_grid(*, zeta: float, delta: float, bits: SupportsIndex) -> Format:
    """Make a grid whose steps grow in proportion: from each value to the next `delta` plus `zeta` times the value.

    Parameters
    ----------
    zeta : float
        0 (equal steps) or more.
    delta : float
        The step at zero.
    bits : int
        2 to 16; there are ``2**bits - 1`` values.

    Returns
    -------
    Format
        ``q[0] = 0``, ``q[i + 1] = (1 + zeta) * q[i] + delta`` and their negatives: Li and De Sa, "Dimension-Free Bounds
        for Low-Precision Training", NeurIPS 2019. Its scale is 1 unless asked otherwise; ties go to the lower value.

    Raises
    ------
    TypeError
        An argument has the wrong type.
    lowbit.Error
        An argument is out of range, or float32 cannot hold or tell apart the values.

    Examples
    --------
    >>> import lowbit as lb
    >>> lb.log_grid(zeta=0.5, delta=0.1, bits=3).values
    array([-0.475, -0.25 , -0.1  ,  0.   ,  0.1  ,  0.25 ,  0.475],
          dtype=float32)
    """
    return _core.log_grid(_arguments.real(zeta, "zeta"), _arguments.real(delta, "delta"), _count(bits, "bits"))


def table_format(values: ArrayLike) -> Format:
    """Make a format of any values: a codebook.

    Parameters
    ----------
    values : array_like
        2 to 256 numbers in ascending order, finite and distinct in float32.

    Returns
    -------
    Format
        Value i has code i. Its scale is 1 unless asked otherwise (``scale="amax"`` brings the largest magnitude to the
        largest of the values); ties go to the lower value, as in bitsandbytes.

    Raises
    ------
    TypeError
        `values` is no one-dimensional array of real numbers.
    lowbit.Error
        There are too few or too many values, or they are not finite, distinct and ascending.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> quarters = lb.table_format([-1, -0.25, 0, 0.25, 1])
    >>> quarters.bits, lb.fake_quantize(np.float32([0.7, -0.2]), quarters)
    (3, array([ 1.  , -0.25], dtype=float32))
    """
    numbers = _arguments.float32(values, "values")
    if numbers.ndim != 1:
        raise TypeError(f"values: expected one dimension, got {numbers.ndim}")
    return _core.table_format(numbers.tolist())


def block_float(bits: SupportsIndex) -> Format:
    """Make block floating point: symmetric integers under one power of two.

    Parameters
    ----------
    bits : int
        2 to 8, the sign counted.

    Returns
    -------
    Format
        Which numbers share an exponent is said to `quantize`: all, those of one index (`axis`), or blocks. As QPyTorch
        (arXiv:1910.04540) has it, but for ties, which go to even here and up there.

    Raises
    ------
    TypeError
        `bits` is no int.
    lowbit.Error
        `bits` is out of range.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> lb.fake_quantize(np.float32([0.3, 7.9, -5]), lb.block_float(4))
    array([ 0.,  7., -5.], dtype=float32)
    """
    return _core.block_float(_count(bits, "bits"))


def block_format(
    element: FormatLike,
    scale_format: Literal["e8m0", "e4m3"] = "e8m0",
    *,
    block_size: SupportsIndex | None = 32,
) -> Format:
    """Compose a format whose scales have few bits themselves, as ``mxfp4`` and ``nvfp4`` are composed.

    Parameters
    ----------
    element : str or Format
        A small float, signed integers or fixed point.
    scale_format : {"e8m0", "e4m3"}
        Powers of two (a byte each); or E4M3 numbers (a byte each) under a float32 scale for the whole array.
    block_size : int or None
        How many numbers along an axis share a scale; None leaves it to `quantize`.

    Returns
    -------
    Format
        A registered one if there is one alike.

    Raises
    ------
    TypeError
        An argument has the wrong type.
    lowbit.Error
        An element or a block size that cannot be.

    Examples
    --------
    >>> import lowbit as lb
    >>> lb.block_format("fp4_e2m1")
    lowbit.get_format("mxfp4")
    >>> lb.block_format("int4_symmetric", block_size=16).name
    'block(int4_symmetric,e8m0,16)'
    """
    _arguments.choice(scale_format, "scale_format", ("e8m0", "e4m3"))
    return _core.block_format(element, scale_format, _arguments.block_size(block_size))
