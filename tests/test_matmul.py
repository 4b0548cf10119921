"""Products of packed codes against the reference, bit for bit, at every CPU level."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import lowbit as lb
from lowbit import _core, reference
from support import BFLOAT16, FORMATS, assert_same

RNG = np.random.default_rng(8)
#: One or two of every family that can be multiplied.
PAIRS = [
    "int4",
    "int4_symmetric",
    "uint4",
    "int2",
    "int3",
    "int8",
    "uint8",
    "ternary",
    "sign",
    "radix4",
    "radix4_odd",
    "fp4_e2m1",
]


def numbers(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return RNG.standard_normal(shape, dtype=np.float32)


def both(x: Any, name: str, **options: Any) -> tuple[lb.Quantized, reference.Quantized]:
    return lb.quantize(x, name, **options), reference.quantize(x, name, **options)


def check(
    shape: tuple[int, int, int],
    names: tuple[str, str] = ("int4", "int4"),
    transposed: tuple[bool, bool] = (False, False),
    of_a: dict[str, Any] | None = None,
    of_b: dict[str, Any] | None = None,
) -> None:
    m, n, k = shape
    a, ra = both(numbers(*((k, m) if transposed[0] else (m, k))), names[0], **(of_a or {}))
    b, rb = both(numbers(*((n, k) if transposed[1] else (k, n))), names[1], **(of_b or {}))
    options = {"transpose_a": transposed[0], "transpose_b": transposed[1]}
    assert_same(lb.matmul(a, b, **options), reference.matmul(ra, rb, **options))


@pytest.mark.parametrize("pair", list(itertools.product(PAIRS, PAIRS)), ids="-".join)
def test_every_pair_of_formats(pair: tuple[str, str], level: str) -> None:
    for transposed in itertools.product([False, True], repeat=2):
        check((5, 19, 71), pair, transposed)


@pytest.mark.parametrize(
    "shape", list(itertools.product([0, 1, 7, 66], [0, 1, 17, 130], [0, 1, 3, 129, 1030])), ids=str
)
def test_every_shape(shape: tuple[int, int, int], level: str) -> None:
    for transposed in itertools.product([False, True], repeat=2):
        check(shape, ("int4", "int4"), transposed)
        check(shape, ("radix4", "int4"), transposed)


@pytest.mark.parametrize(
    "pair", [("int4", "int4"), ("uint8", "uint8"), ("radix4", "radix4"), ("int8", "radix4")], ids="-".join
)
def test_long_sums_do_not_wrap(pair: tuple[str, str], level: str) -> None:
    """Of the largest products that there are, all of one sign: far beyond 2^31 steps for all but int4."""
    k = (1 << 16) + 4097
    a, b = np.full((2, k), 1e6, np.float32), np.full((k, 3), 1e6, np.float32)
    b[:, 1] *= RNG.integers(0, 2, k)
    (a4, ra), (b4, rb) = (both(x, name, scale=1.0) for x, name in zip((a, b), pair, strict=True))
    assert_same(lb.matmul(a4, b4), reference.matmul(ra, rb))
    assert lb.matmul(a4, b4)[0, 0] == np.float32(k * float(a4.format.max) * float(b4.format.max))


SCALES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"axis": 0}, {"axis": 1}),
    ({"axis": 0}, {}),
    ({}, {"axis": 1}),
    ({"axis": 1, "block_size": 32}, {"axis": 0, "block_size": 32}),
    ({"axis": 1, "block_size": 16}, {"axis": 0, "block_size": 48}),
    ({"axis": 1, "block_size": 64}, {"axis": 0, "block_size": 32}),
    ({"axis": 1, "block_size": 7}, {"axis": 1}),
    ({"axis": 0}, {"axis": 0, "block_size": 600}),
    ({"axis": 0, "block_size": 5, "scale": [[0.1], [0.3]]}, {"axis": 1, "block_size": 20, "scale": [[0.2, 0.7]]}),
    ({"axis": 1, "block_size": 5000}, {"axis": 0, "block_size": 1}),
    ({"scale": 2.0**-100}, {"scale": 2.0**-40}),
    ({"scale": 2.0**100}, {"scale": 2.0**40}),
    ({"scale": np.full((1, 1), 0.1)}, {"scale": 0.3}),
]


@pytest.mark.parametrize("options", SCALES, ids=str)
@pytest.mark.parametrize("pair", [("int4", "int4"), ("radix4", "int8")], ids="-".join)
def test_every_layout_of_scales(
    options: tuple[dict[str, Any], dict[str, Any]], pair: tuple[str, str], level: str
) -> None:
    for k in (70, 1300):
        check((9, 35, k), pair, (False, False), *options)


def test_scales_whose_product_float32_has_not(level: str) -> None:
    x = lb.quantize([[2.0**-6 * 2.0**100], [0.0]], "radix4", scale=2.0**100)
    y = lb.quantize([[2.0**-6 * 2.0**28]], "radix4", scale=2.0**28)
    assert_same(lb.matmul(x, y), np.float32([[2.0**116], [0.0]]))


@pytest.mark.parametrize("blocked", ["mxfp4", "nvfp4", "mxint8", "block(int4_symmetric,e8m0,32)"])
def test_formats_that_scale_blocks(blocked: str, level: str) -> None:
    check((9, 20, 200), (blocked, blocked), (False, True))
    check((9, 20, 200), (blocked, "int4"), (False, False), {}, {"axis": 1})
    check((9, 20, 200), ("ternary", blocked), (False, False), {}, {"axis": 0})


def test_blocks_of_long_sums(level: str) -> None:
    check(
        (2, 3, 3000),
        ("radix4", "radix4"),
        (False, False),
        {"axis": 1, "block_size": 1000},
        {"axis": 0, "block_size": 500},
    )


def test_threads_do_not_matter(level: str) -> None:
    a, b = (
        lb.quantize(numbers(300, 700), "int4", axis=1, block_size=64),
        lb.quantize(numbers(700, 400), "radix4", axis=1),
    )
    results = []
    for threads in (1, 2, 5):
        lb.set_num_threads(threads)
        results.append(lb.matmul(a, b))
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float32, np.float64], ids=str)
@pytest.mark.parametrize("m", [1, 2, 4, 5, 40])
def test_floats_are_quantized_row_by_row(dtype: Any, m: int, level: str) -> None:
    """Also what takes the shorter way: few rows, weights along whose rows the product sums."""
    x = numbers(m, 258).astype(dtype)
    for name, n, transposed, per_column in itertools.product(
        ["int4", "radix4", "int2", "uint4"], [1, 33, 200], [False, True], [False, True]
    ):
        columns = {"axis": 0 if transposed else 1} if per_column else {}
        w, rw = both(numbers(*((n, 258) if transposed else (258, n))), name, **columns)
        assert_same(lb.matmul(x, w, transpose_b=transposed), reference.matmul(x, rw, transpose_b=transposed))
        assert_same(
            lb.matmul(x.T, w, transpose_a=True, transpose_b=transposed), lb.matmul(x, w, transpose_b=transposed)
        )


@pytest.mark.parametrize("size", [2, 6, 32, 64, 100, 128, 258])
def test_a_few_rows_by_blocks(size: int, level: str) -> None:
    x = numbers(3, 258)
    for name in ("int4", "mxfp4", "uint4"):
        w, rw = both(numbers(70, 258), name, **({} if name == "mxfp4" else {"axis": 1, "block_size": size}))
        assert_same(lb.matmul(x, w, transpose_b=True), reference.matmul(x, rw, transpose_b=True))


def test_batches(level: str) -> None:
    x, y = numbers(2, 1, 9, 33), numbers(3, 33, 12)
    for of_a, of_b in [
        ({}, {}),
        ({"axis": 3, "block_size": 33}, {"axis": 0}),
        ({"axis": 3, "block_size": 8}, {"axis": 1, "block_size": 16}),
    ]:
        a, b = lb.quantize(x, "int4", **of_a), lb.quantize(y, "radix4", **of_b)
        got = lb.matmul(a, b)
        assert got.shape == (2, 3, 9, 12)
        left, right = reference.quantize(x, "int4", **of_a), reference.quantize(y, "radix4", **of_b)
        for i, j in itertools.product(range(2), range(3)):
            assert_same(got[i, j], reference.matmul(matrix(left, (i, 0)), matrix(right, (j,))))
    assert lb.matmul(lb.quantize(numbers(0, 2, 3), "int4"), lb.quantize(numbers(3, 5), "int4")).shape == (0, 2, 5)
    assert lb.matmul(numbers(4, 2, 3), lb.quantize(numbers(1, 3, 5), "int4")).shape == (4, 2, 5)


def matrix(q: reference.Quantized, index: tuple[int, ...]) -> reference.Quantized:
    """One matrix of a batch."""
    scale = np.broadcast_to(q.scale, (*q.codes.shape[:-2], *q.scale.shape[-2:]))[index]
    axis = None if q.axis is None or q.axis < len(index) else q.axis - len(index)
    return q._replace(codes=q.codes[index], scale=scale, axis=axis)


def test_out(level: str) -> None:
    a, b = lb.quantize(numbers(40, 50), "int4", axis=0), lb.quantize(numbers(50, 60), "int4", axis=1)
    want = lb.matmul(a, b)
    for out in (
        np.full((40, 60), np.nan, np.float32),
        np.full((60, 40), np.nan, np.float32).T,
        np.zeros((40, 120), np.float32)[:, ::2],
    ):
        assert lb.matmul(a, b, out=out) is out
        assert_same(out, want)
    memory = np.full(41 * 60, 0.25, np.float32)
    b = lb.Quantized(b.packed, memory[:60].reshape(1, 60), None, None, "int4", (50, 60), 1, None, None)
    want = lb.matmul(a, b)
    assert_same(lb.matmul(a, b, out=memory[: 40 * 60].reshape(40, 60)), want)


A, B = lb.quantize(numbers(4, 6), "int4"), lb.quantize(numbers(6, 5), "int4")
BAD: list[tuple[str, type[Exception], str, Any]] = [
    (
        "inner",
        lb.Error,
        "b: its matrices have 6 rows, but those of a have 4 columns",
        lambda: lb.matmul(A, B, transpose_a=True),
    ),
    (
        "float b",
        TypeError,
        r"b: expected a lowbit.Quantized, got ndarray; lowbit.quantize\(b, 'int4'\)",
        lambda: lb.matmul(A, numbers(6, 5)),
    ),
    (
        "int a",
        TypeError,
        "a: expected a lowbit.Quantized or an array of floats, got dtype int64",
        lambda: lb.matmul([[1, 2]], B),
    ),
    ("vector a", lb.Error, "a: has 1 dimensions", lambda: lb.matmul(numbers(6), B)),
    ("vector b", lb.Error, "b: has 1 dimensions", lambda: lb.matmul(A, lb.quantize(numbers(6), "int4"))),
    ("nan", lb.Error, "^a: element 1 ", lambda: lb.matmul(np.float32([[0, np.nan, 0, 0, 0, 0]]), B)),
    (
        "nf4",
        lb.Error,
        "a: nf4 cannot be multiplied by its codes; formats of at most 8 bits",
        lambda: lb.matmul(lb.quantize(numbers(4, 64), "nf4", scale=1.0), lb.quantize(numbers(64, 5), "int4")),
    ),
    (
        "fp8",
        lb.Error,
        "b: fp8_e4m3fn cannot be multiplied",
        lambda: lb.matmul(A, lb.quantize(numbers(6, 5), "fp8_e4m3fn")),
    ),
    (
        "16 bits",
        lb.Error,
        "b: bfloat16 cannot be multiplied",
        lambda: lb.matmul(A, lb.quantize(numbers(6, 5), "bfloat16")),
    ),
    (
        "offset",
        lb.Error,
        'a: was made with an offset.*"amax"',
        lambda: lb.matmul(lb.quantize(numbers(4, 6), "int4", scale="minmax"), B),
    ),
    (
        "dither",
        lb.Error,
        'b: was made with rounding="dither"',
        lambda: lb.matmul(A, lb.quantize(numbers(6, 5), "int4", rounding="dither", key=1)),
    ),
    (
        "inner axis",
        lb.Error,
        r"b: its scales change along axis 0, which is summed.*axis 1",
        lambda: lb.matmul(A, lb.quantize(numbers(6, 5), "int4", axis=0)),
    ),
    (
        "wrong blocks",
        lb.Error,
        "b: its scales change along axis 0",
        lambda: lb.matmul(A, lb.quantize(numbers(6, 5), "mxfp4")),
    ),
    (
        "blocks apart",
        lb.Error,
        "b: its blocks of 3 and a's of 2 do not fit",
        lambda: lb.matmul(
            lb.quantize(numbers(4, 6), "int4", block_size=2), lb.quantize(numbers(6, 5), "int4", axis=0, block_size=3)
        ),
    ),
    (
        "leading",
        lb.Error,
        "b: leading dimensions",
        lambda: lb.matmul(lb.quantize(numbers(2, 4, 6), "int4"), lb.quantize(numbers(3, 6, 5), "int4")),
    ),
    ("flag", TypeError, "transpose_b: expected a bool", lambda: lb.matmul(A, B, transpose_b=1)),  # type: ignore[arg-type]
    ("out shape", lb.Error, r"out: has shape \[5, 4\]", lambda: lb.matmul(A, B, out=np.empty((5, 4), np.float32))),
    ("out dtype", TypeError, "out: has dtype float64", lambda: lb.matmul(A, B, out=np.empty((4, 5)))),  # type: ignore[arg-type]
    ("out list", TypeError, "out: expected a numpy.ndarray", lambda: lb.matmul(A, B, out=[])),  # type: ignore[arg-type]
    (
        "out itself",
        lb.Error,
        "out: elements share memory",
        lambda: lb.matmul(
            A,
            B,
            out=np.broadcast_to(np.zeros(5, np.float32), (4, 5)).copy()[:1].repeat(4, 0)[::1]
            if False
            else np.lib.stride_tricks.as_strided(np.zeros(5, np.float32), (4, 5), (0, 4)),
        ),
    ),
]


@pytest.mark.parametrize(("error", "message", "call"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_arguments(error: type[Exception], message: str, call: Any) -> None:
    with pytest.raises(error, match=message):
        call()


def test_out_does_not_share_memory_with_codes() -> None:
    memory = np.zeros(100, np.float32)
    codes = memory.view(np.uint8)[:12]
    a = lb.Quantized(codes, 1.0, None, None, "int4", (4, 6), None, None, None)
    with pytest.raises(lb.Error, match="out: overlaps a in memory"):
        lb.matmul(a, B, out=memory[:20].reshape(4, 5))


def test_formats_multiply_or_say_why(name: str) -> None:
    """Whatever the registry and the factories make."""
    fmt = lb.get_format(name)
    if not fmt.coded:
        return
    a, ra = both(numbers(3, 64), name)
    b, rb = both(numbers(5, 64), name)
    values = fmt.values.astype(np.float64) / fmt.smallest
    whole = bool((values == np.rint(values)).all() and abs(values).max() <= 32639 and np.frexp(fmt.smallest)[0] == 0.5)
    if whole and fmt.bits <= 8 and a.offset is None and name not in NOT_FINITE:
        assert_same(lb.matmul(a, b, transpose_b=True), reference.matmul(ra, rb, transpose_b=True))
    else:
        with pytest.raises(lb.Error, match=r"^a: .* cannot be multiplied"):
            lb.matmul(a, b, transpose_b=True)


#: Some codes are no numbers.
NOT_FINITE = {
    name
    for name in FORMATS
    if lb.get_format(name).coded
    and lb.get_format(name).bits <= 8
    and not np.isfinite(lb.get_format(name).decode_table).all()
}


def test_the_core_multiplies_raw_codes(level: str) -> None:
    a, b = lb.quantize(numbers(6, 9), "radix4", scale=0.25), lb.quantize(numbers(7, 6), "int4", scale=0.25)
    exact = (np.asarray(a) * 4).T.astype(np.float64) @ (np.asarray(b) * 4).T.astype(np.float64)
    out = np.empty((9, 7), np.float32)
    _core.code_product(a.packed, "radix4", 6, 9, True, b.packed, b.format, 7, 6, True, out)
    assert_same(out, exact.astype(np.float32))
    _core.code_product(a.packed, "radix4", 6, 9, True, b.packed, b.format, 7, 6, True, out, 0.1)
    assert_same(out, exact.astype(np.float32) * np.float32(0.1))
    with pytest.raises(lb.Error, match="a: 1 x 9 x 6 codes of 4 bits take 27 bytes, but there are 26"):
        _core.code_product(a.packed[:-1], "radix4", 6, 9, True, b.packed, "int4", 7, 6, True, out)
    with pytest.raises(lb.Error, match="out: expected a contiguous array"):
        _core.code_product(a.packed, "radix4", 6, 9, True, b.packed, "int4", 7, 6, True, np.empty((7, 9), np.float32).T)


def test_the_package_says_which_kernel_it_uses(level: str) -> None:
    kernel = _core.matmul_kernel()
    assert (
        kernel
        in {
            "portable": {"portable", "neon"},
            "v3": {"avx2", "avx-vnni"},
            "v4": {"avx2", "avx-vnni", "avx512-vnni", "amx"},
        }[level]
    )
    shown = subprocess.run(
        [sys.executable, "-m", "lowbit"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "LOWBIT_CPU": level},
    )
    assert f"products of codes: {kernel} of" in shown.stdout
