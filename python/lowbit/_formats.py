"""The number formats by name, and the types of common arguments."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from lowbit._core import Format
from lowbit._keys import Key

#: The registered formats: one line each, in the registry's order.
FormatName: TypeAlias = Literal[
    "int4",
    "int4_symmetric",
    "uint4",
    "radix4",
    "radix4_odd",
    "luq4",
    "nf4",
    "fp4_e2m1",
    "mxfp4",
    "nvfp4",
    "int8",
    "int8_symmetric",
    "uint8",
    "ternary",
    "sign",
    "fp6_e2m3",
    "fp6_e3m2",
    "fp8_e3m4",
    "fp8_e4m3",
    "fp8_e4m3fn",
    "fp8_e4m3fnuz",
    "fp8_e4m3b11fnuz",
    "fp8_e5m2",
    "fp8_e5m2fnuz",
    "float16",
    "bfloat16",
    "mxfp6",
    "mxfp6_e3m2",
    "mxfp8",
    "mxfp8_e5m2",
    "mxint8",
]

RoundingName: TypeAlias = Literal["nearest", "stochastic", "dither"]
#: A registered name, the name that a factory gave, or a Format.
FormatLike: TypeAlias = FormatName | str | Format
KeyLike: TypeAlias = Key | int | np.random.Generator
