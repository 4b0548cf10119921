"""Products of convolutions on packed codes against sums of 64-bit integers, bit for bit, at every CPU level."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import lowbit as lb
from lowbit import _core
from support import assert_same

PRODUCTS = ["forward", "grad_input", "grad_weight"]
FORMATS = ["int4", "int4_symmetric", "uint4", "radix4", "radix4_odd", "int8", "ternary", "sign", "int3", "uint8"]
Geometry = dict[str, Any]


def geometry(
    samples: int,
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Geometry:
    """Shapes of x, w and y, and how they belong together."""
    places = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    ]
    return {
        "x": (samples, channels[0], *size),
        "w": (channels[1], channels[0] // groups, *kernel),
        "y": (samples, channels[1], *places),
        "rest": (stride, padding, dilation, groups),
    }


def numbers(shape: tuple[int, ...], format: str, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Codes of every kind, and how many of the format's smallest values they are."""
    fmt = lb.get_format(format)
    codes = rng.integers(0, 2**fmt.bits, shape, dtype=np.uint8)
    whole = (fmt.decode_table.astype(np.float64) / fmt.smallest).astype(np.int64)
    return lb.pack(codes.reshape(-1), fmt.bits), whole[codes]


def exact(which: str, a: NDArray[np.int64], b: NDArray[np.int64], g: Geometry) -> NDArray[np.int64]:
    """Add up one place of the kernel and one group after the other."""
    stride, padding, dilation, groups = g["rest"]
    _, c, h, w = g["x"]
    o, per, *kernel = g["w"]
    rows, columns = g["y"][2:]
    tall = (g["x"][0], c, h + 2 * padding[0], w + 2 * padding[1])
    inside = (..., slice(padding[0], padding[0] + h), slice(padding[1], padding[1] + w))
    x, dw, y = np.zeros(tall, np.int64), np.zeros(g["w"], np.int64), np.zeros(g["y"], np.int64)
    if which != "grad_input":
        x[inside] = a if which == "forward" else b
    for group, i, j in np.ndindex(groups, *kernel):
        ins, outs = slice(group * per, (group + 1) * per), slice(group * (o // groups), (group + 1) * (o // groups))
        down = slice(i * dilation[0], i * dilation[0] + (rows - 1) * stride[0] + 1, stride[0])
        across = slice(j * dilation[1], j * dilation[1] + (columns - 1) * stride[1] + 1, stride[1])
        if which == "forward":
            y[:, outs] += np.einsum("nchw,oc->nohw", x[:, ins, down, across], b[outs, :, i, j])
        elif which == "grad_input":
            x[:, ins, down, across] += np.einsum("nohw,oc->nchw", a[:, outs], b[outs, :, i, j])
        else:
            dw[outs, :, i, j] += np.einsum("nohw,nchw->oc", a[:, outs], x[:, ins, down, across])
    return {"forward": y, "grad_input": x[inside], "grad_weight": dw}[which]


def check(which: str, formats: tuple[str, str], g: Geometry, rng: np.random.Generator) -> None:
    of_a, of_b, result = {"forward": "xwy", "grad_input": "ywx", "grad_weight": "yxw"}[which]
    (a, whole_a), (b, whole_b) = (numbers(g[of], name, rng) for of, name in zip(of_a + of_b, formats, strict=True))
    out = np.full(g[result], np.nan, np.float32)
    _core.code_convolution(which, a, formats[0], g[of_a], b, formats[1], g[of_b], *g["rest"], out)
    unit = np.float32(lb.get_format(formats[0]).smallest) * np.float32(lb.get_format(formats[1]).smallest)
    assert_same(out, exact(which, whole_a, whole_b, g).astype(np.float32) * unit)


def drawn(rng: np.random.Generator) -> Geometry:
    """Any geometry with at least one place."""
    while True:
        groups = int(rng.choice([1, 1, 1, 2, 3]))
        per = [int(n) for n in rng.integers(1, [9, 20])]
        size, kernel, stride, padding, dilation = (
            (int(pair[0]), int(pair[1]))
            for pair in (
                rng.integers(1, 14, 2),
                rng.integers(1, 5, 2),
                rng.integers(1, 4, 2),
                rng.integers(0, 5, 2),
                rng.integers(1, 4, 2),
            )
        )
        channels = per[0] * groups, per[1] * groups
        g = geometry(int(rng.integers(0, 5)), channels, size, kernel, stride, padding, dilation, groups)
        if min(g["y"][2:]) > 0:
            return g


@pytest.mark.parametrize("which", PRODUCTS)
def test_any_geometry(which: str, level: str) -> None:
    rng = np.random.default_rng(81)
    for _ in range(60):
        formats = tuple(str(name) for name in rng.choice(FORMATS, 2))
        g = drawn(rng)
        check(which, (formats[0], formats[1]), g, rng)


@pytest.mark.parametrize("which", PRODUCTS)
@pytest.mark.parametrize(
    "g",
    [
        geometry(3, (64, 96), (17, 15), (3, 3), padding=(1, 1)),  # blocks that end within a row of a sample
        geometry(2, (40, 70), (31, 33), (3, 3), stride=(2, 2), padding=(1, 1)),
        geometry(5, (600, 130), (7, 5), (1, 1)),
        geometry(2, (130, 20), (9, 9), (1, 1), stride=(2, 2)),
        geometry(2, (24, 24), (12, 11), (3, 5), padding=(1, 2), groups=24),
        geometry(3, (5, 6), (1, 3000), (1, 9), stride=(1, 2), padding=(0, 4), dilation=(1, 3)),
        geometry(2, (3, 4), (5, 5), (2, 2), padding=(9, 7), dilation=(6, 5)),
        geometry(1, (1, 1), (1, 1), (3, 3), padding=(1, 1)),
        geometry(2, (3, 4), (2, 9), (1, 1), stride=(3, 5), padding=(2, 0)),
    ],
    ids=lambda g: "-".join("x".join(map(str, g[of])) for of in "xw"),
)
def test_shapes(g: Geometry, which: str, level: str) -> None:
    rng = np.random.default_rng(82)
    check(which, ("int4", "int4_symmetric"), g, rng)
    check(which, ("radix4", "int4"), g, rng)


@pytest.mark.parametrize("which", PRODUCTS)
@pytest.mark.parametrize("n", [0, 1])
def test_nothing_to_add(n: int, which: str, level: str) -> None:
    rng = np.random.default_rng(83)
    for shape in ((0, (3, 4)), (2, (0, 4)), (2, (3, 0))):
        check(which, ("int4", "radix4"), geometry(*shape, (5, 5), (3, 3), padding=(n, n)), rng)


@pytest.mark.parametrize("which", PRODUCTS)
def test_long_sums_do_not_wrap(which: str, level: str) -> None:
    """Numbers all alike, whose sums pass 2^31 steps."""
    shapes = {
        "forward": geometry(1, (5000, 2), (6, 5), (3, 3), padding=(1, 1)),
        "grad_input": geometry(1, (2, 5000), (6, 5), (3, 3), padding=(1, 1)),
        "grad_weight": geometry(3, (2, 3), (130, 120), (3, 3), padding=(1, 1)),
    }
    g = shapes[which]
    of_a, of_b, result = {"forward": "xwy", "grad_input": "ywx", "grad_weight": "yxw"}[which]
    fmt = lb.get_format("radix4")
    top = int(np.argmax(fmt.decode_table))
    a, b = (lb.pack(np.full(int(np.prod(g[of])), top, np.uint8), 4) for of in (of_a, of_b))
    whole = int(fmt.max / fmt.smallest)
    a_whole, b_whole = (np.full(g[of], whole, np.int64) for of in (of_a, of_b))
    want = exact(which, a_whole, b_whole, g)
    assert want.max() > 2**31
    out = np.empty(g[result], np.float32)
    _core.code_convolution(which, a, "radix4", g[of_a], b, "radix4", g[of_b], *g["rest"], out)
    assert_same(out, want.astype(np.float32) * np.float32(fmt.smallest) ** 2)


def test_threads_do_not_matter(level: str) -> None:
    before = lb.get_num_threads()
    try:
        for threads in (1, 3):
            lb.set_num_threads(threads)
            for which in PRODUCTS:
                g = geometry(7, (24, 80), (17, 19), (3, 3), stride=(2, 1), padding=(1, 1))
                check(which, ("int4", "int4"), g, np.random.default_rng(84))
    finally:
        lb.set_num_threads(before)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"which": "backward"}, "which: 'backward' is none of forward, grad_input, grad_weight"),
        ({"a": np.zeros(5, np.uint8)}, "a: 2 x 4 x 25 codes of 4 bits take 100 bytes, but there are 5"),
        ({"b": np.zeros(5, np.uint8)}, "b: 1 x 6 x 36 codes of 4 bits take 108 bytes, but there are 5"),
        ({"a_format": "nf4"}, "a: nf4 cannot be multiplied"),
        ({"b_shape": (6, 3, 3, 3)}, "groups: 1 do not divide 4 channels into 6 of 3 each"),
        ({"groups": 0}, "groups"),
        ({"stride": (2, 1)}, "out: 5 numbers and a kernel of 3 make 2 places, not 3"),
        ({"stride": (0, 1)}, "stride: 0 is not one of 1 to"),
        ({"dilation": (1, 2**40)}, "dilation"),
        ({"padding": (2**31, 0)}, "padding"),
        ({"out": np.empty((2, 6, 3), np.float32)}, "out: expected four dimensions"),
        ({"out": np.empty((2, 6, 3, 3))}, "out"),
        ({"out": np.empty((3, 6, 3, 3), np.float32)}, "out"),
    ],
)
def test_bad_input(change: dict[str, Any], match: str) -> None:
    arguments: dict[str, Any] = {
        "which": "forward",
        "a": np.zeros(100, np.uint8),
        "a_format": "int4",
        "a_shape": (2, 4, 5, 5),
        "b": np.zeros(108, np.uint8),
        "b_format": "int4",
        "b_shape": (6, 4, 3, 3),
        "stride": (1, 1),
        "padding": (0, 0),
        "dilation": (1, 1),
        "groups": 1,
        "out": np.empty((2, 6, 3, 3), np.float32),
    }
    _core.code_convolution(*arguments.values())
    with pytest.raises((lb.Error, TypeError), match=match):
        _core.code_convolution(*(arguments | change).values())
