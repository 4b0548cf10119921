"""Number formats: which are timed, on what data, and the proof that a contender rounded to them or decoded them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from problems import Operation, Problem, unbiased

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray


def _one(_: NDArray[np.float32]) -> float:
    return 1.0


def amax(x: NDArray[np.float32]) -> float:
    return float(np.abs(x).max())


def _power(x: NDArray[np.float32]) -> float:
    """Give the scale that QPyTorch's blocks of 8 bits have: 6 bits below the exponent of the largest number."""
    return 2.0 ** (np.frexp(amax(x))[1] - 1 - 6)


@dataclass(frozen=True)
class Grid:
    """One format as contenders see it: its values, and the two kinds that have a recipe better than a table."""

    name: str
    """As lowbit spells it."""
    label: str
    """In the operation's name."""
    scale_of: Callable[[NDArray[np.float32]], float] = _one
    step: float | None = None
    """Of grids of equal steps."""
    small_float: tuple[int, int] | None = None
    """Mantissa bits and the exponent of the least normal number."""
    given: bool = True
    """Whether the scale is given; else it is found first."""

    @cached_property
    def values(self) -> NDArray[np.float32]:
        """All values, ascending."""
        import lowbit as lb

        return lb.get_format(self.name).values

    @cached_property
    def middles(self) -> NDArray[np.float32]:
        """Where nearest rounding changes its mind."""
        return (self.values[1:] + self.values[:-1]) / 2


GRIDS = {
    grid.label: grid
    for grid in (
        Grid("fp8_e4m3fn", "fp8_e4m3fn", small_float=(3, -6)),
        Grid("fp4_e2m1", "fp4_e2m1", small_float=(1, 0)),
        Grid("fixed(8,4)", "fixed_8_4", step=1 / 16),
        Grid("luq4", "luq4", lambda x: amax(x) / 64),
        Grid("ternary", "ternary", lambda x: float(np.abs(x).mean()), step=1.0),
        Grid("nf4", "nf4", amax),
        Grid("log(4,0.5,0.05)", "log_4"),
        Grid("bfp(8)", "bfp8", _power, step=1.0, given=False),
    )
}
BLOCK = {"nf4": 64, "mxfp4": 32, "nvfp4": 16}  # numbers that share a scale
#: Squared error of nvfp4 beside N(0, 1), whose -log2 / 2 is published and found as 3.395.
NVFP4_ERROR = 2 ** (-2 * 3.395)


def e4m3(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Decode E4M3 by its definition: sign, four bits of exponent with bias 7, three of mantissa; no NaN is given."""
    exponent, mantissa = codes >> 3 & 15, (codes & 7) / 8
    magnitude = np.where(exponent > 0, (1 + mantissa) * 2.0 ** (exponent - 7.0), mantissa * 2.0**-6)
    return np.where(codes < 128, magnitude, -magnitude).astype(np.float32)


def scale_table(name: str) -> NDArray[np.float32]:
    """Give the scale of every code that a block format has for one."""
    every = np.arange(255)
    return e4m3(every.astype(np.uint8)) if name == "nvfp4" else np.ldexp(np.float32(1), every - 127)


@dataclass(frozen=True)
class Stored:
    """Codes and scales to be decoded."""

    codes: NDArray[np.uint8]
    """One a byte."""
    table: NDArray[np.float32]
    """The value of each code."""
    scales: NDArray[np.float32]
    scale_codes: NDArray[np.uint8] | None = None
    """A byte each, for block formats."""

    @property
    def packed(self) -> NDArray[np.uint8]:
        """As lowbit packs them: of two 4-bit codes, the first in the low nibble."""
        return self.codes if self.table.size > 16 else self.codes[0::2] | (self.codes[1::2] << 4)


def stored(problem: Problem, name: str) -> Stored:
    """Draw codes, each alike likely, and scales."""
    import lowbit as lb

    rng, table = np.random.default_rng(6), lb.get_format(name).decode_table
    if name == "fp8_e4m3fn":
        numbers = np.flatnonzero(np.isfinite(table)).astype(np.uint8)
        return Stored(numbers[rng.integers(0, numbers.size, problem.n)], table, np.ones(1, np.float32))
    codes, count = rng.integers(0, 16, problem.n, dtype=np.uint8), problem.n // BLOCK[name]
    if name == "nf4":
        return Stored(codes, table, rng.random(count, dtype=np.float32) + np.float32(0.5))
    if name == "mxfp4":
        exponents = rng.integers(120, 135, count, dtype=np.uint8)
        return Stored(codes, table, np.ldexp(np.float32(1), exponents.astype(np.int32) - 127), exponents)
    scale_codes = rng.integers(0x20, 0x50, count, dtype=np.uint8)
    return Stored(codes, table, e4m3(scale_codes), scale_codes)


# Checks. They ask for what the operation promises by any rule for ties, in two long stretches of the array.


def _parts(n: int) -> Iterator[slice]:
    length = min(n, 1 << 20) // 256 * 128
    yield slice(0, length)
    yield slice(n - length, n)


def _check_neighbours(t: NDArray[np.float64], y: NDArray[np.float64], values: NDArray[Any], rounding: str) -> None:
    values = values.astype(np.float64)
    near = np.clip(t, values[0], values[-1])
    above = np.clip(np.searchsorted(values, near), 1, values.size - 1)
    low, high = values[above - 1], values[above]
    slack = 1e-4 * (high - low)  # for float32 arithmetic in another order, or added to a larger number
    distance = np.minimum(np.abs(y - low), np.abs(y - high))
    assert (distance > slack).mean() < 1e-4, "not a neighbour"
    if rounding == "nearest":
        assert (np.abs(y - near) <= np.minimum(near - low, high - near) + slack).all(), "not the nearest value"
    else:
        unbiased((y - near) * np.sign(near), "stochastic rounding")  # magnitudes: signs cancel anyhow
        ratio = np.sum((y - near) ** 2) / np.sum((near - low) * (high - near))
        assert abs(ratio - 1) < 0.01 + 15 / np.sqrt(t.size), f"{ratio:.3f} times the variance of a coin"


def check_rounded(problem: Problem, result: Any, label: str, rounding: str) -> None:
    grid, y = GRIDS[label], np.asarray(result).reshape(-1)
    scale = float(np.float32(grid.scale_of(problem.x)))
    for part in _parts(problem.n):
        _check_neighbours(problem.x[part] / scale, y[part] / scale, grid.values, rounding)


def check_bfloat16(problem: Problem, result: Any) -> None:
    codes = np.asarray(result).reshape(-1).view(np.uint16)
    assert codes.nbytes == 2 * problem.n, "not 16 bits a number"
    for part in _parts(problem.n):
        bits = problem.x[part].view(np.uint32)
        up = codes[part].astype(np.int64) - (bits >> 16)
        assert ((up == 0) | (up == 1)).all(), "not a neighbour"
        unbiased(up - (bits & 0xFFFF) / 65536, "stochastic rounding")


def unpack_blocks(problem: Problem, result: Any, name: str) -> NDArray[np.float32]:
    """Decode ``(codes, scale codes, tensor scale)``; what is fake-quantized is decoded already."""
    if not isinstance(result, tuple):
        return np.asarray(result).reshape(-1)
    codes, scale_codes = (np.asarray(array).reshape(-1) for array in result[:2])
    assert codes.nbytes == problem.n // 2, "not four bits a number"
    assert scale_codes.nbytes == problem.n // BLOCK[name], "not a byte for the scale of a block"
    magnitudes = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    table = np.concatenate([magnitudes, -magnitudes])
    scales = scale_table(name)[scale_codes] * np.float32(result[2])
    return table[np.stack([codes & 15, codes >> 4], axis=1).reshape(-1)] * np.repeat(scales, BLOCK[name])


def check_blocks(problem: Problem, result: Any, name: str) -> None:
    y = unpack_blocks(problem, result, name)
    if name == "nvfp4":  # whose scales may be rounded in another order: the error tells
        error = np.sum((y - problem.x) ** 2, dtype=np.float64) / np.sum(problem.x**2, dtype=np.float64)
        assert abs(error / NVFP4_ERROR - 1) < 0.03 + 30 / np.sqrt(problem.n), f"an error of {error:.4g}"
        return
    for part in _parts(problem.n):
        rows = problem.x[part].reshape(-1, 32).astype(np.float64)
        scales = 2.0 ** (np.frexp(np.abs(rows).max(axis=1, keepdims=True))[1] - 1 - 2)
        _check_neighbours((rows / scales).reshape(-1), (y[part].reshape(-1, 32) / scales).reshape(-1), E2M1, "nearest")


E2M1 = np.array([-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6])


def check_decoded(problem: Problem, result: Any, name: str) -> None:
    given, y = stored(problem, name), np.asarray(result).reshape(-1)
    scales = np.repeat(given.scales, problem.n // given.scales.size)
    for part in _parts(problem.n):
        want = given.table[given.codes[part]] * scales[part]
        assert np.allclose(y[part], want, rtol=1e-6, atol=0), "not value times scale"


def _rows() -> Iterator[Operation]:
    for grid in GRIDS.values():
        for rounding, goal in (("nearest", 2.0), ("stochastic", 2.5)):
            # Blocks of one exponent are read twice, which the goal of the block formats allows for.
            yield Operation(
                f"fake_quantize_{grid.label}" + "_stochastic" * (rounding == "stochastic"),
                8,
                goal if grid.given else 3.0,
                partial(check_rounded, label=grid.label, rounding=rounding),
                fused_goal=2 if rounding == "stochastic" else 1,
                arguments=(grid, rounding),
                recipe="fake_quantize",
            )
    yield Operation("quantize_bfloat16_stochastic", 6, 1.7, check_bfloat16, recipe="quantize_bfloat16")
    for kind, moved in (("fake_quantize", 8.0), ("quantize", 4.5)):
        for name in ("mxfp4", "nvfp4"):
            yield Operation(
                f"{kind}_{name}",
                moved + (kind == "quantize") / BLOCK[name],
                3.0,
                partial(check_blocks, name=name),
                fused_goal=2 if kind == "quantize" else 1,
                arguments=(name,),
                recipe=f"{kind}_blocks",
            )
    for name, moved in (("nf4", 4.5 + 4 / 64), ("fp8_e4m3fn", 5), ("mxfp4", 4.5 + 1 / 32), ("nvfp4", 4.5 + 1 / 16)):
        yield Operation(
            f"dequantize_{name}",
            moved,
            1.2,
            partial(check_decoded, name=name),
            fused_goal=1 if name == "fp8_e4m3fn" else 2,
            arguments=(name,),
            recipe="dequantize",
        )


FORMAT_OPERATIONS = list(_rows())
