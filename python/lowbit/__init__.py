"""Numbers below a byte: compute with 4 bits, send a real number in one."""

from lowbit import onebit
from lowbit._core import (
    DecodeError,
    Error,
    Format,
    __version__,
    formats,
    get_format,
)
from lowbit._files import load, save
from lowbit._hadamard import hadamard_transform, randomized_hadamard_transform
from lowbit._keys import Key, random_bits
from lowbit._quant import dequantize, fake_quantize, pack, quantize, unpack
from lowbit._quantized import Quantized
from lowbit._threads import get_num_threads, set_num_threads

__all__ = [
    "DecodeError",
    "Error",
    "Format",
    "Key",
    "Quantized",
    "__version__",
    "dequantize",
    "fake_quantize",
    "formats",
    "get_format",
    "get_num_threads",
    "hadamard_transform",
    "load",
    "onebit",
    "pack",
    "quantize",
    "random_bits",
    "randomized_hadamard_transform",
    "save",
    "set_num_threads",
    "unpack",
]
