"""Quantized arrays in the layouts of other tools, and back: ONNX, GGUF, bitsandbytes, ml_dtypes.

``to_x(q)`` gives the parts that tool x keeps, ``from_x(*parts)`` reads them: codes and scales are moved, never rounded
again. What a tool's layout cannot hold is a ``lowbit.Error`` that says why. None of the tools needs to be installed,
but ml_dtypes for its own arrays. ``docs/interop.md`` has the byte layouts in one table.
"""

from lowbit.interop._bitsandbytes import BitsAndBytesTensor, from_bitsandbytes, to_bitsandbytes
from lowbit.interop._gguf import GgufType, from_gguf, to_gguf
from lowbit.interop._ml_dtypes import MlDtypesArray, from_ml_dtypes, to_ml_dtypes
from lowbit.interop._onnx import OnnxTensor, from_onnx, to_onnx

__all__ = [
    "BitsAndBytesTensor",
    "GgufType",
    "MlDtypesArray",
    "OnnxTensor",
    "from_bitsandbytes",
    "from_gguf",
    "from_ml_dtypes",
    "from_onnx",
    "to_bitsandbytes",
    "to_gguf",
    "to_ml_dtypes",
    "to_onnx",
]
