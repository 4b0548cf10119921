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
]

RoundingName: TypeAlias = Literal["nearest", "stochastic", "dither"]
FormatLike: TypeAlias = FormatName | Format
KeyLike: TypeAlias = Key | int | np.random.Generator
