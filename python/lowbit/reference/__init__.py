"""The same functions in slow, obvious NumPy: the specification in code, and the oracle of the tests.

Every function returns the very bits that its namesake in ``lowbit`` returns, on any input; only speed, the checks of
arguments and the containers differ. Arithmetic is float32 in the order written, unless float64 is named.
"""

from lowbit.reference.codecs import Dither, Float32, OneBit, Packed, Qsgd, Sign, TernGrad
from lowbit.reference.eden import Eden
from lowbit.reference.formats import Grid
from lowbit.reference.hadamard import (
    blocks,
    butterflies,
    hadamard_transform,
    randomized_hadamard_transform,
    rotate,
)
from lowbit.reference.messages import decode_mean, decode_message, encode_message
from lowbit.reference.names import FORMATS, get_format
from lowbit.reference.onebit import onebit_decode, onebit_encode
from lowbit.reference.products import matmul
from lowbit.reference.quantizers import (
    Options,
    Quantized,
    dequantize,
    dither,
    fake_quantize,
    pack,
    quantize,
    unpack,
)
from lowbit.reference.rotated import DrivePlus, QuicFl, Summable
from lowbit.reference.scales import Scales, ordered_sum, scales
from lowbit.reference.stream import HasWords, fold, key_words, mix, random_bits

__all__ = [
    "FORMATS",
    "Dither",
    "DrivePlus",
    "Eden",
    "Float32",
    "Grid",
    "HasWords",
    "OneBit",
    "Options",
    "Packed",
    "Qsgd",
    "Quantized",
    "QuicFl",
    "Scales",
    "Sign",
    "Summable",
    "TernGrad",
    "blocks",
    "butterflies",
    "decode_mean",
    "decode_message",
    "dequantize",
    "dither",
    "encode_message",
    "fake_quantize",
    "fold",
    "get_format",
    "hadamard_transform",
    "key_words",
    "matmul",
    "mix",
    "onebit_decode",
    "onebit_encode",
    "ordered_sum",
    "pack",
    "quantize",
    "random_bits",
    "randomized_hadamard_transform",
    "rotate",
    "scales",
    "unpack",
]
