"""The methods of `lowbit.convex` in slow, obvious NumPy: same key, same bits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import lowbit as lb
from lowbit import convex

LANES = 32
BANK = 32
LN2_HIGH, LN2_LOW = float.fromhex("0x1.62e42fee00000p-1"), float.fromhex("0x1.a39ef35793c76p-33")


def words(key: int, label: str, n: int, start: int = 0, *more: int) -> np.ndarray:
    return lb.reference.random_bits(lb.Key(key).fold("convex", label, *more).words, n, start)


def exp(v: float) -> float:
    v = min(max(v, -700.0), 700.0)
    k = v * math.log2(math.e) + 1.5 * 2.0**52 - 1.5 * 2.0**52
    r = (v - k * LN2_HIGH) - k * LN2_LOW
    total = 0.0
    for i in range(13, -1, -1):
        total = total * r + 1.0 / math.factorial(i)
    return math.ldexp(total, int(k))


def slope(problem: convex.Problem, t: float, y: float) -> float:
    return t - y if isinstance(problem, convex.LeastSquares) else -y / (1.0 + exp(y * t))


def dot(x: np.ndarray, z: np.ndarray) -> Any:
    """Element j goes to sum j mod 32, and the sums are halved pairwise."""
    x, z = (np.concatenate([a, np.zeros(-len(a) % LANES, a.dtype)]).reshape(-1, LANES) for a in (x, z))
    sums = np.zeros(LANES, x.dtype)
    for block, other in zip(x, z, strict=True):
        sums = sums + block * other
    while len(sums) > 1:
        half = len(sums) // 2
        sums = sums[:half] + sums[half:]
    return sums[0]


def row_of(key: int, step: int, n: int) -> int:
    return int(words(key, "draw", 1, 4 * step)[0]) * n >> 32


def float_steps(
    problem: convex.Problem,
    z: np.ndarray,
    g: np.ndarray,
    shift: np.ndarray,
    anchor: np.ndarray,
    *,
    lr: float,
    grid: tuple[float, float, float, bool] | None,
    key: int,
    first: int,
    steps: int,
) -> np.ndarray:
    """The table of ``src/convex/mod.rs``, in z's dtype."""
    kind, (n, d) = z.dtype.type, problem.shape
    x, g, lr, l2 = problem.x.astype(kind), g.astype(kind), kind(lr), kind(problem.l2)
    for step in range(first, first + steps):
        i = row_of(key, step, n)
        c = kind(slope(problem, float(shift[i]) + float(dot(x[i], z)), problem.y[i]) - anchor[i])
        row = c * x[i] + l2 * z if l2 or grid else c * x[i]
        z = z - lr * (row + g)
        if grid:
            scale, low, high, stochastic = grid
            r = words(key, "rounding", d, step * d) / 2.0**32 if stochastic else 0.5
            z = np.clip(np.floor(z / scale + r), low, high) * scale
    return z


def plain(problem, *, lr, epochs, key, dtype=np.float64, grid=None) -> np.ndarray:
    """SGD and LP-SGD: the points, from zero."""
    n, d = problem.shape
    points, nowhere = [np.zeros(d)], np.zeros(n)
    for k in range(epochs):
        z = points[-1].astype(dtype)
        options = {"lr": lr, "grid": grid, "key": key, "first": k * n, "steps": n}
        points.append(np.asarray(float_steps(problem, z, np.zeros(d), nowhere, nowhere, **options), np.float64))
    return np.array(points)


def centred(problem, *, lr, outers, inner, key, dtype=np.float64, grid=None) -> np.ndarray:
    """SVRG and LP-SVRG."""
    n, d = problem.shape
    points = [np.zeros(d)]
    for k in range(outers):
        w = points[-1]
        anchor = np.array([slope(problem, *ty) for ty in zip(problem.x @ w, problem.y, strict=True)])
        g = problem.gradient(w) - problem.l2 * w
        options = {"lr": lr, "grid": grid, "key": key, "first": k * inner, "steps": inner}
        z = float_steps(problem, w.astype(dtype), g, np.zeros(n), anchor, **options)
        points.append(np.asarray(z, np.float64))
    return np.array(points)


def halp(problem, *, lr, outers, inner, mu, bits, key, rows="float", rounding="stochastic") -> np.ndarray:
    d = problem.shape[1]
    points = [np.zeros(d)]
    for k in range(outers):
        w = points[-1]
        g = problem.gradient(w)
        scale = float(np.linalg.norm(g)) / (mu * (2 ** (bits - 1) - 1))
        if scale == 0:
            points.append(w)
            continue
        shift = problem.x @ w
        anchor = np.array([slope(problem, *ty) for ty in zip(shift, problem.y, strict=True)])
        options = {"lr": lr, "key": key, "first": k * inner, "steps": inner}
        if rows == "float":
            grid = (scale, -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1, rounding == "stochastic")
            z = float_steps(problem, np.zeros(d), g, shift, anchor, grid=grid, **options)
        else:
            z = integer_steps(problem, g, shift, anchor, scale=scale, bits=bits, **options) * scale
        points.append(w + z)
    return np.array(points)


def integer_steps(problem, gradient, shift, anchor, *, lr, scale, bits, key, first, steps) -> np.ndarray:
    """The formula of ``src/convex/integer.rs``, in int64."""
    d = problem.shape[1]
    most, low, high = (127 if bits <= 8 else 32767), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    row_scales = np.abs(problem.x).max(axis=1) / most
    row_scales[row_scales == 0] = 1.0
    x = np.rint(problem.x / row_scales[:, None]).astype(np.int64)
    coins = words(key, "gradient", d, 0, first) / 2.0**32
    g = np.floor(gradient * (-lr / scale) * 65536 + coins)
    g = np.clip(g, -(2**30), 2**30 - 1).astype(np.int64)
    half = -(-d // LANES) * LANES // 2
    z = np.zeros(d, np.int64)

    def cut(value: float, word: int) -> int:
        return int(min(max(math.floor(value + word / 2.0**32), -32767), 32767))

    for step in range(first, first + steps):
        i = row_of(key, step, len(x))
        _, for_c, for_m, mask = (int(word) for word in words(key, "draw", 4, 4 * step))
        product = float(int(x[i] @ z))
        c = slope(problem, shift[i] + product * (scale * row_scales[i]), problem.y[i]) - anchor[i]
        c = cut(c * (-lr * row_scales[i] / scale * 65536), for_c)
        m = cut(-lr * problem.l2 * 65536, for_m) if problem.l2 else 0
        bank = words(key, "rounding", half, step // BANK * half).astype("<u4").view("<u2")[:d]
        r = (bank ^ np.uint16(mask & 0xFFFF) ^ np.uint16(0x8000)).astype(np.int64)
        z = np.clip(z + ((c * x[i] + m * z + r) >> 16) + ((g + 65535 - r) >> 16), low, high)
    return z
