"""Formats by name: the registered ones, and those whose name tells how they are made."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from lowbit.reference.blocks import BlockFormat, takes
from lowbit.reference.floats import Fixed, Minifloat
from lowbit.reference.formats import Grid, Integer, Sign, Table, Ternary, log_levels
from lowbit.reference.radix import RADIX4, Radix, Radix4

#: SAWB's factors by the highest of the levels -L, ..., L: IBM's published code.
_SAWB = {7: (12.035, 12.03, 7.0), 63: (28.24, 30.81, 63.0), 127: (31.76, 35.04, 127.0)}
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def integer(name: str, bits: int, *, is_signed: bool = True, symmetric: bool = False) -> Integer:
    """Make integers of 2 to 8 bits."""
    if not 2 <= bits <= 8:
        raise ValueError(f"bits: {bits} is not 2 to 8")
    highest = 2 ** (bits - 1) - 1 if is_signed else 2**bits - 1
    lowest = (-highest if symmetric else -highest - 1) if is_signed else 0
    sawb = _SAWB.get(highest) if is_signed else None
    rules = ("amax", "minmax", "sawb") if sawb else ("amax", "minmax")
    return Integer(name=name, bits=bits, lowest=lowest, highest=highest, sawb=sawb, scale_rules=rules)


def minifloat(name: str, e: int, m: int, bias: int | None = None, inf_nan: str = "none", *, subnormals: bool = True,
              has_sign: bool = True) -> Minifloat:  # fmt: skip
    """Make a float of these fields; its bias is IEEE's, or one more without -0, unless given."""
    if bias is None:
        bias = 2 ** (e - 1) - (inf_nan != "fnuz")
    if not (1 <= e <= 8 and 0 <= m <= 23):
        raise ValueError(f"{e} exponent and {m} mantissa bits are not 1 to 8 and 0 to 23")
    if e < 8 and bias < -103:
        raise ValueError(f"bias: {bias} is below -103")
    if (e == 8) != (inf_nan == "ieee" and bias == 127) or (e < 8 and (2**e - 1 - bias > 127 or bias + m > 127)):
        raise ValueError(f"{name} does not fit float32")
    return Minifloat(
        name=name, bits=has_sign + e + m, exponent_bits=e, mantissa_bits=m, bias=bias, inf_nan=inf_nan,
        subnormals=subnormals, has_sign=has_sign, scale_rules=("one", "amax"), default_scale="one",
    )  # fmt: skip


def cfloat(name: str, e: int, m: int, bias: int) -> Minifloat:
    """Make one of Tesla's configurable floats: every code is a number, and the bias has six bits."""
    if not 0 <= bias <= 63:
        raise ValueError(f"bias: {bias} is not 0 to 63")
    return Minifloat(
        name=name, bits=1 + e + m, exponent_bits=e, mantissa_bits=m, bias=bias, biases=(0, 63),
        scale_rules=("one", "amax", "bias"), default_scale="one",
    )  # fmt: skip


def block(name: str, element: Grid, scale_format: str, size: int | None) -> BlockFormat:
    """Make blocks of an element; by default E8M0 scales are floored, E4M3 ones follow the largest magnitude."""
    if not takes(element):
        raise ValueError(f"element: {element.name} cannot be one")
    rules: tuple[str, ...] = ("floor", "ceil", "rceil", "even")
    if scale_format == "e4m3":
        rules = ("amax", "four_over_six") if element.name == "fp4_e2m1" else ("amax",)
    return BlockFormat(
        name=name, bits=element.bits, element=element, scales=scale_format, default_block=size,
        scale_rules=rules, default_scale=rules[0],
    )  # fmt: skip


def _registry() -> dict[str, Grid]:
    """Every registered format, in order."""
    ternary = Ternary(
        name="ternary", bits=2, lowest=-1, highest=1, sawb=(2.6, 1.71, 1.0), default_scale="mean",
        scale_rules=("amax", "minmax", "sawb", "mean", "twn"),
    )  # fmt: skip
    made: list[Grid] = [
        integer("int4", 4),
        integer("int4_symmetric", 4, symmetric=True),
        integer("uint4", 4, is_signed=False),
        RADIX4,
        Radix4(name="radix4_odd", bits=4, odd=True),
        integer("int8", 8),
        integer("int8_symmetric", 8, symmetric=True),
        integer("uint8", 8, is_signed=False),
        ternary,
        Sign(name="sign", bits=1, scale_rules=("amax", "mean"), default_scale="mean"),
        Radix(name="luq4", bits=4, radix=2, shift=1, half_underflow=True),
        Table(name="nf4", bits=4, levels=_NF4, default_block=64),
        minifloat("fp4_e2m1", 2, 1),
        minifloat("fp6_e2m3", 2, 3),
        minifloat("fp6_e3m2", 3, 2),
        minifloat("fp8_e3m4", 3, 4, None, "ieee"),
        minifloat("fp8_e4m3", 4, 3, None, "ieee"),
        minifloat("fp8_e4m3fn", 4, 3, None, "fn"),
        minifloat("fp8_e4m3fnuz", 4, 3, None, "fnuz"),
        minifloat("fp8_e4m3b11fnuz", 4, 3, 11, "fnuz"),
        minifloat("fp8_e5m2", 5, 2, None, "ieee"),
        minifloat("fp8_e5m2fnuz", 5, 2, None, "fnuz"),
        minifloat("float16", 5, 10, None, "ieee"),
        minifloat("bfloat16", 8, 7, None, "ieee"),
    ]
    known = {grid.name: grid for grid in made}
    int8 = Fixed(name="fixed(8,6,symmetric)", bits=8, fraction_bits=6, symmetric=True)
    for name, element in (
        ("mxfp4", known["fp4_e2m1"]),
        ("mxfp6", known["fp6_e2m3"]),
        ("mxfp6_e3m2", known["fp6_e3m2"]),
        ("mxfp8", known["fp8_e4m3fn"]),
        ("mxfp8_e5m2", known["fp8_e5m2"]),
        ("mxint8", int8),
    ):
        known[name] = block(name, element, "e8m0", 32)
    known["nvfp4"] = block("nvfp4", known["fp4_e2m1"], "e4m3", 16)
    # Those of four bits come first.
    first = "int4 int4_symmetric uint4 radix4 radix4_odd luq4 nf4 fp4_e2m1 mxfp4 nvfp4"
    return {name: known[name] for name in (*first.split(), *known)}


def _split(text: str) -> list[str]:
    """Cut at the commas outside parentheses."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _float(name: str, arguments: list[str]) -> Grid:
    e, m, *options = arguments
    bias = next((int(option.removeprefix("bias=")) for option in options if option.startswith("bias=")), None)
    inf_nan = next((option for option in options if option in {"ieee", "fn", "fnuz"}), "none")
    return minifloat(name, int(e), int(m), bias, inf_nan, subnormals="ftz" not in options)


def _radix(name: str, arguments: list[str]) -> Grid:
    radix, e, zero = int(arguments[0]), int(arguments[1]), "nozero" not in arguments
    return Radix(name=name, bits=e + 1, radix=radix, shift=2 ** (e - 1), zero=zero)


def _cfloat16(name: str, arguments: list[str]) -> Grid:
    kind, *options = arguments
    if kind == "shp":
        return cfloat(name, 5, 10, int(options[0]))
    # The exponent reserved for what is no number is IEEE's idea.
    inf_nan = "ieee" if "reserved" in options else "none"
    return minifloat(name, 6, 10, 31, inf_nan, subnormals=False, has_sign=False)


def _fixed(name: str, arguments: list[str]) -> Grid:
    bits, fraction, *options = arguments
    return Fixed(
        name=name, bits=int(bits), fraction_bits=int(fraction), symmetric="symmetric" in options,
        clamp="unbounded" not in options, scale_rules=("one", "amax"), default_scale="one",
    )  # fmt: skip


def _cfloat8(name: str, arguments: list[str]) -> Grid:
    e, bias = (int(argument) for argument in arguments)
    return cfloat(name, e, 7 - e, bias)


def _bfp(name: str, arguments: list[str]) -> Grid:
    return block(name, get_format(f"int{arguments[0]}_symmetric"), "e8m0", None)


def _block(name: str, arguments: list[str]) -> Grid:
    size = int(arguments[2]) if len(arguments) > 2 else None
    return block(name, get_format(arguments[0]), arguments[1], size)


def _log(name: str, arguments: list[str]) -> Grid:
    bits = int(arguments[0])
    levels = log_levels(bits, float(arguments[1]), float(arguments[2]))
    return Table(name=name, bits=bits, levels=levels, scale_rules=("one", "amax"), default_scale="one")


def _table(name: str, arguments: list[str]) -> Grid:
    levels = tuple(float(np.float32(argument)) for argument in arguments)
    bits = max(1, (len(levels) - 1).bit_length())
    return Table(name=name, bits=bits, levels=levels, scale_rules=("one", "amax"), default_scale="one")


#: What stands before the parentheses of a name.
_FAMILIES: dict[str, Callable[[str, list[str]], Grid]] = {
    "radix": _radix,
    "float": _float,
    "cfloat8": _cfloat8,
    "cfloat16": _cfloat16,
    "fixed": _fixed,
    "bfp": _bfp,
    "block": _block,
    "log": _log,
    "table": _table,
}


@lru_cache(maxsize=256)
def get_format(name: str) -> Grid:
    """Give the grid of a name.

    Parameters
    ----------
    name : str
        One of `FORMATS`, or the name of a format made by a factory of ``lowbit``, as ``float(4,3,bias=11)``.

    Returns
    -------
    Grid

    Raises
    ------
    ValueError
        No format has this name.
    """
    if name in FORMATS:
        return FORMATS[name]
    if found := re.fullmatch(r"(u?)int([2-8])(_symmetric)?", name):
        return integer(name, int(found[2]), is_signed=not found[1], symmetric=bool(found[3]))
    found = re.fullmatch(r"(\w+)\((.*)\)", name)
    if found is None:
        raise ValueError(f"format: {name!r} is none")
    family, arguments = found[1], _split(found[2])
    if family not in _FAMILIES:
        raise ValueError(f"format: {name!r} is none")
    return _FAMILIES[family](name, arguments)


FORMATS: dict[str, Grid] = _registry()
"""The registered formats by name, in order."""
