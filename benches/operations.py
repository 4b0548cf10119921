"""What is timed: the operations, their goals, and the proof that a contender did the work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from formats import FORMAT_OPERATIONS
from problems import KEY, Operation, Problem, unbiased, unpack

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Checks. A peer may scale or break ties by its own rule (torchao divides amax by 7.5), so what is asked is what the
# operation promises by any rule: nearest is within half a step, stochastic is a neighbour and right on average.


def _steps(x: NDArray[np.float32], scale: Any) -> NDArray[np.float64]:
    return np.clip(x.astype(np.float64) / scale, -8, 7)


def check_int4(problem: Problem, result: Any) -> None:
    values = np.asarray(result).astype(np.float64) / problem.scale
    assert np.abs(values - np.rint(values)).max() < 1e-4, "not on the grid"
    assert np.abs(values - _steps(problem.x, problem.scale)).max() < 0.5001, "not the nearest value"


def check_int4_stochastic(problem: Problem, result: Any) -> None:
    values, steps = np.asarray(result).astype(np.float64) / problem.scale, _steps(problem.x, problem.scale)
    assert np.abs(values - np.rint(values)).max() < 1e-4, "not on the grid"
    assert np.abs(values - steps).max() < 1.0001, "not a neighbour"
    unbiased(values - steps, "stochastic rounding")


def check_quantized(problem: Problem, result: Any, group: int) -> None:
    values, scales = unpack(result)
    # 7 is lowbit's divisor of amax, 7.5 is torchao's.
    ratio = scales / np.repeat(np.abs(problem.x).reshape(-1, group).max(axis=1), group)
    assert np.abs(ratio - 1 / 7.25).max() < 0.0051, "not the scale of the group"
    assert np.abs(values + 0.5).max() <= 7.5, "not an INT4 value"
    assert np.abs(values - _steps(problem.x, scales)).max() < 0.5001, "not the nearest value"


def radix4(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round to 0 or +-4^n, n = -3..3, by the thresholds 0.625 * 4^n."""
    powers = 4.0 ** np.arange(-3, 4)
    return np.sign(t) * np.concatenate([[0], powers])[np.searchsorted(0.625 * powers, np.abs(t), side="right")]


def check_radix4(problem: Problem, result: Any) -> None:
    values = np.asarray(result).astype(np.float64) / problem.radix_scale
    wrong = np.abs(values - radix4(problem.x / problem.radix_scale.astype(np.float64))) > 1e-4 * np.abs(values)
    assert wrong.mean() < 1e-4, f"{wrong.mean():.2%} are not the nearest value"


def check_radix4_stochastic(problem: Problem, result: Any) -> None:
    values = np.asarray(result).astype(np.float64) * np.sign(problem.x) / problem.radix_scale
    magnitude = np.abs(problem.x / problem.radix_scale.astype(np.float64))
    low = np.where(magnitude < 1 / 64, 0, 4.0 ** np.floor(np.log2(np.maximum(magnitude, 1e-30)) / 2))
    high = np.clip(4 * low, 1 / 64, 64)
    near = np.minimum(np.abs(values - low), np.abs(values - high)) < 1e-4 * high
    # Those a float32 rounding away from a power of 4 may sit on its other side.
    assert near.mean() > 1 - 1e-4, f"{1 - near.mean():.2%} are not neighbours"
    unbiased(values - magnitude, "stochastic rounding")


def check_dequantized(problem: Problem, result: Any, group: int) -> None:
    scale = problem.scale if group == problem.n else np.repeat(problem.block_scales, group)
    assert np.allclose(np.asarray(result).reshape(-1), problem.codes * scale, rtol=1e-6, atol=0), "not code times scale"


def check_bits(problem: Problem, result: Any) -> None:
    """Packed in the order of the array or in eight planes; either way the mean bit is the mean number."""
    packed = np.asarray(result).reshape(-1)
    assert packed.nbytes == problem.n // 8, "not one bit a number"
    unbiased(np.bitwise_count(packed) - problem.unit.reshape(-1, 8).sum(axis=1, dtype=np.float64), "dither")


def check_decoded(problem: Problem, result: Any) -> None:
    """Subtractive dither has the mean squared error 1/12 at every number, and only where both sides share the draws."""
    error = np.asarray(result).reshape(-1).astype(np.float64) - problem.unit
    assert np.abs(error).max() < 0.5001, "an error over half"
    assert abs((error**2).mean() * 12 - 1) < 12 / np.sqrt(problem.n), "the mean squared error is not 1/12"
    unbiased(error, "dither")


def check_random(problem: Problem, result: Any) -> None:
    """Every byte of the words takes every value about equally often: they are filled, if not proved random."""
    words = np.asarray(result).reshape(-1).view(np.uint8).reshape(-1, 4)
    assert len(words) == problem.n, "not 32 bits for each element"
    for byte in words.T:
        shares = np.bincount(byte, minlength=256) / problem.n * 256
        assert np.abs(shares - 1).max() < 0.02 + 6 * np.sqrt(256 / problem.n), "bytes are not uniform"


def check_hadamard(problem: Problem, result: Any, row: int) -> None:
    """Compare some numbers of every row with its products with rows of the matrix, whose signs are parities."""
    x, y = problem.x.reshape(-1, row), np.asarray(result).reshape(-1, row)
    for place in np.random.default_rng(5).integers(0, row, 3):
        signs = 1 - 2 * (np.bitwise_count(np.arange(row, dtype=np.uint32) & np.uint32(place)) % 2).astype(np.int8)
        want = np.einsum("rd,d->r", x, signs, dtype=np.float64) / np.sqrt(row)
        assert np.abs(y[:, place] - want).max() < 1e-4, "not the orthonormal transform"


def check_rotation(problem: Problem, result: Any) -> None:
    """Ask of a rotation that it keeps the length and makes numbers that have nothing to do with the given ones."""
    x, y = problem.x.astype(np.float64), np.asarray(result).astype(np.float64).reshape(-1)
    assert abs(y @ y / (x @ x) - 1) < 1e-5, "not as long"
    assert abs(x @ y) / (x @ x) < 6 / np.sqrt(problem.n), "too much like the input"


def check_message(problem: Problem, result: Any, error: float) -> None:
    """Decode what was encoded and compare the error with what is expected; or compare what was decoded."""
    import lowbit as lb

    decoded = lb.decode(result, key=KEY) if isinstance(result, bytes) else np.asarray(result)
    x = problem.x.astype(np.float64)
    relative = np.sum((decoded.reshape(-1) - x) ** 2) / np.sum(x**2)
    assert abs(relative / error - 1) < 0.03 + 30 / np.sqrt(problem.n), f"an error of {relative:.4g}, not {error:.4g}"


#: Of subtractive dither with one bit on [-8, 8], relative to N(0, 1).
DITHER_ERROR = 16**2 / 12
#: Of one message of one bit, rotated: pi / 2 - 1.
DRIVE_ERROR = np.pi / 2 - 1


OPERATIONS = [
    Operation("fake_quantize_int4", 8, 1.6, check_int4, cached_goal=0.2, fused_goal=1),
    Operation("fake_quantize_radix4", 8, 1.6, check_radix4, cached_goal=0.2, fused_goal=1),
    Operation("fake_quantize_int4_stochastic", 8, 2.0, check_int4_stochastic),
    Operation("fake_quantize_radix4_stochastic", 8, 2.0, check_radix4_stochastic),
    Operation("quantize_int4", 4.5, 1.3, lambda p, r: check_quantized(p, r, p.n), cached_goal=0.2),
    Operation("quantize_int4_amax", 4.5, 2.0, lambda p, r: check_quantized(p, r, p.n)),
    Operation("quantize_int4_block32", 4.5 + 4 / 32, 1.6, lambda p, r: check_quantized(p, r, 32)),
    Operation("quantize_int4_block128", 4.5 + 4 / 128, 1.4, lambda p, r: check_quantized(p, r, 128)),
    Operation("dequantize_int4", 4.5, 0.8, lambda p, r: check_dequantized(p, r, p.n)),
    Operation("dequantize_int4_block128", 4.5 + 4 / 128, 0.8, lambda p, r: check_dequantized(p, r, 128)),
    Operation("onebit_encode", 4 + 1 / 8, 1.5, check_bits),
    Operation("onebit_decode", 4 + 1 / 8, 1.3, check_decoded),
    Operation("random_bits", 4, None, check_random),
    Operation("hadamard", 8, 4.0, lambda p, r: check_hadamard(p, r, p.rows()), fused_goal=1, speedup_goal=1.6),
    Operation("hadamard_1024", 8, 1.3, lambda p, r: check_hadamard(p, r, p.rows(1024)), fused_goal=1),
    Operation("randomized_hadamard", 8, None, check_rotation, fused_goal=1),
    Operation("drive_encode", 4 + 1 / 8, 11.0, lambda p, r: check_message(p, r, DRIVE_ERROR)),
    Operation("drive_decode", 4 + 1 / 8, 11.0, lambda p, r: check_message(p, r, DRIVE_ERROR)),
    Operation("dither_encode", 4 + 1 / 8, 2.0, lambda p, r: check_message(p, r, DITHER_ERROR)),
    # Of sixteen messages each; the mean must cost less than as many times one.
    Operation("drive_decode_16", 16 * (4 + 1 / 8), None, lambda p, r: check_message(p, r, DRIVE_ERROR)),
    Operation("drive_decode_mean_16", 4 + 2, None, lambda p, r: check_message(p, r, DRIVE_ERROR / 16)),
    Operation("quicfl_decode_16", 16 * (4 + 2 / 8), None, lambda p, r: check_message(p, r, 0.2135)),
    Operation("quicfl_decode_mean_16", 4 + 4, None, lambda p, r: check_message(p, r, 0.2135 / 16)),
    *FORMAT_OPERATIONS,
]
