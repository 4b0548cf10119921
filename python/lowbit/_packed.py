"""The codec of packed formats: how large and how wrong its messages are. The core does the work."""

from __future__ import annotations

import math
import struct
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from lowbit import _arguments, _core, _expected
from lowbit._codec import Codec, Noise, Unbiased, bytes_of

if TYPE_CHECKING:
    from lowbit._formats import FormatLike

_LARGEST = 2.0**126  # of scales, and so of the numbers that a codec must hold to be called unbiased


@dataclass(frozen=True, slots=True)
class Packed(Codec):
    """Any format that has codes, registered or made: codes and scales as `lowbit.quantize` makes them.

    Parameters
    ----------
    format : str or Format
        A format's name; it is kept as the name. Its own scale rule is used.
    block_size : int, optional
        One scale per run of so many numbers along the last axis; default the format's own.
    rounding : {"nearest", "stochastic"}
        ``"stochastic"`` keeps the mean and needs a key to encode, none to decode.

    Raises
    ------
    TypeError
        An argument has the wrong type.
    lowbit.Error
        An unknown format or rounding, a format that has no codes or a block size of its own that is given another, or
        a block size that is not from 1 to 2**32 - 1.

    Notes
    -----
    Stochastic rounding is unbiased where nothing is clipped, of vectors up to 2**126: where the largest magnitude is
    scaled to a value that the format has on both sides (not ``uint4``, which has no negative numbers, nor
    ``radix4_odd``), or where scale 1 reaches so far (``bfloat16``, not the floats of 8 bits). Scales of block formats
    are powers of two or E4M3 and scales by the mean are small: all these clip.

    `expected_error` of block formats and of those scaled by the mean averages over the scale by quadrature; that of
    ``ternary`` in groups of less than about ten is rough, as it knows the others' mean magnitude by two moments only.

    Examples
    --------
    >>> import numpy as np, lowbit as lb
    >>> message = lb.encode(np.float32([1, -2, 3.5]), lb.Packed("int4"))
    >>> lb.decode(message)
    array([ 1. , -2. ,  3.5], dtype=float32)
    """

    format: FormatLike
    _: KW_ONLY
    block_size: int | None = None
    rounding: Literal["nearest", "stochastic"] = "nearest"

    _id = 2

    def __post_init__(self) -> None:
        size = None if self.block_size is None else _arguments.within(self.block_size, "block_size", 1, (1 << 32) - 1)
        rounding = _arguments.choice(self.rounding, "rounding", ("nearest", "stochastic"))
        self._put(format=_core.get_format(self.format).name, block_size=size, rounding=rounding)
        _core.codec_check(self._wire())

    @property
    def unbiased(self) -> Unbiased:
        """``"exact"`` if rounding is stochastic and nothing is clipped, else ``"no"``."""
        fmt = _core.get_format(self.format)
        if self.rounding == "nearest" or fmt.scale_format is not None:
            return "no"
        needed = {"amax": fmt.reference, "one": _LARGEST}.get(fmt.default_scale, math.inf)
        return "exact" if needed <= min(fmt.max, -float(fmt.values[0])) else "no"

    @property
    def _noise(self) -> Noise:
        return "private" if self.rounding == "stochastic" else "nothing"

    def _groups(self, d: int) -> list[tuple[int, int]]:
        """Sizes of groups that share a scale, and how many there are of each."""
        fmt = _core.get_format(self.format)
        size = d if fmt.default_scale == "one" else self.block_size or fmt.default_block or d
        whole, rest = divmod(d, size)
        return [(n, count) for n, count in ((size, whole), (rest, 1)) if n and count]

    def _error(self, d: int) -> float:
        fmt, stochastically = _core.get_format(self.format), self.rounding == "stochastic"
        whole = d if fmt.scale_format == "e4m3" else 0  # else it does not matter how long the vector is
        return sum(n * count / d * _group_error(fmt.name, n, whole, stochastically) for n, count in self._groups(d))

    def _payload(self, d: int) -> int:
        fmt, scales = _core.get_format(self.format), sum(count for _, count in self._groups(d))
        scale_bytes = scales * (4 if fmt.scale_format is None else 1) + 4 * (fmt.scale_format == "e4m3")
        return scale_bytes + bytes_of(d * fmt.bits)

    def _parameters(self) -> bytes:
        return struct.pack("<BI", self.rounding == "stochastic", self.block_size or 0) + str(self.format).encode()

    @classmethod
    def _read(cls, parameters: bytes) -> Self:
        stochastically, size = struct.unpack_from("<BI", parameters)
        rounding: Literal["nearest", "stochastic"] = "stochastic" if stochastically else "nearest"
        return cls(_core.get_format(parameters[5:].decode()), block_size=size or None, rounding=rounding)


@lru_cache(maxsize=256)
def _rounding(name: str, stochastically: bool) -> _expected.Rounding:
    """How a format errs at scale 1."""
    fmt = _core.get_format(name)
    values = fmt.values.astype(np.float64)
    if stochastically:
        return _expected.Rounding.stochastic(values)
    edges = (values[1:] + values[:-1]) / 2
    zero = int(np.searchsorted(values, 0))
    if values[zero] == 0 and fmt.scale_format is None and 0 < zero < values.size - 1:
        # Radix formats round more to zero than is nearer to it. How much more, they tell themselves.
        t = np.linspace(0, fmt.smallest, 1025, dtype=np.float32)[1:-1]
        given = np.ones(1, np.float32)
        rounded = _core.fake_quantize(t, fmt, given, None, None, None, None, "nearest", None, None)
        last = t[np.count_nonzero(rounded == 0) - 1]
        if last > 0.501 * fmt.smallest:
            edges[zero - 1 : zero + 1] = -last, last
    return _expected.Rounding.nearest(values, edges)


@lru_cache(maxsize=256)
def _group_error(name: str, n: int, d: int, stochastically: bool) -> float:
    """Error of a number from N(0, 1) in a group of `n` that share a scale, one of those that `d` numbers are."""
    fmt, rounding = _core.get_format(name), _rounding(name, stochastically)
    if fmt.default_scale == "one":
        return rounding.within(_expected.EVERYWHERE, 1.0)
    if fmt.default_scale == "mean":
        return rounding.by_mean(n)

    def error(amax: float, scale: float) -> float:
        inside = rounding.within(amax, scale) if n > 1 else 0.0
        return ((n - 1) * inside + rounding.edge(amax, scale)) / n

    if fmt.default_scale == "floor":
        least = math.frexp(fmt.reference)[1]
        powers = [2.0**k for k in range(-9, 6)]  # where the scale jumps
        points = 16 if n > 1 else 512  # one number's error is not smoothed by others'
        return _expected.mean_over_largest(
            n, lambda amax: error(amax, 2.0 ** (math.frexp(amax)[1] - least)), jumps=powers, points=points
        )
    if fmt.scale_format is None:
        return _expected.mean_over_largest(n, lambda amax: error(amax, amax / fmt.reference))

    def in_tensor(largest: float) -> float:
        """Average over blocks, of which one holds the largest magnitude of all."""
        tensor = largest / (fmt.reference * 448)

        def block(amax: float) -> float:
            return error(amax, tensor * _to_e4m3(amax / fmt.reference / tensor))

        others = _expected.mean_over_largest(n, block, below=largest) if d > n else 0.0
        return n / d * block(largest) + (1 - n / d) * others

    return _expected.mean_over_largest(d, in_tensor, points=8)


def _to_e4m3(scale: float) -> float:
    """Round a positive number to E4M3, but not to zero."""
    step = 2.0 ** (max(math.frexp(scale)[1], -5) - 4)
    return min(max(round(scale / step) * step, 2.0**-9), 448.0)
