"""Numbers below a byte: compute with 4 bits, send a real number in one."""

from lowbit import convex, interop, onebit, plot, theory
from lowbit._codec import Codec
from lowbit._codecs import Dither, Float32, OneBit, Qsgd, Sign, TernGrad
from lowbit._compare import Comparison, compare
from lowbit._core import (
    DecodeError,
    Error,
    Format,
    __version__,
    formats,
    get_format,
)
from lowbit._describe import Description, describe
from lowbit._factories import (
    block_float,
    block_format,
    cfloat8,
    cfloat16,
    fixed_point,
    float_format,
    int_format,
    log_grid,
    radix_format,
    table_format,
)
from lowbit._feedback import ErrorFeedback
from lowbit._files import load, save
from lowbit._hadamard import hadamard_transform, randomized_hadamard_transform
from lowbit._keys import Key, random_bits
from lowbit._matmul import matmul
from lowbit._messages import Mean, decode, decode_mean, encode
from lowbit._packed import Packed
from lowbit._quant import dequantize, fake_quantize, pack, quantize, unpack
from lowbit._quantized import Quantized
from lowbit._rotating import Drive, DrivePlus, Eden, QuicFl
from lowbit._summable import Summable
from lowbit._threads import get_num_threads, set_num_threads

__all__ = [
    "Codec",
    "Comparison",
    "DecodeError",
    "Description",
    "Dither",
    "Drive",
    "DrivePlus",
    "Eden",
    "Error",
    "ErrorFeedback",
    "Float32",
    "Format",
    "Key",
    "Mean",
    "OneBit",
    "Packed",
    "Qsgd",
    "Quantized",
    "QuicFl",
    "Sign",
    "Summable",
    "TernGrad",
    "__version__",
    "block_float",
    "block_format",
    "cfloat8",
    "cfloat16",
    "compare",
    "convex",
    "decode",
    "decode_mean",
    "dequantize",
    "describe",
    "encode",
    "fake_quantize",
    "fixed_point",
    "float_format",
    "formats",
    "get_format",
    "get_num_threads",
    "hadamard_transform",
    "int_format",
    "interop",
    "load",
    "log_grid",
    "matmul",
    "onebit",
    "pack",
    "plot",
    "quantize",
    "radix_format",
    "random_bits",
    "randomized_hadamard_transform",
    "save",
    "set_num_threads",
    "table_format",
    "theory",
    "unpack",
]
