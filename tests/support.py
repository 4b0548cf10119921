"""What the tests share: bit-exact comparison, wild inputs, and every way to run a call."""

from __future__ import annotations

import ctypes
import itertools
import platform
import re
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import lowbit as lb
from lowbit import _core, reference

GOLDEN = Path(__file__).parent / "golden"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64)]
LEVELS = {"x86_64": ["portable", "v3", "v4"], "AMD64": ["portable", "v3", "v4"]}.get(platform.machine(), ["portable"])
KEY = lb.Key(1234)
SIZES = [0, 1, 2, 1023, 1024, 1025, 16383, 16384, 16385, 300007]

#: One or a few of every factory's formats: beside the registered ones they stand for all that can be made.
EXAMPLES = [
    "int3",
    "uint2",
    "int5_symmetric",
    "radix(2,3)",
    "radix(8,3)",
    "radix(4,3,nozero)",
    "radix(4,2)",
    "float(3,4,bias=5)",
    "float(5,4,fn,ftz)",
    "float(8,14,ieee)",
    "cfloat8(4,31)",
    "cfloat8(5,0)",
    "cfloat16(shp,15)",
    "cfloat16(uhp)",
    "fixed(8,4)",
    "fixed(12,6,symmetric)",
    "fixed(8,4,unbounded)",
    "log(4,0.5,0.05)",
    "log(8,0.125,0.001)",
    "bfp(8)",
    "block(int4_symmetric,e8m0,32)",
    "table(-1,-0.25,0,0.25,1)",
]
FORMATS = lb.formats() + EXAMPLES


def slug(name: str) -> str:
    """The name of a format as a part of a file's name."""
    return name.replace("(", "-").replace(",", "_").removesuffix(")")


CODED = [name for name in FORMATS if lb.get_format(name).coded]
#: Every rule that some format has.
RULES = sorted({rule for name in FORMATS for rule in lb.get_format(name).scale_rules})

levels_tested: set[str] = set()
not_tested: dict[str, str] = {}


def bits(a: Any) -> np.ndarray:
    """The integers that an array's floats are made of, so that -0.0 and NaN compare too."""
    a = np.ascontiguousarray(a)
    return a.view(f"u{a.dtype.itemsize}").reshape(a.shape) if a.dtype.kind not in "ui" else a


def assert_same(got: Any, want: Any, what: object = "") -> None:
    """Same dtype, same shape, same bits."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype, f"{what}: dtype {got.dtype}, wanted {want.dtype}"
    assert got.shape == want.shape, f"{what}: shape {got.shape}, wanted {want.shape}"
    wrong = np.flatnonzero((bits(got) != bits(want)).ravel())
    if wrong.size:
        i = int(wrong[0])
        raise AssertionError(
            f"{what}: {wrong.size} of {got.size} differ, first at {i}: {got.flat[i]!r} ({int(bits(got).flat[i]):#x}), "
            f"wanted {want.flat[i]!r} ({int(bits(want).flat[i]):#x})"
        )


def runs(size: int) -> Iterator[str]:
    """Set up every CPU level of this machine, and 1, 2 and 7 threads where the size can use them."""
    before = _core.cpu_level(), lb.get_num_threads()
    try:
        for level, threads in itertools.product(_core.cpu_levels(), (1, 2, 7) if size > 4096 else (1,)):
            _core.set_cpu_level(level)
            lb.set_num_threads(threads)
            levels_tested.add(level)
            yield f"{level}, {threads} threads"
    finally:
        _core.set_cpu_level(before[0])
        lb.set_num_threads(before[1])


def check(x: np.ndarray, name: str, **options: Any) -> None:
    """Hold `fake_quantize`, `quantize` and `dequantize` against the reference, bit for bit, in every run."""
    options = fit(name, **options)
    want, codes, refused = reference.fake_quantize(x, name, **options), None, "codes|coded"
    if lb.get_format(name).coded:
        try:
            codes = reference.quantize(x, name, **options)
        except ValueError as error:
            refused = re.search(r"spans|(?<=element )\d+", str(error))[0]
    key = {"key": options["key"]} if options.get("rounding") == "dither" else {}
    for run in runs(x.size):
        what = f"{name} {x.dtype} {x.shape} {options} {run}"
        assert_same(lb.fake_quantize(x, name, **options), want, what)
        if codes is None:
            with pytest.raises(lb.Error) as caught:
                lb.quantize(x, name, **options)
            assert re.search(rf"\b({refused})\b", str(caught.value)), f"{what}: {caught.value} does not name {refused}"
            continue
        q = lb.quantize(x, name, **options)
        for field in ("scale", "offset", "scale_codes", "tensor_scale", "codes"):
            got, wanted = getattr(q, field), getattr(codes, field)
            assert (got is None) == (wanted is None), f"{field} of {what}"
            if wanted is not None:
                assert_same(got, wanted, f"{field} of {what}")
        assert_same(q.packed, reference.pack(codes.codes, lb.get_format(name).bits), f"packed of {what}")
        assert_same(lb.dequantize(q, dtype=x.dtype.newbyteorder("="), **key), want, f"dequantize of {what}")


def allowed(name: str, scale: Any) -> np.ndarray:
    """Numbers near these that the format takes as scales, in float32."""
    scale = np.asarray(scale, np.float32)
    scale_format = lb.get_format(name).scale_format
    if scale_format == "e8m0":
        return np.ldexp(np.float32(1), np.frexp(scale)[1] - 1).astype(np.float32)
    if scale_format == "e4m3":
        return np.clip(scale, 2.0**-9, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return scale


def fit(name: str, **options: Any) -> dict[str, Any]:
    """The options nearest to these that the format takes: block formats have a block and a format of scales."""
    record = lb.get_format(name)
    if record.scale_format:
        if options.get("scale") is not None and not isinstance(options["scale"], str):
            options["scale"] = allowed(name, options["scale"])
        if options.get("block_size") is not None and record.default_block:
            options["block_size"] = record.default_block
    return options


def groups(
    name: str,
    shape: tuple[int, ...],
    axis: int | None = None,
    block_size: int | None = None,
    scale: str | None = None,
) -> tuple[int, ...]:
    """The shape of the scales that a rule of the format gives, by the words of the documentation."""
    record = lb.get_format(name)
    if shape and block_size is None and (axis is None or record.scale_format):
        block_size = record.default_block
    if saturates(name, scale) or (axis is None and block_size is None):
        return (1,) * len(shape)
    axis = (-1 if axis is None else axis) % len(shape)
    if block_size is None:
        return tuple(n if i == axis else 1 for i, n in enumerate(shape))
    return tuple(-(-n // block_size) if i == axis else n for i, n in enumerate(shape))


def saturates(name: str, scale: str | None = None) -> bool:
    """Whether the rule looks at no data, so that infinities saturate."""
    return (lb.get_format(name).default_scale if scale is None else scale) == "one"


def roundings(name: str) -> list[dict[str, Any]]:
    """The options of every rounding that the format has."""
    dither = [{"rounding": "dither", "key": KEY}] if lb.get_format(name).uniform else []
    return [{}, {"rounding": "stochastic", "key": KEY}, *dither]


def scalings(name: str) -> list[dict[str, Any]]:
    """The options of every scale rule that the format has, and given scales with and without an offset."""
    record = lb.get_format(name)
    rules = [{"scale": rule} for rule in record.scale_rules]
    affine = [{"scale": 0.21, "offset": -1.3}] if record.uniform else []
    return [{}, *rules, {"scale": 1.0}, {"scale": allowed(name, 0.37)}, *affine]


def float32(pattern: Any) -> np.ndarray:
    """The floats of these 32-bit patterns."""
    return np.asarray(pattern, np.uint32).view(np.float32)


def cast(x: np.ndarray, dtype: Any) -> np.ndarray:
    """`x` in another dtype, infinite where it is too large, without NumPy's warnings."""
    with np.errstate(all="ignore"):
        return x.astype(dtype)


def wild(n: int, seed: int = 0) -> np.ndarray:
    """Any 32 bits: NaN of every payload, infinities, -0.0, subnormals, all magnitudes."""
    x = np.random.default_rng([seed, n]).integers(0, 2**32, n, np.uint32).view(np.float32).copy()
    special = float32([0x7F800000, 0xFF800000, 0x7F800001, 0xFFC12345, 0x80000000, 0, 1, 0x807FFFFF, 0x7F7FFFFF])
    x[:: max(n // 40, 1)] = np.resize(special, x[:: max(n // 40, 1)].shape)
    return x


def finite(n: int, seed: int = 0) -> np.ndarray:
    """Any finite float32."""
    pattern = np.random.default_rng([seed, n]).integers(0, 0x7F800000, n, np.uint32)
    return float32(pattern | np.random.default_rng([seed, n, 1]).integers(0, 2, n, np.uint32) << 31)


def normal(n: int, seed: int = 0) -> np.ndarray:
    """Standard normal numbers."""
    return np.random.default_rng([seed, n]).standard_normal(n, np.float32)


def datasets(n: int) -> dict[str, np.ndarray]:
    """Arrays of n numbers that are hard in different ways."""
    x = normal(n)
    block = np.ldexp(x, (np.arange(n) // 7 * 37 % 270 - 150).astype(np.int32)).astype(np.float32)
    return {
        "normal": x,
        "wild": wild(n),
        "finite": finite(n),
        "tiny": (x * np.float32(2.0**-126)).astype(np.float32),
        "subnormal": (finite(n, 1) % np.float32(2.0**-140)).astype(np.float32),
        "huge": np.clip(x, -3, 3) * np.float32(1.1e38),
        "blocks of all magnitudes": block,
        "constant": np.full(n, 0.3, np.float32),
        "negative zero": np.full(n, -0.0, np.float32),
    }


def around(values: Any, ulps: int = 1) -> np.ndarray:
    """Float32 values, their neighbours up to `ulps` away, and the negatives of all."""
    near = [np.asarray(values, np.float32)]
    for _ in range(ulps):
        with np.errstate(over="ignore"):
            near = [np.nextafter(near[0], np.float32(-np.inf)), *near, np.nextafter(near[-1], np.float32(np.inf))]
    return np.concatenate([*near, *(-each for each in near)])


def values_of(name: str, most: int = 600) -> np.ndarray:
    """The values of a format, as float64; without codes: what the reference rounds some numbers to.

    Of more than `most`: pairs of neighbours everywhere, and all near zero and the ends.
    """
    record = lb.get_format(name)
    if not record.coded:
        end = min(record.max, 2.0**26)
        some = np.concatenate([np.linspace(-4, 4, 101), end * np.linspace(-1, 1, 21), [record.smallest]])
        return np.unique(reference.get_format(name).nearest(around(some))).astype(np.float64)
    values = record.values.astype(np.float64)
    if values.size <= most:
        return values
    pairs, middle = np.linspace(0, values.size - 2, most // 2).astype(int), int(np.searchsorted(values, 0))
    index = [pairs, pairs + 1, middle + np.arange(-20, 21), np.arange(20), values.size - 1 - np.arange(20)]
    return values[np.unique(np.clip(np.concatenate(index), 0, values.size - 1))]


def critical(name: str) -> np.ndarray:
    """Values (see `values_of`), their midpoints and quarters, +-2 ulp in t; and what lies outside."""
    values = values_of(name)
    between = [values[:-1] + f * np.diff(values) for f in (0.25, 0.5, 0.625, 0.75)]
    with np.errstate(over="ignore"):
        past = (values.max() * np.array([1.25, 2])).astype(np.float32)
        outside = np.array([0, 2.0**-149, 2.0**-126, *past, 1e30, 3.4028235e38, np.inf])
        return around(np.concatenate([values, *between, outside]).astype(np.float32), 2)


def on_flushing_thread(call: Callable[[], Any]) -> Any:
    """Run `call` on a thread whose float state flushes subnormals; None, and a note, where nothing can set that."""
    # (offset in glibc's fenv_t, bits to set): MXCSR's FTZ and DAZ, or FPCR's FZ.
    place = {"x86_64": (28, 0x8040), "aarch64": (0, 1 << 24)}.get(platform.machine())
    if place is None or sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        not_tested["flushed subnormals"] = f"no known way on {sys.platform} {platform.machine()}"
        return None
    libm, outcome = ctypes.CDLL("libm.so.6"), []

    def target() -> None:
        old, new = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)
        libm.fegetenv(old)
        new.raw = old.raw
        word = struct.unpack_from("<I", old.raw, place[0])[0] | place[1]
        struct.pack_into("<I", new, place[0], word)
        tiny = np.array([1e-40, -1e-45], np.float32)
        libm.fesetenv(new)
        try:
            flushed = tiny * np.float32(1)
            outcome.append((flushed, call()))
        except BaseException as error:
            outcome.append((None, error))
        finally:
            libm.fesetenv(old)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    flushed, result = outcome[0]
    if isinstance(result, BaseException):
        raise result
    assert not flushed.any(), "the thread was meant to flush subnormals"
    return result
