"""The compiled core: one function per operation. Use ``lowbit``; these signatures may change."""

from collections.abc import Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

__version__: str
STREAM_VERSION: int

class Error(ValueError):
    """A bad argument; the message names it and says what would work."""

class DecodeError(Error):
    """Bytes that are not what they claim to be."""

@final
class Format:
    """A number format; `lowbit.get_format` gives one by name."""

    @property
    def name(self) -> str:
        """The name users give."""

    @property
    def bits(self) -> int:
        """Bits per code."""

    @property
    def coded(self) -> bool:
        """Whether its numbers have codes and can be stored: at most 16 bits, and bounds."""

    @property
    def scale_format(self) -> str | None:
        """The format of the scales, ``"e8m0"`` or ``"e4m3"``; None where they are float32."""

    @property
    def values(self) -> NDArray[np.float32]:
        """The distinct values that rounding gives, ascending."""

    @property
    def decode_table(self) -> NDArray[np.float32]:
        """The value of every code: ``2**bits`` entries."""

    @property
    def max(self) -> float:
        """The largest value."""

    @property
    def smallest(self) -> float:
        """The smallest positive value."""

    @property
    def signed(self) -> bool:
        """Whether there are negative values."""

    @property
    def uniform(self) -> bool:
        """Whether the steps are equal: what offsets and dither need."""

    @property
    def reference(self) -> float:
        """The value that the rule ``"amax"`` scales the largest magnitude to."""

    @property
    def default_scale(self) -> str:
        """The rule that ``scale=None`` means."""

    @property
    def default_block(self) -> int | None:
        """The block size that ``block_size=None`` means."""

    @property
    def scale_rules(self) -> list[str]:
        """The scale rules it can use."""

    @property
    def source(self) -> str:
        """Where it is defined."""

def formats() -> list[str]:
    """Return the names of the registered formats, in order."""

def get_format(format: str | Format) -> Format:
    """Return the format of this name.

    Raises
    ------
    lowbit.Error
        There is none; the message lists those there are.
    """

def int_format(bits: int, symmetric: bool, signed: bool) -> Format: ...
def radix_format(base: int, exponent_bits: int, zero: bool) -> Format: ...
def float_format(
    exponent_bits: int, mantissa_bits: int, bias: int | None, inf_nan: str, subnormals: bool
) -> Format: ...
def cfloat8(exponent_bits: int, bias: int) -> Format: ...
def cfloat16_shp(bias: int) -> Format: ...
def cfloat16_uhp(reserved: bool) -> Format: ...
def fixed_point(bits: int, fraction_bits: int, symmetric: bool, clamp: bool) -> Format: ...
def log_grid(zeta: float, delta: float, bits: int) -> Format: ...
def table_format(values: Sequence[float]) -> Format: ...
def block_float(bits: int) -> Format: ...
def block_format(element: str | Format, scale_format: str, block_size: int | None) -> Format: ...
def cpu_levels() -> list[str]: ...
def cpu_level() -> str: ...
def set_cpu_level(name: str) -> None: ...
def get_num_threads() -> int:
    """Return how many threads a call may use."""

def set_num_threads(n: int) -> None:
    """Set how many threads a call may use, 1 to 1024; results never depend on it."""

def random_bits(k0: int, k1: int, n: int, start: int) -> NDArray[np.uint32]: ...
def fake_quantize(
    x: NDArray[Any],
    format: str | Format,
    scale: str | NDArray[Any] | None,
    offset: NDArray[Any] | None,
    tensor_scale: float | None,
    axis: int | None,
    block_size: int | None,
    rounding: str,
    key: tuple[int, int] | None,
    out: NDArray[Any] | None,
) -> NDArray[Any]: ...
def quantize(
    x: NDArray[Any],
    format: str | Format,
    scale: str | NDArray[Any] | None,
    offset: NDArray[Any] | None,
    tensor_scale: float | None,
    axis: int | None,
    block_size: int | None,
    rounding: str,
    key: tuple[int, int] | None,
    out: NDArray[np.uint8] | None,
) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[np.float32] | None, float | None]: ...
def dequantize(
    packed: NDArray[np.uint8],
    format: str | Format,
    shape: Sequence[int],
    scale: NDArray[Any],
    offset: NDArray[np.float32] | None,
    tensor_scale: float | None,
    axis: int | None,
    block_size: int | None,
    key: tuple[int, int] | None,
    dtype: np.dtype[Any],
    out: NDArray[Any] | None,
) -> NDArray[Any]: ...
def scale_codes(format: str | Format, scale: NDArray[np.float32]) -> NDArray[np.uint8]: ...
def scale_values(format: str | Format, codes: NDArray[np.uint8]) -> NDArray[np.float32]: ...
def pack(codes: NDArray[Any], bits: int) -> NDArray[np.uint8]: ...
def pack_three(codes: NDArray[Any]) -> NDArray[np.uint8]: ...
def unpack_three(packed: NDArray[np.uint8], n: int) -> NDArray[np.uint8]: ...
def clip_bits(x: NDArray[Any], low: float, high: float) -> tuple[NDArray[np.uint8], int]: ...
def keep_inside(y: NDArray[np.float32], x: NDArray[Any], low: float, high: float, factor: float) -> None: ...
def take_outside(y: NDArray[np.float32], bits: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...
def unpack(packed: NDArray[np.uint8], bits: int, n: int) -> NDArray[Any]: ...
def qtorch_float(x: NDArray[Any], exp: int, man: int, key: tuple[int, int] | None) -> NDArray[Any]: ...
def qtorch_fixed(
    x: NDArray[Any], wl: int, fl: int, clamp: bool, symmetric: bool, key: tuple[int, int] | None
) -> NDArray[Any]: ...
def qtorch_block(x: NDArray[Any], wl: int, dim: int, key: tuple[int, int] | None) -> NDArray[Any]: ...
def round_with_words(
    t: NDArray[np.float32], format: str | Format, words: NDArray[np.uint32]
) -> NDArray[np.float32]: ...
def quantized_check(
    packed: NDArray[np.uint8],
    scale: NDArray[Any],
    offset: NDArray[np.float32] | None,
    tensor_scale: float | None,
    format: str | Format,
    shape: Sequence[int],
    axis: int | None,
    block_size: int | None,
    key_id: bytes | None,
) -> int | None: ...
def read_only(
    packed: NDArray[np.uint8], scale: NDArray[Any], offset: NDArray[np.float32] | None
) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[np.float32] | None]: ...
def quantized_to_bytes(
    packed: NDArray[np.uint8],
    scale: NDArray[Any],
    offset: NDArray[np.float32] | None,
    tensor_scale: float | None,
    format: str | Format,
    shape: Sequence[int],
    axis: int | None,
    block_size: int | None,
    key_id: bytes | None,
) -> bytes: ...
def quantized_from_bytes(
    data: bytes,
) -> tuple[
    NDArray[np.uint8],
    NDArray[Any],
    NDArray[np.float32] | None,
    float | None,
    Format,
    Sequence[int],
    int | None,
    int | None,
    bytes | None,
]: ...

_Matrices = tuple[NDArray[np.uint8], str | Format, tuple[int, ...], bool, list[int], NDArray[np.float32]]

def code_product(
    a_packed: NDArray[np.uint8],
    a_format: str | Format,
    a_rows: int,
    a_cols: int,
    a_transposed: bool,
    b_packed: NDArray[np.uint8],
    b_format: str | Format,
    b_rows: int,
    b_cols: int,
    b_transposed: bool,
    out: NDArray[np.float32],
    scale: float | None = None,
) -> None: ...
def code_convolution(
    which: str,
    a_packed: NDArray[np.uint8],
    a_format: str | Format,
    a_shape: Sequence[int],
    b_packed: NDArray[np.uint8],
    b_format: str | Format,
    b_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    out: NDArray[np.float32],
) -> None: ...
def matmul(
    a: _Matrices, b: _Matrices, block_size: int | None, shape: Sequence[int], out: NDArray[np.float32] | None
) -> NDArray[np.float32]: ...
def matmul_kernel() -> str: ...
def matmul_kernels() -> list[str]: ...
def amx_is_refused() -> bool: ...
def hadamard_transform(x: NDArray[Any], out: NDArray[Any] | None) -> NDArray[np.float32]: ...
def randomized_hadamard_transform(
    x: NDArray[Any], words: tuple[int, int], rounds: int, inverse: bool, out: NDArray[Any] | None
) -> NDArray[np.float32]: ...
def onebit_noise(scheme: str, shared_bits: int | None) -> tuple[bool, bool]: ...
def onebit_pairs(scheme: str, shared_bits: int | None) -> list[tuple[float, float]] | None: ...
def onebit_encode(
    x: NDArray[Any],
    scheme: tuple[str, int | None],
    words: tuple[int, int] | None,
    sender: int,
    interval: tuple[float, float],
) -> NDArray[np.uint8]: ...
def onebit_decode(
    bits: NDArray[np.uint8],
    n: int,
    scheme: tuple[str, int | None],
    words: tuple[int, int] | None,
    sender: int,
    interval: tuple[float, float],
) -> NDArray[np.float32]: ...
def codec_check(codec: tuple[int, bytes]) -> bool: ...
def entropy_step(bits: float) -> float: ...
def float32(value: float) -> float: ...
def message_encode(
    codec: tuple[int, bytes],
    arrays: Sequence[tuple[str | None, NDArray[Any], bool]],
    mapping: bool,
    words: tuple[int, int] | None,
    sender: int,
) -> bytes: ...
def message_decode(
    data: bytes, words: tuple[int, int] | None, max_elements: int, out: NDArray[Any] | None
) -> tuple[bool, list[tuple[str, NDArray[Any]]]]: ...
def message_mean(
    messages: Sequence[bytes],
    words: tuple[int, int] | None,
    weights: Sequence[float] | None,
    max_elements: int,
    out: NDArray[Any] | None,
) -> tuple[bool, list[tuple[str, NDArray[Any]]]]: ...
def message_describe(
    data: bytes,
) -> tuple[
    int,
    tuple[int, int],
    int,
    bytes,
    int,
    Sequence[int],
    int,
    int,
    list[tuple[str, Sequence[int], str, bool]],
]: ...

@final
class MessageMean:
    def __new__(cls, words: tuple[int, int] | None, max_elements: int) -> MessageMean: ...
    def add(self, data: bytes, weight: float) -> None: ...
    def result(self) -> tuple[bool, list[tuple[str, NDArray[Any]]]]: ...
    @property
    def count(self) -> int: ...

def summable_norms(x: NDArray[Any], parameters: bytes) -> NDArray[np.float32]: ...
def summable_integers(
    x: NDArray[Any], parameters: bytes, norms: NDArray[np.float32], words: tuple[int, int] | None, sender: int
) -> NDArray[np.uint8]: ...
def summable_decode(
    total: NDArray[np.int64],
    parameters: bytes,
    norms: NDArray[np.float32],
    shape: Sequence[int],
    words: tuple[int, int] | None,
    senders: Sequence[int],
) -> NDArray[np.float32]: ...
def convex_derivatives(loss: str, t: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]: ...
def convex_float(
    x: NDArray[Any],
    z: NDArray[Any],
    g: NDArray[Any],
    rows: tuple[str, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    rates: tuple[float, float],
    grid: tuple[float, float, float, bool] | None,
    draws: tuple[int, int],
    rounding: tuple[int, int],
    first: int,
    steps: int,
) -> NDArray[Any]: ...
def convex_integer(
    x: NDArray[Any],
    z: NDArray[Any],
    g: tuple[NDArray[np.int16], NDArray[np.int16]],
    rows: tuple[str, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    rates: tuple[float, float],
    row_scales: NDArray[np.float64],
    grid: tuple[float, int],
    draws: tuple[int, int],
    rounding: tuple[int, int],
    first: int,
    steps: int,
) -> NDArray[Any]: ...
def sgd_step(
    tensors: Sequence[tuple[int, NDArray[np.uint16], NDArray[Any], Sequence[NDArray[Any]]]],
    key: tuple[int, int],
    labels: Sequence[tuple[int, int]],
    nearest: bool,
    numbers: Sequence[float],
    nesterov: bool,
) -> None: ...
def adam_step(
    tensors: Sequence[tuple[int, NDArray[np.uint16], NDArray[Any], Sequence[NDArray[Any]]]],
    key: tuple[int, int],
    labels: Sequence[tuple[int, int]],
    nearest: bool,
    numbers: Sequence[float],
) -> None: ...
