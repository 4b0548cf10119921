"""Block formats: an element format and a format of the scale that a block of numbers shares."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from lowbit.reference.floats import Fixed, Minifloat
from lowbit.reference.formats import Grid, Integer, f32, ignore

if TYPE_CHECKING:
    from numpy.typing import NDArray

E4M3 = Minifloat(name="fp8_e4m3fn", bits=8, exponent_bits=4, mantissa_bits=3, bias=7, inf_nan="fn")


@dataclass(frozen=True, kw_only=True)
class BlockFormat(Grid):
    """Codes are those of `element`; a block's scale is a code, too: a power of two (E8M0) or an E4M3 number."""

    element: Grid
    scales: str
    """"e8m0" or "e4m3"; with the second the whole array has a float32 scale above the blocks'."""

    @property
    def scale_format(self) -> str | None:
        """The format of a block's scale."""
        return self.scales

    @property
    def reference(self) -> float:
        """The element's."""
        return self.element.reference

    @cached_property
    def values(self) -> NDArray[np.float32]:
        """The element's."""
        return self.element.values

    @property
    def emax(self) -> int:
        """The exponent of the element's largest number."""
        return int(np.frexp(self.element.max)[1]) - 1

    @property
    def mantissa_bits(self) -> int:
        """How many bits follow the leading one of the element's largest number."""
        return self.element.mantissa_bits if isinstance(self.element, Minifloat) else self.bits - 2

    def nearest(self, t: NDArray[np.float32]) -> NDArray[np.float32]:
        """As the element."""
        return self.element.nearest(t)

    def stochastic(self, t: NDArray[np.float32], words: NDArray[np.uint32]) -> NDArray[np.float32]:
        """As the element."""
        return self.element.stochastic(t, words)

    def encode(self, values: NDArray[np.float32]) -> NDArray[np.unsignedinteger]:
        """As the element."""
        return self.element.encode(values)

    def decode(self, codes: NDArray[np.unsignedinteger]) -> NDArray[np.float32]:
        """As the element."""
        return self.element.decode(codes)

    @ignore
    def scale_codes(self, scale: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Give the codes of scales: E8M0's is the exponent plus 127; NaN is 255, in E4M3 127."""
        if self.scales == "e4m3":
            return np.where(np.isnan(scale), 127, E4M3.encode(np.nan_to_num(scale, nan=1.0))).astype(np.uint8)
        exponent = np.frexp(np.nan_to_num(scale, nan=1.0))[1] - 1
        return np.where(np.isnan(scale), 255, exponent + 127).astype(np.uint8)

    def decode_scales(self, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Give the scales of codes."""
        if self.scales == "e4m3":
            return E4M3.decode(codes)
        return f32(np.where(codes == 255, np.nan, np.exp2(codes.astype(np.float64) - 127)))


def takes(element: Grid) -> bool:
    """Whether a format can be a block's element."""
    is_float = isinstance(element, Minifloat) and element.has_sign and element.biases is None
    return element.coded and (is_float or type(element) is Integer or isinstance(element, Fixed))


def _exponent(bits: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Exponent of a non-negative float32 by its bits; -127 for subnormals."""
    return (bits >> np.uint32(23)).astype(np.int64) - 127


@ignore
def e8m0(amax: NDArray[np.float32], grid: BlockFormat, rule: str) -> NDArray[np.float64]:
    """Choose a power of two for each block by its largest magnitude (OCP MX v1.0, section 6.3, and its variants).

    "floor" lets the largest number's exponent be the element's largest; "ceil" takes the next power unless amax is one
    itself; "rceil" the least power by which no number is clipped; "even" rounds amax to the element's mantissa first.
    """
    bits = amax.view(np.uint32)
    if rule == "even":
        bits = bits + np.uint32(1 << (22 - grid.mantissa_bits))
    exponent = _exponent(bits) - grid.emax
    if rule == "ceil":
        exponent = exponent + (bits & 0x7FFFFF != 0)
    if rule == "rceil":
        bits = f32(amax / np.float32(grid.element.max)).view(np.uint32)
        normal = _exponent(bits) + (bits & 0x7FFFFF != 0)
        exponent = np.where(bits >= 0x800000, normal, np.where(bits <= 0x400000, -127, -126))
    return np.where(amax == 0, 1.0, np.exp2(np.clip(exponent, -127, 127).astype(np.float64)))


@ignore
def tensor_scale(x: NDArray[np.float32], grid: BlockFormat, rule: str) -> np.float32:
    """Choose the scale above the blocks': the largest number of all gets the largest block scale.

    For "four_over_six" that is 256, so that 3/2 of it, 384, is a block scale too.
    """
    amax = np.max(np.abs(x), initial=np.float32(0))
    if not np.isfinite(x).all():
        return np.float32(np.nan)
    if amax == 0:
        return np.float32(1)
    top = amax / np.float32(grid.element.max * (256 if rule == "four_over_six" else 448))
    return np.float32(np.clip(top, np.float32(2.0**-117), np.float32(2.0**117)))


@ignore
def e4m3(amax: NDArray[np.float32], largest: float, tensor: np.float32) -> NDArray[np.float32]:
    """Choose an E4M3 number for each block, so that its largest magnitude becomes `largest`."""
    share = f32(amax / np.float32(largest)) * (np.float32(1) / tensor)
    scale = np.clip(E4M3.nearest(f32(share)), np.float32(2.0**-9), np.float32(448))
    return f32(np.where(amax == 0, np.float32(1), scale))
