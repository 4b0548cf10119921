"""Quantized products and layers in slow float64 NumPy, from their definitions: the oracle of the layers' tests.

Roundings are those of ``lowbit.reference``. Sums are float64: exact for the integers that the values of most formats
are (times a power of two), and what float32 sums are held against, within their error, for the others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

import lowbit as lb
from lowbit import reference
from lowbit.reference.blocks import BlockFormat, e4m3, tensor_scale
from lowbit.reference.scales import spread

if TYPE_CHECKING:
    from numpy.typing import NDArray

Array = Any  # of float64, float32 or bool, as the text says
_quiet = np.errstate(all="ignore")

INTEGERS = {"int4", "int4_symmetric", "uint4", "int8", "int8_symmetric", "uint8", "ternary", "sign"}
POWERS = {"radix4", "radix4_odd", "luq4"}  # integers times a power of two
SIGNED = {"uint4": "int4_symmetric", "int4_symmetric": "int4_symmetric"}
TILE = 16


def f32(a: Any) -> NDArray[np.float32]:
    """Round to float32."""
    return np.asarray(a, np.float32)


# --- Operands ---------------------------------------------------------------------------------------------------------


@dataclass
class Operand:
    """One factor of a product: X = scale * values (+ offset, which `values` then contain)."""

    values: Array
    scale: NDArray[np.float32]
    inside: Array
    """Where the straight-through gradient passes."""
    exact: bool = False
    """Whether values are integers up to a power of two, and scales constant along the reduction of the forward pass."""

    @property
    def real(self) -> Array:
        """The numbers that are multiplied."""
        return self.values * self.scale.astype(np.float64)


def plain(x: Array) -> Operand:
    """Give numbers that are not quantized."""
    return Operand(x.astype(np.float64), f32(1), np.ones(x.shape, bool))


def _tiled(x: NDArray[np.float32], format: str) -> Operand:
    """Squares of 16 x 16 under one E4M3 scale each, and a scale of the tensor above them; kernels as matrices."""
    grid = reference.get_format(format)
    assert isinstance(grid, BlockFormat)
    x, shape = x.reshape(len(x), -1), x.shape
    whole = tensor_scale(x, grid, "amax")
    scale = np.empty_like(x)
    for i, j in itertools.product(range(0, x.shape[0], TILE), range(0, x.shape[1], TILE)):
        square = np.s_[i : i + TILE, j : j + TILE]
        scale[square] = e4m3(np.abs(x[square]).max(keepdims=True).reshape(1), grid.element.max, whole)
    scale = f32(scale * whole)
    values = grid.nearest(f32(x * f32(1 / scale))).astype(np.float64)
    return Operand(values.reshape(shape), scale.reshape(shape), np.ones(shape, bool))


@_quiet
def rounded(
    x: Array, spec: Any, axis: int, *, scale: Any = None, format: str | None = None, key: lb.Key | None = None
) -> Operand:
    """Quantize `x` by a spec; `axis` is the reduction's. `scale` and `format` take the place of the spec's."""
    if spec is None:
        return plain(x)
    x, name = f32(x), format or spec.format
    if spec.samples > 1:
        assert key is not None
        one = replace(spec, samples=1)
        draws = [rounded(x, one, axis, scale=scale, format=name, key=key.fold(i)) for i in range(spec.samples)]
        whole = draws[0].exact and spec.samples.bit_count() == 1
        return replace(draws[0], values=np.mean([draw.values for draw in draws], axis=0), exact=whole)
    block = spec.block_size or reference.get_format(name).default_block or (32 if spec.per == "block" else None)
    along = None if block is None else axis % x.ndim
    by_index = (0, None)
    groups = {"channel": by_index, "token": by_index, "tile": (None, None)}.get(spec.per, (along, block))
    options = reference.Options(scale=spec.scale if scale is None else scale, axis=groups[0], block_size=groups[1])
    if spec.rounding == "stochastic":
        options |= reference.Options(rounding="stochastic", key=key)
    grid, passes = reference.get_format(name), np.ones(x.shape, bool)
    if np.isnan(x).any() and block is None and spec.per == "tensor":
        return plain(x * np.float32(np.nan))
    if spec.per == "tile":
        return _tiled(x, name)
    refused = not np.isfinite(x).all() and isinstance(options.get("scale"), str | None)
    q = reference.quantize(np.zeros_like(x) if refused else x, name, **options)
    if refused or q.offset is not None:
        return plain(reference.fake_quantize(x, name, **options))
    found = f32(q.scale if q.tensor_scale is None else q.scale * q.tensor_scale)
    if groups[1] is not None:
        found = spread(found, x.shape, *groups)
    values = grid.decode(q.codes).astype(np.float64)
    if spec.gradient == "clip":
        t = x if name == "sign" else f32(x * f32(1 / found))  # signs: beyond 1 itself (BNN, XNOR-Net)
        passes = ~((t < grid.values[0]) | (t > grid.values[-1]))
    return Operand(values, found, passes, groups[1] is None and name in INTEGERS | POWERS)


def rotated(x: Array, rotation: Any, axis: int, key: lb.Key | None) -> NDArray[np.float32]:
    """Pad an axis with zeros to a multiple of the block, flip signs, transform each block (orthonormal)."""
    key = lb.Key(0) if rotation.fixed else key
    assert key is not None
    block, last = rotation.block, np.moveaxis(f32(x), axis, -1)
    last = np.pad(last, [(0, 0)] * (x.ndim - 1) + [(0, -last.shape[-1] % block)])
    words = reference.random_bits(key.fold("signs").words, -(-block // 32))
    position = np.arange(block)
    sign = np.where(words[position // 32] >> (position % 32).astype(np.uint32) & 1, -1, 1).astype(np.float32)
    blocks = last.reshape(*last.shape[:-1], last.shape[-1] // block, block) * sign
    return np.moveaxis(reference.hadamard_transform(blocks).reshape(last.shape), -1, axis)


# --- The three products of a layer ------------------------------------------------------------------------------------


class Matrix:
    """y = x W^T and its two gradients; x is (tokens, in), W (out, in), dL/dy (tokens, out)."""

    def output(self, x: Array, w: Array) -> Array:
        """The layer's output, without the bias."""
        return x @ w.T

    def to_input(self, g: Array, w: Array, shape: tuple[int, ...]) -> Array:
        """dL/dx, of this shape."""
        return g @ w

    def to_weight(self, g: Array, x: Array, shape: tuple[int, ...]) -> Array:
        """dL/dW, of this shape."""
        return g.T @ x


@dataclass
class Convolution:
    """A convolution over any number of axes; x is (batch, in, ...), W (out, in / groups, ...)."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def _taps(self, kernel: tuple[int, ...], out: tuple[int, ...]) -> Any:
        """Give every place of the kernel and the slice of the padded input that it meets."""
        for place in itertools.product(*map(range, kernel)):
            start = [p * d for p, d in zip(place, self.dilation, strict=True)]
            cut = [slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(start, out, self.stride, strict=True)]
            yield (..., *place), (..., *cut)

    def _padded(self, x: Array) -> Array:
        return np.pad(x, [(0, 0), (0, 0), *((p, p) for p in self.padding)])

    def _split(self, a: Array) -> Array:
        """(batch, channels, ...) -> (batch, groups, channels of one, positions)."""
        return a.reshape(len(a), self.groups, a.shape[1] // self.groups, -1)

    def _filters(self, w: Array) -> Array:
        """(out, in of a group) -> (groups, out of one, in of one)."""
        return w.reshape(self.groups, len(w) // self.groups, w.shape[1])

    def output(self, x: Array, w: Array) -> Array:
        """The layer's output, without the bias."""
        x, kernel = self._padded(x), w.shape[2:]
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, kernel, strict=True)]
        out = tuple((n - r) // s + 1 for n, r, s in zip(x.shape[2:], reach, self.stride, strict=True))
        y = np.zeros((len(x), len(w), *out))
        for place, cut in self._taps(kernel, out):
            part = np.einsum("goi,ngip->ngop", self._filters(w[place]), self._split(x[cut]))
            y += part.reshape(y.shape)
        return y

    def to_input(self, g: Array, w: Array, shape: tuple[int, ...]) -> Array:
        """dL/dx, of this shape."""
        dx = self._padded(np.zeros(shape))
        for place, cut in self._taps(w.shape[2:], g.shape[2:]):
            part = np.einsum("goi,ngop->ngip", self._filters(w[place]), self._split(g))
            dx[cut] += part.reshape(dx[cut].shape)
        inner = tuple(slice(p, p + n) for p, n in zip(self.padding, shape[2:], strict=True))
        return dx[(slice(None), slice(None), *inner)]

    def to_weight(self, g: Array, x: Array, shape: tuple[int, ...]) -> Array:
        """dL/dW, of this shape."""
        x, dw = self._padded(x), np.zeros(shape)
        for place, cut in self._taps(shape[2:], g.shape[2:]):
            part = np.einsum("ngop,ngip->goi", self._split(g), self._split(x[cut]))
            dw[place] = part.reshape(shape[:2])
        return dw


@_quiet
def multiplied(
    a: Operand, b: Operand, sums: Callable[[Array, Array], Array], *, forward: bool
) -> tuple[NDArray[np.float32], bool]:
    """Multiply values and scale afterwards, by fl32(s_a s_b), where the scales can be taken out of the sums.

    Scales of rows and columns are multiplied one after the other. Also tell whether this is so: then every bit is
    defined.
    """
    if a.exact and b.exact and (forward or a.scale.size == b.scale.size == 1):
        total, b_scale = f32(sums(a.values, b.values)), b.scale
        if a.scale.size == b_scale.size == 1:
            return f32(total * f32(a.scale * b_scale).reshape(())), True
        if b_scale.ndim:
            b_scale = np.swapaxes(b_scale, 0, 1)
        return f32(f32(total * a.scale) * b_scale), True
    return f32(sums(a.real, b.real)), False


# --- The state of a layer ---------------------------------------------------------------------------------------------


@dataclass
class GradScale:
    """Sun et al. 2020, section 3.2: a power of two of its own for every layer, doubled and halved by votes."""

    scale: float = 1.0
    reference: float = 64.0
    peak: float | None = None
    """The largest magnitude since the last step; None: nothing was seen."""

    def see(self, g: Array) -> None:
        """Look at the gradient of one backward pass."""
        if g.size:
            self.peak = float(np.maximum(np.max(np.abs(f32(g))), np.float32(self.peak or 0.0)))

    def vote(self) -> int:
        """+1 for [0, reference / 2], 0 for (reference / 2, reference], -1 above; NaN has none."""
        if self.peak is None:
            return 0
        m = f32(self.scale) * f32(self.peak)
        return int(m <= self.reference / 2) - int(m > self.reference)

    def step(self, *others: int) -> None:
        """Update once, by the sum of this vote and those of the other ranks."""
        total = self.vote() + sum(others)
        self.scale *= 2.0 if total > 0 else 0.5 if total < 0 else 1.0
        self.peak = None


def in_hindsight(peaks: list[float], eta: float) -> list[float]:
    """Chmiel et al. 2023: m_t = (1 - eta) max|x_(t-1)| + eta m_(t-1); the first call takes its own."""
    m = [peaks[0]]
    for peak in peaks[:-1]:
        m.append((1 - eta) * peak + eta * m[-1])
    return m


@dataclass
class Site:
    """What a product remembers from step to step."""

    alpha: float | None = None
    signed: bool = False
    """Whether the first batch had a negative number."""
    grad_scale: GradScale = field(default_factory=GradScale)
    grad_max: float | None = None


# --- Layers -----------------------------------------------------------------------------------------------------------


@dataclass
class Gradients:
    """What a backward pass gives."""

    x: NDArray[np.float32]
    w: NDArray[np.float32]
    b: NDArray[np.float64]
    alpha: float = 0.0
    exact_x: bool = False
    """Whether every bit of dL/dx is defined."""
    exact_w: bool = False


class Product:
    """One product x W^T of a layer, forward and backward, under its `Products`."""

    def __init__(self, products: Any, kind: Matrix | Convolution | None = None, site: Site | None = None) -> None:
        self.products, self.kind, self.site = products, kind or Matrix(), site or Site()

    def _input(self, x: NDArray[np.float32]) -> Operand:
        spec, site = self.products.input, self.site
        if spec is None or spec.scale != "pact":
            return rounded(x, spec, 1, key=self._key("input"))
        assert site.alpha is not None
        name = SIGNED[spec.format] if site.signed else spec.format
        grid, alpha = reference.get_format(name), np.float32(site.alpha)
        found = rounded(x, spec, 1, scale=f32(alpha / np.float32(grid.reference)), format=name)
        low = -alpha if grid.values[0] < 0 else np.float32(0)
        low_out = x <= low if grid.values[0] < 0 else x < low  # eq. 1 of the source: from alpha on, the clip
        return replace(found, inside=~(low_out | (x >= alpha)))

    def _key(self, label: str) -> lb.Key | None:
        return None if self.key is None else self.key.fold(label)

    def forward(self, x: Array, w: Array, b: Array | None = None, key: lb.Key | None = None) -> NDArray[np.float32]:
        """Y = Q(x) Q(W)^T + b."""
        self.x, self.w, self.key = f32(x), f32(w), key
        self.qx = self._input(self.x)
        self.qw = rounded(self.w, self.products.weight, 1, key=self._key("weight"))
        y, self.exact = multiplied(self.qx, self.qw, self.kind.output, forward=True)
        return y if b is None else f32(y + f32(b).reshape(-1, *(1,) * (y.ndim - 2)))

    def _gradient(self, g: NDArray[np.float32], spec: Any, axis: int, label: str) -> Operand:
        """Quantize dL/dy for one of the two products."""
        if spec is None:
            return plain(g)
        scale = None
        if spec.scale == "gradscale":
            scale = f32(1 / self.site.grad_scale.scale)
        elif spec.scale == "hindsight":
            largest = np.abs(g).max() if self.site.grad_max is None else self.site.grad_max
            scale = f32(np.float32(largest) / np.float32(reference.get_format(spec.format).reference))
        if scale is not None or isinstance(spec.scale, float):  # a scale that is given hides infinities
            g = np.where(np.isfinite(g).all(), g, np.float32(np.nan))
        return rounded(g, spec, axis, scale=scale, key=self._key(label))

    def _factor(self, x: Array, found: Operand, again: Any, turn: Any, label: str) -> Operand:
        """Give the other operand of a gradient product: along axis 0, turned, quantized again or as it was."""
        if again is None:
            return found if turn is None else plain(rotated(found.real, turn, 0, self.key))
        x = x if turn is None else rotated(x, turn, 0, self.key)
        return rounded(x, again, 0, key=self._key(label))

    def backward(self, g: Array) -> Gradients:
        """Give dL/dx, dL/dW, dL/db and dL/dalpha."""
        p, g, kind = self.products, f32(g), self.kind
        self.site.grad_scale.see(g)
        turn = None if getattr(kind, "groups", 1) > 1 else p.rotate_input  # a group sums over its own channels
        ge = self._gradient(g if turn is None else rotated(g, turn, 1, self.key), p.grad_input, 1, "grad_input")
        w = self._factor(self.w, self.qw, p.weight_again, turn, "weight_again")
        dx, exact_x = multiplied(ge, w, lambda a, b: kind.to_input(a, b, self.x.shape), forward=False)

        turn = p.rotate_weight
        go = self._gradient(g if turn is None else rotated(g, turn, 0, self.key), p.grad_weight, 0, "grad_weight")
        x = self._factor(self.x, self.qx, p.input_again, turn, "input_again")
        dw, exact_w = multiplied(go, x, lambda a, b: kind.to_weight(a, b, self.w.shape), forward=False)

        db = g.astype(np.float64).sum(axis=(0, *range(2, g.ndim)))
        passed = np.where(self.qx.inside, dx, np.float32(0)), np.where(self.qw.inside, dw, np.float32(0))
        return Gradients(*passed, db, self._alpha(dx), exact_x, exact_w)

    def _alpha(self, dx: NDArray[np.float32]) -> float:
        """dL/dalpha: what the clipped numbers would have passed, with the sign of the end they were clipped to."""
        if self.products.input is None or self.products.input.scale != "pact":
            return 0.0
        alpha, wide = np.float32(self.site.alpha), dx.astype(np.float64)
        low = float(wide[self.x <= -alpha].sum()) if self.site.signed else 0.0
        return float(wide[self.x >= alpha].sum()) - low


class Embedding:
    """Rows of a quantized table."""

    def __init__(self, spec: Any) -> None:
        self.spec = spec

    def forward(self, index: NDArray[np.int64], w: Array, key: lb.Key | None = None) -> NDArray[np.float32]:
        """Look the rows up."""
        self.index, self.q = index, rounded(w, self.spec, 1, key=None if key is None else key.fold("weight"))
        return f32(self.q.real)[index]

    def backward(self, g: Array) -> NDArray[np.float64]:
        """dL/dW: every row gets the sum of what its copies got."""
        dw = np.zeros(self.q.values.shape)
        np.add.at(dw, self.index.ravel(), g.reshape(-1, dw.shape[1]).astype(np.float64))
        return dw * self.q.inside


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x)."""
    return 1 / (1 + np.exp(-x))


class Lstm:
    """One layer in one direction: the input's product for all steps at once, the hidden state's step by step."""

    def __init__(self, products: Any, given: Site, hidden: Site, *, reverse: bool = False) -> None:
        self.products, self.given, self.hidden, self.reverse = products, given, hidden, reverse

    def forward(self, x: Array, w_ih: Array, w_hh: Array, b_ih: Array, b_hh: Array, keys: Any = ()) -> Array:
        """(steps, batch, in) -> (steps, batch, hidden), from zeros; gates in the order i, f, g, o.

        `keys` are those of the products: the input's, then every step's.
        """
        key = iter(keys)
        steps, batch, size = *x.shape[:2], w_hh.shape[1]
        self.order = list(reversed(range(steps)) if self.reverse else range(steps))
        self.input, self.products_of_steps, self.kept = Product(self.products, site=self.given), {}, {}
        gates = self.input.forward(x.reshape(steps * batch, -1), w_ih, b_ih, next(key, None)).reshape(steps, batch, -1)
        h = c = np.zeros((batch, size))
        ys = np.zeros((steps, batch, size))
        for t in self.order:
            self.products_of_steps[t] = Product(self.products, site=self.hidden)
            total = gates[t].astype(np.float64) + self.products_of_steps[t].forward(h, w_hh, b_hh, next(key, None))
            i, f, g, o = np.split(total, 4, axis=1)
            i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
            self.kept[t] = (i, f, g, o, c)
            c = f * c + i * g
            ys[t] = h = o * np.tanh(c)
        return ys

    def backward(self, dy: Array) -> tuple[Gradients, Gradients]:
        """Give the input's and the hidden state's gradients."""
        dh = dc = np.zeros(dy.shape[1:])
        total, parts = [None] * len(dy), []
        for t in reversed(self.order):
            i, f, g, o, before = self.kept[t]
            tanh = np.tanh(f * before + i * g)
            dh = dh + dy[t]
            dc = dc + dh * o * (1 - tanh**2)
            each = [dc * g * i * (1 - i), dc * before * f * (1 - f), dc * i * (1 - g**2), dh * tanh * o * (1 - o)]
            total[t] = np.concatenate(each, axis=1)
            parts.append(self.products_of_steps[t].backward(total[t]))
            dh, dc = parts[-1].x.astype(np.float64), dc * f
        of_input = self.input.backward(np.concatenate(total))
        summed = [sum(getattr(part, name) for part in parts) for name in ("w", "b", "alpha")]
        return of_input, Gradients(parts[-1].x, *summed)


class Attention:
    """Self-attention: one product in, one out, and float64 between them."""

    def __init__(self, products: Any, heads: int, given: Site, out: Site) -> None:
        self.heads, self.given, self.out = heads, Product(products, site=given), Product(products, site=out)

    def forward(
        self, x: Array, w_in: Array, b_in: Array, w_out: Array, b_out: Array, keys: Any = (None, None)
    ) -> Array:
        """(batch, tokens, width) -> the same; `keys` of the product in and of the one out."""
        batch, tokens, width = x.shape
        qkv = self.given.forward(x.reshape(-1, width), w_in, b_in, keys[0]).astype(np.float64)
        self.qkv = qkv.reshape(batch, tokens, 3, self.heads, width // self.heads).transpose(2, 0, 3, 1, 4)
        q, k, v = self.qkv
        score = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
        self.p = np.exp(score - score.max(axis=-1, keepdims=True))
        self.p /= self.p.sum(axis=-1, keepdims=True)
        mixed = (self.p @ v).transpose(0, 2, 1, 3).reshape(-1, width)
        return self.out.forward(mixed, w_out, b_out, keys[1]).reshape(x.shape)

    def backward(self, dy: Array) -> tuple[Gradients, Gradients]:
        """Give the gradients of the product in and of the one out."""
        batch, tokens, width = dy.shape
        of_out = self.out.backward(dy.reshape(-1, width))
        mixed = of_out.x.astype(np.float64).reshape(batch, tokens, self.heads, -1).transpose(0, 2, 1, 3)
        q, k, v = self.qkv
        dp = mixed @ v.swapaxes(-1, -2)
        score = self.p * (dp - (dp * self.p).sum(axis=-1, keepdims=True)) / math.sqrt(q.shape[-1])
        each = np.stack([score @ k, score.swapaxes(-1, -2) @ q, self.p.swapaxes(-1, -2) @ mixed])
        return self.given.backward(each.transpose(1, 3, 0, 2, 4).reshape(-1, 3 * width)), of_out


# --- LUQ --------------------------------------------------------------------------------------------------------------


def luq_neighbours(x: Array, largest: float) -> tuple[Array, Array]:
    """Chmiel et al. 2023, section 3.2: the two magnitudes that |x| may become, around the threshold largest / 64.

    Unbiased rounding between them has the variance (|x| - lower) (upper - |x|).
    """
    a, size = largest / 64, np.abs(x.astype(np.float64))
    lower = a * 2.0 ** np.floor(np.log2(np.maximum(size, a) / a))
    return np.where(size < a, 0.0, lower), np.where(size < a, a, np.minimum(2 * lower, largest))
